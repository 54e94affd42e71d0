"""Services of every type, by the API alone and by rules."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ktp.diagnose.service import diagnose_service
from ktp.model.cluster import (
    Cluster,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Node,
    Service,
    ServicePort,
)
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from tests.unit.diagnose.worlds import LOCAL, Asked, cell, codes, recorded

NODES = {
    name: Node(
        name=name,
        addresses=(("InternalIP", f"10.0.0.{number}"), ("InternalIP", f"fd00:10::{number}")),
        pod_cidrs=(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        kubelet_version="v1.33.0",
        kube_proxy_version="v1.33.0",
    )
    for number, name in enumerate(("node-a", "node-b"), 1)
}


def diagnosis_of(*, on: str | None = "node-a", **fields: Any) -> ServiceDiagnosis:
    """A Service with one endpoint on a node (None: no endpoint at all), asked of the API alone."""
    given: dict[str, Any] = {
        "namespace": "shop",
        "name": "web",
        "cluster_ips": ("172.16.0.10",),
        "ports": (ServicePort(name="http", port=80, node_port=30080),),
    }
    service = Service(**{**given, **fields})
    slices = [
        EndpointSlice(
            namespace="shop",
            name=f"web-{family}",
            service_name="web",
            address_type=family,
            ports=tuple(EndpointPort(name=p.name, protocol=p.protocol, port=8080) for p in service.ports),
            endpoints=(Endpoint(addresses=(address,), ready=True, node_name=on),) if on else (),
        )
        for family, address in (("IPv4", "10.244.1.5"), ("IPv6", "fd00:244:1::5"))
    ]
    cluster = Cluster(services={service.key: service}, slices=tuple(slices), pods=(), nodes=NODES)
    return diagnose_service(Snapshot(cluster=cluster), service)


def kinds(d: ServiceDiagnosis) -> list[str]:
    return [m.kind for m in d.frontends]


def test_cluster_ip() -> None:
    diagnosis = diagnosis_of(type="ClusterIP", ports=(ServicePort(name="http", port=80),))
    assert kinds(diagnosis) == ["clusterIP"]
    assert "has no external front end" in diagnosis.verdict
    assert diagnosis.findings == ()
    assert set(diagnosis.frontends[0].nodes[0].cells) <= {"node", "podSameNode"}


def test_node_port() -> None:
    diagnosis = diagnosis_of(type="NodePort")
    assert kinds(diagnosis) == ["nodePort", "clusterIP"]
    assert diagnosis.frontends[0].dialled == 30080
    assert cell(diagnosis, "node-b").symptom is Symptom.CONNECTS


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        (LoadBalancerIngress(ip="10.99.0.1"), ["nodePort", "loadBalancer", "clusterIP"]),
        (LoadBalancerIngress(ip="10.99.0.1", ip_mode="VIP"), ["nodePort", "loadBalancer", "clusterIP"]),
        (LoadBalancerIngress(ip="10.99.0.1", ip_mode="Proxy"), ["nodePort", "clusterIP"]),
        (LoadBalancerIngress(hostname="lb.example.com"), ["nodePort", "clusterIP"]),
    ],
    ids=["ip", "VIP", "Proxy", "hostname"],
)
def test_load_balancer(ingress: LoadBalancerIngress, expected: list[str]) -> None:
    diagnosis = diagnosis_of(type="LoadBalancer", ingress=(ingress,))
    assert kinds(diagnosis) == expected
    if "loadBalancer" in expected:
        found = diagnosis.frontends[1]
        assert (found.address, found.dialled) == ("10.99.0.1", 80)
        assert set(found.nodes[0].cells) <= {"external", "node", "podSameNode"}
        assert cell(diagnosis, "node-b", kind="loadBalancer").symptom is Symptom.CONNECTS


def test_load_balancer_without_node_ports() -> None:
    diagnosis = diagnosis_of(
        type="LoadBalancer",
        ports=(ServicePort(name="http", port=80),),
        allocate_load_balancer_node_ports=False,
        ingress=(LoadBalancerIngress(ip="10.99.0.1"),),
    )
    assert kinds(diagnosis) == ["loadBalancer", "clusterIP"]


def test_load_balancer_that_is_still_pending() -> None:
    assert kinds(diagnosis_of(type="LoadBalancer")) == ["nodePort", "clusterIP"]


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_external_ips(kind: str) -> None:
    ports = (ServicePort(name="http", port=80, node_port=30080 if kind == "NodePort" else 0),)
    diagnosis = diagnosis_of(type=kind, ports=ports, external_ips=("10.99.0.20",))
    assert kinds(diagnosis) == (["nodePort"] if kind == "NodePort" else []) + ["externalIP", "clusterIP"]
    assert cell(diagnosis, "node-b", kind="externalIP").symptom is Symptom.CONNECTS


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"type": "ExternalName", "cluster_ips": ()}, "DNS alias"),
        ({"type": "ClusterIP", "cluster_ips": ("None",)}, "headless"),
    ],
    ids=["ExternalName", "headless"],
)
def test_services_that_kube_proxy_leaves_alone(fields: dict[str, Any], why: str) -> None:
    diagnosis = diagnosis_of(**fields)
    assert diagnosis.frontends == ()
    assert "no front end for kube-proxy" in diagnosis.verdict
    assert why in diagnosis.verdict
    assert not diagnosis.undetermined


def test_no_selector_with_slices_made_by_hand() -> None:
    assert cell(diagnosis_of(type="NodePort", selector={}), "node-a").symptom is Symptom.CONNECTS


def test_no_selector_and_no_slice() -> None:
    diagnosis = diagnosis_of(type="NodePort", selector={}, on=None)
    assert codes(diagnosis) == {"KTP101"}
    assert "has no selector" in diagnosis.findings[0].message


def test_dual_stack() -> None:
    diagnosis = diagnosis_of(
        type="NodePort", cluster_ips=("172.16.0.10", "fd00:172::10"), external_traffic_policy="Local"
    )
    assert kinds(diagnosis) == ["nodePort", "nodePort", "clusterIP", "clusterIP"]
    four, six = diagnosis.frontends[:2]
    assert [row.addresses for row in four.nodes] == [("10.0.0.1",), ("10.0.0.2",)]
    assert [row.addresses for row in six.nodes] == [("fd00:10::1",), ("fd00:10::2",)]
    for matrix in (four, six):
        assert [r.cells["external"].symptom.value for r in matrix.nodes] == ["connects", "times_out"]
        assert [r.cells["external"].cause for r in matrix.nodes] == [None, "KTP501"]


def test_ipv6_alone() -> None:
    diagnosis = diagnosis_of(type="NodePort", cluster_ips=("fd00:172::10",))
    assert [row.addresses for row in diagnosis.frontends[0].nodes] == [("fd00:10::1",), ("fd00:10::2",)]
    assert cell(diagnosis, "node-b").symptom is Symptom.CONNECTS
    assert cell(diagnosis, "node-b", "localhost").client == "a process on node-b by ::1"


@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_other_protocols(protocol: str) -> None:
    diagnosis = diagnosis_of(
        type="NodePort",
        ports=(ServicePort(name="dns", port=53, node_port=30053, protocol=protocol),),
        external_traffic_policy="Local",
    )
    assert diagnosis.frontends[0].title == f"nodePort 30053/{protocol}"
    assert [r.cells["external"].symptom.value for r in diagnosis.frontends[0].nodes] == [
        "connects",
        "times_out",
    ]
    assert [r.cells["external"].cause for r in diagnosis.frontends[0].nodes] == [None, "KTP501"]


def test_one_number_for_tcp_and_udp() -> None:
    ports = (
        ServicePort(name="dns", port=53, node_port=30053, protocol="UDP"),
        ServicePort(name="dns-tcp", port=53, node_port=30053, protocol="TCP"),
    )
    diagnosis = diagnosis_of(type="NodePort", ports=ports, external_traffic_policy="Local")
    assert [m.title for m in diagnosis.frontends[:1] + diagnosis.frontends[2:3]] == [
        "nodePort 30053/UDP",
        "nodePort 30053/TCP",
    ]
    assert [f.node for f in diagnosis.findings if f.code == "KTP501"] == ["node-b", "node-b"]


def test_two_ports_of_which_one_has_endpoints() -> None:
    snapshot = recorded()
    key = "edge/multi-local"
    diagnosis = Asked(snapshot, key).diagnosis()
    assert len([m for m in diagnosis.frontends if m.kind == "nodePort"]) == 2
    assert len({m.title for m in diagnosis.frontends}) == len(diagnosis.frontends)


@pytest.mark.parametrize("key", sorted(recorded().cluster.services))
def test_every_recorded_service_is_diagnosed(key: str) -> None:
    """No crash, no cell without a reason, no finding about cells that do not exist."""
    diagnosis = Asked(recorded(), key).diagnosis()
    assert diagnosis.verdict
    cells = {(m.title, r.node, v) for m in diagnosis.frontends for r in m.nodes for v in r.cells}
    for finding in diagnosis.findings:
        assert set(finding.cells) <= cells
        assert not any(cause in finding.message for cause in ("None", "Symptom.", "<"))
    for matrix in diagnosis.frontends:
        for row in matrix.nodes:
            assert all(answer.reason for answer in row.cells.values())


def test_local_by_external_ip_and_load_balancer_too() -> None:
    """The policy holds for each front end of the Service, and the finding explains all of them."""
    snapshot = recorded()
    for key, kind in (("edge/local-extip", "externalIP"), ("edge/local-lb", "loadBalancer")):
        diagnosis = Asked(snapshot, key).diagnosis()
        failing = [r for m in diagnosis.frontends if m.kind == kind for r in m.nodes if not r.local_endpoints]
        assert failing
        assert {r.cells["external"].cause for r in failing} == {"KTP501"}
        assert replace(diagnosis, verdict="").findings


@pytest.mark.parametrize(
    ("device", "prefixlen", "asked"), [("eth0", 32, True), ("eth0", 24, True), ("cni9", 32, False)]
)
def test_an_address_that_the_api_does_not_list_is_asked(device: str, prefixlen: int, asked: bool) -> None:
    """A virtual address on the node's network is dialled, too; one on a device that holds nothing else is not."""

    def edit(text: str) -> str:
        links = json.loads(text)
        info = {
            "family": "inet",
            "local": "10.0.0.77",
            "prefixlen": prefixlen,
            "scope": "global",
            "secondary": True,
        }
        for link in links:
            if link["ifname"] == device:
                link["addr_info"].append(info)
        if device == "cni9":
            links.append({**links[1], "ifname": device, "ifindex": 99, "addr_info": [info]})
        return json.dumps(links)

    def local(text: str) -> str:
        way = {
            "type": "local",
            "dst": "10.0.0.77",
            "dev": device,
            "table": "local",
            "scope": "host",
            "flags": [],
        }
        return json.dumps([*json.loads(text), way])

    diagnosis = Asked(
        recorded({("node-b", "ip-addr.json"): edit, ("node-b", "ip-route.json"): local}), LOCAL
    ).diagnosis()
    found = {
        o.address: o.symptom
        for m in diagnosis.frontends
        for row in m.nodes
        if row.node == "node-b" and m.kind == "nodePort"
        for o in row.cells["external"].addresses
    }
    assert found.get("10.0.0.77") is (Symptom.TIMES_OUT if asked else None)
