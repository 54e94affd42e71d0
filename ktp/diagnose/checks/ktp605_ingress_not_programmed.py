"""kube-proxy does not program an address of the load balancer.

# What it means
status.loadBalancer.ingress lists a host name instead of an IP, an IP with ipMode Proxy, or an IP of a family that the
Service does not have. The nodes know nothing of such an address.

# Why traffic fails
It need not fail: clients reach the load balancer, which sends the traffic to node ports or pods. But pods and nodes
that dial the address leave the cluster and come back through the load balancer, which some do not allow, and
loadBalancerSourceRanges are not enforced by the nodes.

# Evidence
The field, and kube-proxy's version where it matters.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.status.loadBalancer.ingress}'

# Fix
None needed for clients outside. Inside, dial the Service's cluster IP or DNS name.

# Example
A load balancer with proxy protocol sets ipMode Proxy, so that connections of pods pass it too.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.model.diagnosis import Finding, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each address of the load balancer that the Service's first port has no front end for."""
    service = case.service
    for port in service.ports[:1]:
        for front_end in case.examiner.front_ends(service, port).unprogrammed:
            if front_end.kind is not FrontEndKind.LOAD_BALANCER:
                continue
            yield CHECK.finding(
                f"the nodes do not know {front_end.what}, the load balancer's address of {service.key}: "
                f"{front_end.reason}",
                evidence=[
                    field(
                        f"Service {service.key}",
                        "status.loadBalancer.ingress: "
                        + ", ".join(
                            f"{i.ip or i.hostname}" + (f" ipMode {i.ip_mode}" if i.ip_mode else "")
                            for i in service.ingress
                        ),
                    )
                ],
            )


CHECK = Check("KTP605", "IngressNotProgrammed", Severity.INFO, run)
