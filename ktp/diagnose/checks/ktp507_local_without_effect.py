"""externalTrafficPolicy is Local on a Service whose load balancer talks to the pods directly.

# What it means
An annotation makes the load balancer send traffic to the pods' own addresses. Such traffic passes no node port.

# Why traffic fails
It does not, by this. kube-proxy's rules for node ports and load-balancer IP, and with them externalTrafficPolicy, have
no part in this traffic: Local neither keeps the client's address nor spares a hop. It still drops what is sent to node
ports of nodes without pods, should anybody dial them, and healthCheckNodePort is not what the balancer asks.

# Evidence
The annotation and the policy.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.metadata.annotations} {.spec.externalTrafficPolicy}'

# Fix
Use Cluster, which drops nowhere; whether the client's address is kept is a setting of the load balancer (target type,
preserve_client_ip, proxy protocol).

# Example
aws-load-balancer-nlb-target-type: ip together with externalTrafficPolicy: Local.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.diagnose.checks.provider_annotations import direct_to_pods
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where the policy is Local and an annotation makes the balancer target pods."""
    service = case.service
    if service.type != "LoadBalancer" or service.external_traffic_policy != "Local":
        return
    found = direct_to_pods(service)
    if found is None:
        return
    key, value, provider = found
    yield CHECK.finding(
        f"externalTrafficPolicy Local has no effect on traffic of the load balancer of {service.key}: "
        f"{provider} sends it to the pods directly",
        evidence=[
            field(f"Service {service.key}", f"metadata.annotations: {key}={value}"),
            field(f"Service {service.key}", "spec.externalTrafficPolicy: Local"),
        ],
        fix=Fix(
            "set externalTrafficPolicy: Cluster",
            cost="none for the load balancer's traffic; clients of node ports are masqueraded",
            patch={"spec": {"externalTrafficPolicy": "Cluster"}},
        ),
    )


CHECK = Check("KTP507", "LocalWithoutEffect", Severity.INFO, run)
