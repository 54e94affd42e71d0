"""Small Services, slices and nodes for tests: node-a is asked, node-b is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from ktp.kubeproxy.endpoints import SliceIndex, index_slices
from ktp.kubeproxy.node import DetectLocal, ProxyMode, ProxyNode
from ktp.kubeproxy.version import exact
from ktp.model.cluster import (
    Cluster,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Service,
    ServicePort,
)

PORT = ServicePort(name="http", port=80, node_port=30080)
LOCAL_IP, REMOTE_IP = "10.244.1.10", "10.244.2.10"


def service(**changes: Any) -> Service:
    """A Service of every front end, with policy Cluster."""
    fields: dict[str, Any] = {
        "namespace": "test",
        "name": "web",
        "type": "LoadBalancer",
        "cluster_ips": ("172.16.0.10",),
        "external_ips": ("10.99.0.20",),
        "ingress": (LoadBalancerIngress(ip="10.99.0.10"),),
        "ports": (PORT,),
    }
    return Service(**{**fields, **changes})


def ready(ip: str, node: str | None, **changes: Any) -> Endpoint:
    """A ready endpoint."""
    fields: dict[str, Any] = {
        "addresses": (ip,),
        "ready": True,
        "serving": True,
        "terminating": False,
        "node_name": node,
        "target_kind": "Pod",
        "target_namespace": "test",
        "target_name": f"web-{node}",
    }
    return Endpoint(**{**fields, **changes})


def terminating(ip: str, node: str, *, serving: bool = True) -> Endpoint:
    """An endpoint of a pod that is being deleted."""
    return ready(ip, node, ready=False, serving=serving, terminating=True)


def unready(ip: str, node: str) -> Endpoint:
    """An endpoint of a pod whose readiness probe fails."""
    return ready(ip, node, ready=False, serving=False)


ENDPOINTS: Mapping[str, Sequence[Endpoint]] = {
    "local and remote": (ready(LOCAL_IP, "node-a"), ready(REMOTE_IP, "node-b")),
    "remote": (ready(REMOTE_IP, "node-b"),),
    "none": (),
    "unready": (unready(LOCAL_IP, "node-a"),),
    "terminating local": (terminating(LOCAL_IP, "node-a"),),
    "terminating remote": (terminating(REMOTE_IP, "node-b"),),
    "terminating local, ready remote": (terminating(LOCAL_IP, "node-a"), ready(REMOTE_IP, "node-b")),
    "terminating not serving": (terminating(LOCAL_IP, "node-a", serving=False),),
}


def index(endpoints: Sequence[Endpoint], *, port: int = 8080) -> SliceIndex:
    """The endpoints in one slice, and the ready ones in an Endpoints object too."""
    slice_ = EndpointSlice(
        namespace="test",
        name="web-1",
        service_name="web",
        ports=(EndpointPort(name="http", port=port),),
        endpoints=tuple(endpoints),
    )
    return index_slices(Cluster(slices=(slice_,), endpoints=(slice_,)))


def node(minor: int = 36, mode: ProxyMode = ProxyMode.IPTABLES, **changes: Any) -> ProxyNode:
    """node-a in zone-1, 10.0.0.3 and 10.0.0.103, pods of 10.244.0.0/16 told by clusterCIDR."""
    fields: dict[str, Any] = {
        "name": "node-a",
        "zone": "zone-1",
        "addresses": frozenset(map(ip_address, ("127.0.0.1", "::1", "10.0.0.3", "10.0.0.103"))),
        "primary_ips": (ip_address("10.0.0.3"),),
        "pod_cidrs": (ip_network("10.244.1.0/24"),),
        "cluster_cidrs": (ip_network("10.244.0.0/16"),),
        "versions": exact(minor),
        "modes": (mode,),
        "detectors": (DetectLocal.CLUSTER_CIDR,),
    }
    return ProxyNode(**{**fields, **changes})
