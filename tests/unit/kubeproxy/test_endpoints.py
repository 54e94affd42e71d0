"""Which endpoints each version of kube-proxy chooses."""

from __future__ import annotations

from typing import Any

import pytest

from ktp.kubeproxy.endpoints import EndpointSelection, index_slices, select_endpoints
from ktp.model.cluster import Cluster, Endpoint, EndpointPort, EndpointSlice, ServicePort
from tests.unit.kubeproxy.objects import (
    ENDPOINTS,
    LOCAL_IP,
    PORT,
    REMOTE_IP,
    index,
    node,
    ready,
    service,
    terminating,
)


def select(endpoints: str | tuple[Endpoint, ...], minor: int, **changes: Any) -> EndpointSelection:
    listed = ENDPOINTS[endpoints] if isinstance(endpoints, str) else endpoints
    fields = {"external_traffic_policy": "Local", **changes}
    return select_endpoints(
        index(listed), service(**fields), PORT, node(minor), minor=minor, unready_count=False
    )


def sets(selection: EndpointSelection) -> tuple[set[str], set[str], bool]:
    return {e.ip for e in selection.cluster}, {e.ip for e in selection.local}, selection.has_endpoints


L, R = {LOCAL_IP}, {REMOTE_IP}
NOTHING: set[str] = set()


@pytest.mark.parametrize(
    ("endpoints", "minors", "cluster", "local", "has_endpoints"),
    [
        ("local and remote", (18, 23, 24, 36), L | R, L, True),
        ("remote", (18, 23, 24, 36), R, NOTHING, True),
        ("none", (18, 23, 24, 36), NOTHING, NOTHING, False),
        ("unready", (18, 23, 24, 36), NOTHING, NOTHING, False),
        ("terminating local", (18, 24, 25), NOTHING, NOTHING, False),
        ("terminating local", (26, 36), L, L, True),
        ("terminating remote", (25,), NOTHING, NOTHING, False),
        ("terminating remote", (26, 36), R, NOTHING, True),
        ("terminating local, ready remote", (25,), R, NOTHING, True),
        ("terminating local, ready remote", (26, 36), R, L, True),
        ("terminating not serving", (25, 26, 36), NOTHING, NOTHING, False),
    ],
)
def test_sets(
    endpoints: str, minors: tuple[int, ...], cluster: set[str], local: set[str], has_endpoints: bool
) -> None:
    for minor in minors:
        assert sets(select(endpoints, minor)) == (cluster, local, has_endpoints), minor


@pytest.mark.parametrize(
    ("minor", "policy", "cluster", "local"),
    [
        (21, "Cluster", L | R, L),  # gate off
        (22, "Cluster", L, L),  # filters the whole port
        (23, "Local", L | R, L),  # and is ignored under externalTrafficPolicy Local
        (24, "Cluster", L | R, L),
    ],
)
def test_internal_traffic_policy_local(minor: int, policy: str, cluster: set[str], local: set[str]) -> None:
    found = select("local and remote", minor, internal_traffic_policy="Local", external_traffic_policy=policy)
    assert sets(found) == (cluster, local, True)


def test_1_22_counts_unready_endpoints() -> None:
    args = (index(ENDPOINTS["unready"]), service(), PORT, node(22))
    assert select_endpoints(*args, minor=22, unready_count=True).has_endpoints
    assert not select_endpoints(*args, minor=22, unready_count=False).has_endpoints
    assert not select_endpoints(*args, minor=23, unready_count=True).has_endpoints


def test_name_that_kube_proxy_does_not_know_makes_nothing_local() -> None:
    named = node(36, proxy_name="ip-10-0-0-3")
    found = select_endpoints(
        index(ENDPOINTS["local and remote"]),
        service(external_traffic_policy="Local"),
        PORT,
        named,
        minor=36,
    )
    assert sets(found) == (L | R, NOTHING, True)


@pytest.mark.parametrize(
    ("minor", "annotations", "cluster"),
    [
        (24, {}, L | R),
        (24, {"service.kubernetes.io/topology-aware-hints": "Auto"}, L),
        (26, {"service.kubernetes.io/topology-mode": "Auto"}, L | R),
        (27, {"service.kubernetes.io/topology-mode": "Auto"}, L),
        (27, {"service.kubernetes.io/topology-mode": "Disabled"}, L | R),
        (30, {}, L | R),
        (31, {}, L),
    ],
)
def test_zone_hints(minor: int, annotations: dict[str, str], cluster: set[str]) -> None:
    endpoints = (
        ready(LOCAL_IP, "node-a", hints_for_zones=("zone-1",)),
        ready(REMOTE_IP, "node-b", hints_for_zones=("zone-2",)),
    )
    found = select(endpoints, minor, annotations=annotations)
    assert {e.ip for e in found.cluster} == cluster
    assert found.filtered_by == ("EndpointSlice hints.forZones=zone-1" if cluster == L else "")


