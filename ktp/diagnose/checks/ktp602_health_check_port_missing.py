"""A load-balancer Service with policy Local has no healthCheckNodePort.

# What it means
spec.type is LoadBalancer and externalTrafficPolicy Local, and spec.healthCheckNodePort is 0. The API server allocates
one by itself when a Service becomes such a one; objects that were written round it may lack it.

# Why traffic fails
The load balancer has no way to ask a node whether it holds a usable endpoint. It sends a share of the connections to
nodes that have none, and they time out there.

# Evidence
The Service's fields.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.healthCheckNodePort}'

# Fix
Change the policy to Cluster and back to Local: the API server allocates a port with it.

# Example
A Service restored from a backup that had removed all port numbers of the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires on the fields alone."""
    service = case.service
    if (
        service.type != "LoadBalancer"
        or service.external_traffic_policy != "Local"
        or service.health_check_node_port
    ):
        return
    yield CHECK.finding(
        f"{service.key} has policy Local and no healthCheckNodePort: a load balancer cannot tell which "
        f"nodes hold an endpoint",
        evidence=[
            field(
                f"Service {service.key}", "spec.healthCheckNodePort: none; spec.externalTrafficPolicy: Local"
            )
        ],
        fix=Fix(
            "set the policy to Cluster and back to Local, so that the API server allocates a port",
            cost="for a moment the pods see a node's address instead of the client's",
        ),
    )


CHECK = Check("KTP602", "HealthCheckPortMissing", Severity.WARNING, run)
