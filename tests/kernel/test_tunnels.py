"""A vxlan between two nodes beside the kernel: healthy, and broken in each way that ktp tells apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.capture import MemoryCapture
from ktp.model.effect import Untunnelled
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.model.tunnel import TunnelFault
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

A, B, POD, CLIENT = "10.9.1.1", "10.9.1.2", "10.244.2.5", "10.9.0.2"
MAC_A, MAC_B = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
READS = {
    "ip-addr.json": "ip -j addr", "ip-link.json": "ip -j -d link", "ip-neigh.json": "ip -j neigh",
    "bridge-fdb.json": "bridge -j fdb", "ip-rule.json": "ip -j rule", "ip-route.json": "ip -j route show table all",
    "ss.txt": "ss -lntuH", "iptables-nft-save.txt": "iptables-nft-save",
    "sysctl.txt": "sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter",
}  # fmt: skip
DIAL = """
import socket
s = socket.socket(); s.settimeout(1.5)
try:
    s.connect(("%s", 80)); print("connects")
except TimeoutError: print("times_out")
except ConnectionRefusedError: print("refused")
except OSError: print("unreachable")
"""
SERVE = """
import socket
s = socket.socket(); s.bind(("0.0.0.0", 80)); s.listen(); print("ready", flush=True)
while True: s.accept()[0].close()
"""
# What is done to the pair (on node "a" or "b"), and which fault or rule ktp is to name; None: it connects.
WORLDS: dict[str, tuple[list[tuple[str, str]], TunnelFault | str | None]] = {
    "healthy": ([], None),
    "port blocked at the far end": (
        [("b", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")],
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "port rejected at the far end": (
        [("b", "iptables-nft -A INPUT -p udp --dport 8472 -j REJECT")],
        "-A INPUT -p udp -m udp --dport 8472 -j REJECT --reject-with icmp-port-unreachable",
    ),
    "port blocked on its way out": (
        [("a", "iptables-nft -A OUTPUT -p udp --dport 8472 -j DROP")],
        "-A OUTPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "answers blocked": (
        [("a", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")],
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "another port is blocked": ([("b", "iptables-nft -A INPUT -p udp --dport 4789 -j DROP")], None),
    "no neighbour entry": ([("a", "ip neigh del 10.244.2.0 dev flannel.1")], TunnelFault.NO_NEIGHBOUR),
    "no forwarding entry": (
        [("a", f"bridge fdb del {MAC_B} dev flannel.1 dst {B}")],
        TunnelFault.NO_FORWARDING_ENTRY,
    ),
    "the wrong far end": (
        [
            ("a", f"bridge fdb del {MAC_B} dev flannel.1 dst {B}"),
            ("a", f"bridge fdb append {MAC_B} dev flannel.1 dst 10.9.1.77"),
        ],
        TunnelFault.NO_SUCH_PEER,
    ),
    "another VNI": (
        [
            ("b", "ip link del flannel.1"),
            ("b", f"ip link add flannel.1 address {MAC_B} type vxlan id 7 local {B} dev eth1 dstport 8472 nolearning"),
            ("b", "ip addr add 10.244.2.0/32 dev flannel.1"),
            ("b", "ip link set flannel.1 up"),
        ],
        TunnelFault.NO_DEVICE,
    ),
    "the far end's device is down": ([("b", "ip link set flannel.1 down")], TunnelFault.DEVICE_DOWN),
}  # fmt: skip


class Pair:
    """A client, node a with it and the vxlan, node b behind the vxlan with a pod."""

    def __init__(self, make_netns: Callable[[str], str]) -> None:
        self.spaces = {name: make_netns(f"t{name}") for name in ("client", "a", "b", "pod")}
        for one, dev, other, peer in (
            ("client", "eth0", "a", "eth0"), ("a", "eth1", "b", "eth1"), ("pod", "eth0", "b", "vpod"),
        ):  # fmt: skip
            there = self.spaces[other]
            self.run(one, f"ip link add {dev} type veth peer name {peer} netns {there}")
        for node, own, pods, far, mac, far_mac, far_own in (
            ("a", A, "10.244.1.0", "10.244.2.0", MAC_A, MAC_B, B),
            ("b", B, "10.244.2.0", "10.244.1.0", MAC_B, MAC_A, A),
        ):
            for command in (
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
                f"ip addr add {own}/24 dev eth1", "ip link set eth1 up",
                f"ip link add flannel.1 address {mac} type vxlan id 1 local {own} dev eth1 dstport 8472 nolearning",
                f"ip addr add {pods}/32 dev flannel.1", "ip link set flannel.1 up",
                f"ip route add {far}/24 via {far} dev flannel.1 onlink",
                f"ip neigh add {far} lladdr {far_mac} dev flannel.1 nud permanent",
                f"bridge fdb append {far_mac} dev flannel.1 dst {far_own}",
            ):  # fmt: skip
                self.run(node, command)
        for name, command in (
            ("client", f"ip addr add {CLIENT}/24 dev eth0"), ("client", "ip link set eth0 up"),
            ("a", "ip addr add 10.9.0.1/24 dev eth0"), ("a", "ip link set eth0 up"),
            ("client", "ip route add default via 10.9.0.1"),
            ("a", "iptables-nft -t nat -A POSTROUTING -o flannel.1 -j MASQUERADE"),
            # Without any rule iptables-nft-save prints nothing at all, as where nothing was read.
            ("b", "iptables-nft -A FORWARD -p tcp -j ACCEPT"),
            ("b", "ip link set vpod up"), ("b", f"ip route add {POD}/32 dev vpod"),
            ("b", "ip addr add 169.254.1.1/32 dev vpod"),
            ("pod", f"ip addr add {POD}/32 dev eth0"), ("pod", "ip link set eth0 up"),
            ("pod", "ip route add 169.254.1.1 dev eth0"), ("pod", "ip route add default via 169.254.1.1 dev eth0"),
        ):  # fmt: skip
            self.run(name, command)

    def run(self, name: str, command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.spaces[name], *command.split()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def answer(self) -> FlowAnswer:
        files = {"cluster/services.json": json.dumps({"items": []}).encode()}
        for name in ("a", "b"):
            files |= {
                f"nodes/{name}/{file}": self.run(name, command).encode() for file, command in READS.items()
            }
        states = {
            n: replace(s, place_unread=False)
            for n, s in parse_snapshot(MemoryCapture(files=files)).nodes.items()
        }
        addresses = {(4, int(ip_address(ip))): node for ip, node in ((A, "a"), (B, "b"))}
        pod = {(4, int(ip_address(POD))): Attached(name="test/web", node="b")}
        walker = Walker(Topology(nodes=states, attached=pod, node_addresses=addresses))
        return answer_flow(walker, Flow(dst=POD, port=80, src=CLIENT, via="a"))

    def dial(self) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.spaces["client"], sys.executable, "-c", DIAL % POD],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()


@pytest.mark.parametrize(
    "name",
    # The quick suite asks every third; `make test-kernel` asks all.
    [n if i % 3 == 1 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(WORLDS)],
)
def test_the_tunnel_carries_what_ktp_says_it_carries(name: str, make_netns: Callable[[str], str]) -> None:
    commands, fault = WORLDS[name]
    pair = Pair(make_netns)
    for node, command in commands:
        pair.run(node, command)
    server = subprocess.Popen(
        ["ip", "netns", "exec", pair.spaces["pod"], sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        answer, met = pair.answer(), pair.dial()
    finally:
        server.kill()
        server.communicate()
    assert (answer.symptom is Symptom.CONNECTS, met == "connects") == (fault is None, fault is None), (
        answer.reason
    )
    if fault is None:
        return
    decided = answer.decided_by
    assert decided is not None
    assert decided.step is not None
    if isinstance(fault, TunnelFault):
        assert [e.fault for e in decided.step.effects if isinstance(e, Untunnelled)] == [fault]
    else:
        assert (decided.rule, decided.node) == (fault, commands[0][0])
