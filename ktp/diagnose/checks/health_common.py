"""Whether a load balancer is kept off nodes without endpoints, as externalTrafficPolicy Local means it to be."""

from __future__ import annotations

from ktp.diagnose.case import Case
from ktp.diagnose.checks import ktp603_health_check_blocked
from ktp.model.cluster import Service

# K3s' ServiceLB runs a pod on every node that forwards to the node port and asks no health check
# (k3s, pkg/cloudprovider/servicelb.go, labels svcNameLabel and svcNamespaceLabel).
_SERVICELB_NAME = "svccontroller.k3s.cattle.io/svcname"
_SERVICELB_NAMESPACE = "svccontroller.k3s.cattle.io/svcnamespace"


def has_health_check(service: Service) -> bool:
    """Whether the API server has given the Service a port by which balancers learn which nodes hold an endpoint."""
    return (
        service.type == "LoadBalancer"
        and service.external_traffic_policy == "Local"
        and service.health_check_node_port > 0
    )


def is_kept_off(case: Case, node: str) -> bool:
    """Whether nothing is known that would keep a balancer from learning that this node holds no endpoint.

    It asks the Service's healthCheckNodePort, and that is not stopped on the node. A balancer that asks nobody is none.
    """
    if not has_health_check(case.service) or _is_servicelb(case):
        return False
    if case.unhealthy is None:
        case.unhealthy = frozenset(
            f.node for f in ktp603_health_check_blocked.run(case) if f.node is not None
        )
    return node not in case.unhealthy


def _is_servicelb(case: Case) -> bool:
    service = case.service
    return any(
        pod.labels.get(_SERVICELB_NAME) == service.name
        and pod.labels.get(_SERVICELB_NAMESPACE, service.namespace) == service.namespace
        for pod in case.snapshot.cluster.pods or ()
    )