def test_hints_hold_only_where_every_endpoint_has_one_and_one_is_near() -> None:
    partial = (ready(LOCAL_IP, "node-a", hints_for_zones=("zone-1",)), ready(REMOTE_IP, "node-b"))
    far = (ready(LOCAL_IP, "node-a", hints_for_zones=("zone-2",)),)
    assert {e.ip for e in select(partial, 36).cluster} == L | R
    assert {e.ip for e in select(far, 36).cluster} == L


@pytest.mark.parametrize(("minor", "cluster"), [(33, L | R), (34, L), (36, L)])
def test_node_hints(minor: int, cluster: set[str]) -> None:
    endpoints = (
        ready(LOCAL_IP, "node-a", hints_for_nodes=("node-a",)),
        ready(REMOTE_IP, "node-b", hints_for_nodes=("node-b",)),
    )
    assert {e.ip for e in select(endpoints, minor).cluster} == cluster


@pytest.mark.parametrize(("minor", "is_local"), [(35, True), (36, False)])
def test_of_two_with_one_address_the_local_or_the_living_wins(minor: int, is_local: bool) -> None:
    endpoints = (terminating(LOCAL_IP, "node-a"), ready(LOCAL_IP, "node-b"))
    for order in (endpoints, endpoints[::-1]):
        found = select(order, minor)
        assert [e.is_local for e in found.listed] == [is_local]


def test_only_the_first_address_of_the_right_family_and_port_counts() -> None:
    def slice_(name: str, port: EndpointPort, *endpoints: Endpoint, **labels: str) -> EndpointSlice:
        return EndpointSlice(
            namespace="test", name=name, service_name="web", ports=(port,), endpoints=endpoints, labels=labels
        )

    http = EndpointPort(name="http", port=80)
    headless = EndpointSlice(
        namespace="test",
        name="h",
        service_name="web",
        ports=(http,),
        endpoints=(ready("10.244.9.9", "node-a"),),
        labels={"service.kubernetes.io/headless": ""},
    )
    slices = (
        slice_("a", http, ready(LOCAL_IP, "node-a", addresses=(LOCAL_IP, REMOTE_IP))),
        slice_("b", http, ready("fd00::1", "node-a")),
        slice_("c", EndpointPort(name="other", port=81), ready("10.244.9.1", "node-a")),
        slice_("d", EndpointPort(name="http", port=None), ready("10.244.9.2", "node-a")),
        slice_("e", EndpointPort(name="http", protocol="UDP", port=80), ready("10.244.9.3", "node-a")),
        headless,
    )
    found = select_endpoints(
        index_slices(Cluster(slices=slices)), service(), PORT, node(), minor=36, ip_version=4
    )
    assert [(e.ip, e.port) for e in found.listed] == [(LOCAL_IP, 80)]
    six = select_endpoints(
        index_slices(Cluster(slices=slices)), service(), PORT, node(), minor=36, ip_version=6
    )
    assert [e.ip for e in six.listed] == ["fd00::1"]


@pytest.mark.parametrize(
    ("minor", "gates", "source"),
    [
        (18, {}, "Endpoints"),
        (19, {}, "EndpointSlice"),
        (20, {"EndpointSliceProxying": False}, "Endpoints"),
        (22, {"EndpointSliceProxying": False}, "EndpointSlice"),
    ],
)
def test_what_is_read(minor: int, gates: dict[str, bool], source: str) -> None:
    where = index(ENDPOINTS["remote"])
    found = select_endpoints(where, service(), PORT, node(minor, feature_gates=gates), minor=minor)
    assert (found.source, found.notes) == (source, ())


def test_other_object_stands_in_with_a_note() -> None:
    slices = index(ENDPOINTS["remote"]).slices
    only_slices = index_slices(Cluster(slices=tuple(s for group in (slices or {}).values() for s in group)))
    found = select_endpoints(only_slices, service(), PORT, node(18), minor=18)
    assert found.source == "EndpointSlice"
    assert "were not read" in found.notes[0]


def test_unnamed_port() -> None:
    port = ServicePort(port=80, node_port=30080)
    slice_ = EndpointSlice(
        namespace="test",
        name="web-1",
        service_name="web",
        ports=(EndpointPort(port=8080),),
        endpoints=(ready(LOCAL_IP, "node-a"),),
    )
    found = select_endpoints(index_slices(Cluster(slices=(slice_,))), service(), port, node(), minor=36)
    assert [(e.ip, e.port, e.pod) for e in found.cluster] == [(LOCAL_IP, 8080, "test/web-node-a")]
