"""Cilium's programs over small maps: what each does with a packet (bpf_sock.c, bpf_lxc.c, nodeport.h, policy.h)."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network

import pytest

from ktp.dataplane.cilium import Fate, Programs
from ktp.dataplane.packet import TCP, UDP, Packet, to_int
from ktp.model.cilium import (
    CiliumConfig,
    CiliumEndpoint,
    CiliumState,
    IpcacheEntry,
    NodePortMode,
    PolicyEntry,
)
from ktp.parse.cilium import parse_lb_list

LB = {
    # A Local node port without a pod here: the surrogate entry and the one of the node's address, in two scopes.
    "0.0.0.0:30001/TCP (0)": ["0.0.0.0:0 (1) (0) [NodePort, Local, two-scopes, non-routable]"],
    "0.0.0.0:30001/TCP/i (0)": ["0.0.0.0:0 (2) (0) [NodePort, Local, two-scopes, non-routable]"],
    "0.0.0.0:30001/TCP/i (1)": ["10.244.2.7:80/TCP (2) (1)"],
    "10.0.0.3:30001/TCP (0)": ["0.0.0.0:0 (3) (0) [NodePort, Local, two-scopes]"],
    "10.0.0.3:30001/TCP/i (0)": ["0.0.0.0:0 (4) (0) [NodePort, Local, two-scopes]"],
    "10.0.0.3:30001/TCP/i (1)": ["10.244.2.7:80/TCP (4) (1)"],
    "172.16.0.9:80/TCP (0)": ["0.0.0.0:0 (5) (0) [ClusterIP, non-routable]"],
    "172.16.0.9:80/TCP (1)": ["10.244.2.7:80/TCP (5) (1)"],
    "172.16.0.8:80/TCP (0)": ["0.0.0.0:0 (6) (0) [ClusterIP, non-routable]"],
    "10.99.0.11:80/TCP (0)": ["0.0.0.0:0 (7) (0) [LoadBalancer, check source-range]"],
    "10.99.0.11:80/TCP (1)": ["10.244.2.7:80/TCP (7) (1)"],
    "10.99.0.11:0/ANY (0)": ["0.0.0.0:0 (0) (0) [LoadBalancer, non-routable]"],
    "10.99.0.12:80/TCP (0)": ["0.0.0.0:0 (8) (0) [LoadBalancer, check source-range, deny]"],
    "10.99.0.12:80/TCP (1)": ["10.244.2.7:80/TCP (8) (1)"],
    "10.99.0.21:80/TCP (0)": ["0.0.0.0:0 (9) (0) [ExternalIPs]"],
    "10.99.0.21:80/TCP (1)": ["10.244.2.7:80/TCP (9) (1)"],
    "0.0.0.0:8088/TCP (0)": ["0.0.0.0:0 (10) (0) [HostPort]"],
    "0.0.0.0:8088/TCP (1)": ["10.244.1.7:80/TCP (10) (1)"],
    "10.99.0.13:80/TCP (0)": ["0.0.0.0:0 (11) (0) [LoadBalancer, l7-load-balancer]"],
}
CONFIG = CiliumConfig(
    version=(1, 19), replaces=True, mode=NodePortMode.SNAT, socket_lb=True, socket_lb_host_only=False, tunnel=False,
    legacy_routing=True, rejects=True, enforces_policy=True, devices=("eth0",), direct_device="eth0",
)  # fmt: skip


def net(text: str) -> IPv4Network:
    found = ip_network(text)
    assert isinstance(found, IPv4Network)
    return found


STATE = CiliumState(
    config=CONFIG,
    frontends=parse_lb_list(json.dumps(LB)),
    source_ranges={7: (net("10.0.0.100/32"),), 8: (net("10.0.0.100/32"),)},
    ipcache=(
        IpcacheEntry(network=net("0.0.0.0/0"), identity=2),
        IpcacheEntry(network=net("10.0.0.3/32"), identity=1),
        IpcacheEntry(network=net("10.0.0.10/32"), identity=6),
        IpcacheEntry(network=net("10.244.2.0/24"), identity=2, tunnelled=True),
        IpcacheEntry(network=net("10.244.2.7/32"), identity=4711, tunnelled=True),
    ),
    endpoints={
        ip_address("10.0.0.3"): CiliumEndpoint(is_host=True),
        ip_address("10.244.1.7"): CiliumEndpoint(identifier=99, ifindex=7),
    },
    policies={99: (PolicyEntry(identity=4711, protocol=TCP, port=80), PolicyEntry(identity=1))},
)


def programs(**config: object) -> Programs:
    return Programs("node-a", replace(STATE, config=replace(CONFIG, **config)))  # type: ignore[arg-type]


def packet(dst: str, port: int, *, src: str = "10.0.0.100", proto: int = TCP) -> Packet:
    return Packet(4, proto, to_int(src)[1], to_int(dst)[1], 40000, port)


@pytest.mark.parametrize(
    ("dst", "port", "fate"),
    [
        ("10.0.0.3", 30001, Fate.TRANSLATE),  # the internal scope: another node's pod
        ("10.0.0.10", 30001, Fate.TRANSLATE),  # another node's address, by the surrogate entry
        ("127.0.0.1", 30001, Fate.TRANSLATE),
        ("10.0.0.110", 30001, None),  # a second address of another node, which is the world
        ("172.16.0.9", 80, Fate.TRANSLATE),
        ("172.16.0.8", 80, Fate.UNREACHABLE),
        ("10.99.0.11", 80, Fate.TRANSLATE),  # source ranges are not asked
        ("10.99.0.11", 81, Fate.UNKNOWN),
        ("10.99.0.21", 80, None),  # an external IP goes out as it is
        ("127.0.0.1", 8088, Fate.TRANSLATE),
        ("10.0.0.10", 8088, None),  # a host port is its own node's
        ("10.99.0.13", 80, Fate.UNKNOWN),  # a proxy
        ("10.244.2.7", 80, None),
    ],
)
def test_connect_of_a_process_of_the_node(dst: str, port: int, fate: Fate | None) -> None:
    found = programs().at_socket(packet(dst, port), of_node=True)
    assert (found.fate if found is not None else None) is fate


def test_connect_of_a_pod_knows_no_loopback() -> None:
    assert programs().at_socket(packet("127.0.0.1", 30001), of_node=False) is None
    found = programs().at_socket(packet("10.0.0.10", 30001), of_node=False)
    assert found is not None
    assert [str(b.ip) for b in found.backends] == ["10.244.2.7"]


def test_connect_without_a_backend_before_1_14() -> None:
    assert programs(version=(1, 13)).at_socket(packet("172.16.0.8", 80), of_node=True) is None


def test_another_protocol_is_another_front_end() -> None:
    assert programs().at_socket(packet("172.16.0.9", 80, proto=UDP), of_node=True) is None


@pytest.mark.parametrize(
    ("dst", "port", "src", "fate"),
    [
        ("10.0.0.3", 30001, "10.0.0.100", Fate.REFUSE),  # Local, no pod here: the external scope is empty
        ("10.0.0.103", 30001, "10.0.0.100", None),  # the node's second address is in no map
        ("172.16.0.9", 80, "10.0.0.100", Fate.DROP),
        ("10.99.0.11", 80, "10.0.0.100", Fate.TRANSLATE),
        ("10.99.0.11", 80, "10.0.0.200", Fate.DROP),
        ("10.99.0.12", 80, "10.0.0.100", Fate.DROP),  # what is listed is kept out
        ("10.99.0.12", 80, "10.0.0.200", Fate.TRANSLATE),
        ("10.99.0.11", 81, "10.0.0.100", Fate.DROP),  # the entry of port 0
        ("10.99.0.21", 80, "10.0.0.100", Fate.TRANSLATE),
    ],
)
def test_a_packet_from_outside(dst: str, port: int, src: str, fate: Fate | None) -> None:
    found = programs().at_device(packet(dst, port, src=src))
    assert (found.fate if found is not None else None) is fate


@pytest.mark.parametrize(("rejects", "fate"), [(True, Fate.REFUSE), (False, Fate.DROP), (None, Fate.UNKNOWN)])
def test_without_a_backend_by_version(rejects: bool | None, fate: Fate) -> None:
    found = programs(rejects=rejects).at_device(packet("10.0.0.3", 30001))
    assert found is not None
    assert found.fate is fate


def test_source_ranges_that_were_not_read() -> None:
    unread = Programs("node-a", replace(STATE, source_ranges=None))
    found = unread.at_device(packet("10.99.0.11", 80))
    assert found is not None
    assert found.fate is Fate.UNKNOWN


def test_a_pods_own_device() -> None:
    """With kube-proxy beside it Cilium asks the external scope alone; in its place the internal one."""
    alone = programs(replaces=True, socket_lb_host_only=True)
    assert alone.balances_at_socket(of_node=True)
    assert alone.balances_at_socket(of_node=False) is False
    assert programs(socket_lb=None).balances_at_socket(of_node=True) is None
    found = alone.at_pod_device(packet("10.0.0.3", 30001))
    assert found is not None
    assert found.fate is Fate.TRANSLATE
    assert alone.at_pod_device(packet("10.0.0.10", 30001)) is None  # that node decides
    beside = programs(replaces=False, socket_lb=False).at_pod_device(packet("10.0.0.3", 30001))
    assert beside is not None
    assert beside.fate is Fate.REFUSE


def test_which_devices_have_a_program() -> None:
    assert programs().has_program("eth0")
    assert not programs().has_program("eth1")
    assert not programs().has_program("cilium_host")
    assert not programs(replaces=False).has_program("eth0")


@pytest.mark.parametrize(
    ("mode", "version", "proto", "direct"),
    [
        (NodePortMode.SNAT, (1, 19), TCP, False),
        (NodePortMode.DSR, (1, 13), TCP, True),
        (NodePortMode.HYBRID, (1, 13), TCP, True),
        (NodePortMode.HYBRID, (1, 13), UDP, False),
        (None, (1, 19), TCP, None),
    ],
)
def test_who_answers_the_client(
    mode: NodePortMode | None, version: tuple[int, int], proto: int, direct: bool | None
) -> None:
    found = programs(mode=mode, version=version)
    assert STATE.frontends is not None
    assert found.is_direct(STATE.frontends[0], proto) is direct


def test_a_flag_tells_direct_server_return() -> None:
    (front_end,) = parse_lb_list('{"10.0.0.3:30001/TCP (0)": ["0.0.0.0:0 (3) (0) [NodePort, dsr]"]}')
    assert programs().is_direct(front_end, TCP) is True


@pytest.mark.parametrize(
    ("identities", "port", "allowed"),
    [
        ({4711}, 80, True),
        ({4711}, 81, False),
        ({2}, 80, False),
        ({1}, 81, True),
        ({4711, 2}, 80, None),  # the source may be either, and they are not answered alike
        ({None}, 80, None),
    ],
)
def test_policy(identities: set[int | None], port: int, allowed: bool | None) -> None:
    endpoint = CiliumEndpoint(identifier=99)
    p = packet("10.244.1.7", port)
    assert programs().permits(endpoint, frozenset(identities), p, egress=False) is allowed
    assert programs(enforces_policy=False).permits(endpoint, frozenset(identities), p, egress=False) is True
    unread = Programs("node-a", replace(STATE, policies=None))
    assert unread.permits(endpoint, frozenset(identities), p, egress=False) is None


def test_an_entry_that_denies_wins() -> None:
    entries = (PolicyEntry(identity=0), PolicyEntry(identity=4711, deny=True))
    found = Programs("node-a", replace(STATE, policies={99: entries}))
    endpoint, p = CiliumEndpoint(identifier=99), packet("10.244.1.7", 80)
    assert found.permits(endpoint, frozenset({2}), p, egress=False) is True
    assert found.permits(endpoint, frozenset({4711}), p, egress=False) is False


def test_the_mark_of_a_pods_packet_is_its_identity() -> None:
    assert programs().mark_of(*to_int("10.244.2.7")) == 4711 << 16 | 0xF00


def test_the_tunnel() -> None:
    assert programs().is_tunnelled(*to_int("10.244.2.7")) is False  # native routing, whatever the map says
    assert programs(tunnel=True).is_tunnelled(*to_int("10.244.2.9")) is True
    assert programs(tunnel=True).is_tunnelled(*to_int("10.0.0.10")) in (False, None)
    assert programs(tunnel=None).is_tunnelled(*to_int("10.244.2.7")) is None
