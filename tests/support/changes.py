"""Changes of a cluster that tests make, and no what-if."""

from __future__ import annotations

from dataclasses import replace

from ktp.kubeproxy.changes import _READY, _map_endpoints
from ktp.model.cluster import Cluster, Endpoint, EndpointSlice, Pod


def _is_endpoint_of(endpoint: Endpoint, pod: Pod) -> bool:
    """Whether an endpoint is that Pod: by its target, or by its address where it names none."""
    if endpoint.target_kind == "Pod" and endpoint.target_name:
        return (endpoint.target_namespace or pod.namespace, endpoint.target_name) == (pod.namespace, pod.name)
    return not pod.host_network and any(a in pod.pod_ips for a in endpoint.addresses)


def with_endpoint_ready(cluster: Cluster, service_key: str, endpoint: str, *, ready: bool = True) -> Cluster:
    """One endpoint of a Service, told by its address or its Pod's "namespace/name", ready (or not).

    With it its Pod's condition Ready, and so the endpoint in every other Service that selects the Pod.
    """
    pods = {pod.key: pod for pod in cluster.pods or ()}
    target = pods.get(endpoint)
    namespace, _, name = service_key.partition("/")

    def is_meant(one: EndpointSlice, e: Endpoint) -> bool:
        if endpoint in e.addresses or (
            e.target_kind == "Pod" and f"{e.target_namespace or one.namespace}/{e.target_name}" == endpoint
        ):
            return (one.namespace, one.service_name) == (namespace, name) or e.target_kind == "Pod"
        return target is not None and _is_endpoint_of(e, target)

    def change(one: EndpointSlice, e: Endpoint) -> Endpoint:
        if not is_meant(one, e):
            return e
        return replace(e, ready=ready, serving=ready, terminating=False)

    cluster = _map_endpoints(cluster, change)
    if cluster.pods is None:
        return cluster

    def change_pod(pod: Pod) -> Pod:
        if pod.key != endpoint and (pod.host_network or endpoint not in pod.pod_ips):
            return pod
        status = "True" if ready else "False"
        kept = tuple(c for c in pod.conditions if c.type not in {"Ready", "ContainersReady"})
        conditions = (*kept, *(replace(c, status=status) for c in _READY))
        return replace(pod, conditions=conditions, phase="Running", deletion_timestamp=None)

    return replace(cluster, pods=tuple(change_pod(pod) for pod in cluster.pods))
