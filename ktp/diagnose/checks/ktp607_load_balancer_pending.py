"""The Service has no load-balancer address yet.

# What it means
spec.type is LoadBalancer and status.loadBalancer.ingress is empty: EXTERNAL-IP stays <pending>. No controller has taken
the Service, or the one that did could not make a load balancer.

# Why traffic fails
There is no address that clients could dial, apart from the node ports.

# Evidence
The Service's type, class and status.

# Confirm by hand
    kubectl describe svc -n NAMESPACE NAME          # events of the controller

# Fix
Look at the Service's events and at the log of the controller (cloud-controller-manager, MetalLB, kube-vip). On bare
metal one has to be installed; spec.loadBalancerClass must name one that runs.

# Example
A kubeadm cluster without any load balancer controller.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires on the fields alone."""
    service = case.service
    if service.type != "LoadBalancer" or service.ingress:
        return
    wanted = f"; spec.loadBalancerClass: {service.load_balancer_class}" if service.load_balancer_class else ""
    ports = ", ".join(str(p.node_port) for p in service.ports if p.node_port)
    yield CHECK.finding(
        f"{service.key} has no load-balancer address: no controller has given it one"
        + (f" (node ports: {ports})" if ports else ""),
        evidence=[
            field(
                f"Service {service.key}",
                f"spec.type: LoadBalancer{wanted}; status.loadBalancer.ingress: empty",
            )
        ],
        fixes=[
            Fix(
                summary="see the Service's events and the load balancer controller's log",
                cost="none",
                command=f"kubectl describe svc -n {service.namespace} {service.name}",
            )
        ],
    )


CHECK = Check(
    code="KTP607", name="LoadBalancerPending", severity=Severity.WARNING, page=__doc__ or "", run=run
)
