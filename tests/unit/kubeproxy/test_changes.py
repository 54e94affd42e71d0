"""API objects with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ktp.kubeproxy.changes import (
    cordoned,
    drained,
    endpoints_by_pod,
    schedulable_nodes,
    with_policy,
    with_ready_pod_on,
    with_scaled,
    without_pod,
)
from ktp.kubeproxy.endpoints import index_slices, select_endpoints
from ktp.kubeproxy.node import proxy_node
from ktp.model.cluster import (
    Cluster,
    Condition,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Pod,
    Taint,
)
from ktp.model.host import Interface, InterfaceAddress, NextHop, NodeState, Route
from ktp.model.snapshot import Snapshot
from tests.support.changes import with_endpoint_ready
from tests.unit.kubeproxy.objects import ready, service, terminating, unready

READY = (Condition(type="Ready", status="True"),)


def pod(name: str, node: str, ip: str, **changes: object) -> Pod:
    fields: dict[str, object] = {
        "namespace": "test",
        "name": name,
        "node_name": node,
        "pod_ips": (ip,),
        "phase": "Running",
        "conditions": READY,
    }
    return Pod(**{**fields, **changes})  # type: ignore[arg-type]


def cluster(*endpoints: Endpoint, **changes: object) -> Cluster:
    """A Service with pods on node-a and node-b, in slices and Endpoints, and node-c without any."""
    one = EndpointSlice(
        namespace="test",
        name="web-1",
        service_name="web",
        ports=(EndpointPort(name="http", port=8080),),
        endpoints=endpoints or (ready("10.244.1.10", "node-a"), ready("10.244.2.10", "node-b")),
    )
    fields: dict[str, object] = {
        "services": {"test/web": service(selector={"app": "web"})},
        "slices": (one,),
        "endpoints": (replace(one, origin="Endpoints"),),
        "pods": (
            pod("web-node-a", "node-a", "10.244.1.10"),
            pod("web-node-b", "node-b", "10.244.2.10"),
            pod("agent", "node-a", "10.244.1.2", owner_kind="DaemonSet"),
        ),
        "nodes": {
            f"node-{x}": Node(name=f"node-{x}", pod_cidrs=(f"10.244.{i}.0/24",), conditions=READY)
            for i, x in enumerate("abc", 1)
        },
    }
    return Cluster(**{**fields, **changes})  # type: ignore[arg-type]


def local_on(snapshot: Snapshot, node: str) -> list[str]:
    one = snapshot.cluster.services["test/web"]
    found = select_endpoints(
        index_slices(snapshot.cluster), one, one.ports[0], proxy_node(snapshot, node), minor=36
    )
    return [f"{e.ip}:{e.port}" for e in found.cluster if e.is_local]


def test_policy() -> None:
    before = cluster()
    after = with_policy(before, "test/web", "Local")
    assert after.services["test/web"].external_traffic_policy == "Local"
    assert before.services["test/web"].external_traffic_policy == "Cluster"
    checked = replace(after.services["test/web"], health_check_node_port=32000)
    after = replace(after, services={"test/web": checked})
    assert with_policy(after, "test/web", "Local").services["test/web"].health_check_node_port == 32000
    assert with_policy(after, "test/web", "Cluster").services["test/web"].health_check_node_port == 0


def test_without_pod() -> None:
    after = without_pod(cluster(), "test/web-node-a")
    assert set(endpoints_by_pod(after, "test/web")) == {"test/web-node-b"}
    assert [p.name for p in after.pods or ()] == ["web-node-b", "agent"]
    assert [len(s.endpoints) for s in (*(after.slices or ()), *(after.endpoints or ()))] == [1, 1]


def test_without_pod_by_address_where_the_endpoint_names_none() -> None:
    bare = Endpoint(addresses=("10.244.1.10",), ready=True)
    after = without_pod(cluster(bare), "test/web-node-a")
    assert [s.endpoints for s in after.slices or ()] == [()]


@pytest.mark.parametrize("endpoint", ["10.244.1.10", "test/web-node-a"])
@pytest.mark.parametrize("how", [unready, terminating])
def test_endpoint_ready(endpoint: str, how: object) -> None:
    assert callable(how)
    before = cluster(how("10.244.1.10", "node-a"))
    after = with_endpoint_ready(before, "test/web", endpoint)
    for one in (*(after.slices or ()), *(after.endpoints or ())):
        found = one.endpoints[0]
        assert (found.ready, found.serving, found.terminating) == (True, True, False)
    assert all(p.is_ready for p in after.pods or ())
    again = with_endpoint_ready(after, "test/web", endpoint, ready=False)
    assert again.slices is not None
    assert not again.slices[0].endpoints[0].is_ready
    assert [p.is_ready for p in again.pods or ()] == [False, True, True]


ROUTED = NodeState(
    name="node-a",
    interfaces=(Interface(name="veth1", index=4, flags=frozenset({"UP"})),),
    routes=(
        Route(dst=ip_network("10.244.1.10/32"), nexthops=(NextHop(dev="veth1"),), scope="link"),
        Route(dst=ip_network("0.0.0.0/0"), nexthops=(NextHop(dev="eth0", gateway=ip_address("10.0.0.1")),)),
    ),
    sysctls={"net.ipv4.conf.default.rp_filter": "2"},
)
BRIDGED = replace(
    ROUTED,
    interfaces=(
        Interface(
            name="cni0",
            index=4,
            addresses=(InterfaceAddress(ip=ip_address("10.244.1.1"), prefixlen=24),),
        ),
    ),
    routes=(Route(dst=ip_network("10.244.1.0/24"), nexthops=(NextHop(dev="cni0"),), scope="link"),),
)


@pytest.mark.parametrize(
    ("state", "routes", "device"), [(ROUTED, 3, "veth1"), (BRIDGED, 1, "cni0"), (None, 0, "")]
)
def test_a_pod_more_and_the_way_to_it(state: NodeState | None, routes: int, device: str) -> None:
    nodes = {"node-a": state} if state is not None else {}
    before = Snapshot(cluster=cluster(), nodes=nodes)
    after = with_ready_pod_on(before, "test/web", "node-a")
    assert local_on(after, "node-a") == ["10.244.1.10:8080", "10.244.1.254:8080"]
    new = (after.cluster.pods or ())[-1]
    assert (new.name, new.labels, new.is_ready) == ("web-supposed-0", {"app": "web"}, True)
    assert len((after.cluster.endpoints or ())[-1].endpoints) == 1
    if state is not None:
        found = after.nodes["node-a"].routes or ()
        assert len(found) == routes
        way = [r for r in found if ip_address("10.244.1.254") in r.dst and r.dst.prefixlen > 0]
        assert [r.dev for r in way] == [device]
    assert before.cluster.pods is not None
    assert len(before.cluster.pods) == 3


def test_the_first_pod_of_a_node_gets_a_device() -> None:
    state = replace(ROUTED, routes=ROUTED.routes[1:] if ROUTED.routes else ())
    objects = cluster(pods=(), slices=(), endpoints=None)
    after = with_ready_pod_on(Snapshot(cluster=objects, nodes={"node-a": state}), "test/web", "node-a")
    found = after.nodes["node-a"]
    name = (found.routes or ())[-1].dev
    assert name in {i.name for i in found.interfaces or ()}
    assert (found.sysctls or {})[f"net.ipv4.conf.{name}.rp_filter"] == "2"
    # Nothing tells the port of a Service without endpoints and without a target port: its own.
    assert local_on(after, "node-a") == ["10.244.1.254:80"]


def test_addresses_that_are_taken_are_left_out() -> None:
    snapshot = Snapshot(cluster=cluster())
    first = with_ready_pod_on(snapshot, "test/web", "node-c")
    second = with_ready_pod_on(first, "test/web", "node-c")
    assert local_on(second, "node-c") == ["10.244.3.253:8080", "10.244.3.254:8080"]
    assert local_on(with_ready_pod_on(snapshot, "test/web", "node-c", ip="10.244.3.7"), "node-c") == [
        "10.244.3.7:8080"
    ]


def test_without_a_pod_network_there_is_no_pod() -> None:
    nowhere = cluster(nodes={"node-c": Node(name="node-c")})
    with pytest.raises(ValueError, match="no free IPv4 address"):
        with_ready_pod_on(Snapshot(cluster=nowhere), "test/web", "node-c")
    near = replace(nowhere, nodes={"node-a": Node(name="node-a")})
    assert "10.244.1.254:8080" in local_on(
        with_ready_pod_on(Snapshot(cluster=near), "test/web", "node-a"), "node-a"
    )


def test_named_target_ports_are_looked_up() -> None:
    named = service(selector={"app": "web"})
    named = replace(named, ports=(replace(named.ports[0], target_port="web"),))
    ports = (ContainerPort(container="c", name="web", container_port=9090),)
    objects = cluster(
        services={"test/web": named},
        slices=(),
        endpoints=None,
        pods=(pod("other", "node-a", "10.244.1.3", labels={"app": "web"}, ports=ports),),
    )
    after = with_ready_pod_on(Snapshot(cluster=objects), "test/web", "node-b")
    assert local_on(after, "node-b") == ["10.244.2.254:9090"]


def test_a_new_endpoint_has_hints_where_all_have() -> None:
    hinted = [
        replace(ready(f"10.244.{i}.10", f"node-{x}"), hints_for_zones=("z1",))
        for i, x in ((1, "a"), (2, "b"))
    ]
    zone = Node(name="node-c", pod_cidrs=("10.244.3.0/24",), labels={"topology.kubernetes.io/zone": "z2"})
    after = with_ready_pod_on(
        Snapshot(cluster=cluster(*hinted, nodes={"node-c": zone})), "test/web", "node-c"
    )
    assert (after.cluster.slices or ())[-1].endpoints[0].hints_for_zones == ("z2",)


def test_both_families() -> None:
    dual = service(cluster_ips=("172.16.0.10", "fd00:16::10"))
    nodes = {"node-a": Node(name="node-a", pod_cidrs=("10.244.1.0/24", "fd00:244:1::/64"))}
    after = with_ready_pod_on(
        Snapshot(cluster=cluster(services={"test/web": dual}, nodes=nodes)), "test/web", "node-a"
    )
    new = (after.cluster.pods or ())[-1]
    assert new.pod_ips == ("10.244.1.254", "fd00:244:1::fffe")
    assert [s.address_type for s in (after.cluster.slices or ())[1:]] == ["IPv4", "IPv6"]


def test_scaling() -> None:
    snapshot = Snapshot(cluster=cluster(ready("10.244.1.10", "node-a"), unready("10.244.2.10", "node-b")))
    assert set(endpoints_by_pod(with_scaled(snapshot, "test/web", 1).cluster, "test/web")) == {
        "test/web-node-a"
    }
    assert endpoints_by_pod(with_scaled(snapshot, "test/web", 0).cluster, "test/web") == {}
    more = with_scaled(snapshot, "test/web", 4)
    assert sorted(e.node_name or "" for e in endpoints_by_pod(more.cluster, "test/web").values()) == [
        "node-a",
        "node-a",
        "node-b",
        "node-c",
    ]
    there = with_scaled(snapshot, "test/web", 4, nodes=["node-c"])
    assert len(local_on(there, "node-c")) == 2
    assert with_scaled(snapshot, "test/web", 2) is snapshot


def test_nodes_that_take_pods() -> None:
    objects = cordoned(cluster(), "node-a")
    assert schedulable_nodes(objects) == ["node-b", "node-c"]
    nodes = dict(objects.nodes or {})
    nodes["node-b"] = replace(nodes["node-b"], taints=(Taint(key="k", effect="NoSchedule"),))
    nodes["node-c"] = replace(nodes["node-c"], conditions=(Condition(type="Ready", status="False"),))
    tainted = replace(objects, nodes=nodes)
    assert schedulable_nodes(tainted) == []
    with pytest.raises(ValueError, match="no node is known"):
        with_scaled(Snapshot(cluster=tainted), "test/web", 9)
    assert cordoned(objects, "node-z") is objects


def test_draining() -> None:
    after = drained(cluster(), "node-a")
    assert [p.name for p in after.pods or ()] == ["web-node-b", "agent"]
    assert set(endpoints_by_pod(after, "test/web")) == {"test/web-node-b"}
    assert (after.nodes or {})["node-a"].unschedulable
    unread = drained(cluster(pods=None), "node-a")
    assert set(endpoints_by_pod(unread, "test/web")) == {"test/web-node-b"}
