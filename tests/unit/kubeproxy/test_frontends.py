"""Which addresses a Service answers on."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from ktp.kubeproxy.frontends import FrontEndKind, front_ends, ignored_reason, serves_node_port
from ktp.kubeproxy.node import ProxyMode
from ktp.model.cluster import LoadBalancerIngress, ServicePort
from tests.unit.kubeproxy.objects import PORT, node, service

IPTABLES, NFTABLES, IPVS = ProxyMode.IPTABLES, ProxyMode.NFTABLES, ProxyMode.IPVS


def test_all_front_ends() -> None:
    found = front_ends(service(), PORT, node())
    assert [str(f) for f in found.programmed] == [
        "clusterIP 172.16.0.10:80/TCP",
        "nodePort NODE:30080/TCP",
        "externalIP 10.99.0.20:80/TCP",
        "loadBalancer 10.99.0.10:80/TCP",
    ]
    assert found.unprogrammed == ()
    assert (
        str(found.of(FrontEndKind.NODE_PORT)[0].on(ip_address("fd00::3"))) == "nodePort [fd00::3]:30080/TCP"
    )


def test_families_are_those_of_the_cluster_ips() -> None:
    dual = front_ends(service(cluster_ips=("172.16.0.10", "fd00:16::10")), PORT, node())
    assert [f.ip_version for f in dual.of(FrontEndKind.NODE_PORT)] == [4, 6]
    single = front_ends(service(external_ips=("fd00::20",)), PORT, node())
    assert [(u.what, u.reason) for u in single.unprogrammed] == [
        ("fd00::20", "the Service has no IPv6 cluster IP")
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster_ips": ("None",)}, "headless"),
        ({"cluster_ips": ()}, "headless"),
        ({"type": "ExternalName", "cluster_ips": ()}, "ExternalName"),
        ({"labels": {"service.kubernetes.io/service-proxy-name": ""}}, "another proxy"),
        ({}, ""),
    ],
)
def test_ignored(changes: dict[str, Any], words: str) -> None:
    reason = ignored_reason(service(**changes))
    assert (words in reason) if words else reason == ""
    assert bool(front_ends(service(**changes), PORT, node()).programmed) == (not words)


@pytest.mark.parametrize(
    ("ingress", "minor", "gates", "programmed"),
    [
        (LoadBalancerIngress(hostname="lb.example"), 36, {}, False),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="VIP"), 36, {}, True),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="Proxy"), 28, {}, True),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="Proxy"), 29, {}, True),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="Proxy"), 29, {"LoadBalancerIPMode": True}, False),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="Proxy"), 30, {}, False),
        (LoadBalancerIngress(ip="10.99.0.10", ip_mode="Proxy"), 36, {"LoadBalancerIPMode": False}, False),
    ],
)
def test_load_balancer_ingress(
    ingress: LoadBalancerIngress, minor: int, gates: dict[str, bool], programmed: bool
) -> None:
    found = front_ends(service(ingress=(ingress,)), PORT, node(minor, feature_gates=gates))
    assert bool(found.of(FrontEndKind.LOAD_BALANCER)) == programmed
    assert bool(found.unprogrammed) == (not programmed)


def test_no_node_port_is_said() -> None:
    port = ServicePort(name="http", port=80)
    found = front_ends(service(allocate_load_balancer_node_ports=False), port, node())
    assert found.of(FrontEndKind.NODE_PORT) == ()
    assert found.unprogrammed[0].reason == "allocateLoadBalancerNodePorts is false"


def test_external_ips_can_be_switched_off() -> None:
    off = node(feature_gates={"AllowServiceExternalIPs": False})
    assert front_ends(service(), PORT, off).of(FrontEndKind.EXTERNAL_IP) == ()


@pytest.mark.parametrize(
    ("address", "minor", "mode", "changes", "served"),
    [
        ("10.0.0.103", 36, IPTABLES, {}, True),
        ("127.0.0.1", 36, IPTABLES, {}, True),
        ("127.0.0.1", 26, IPTABLES, {"localhost_node_ports": False}, False),
        ("127.0.0.1", 25, IPTABLES, {"localhost_node_ports": False}, True),
        ("::1", 36, IPTABLES, {}, False),
        ("10.0.0.103", 36, IPTABLES, {"node_port_addresses": ("primary",)}, False),
        ("10.0.0.3", 36, IPTABLES, {"node_port_addresses": ("primary",)}, True),
        ("10.0.0.103", 36, IPTABLES, {"node_port_addresses": ("10.0.0.0/28",)}, False),
        ("127.0.0.1", 36, IPTABLES, {"node_port_addresses": ("10.0.0.0/24",)}, False),
        ("10.0.0.103", 36, IPTABLES, {"node_port_addresses": ("fd00::/8",)}, True),
        ("10.0.0.103", 29, NFTABLES, {}, True),
        ("10.0.0.103", 30, NFTABLES, {}, False),
        ("10.0.0.3", 36, NFTABLES, {}, True),
        ("10.0.0.103", 36, NFTABLES, {"node_port_addresses": ("0.0.0.0/0",)}, True),
        ("127.0.0.1", 36, NFTABLES, {"node_port_addresses": ("0.0.0.0/0",)}, False),
        ("127.0.0.1", 36, IPVS, {}, False),
        ("10.0.0.103", 36, IPVS, {}, True),
    ],
)
def test_serves_node_port(
    address: str, minor: int, mode: ProxyMode, changes: dict[str, Any], served: bool
) -> None:
    found = serves_node_port(ip_address(address), node(minor, mode, **changes), minor=minor, mode=mode)
    assert found.yes == served, found.why
