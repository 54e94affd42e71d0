"""Connections that open and then hang, for their long packets are lost between two nodes: real ones, through VXLAN."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.diagnose.sizes import crossings, longest, untold
from ktp.model.capture import MemoryCapture
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Flow, Header, Hop, Path, Symptom
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

PORT = 8000
SERVE = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.settimeout(3)
    try:
        asked = int(client.recv(10))
        client.sendall(b"y" * asked)
        while client.recv(65536):
            pass
        client.sendall(b"!")
    except OSError:
        pass
    client.close()
"""
# Sends much and takes little ("request"), or the other way round ("reply"), and says whether all of it got through.
ASK = f"""
import socket, sys
sent, taken = (100000, 1) if sys.argv[2] == "request" else (1, 100000)
s = socket.create_connection((sys.argv[1], {PORT}), timeout=3)
s.sendall(b"%010d" % taken)
got = 0
try:
    while got < taken:
        got += len(s.recv(65536))
    s.sendall(b"x" * sent)
    s.shutdown(socket.SHUT_WR)
    print("whole" if s.recv(1) == b"!" else "cut")
except OSError:
    print("hangs")
"""
NODES = ("node-a", "node-b")


@contextmanager
def tunnelled(
    make_netns: Callable[[str], str], inside: int, underlay: tuple[int, int]
) -> Iterator[tuple[list[str], Snapshot]]:
    """Two nodes with a VXLAN between them, devices of these MTUs; what is longer than a device takes is lost at it."""
    names = [make_netns("za"), make_netns("zb")]

    def run(name: str, *words: str) -> str:
        done = subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=True)
        return done.stdout

    run(names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
    files = {"cluster/services.json": b'{"items": []}'}
    for number, (name, mtu) in enumerate(zip(names, underlay, strict=True), 1):
        # One segment a packet, as they are on a wire.
        run(name, "link", "set", "eth0", "mtu", str(mtu), "gso_max_segs", "1", "up")
        run(name, "addr", "add", f"10.9.5.{number}/24", "dev", "eth0")
        ends = ("local", f"10.9.5.{number}", "remote", f"10.9.5.{3 - number}")
        run(name, "link", "add", "vx0", "type", "vxlan", "id", "1", "dstport", "8472", *ends)
        run(name, "addr", "add", f"10.55.0.{number}/24", "dev", "vx0")
        run(name, "link", "set", "vx0", "mtu", str(inside), "gso_max_segs", "1", "up")
        for file, words in (
            ("ip-addr.json", "-j addr"), ("ip-route.json", "-j route show table all"), ("ip-link.json", "-j -d link"),
        ):  # fmt: skip
            files[f"nodes/{NODES[number - 1]}/{file}"] = run(name, *words.split()).encode()
    yield names, parse_snapshot(MemoryCapture(files=files))


def hop(node: str, direction: str, *, arrives: bool) -> Hop:
    header = Header(src="", sport=0, dst="", dport=0, mark=0)
    device: dict[str, Any] = {"in_interface": "vx0"} if arrives else {"out_interface": "vx0"}
    return Hop(node=node, direction=direction, arrived=header, left=header, **device)


@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize(
    ("inside", "underlay"),
    [
        (1450, (1500, 1500)), (1450, (1500, 1450)), (1450, (1450, 1500)), (1450, (1500, 1490)), (1400, (1500, 1450)),
        (1500, (1500, 1500)), (1500, (1500, 1490)), (1390, (1440, 1400)), (1350, (1500, 1400)),
    ],
)  # fmt: skip
def test_what_is_longer_than_the_next_node_takes(
    make_netns: Callable[[str], str], inside: int, underlay: tuple[int, int], direction: str
) -> None:
    with tunnelled(make_netns, inside, underlay) as (names, snapshot):
        hops = [
            hop("node-a", "request", arrives=False), hop("node-b", "request", arrives=True),
            hop("node-b", "reply", arrives=False), hop("node-a", "reply", arrives=True),
        ]  # fmt: skip
        path = Path(
            probability=1.0,
            disposition=Disposition.DELIVERED,
            symptom=Symptom.CONNECTS,
            reason="",
            hops=tuple(hops),
        )
        # The tunnels have their ends by `local`; the nodes' own addresses are not in a Node here.
        found = {c.direction: c.is_lost for c in crossings(snapshot, path, from_outside=False)}
        inside_of = ["ip", "netns", "exec"]
        with subprocess.Popen(
            [*inside_of, names[1], sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            try:
                asked = [*inside_of, names[0], sys.executable, "-c", ASK, "10.55.0.2", direction]
                met = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            finally:
                server.kill()
        assert found[direction] is (met == "hangs"), (met, found)


A, B, POD = "10.55.0.1", "10.55.0.2", "10.66.0.5"
BEHIND_READS = {
    "ip-addr.json": "ip -j addr", "ip-route.json": "ip -j route show table all", "ip-link.json": "ip -j -d link",
    "ip-rule.json": "ip -j rule", "ss.txt": "ss -lntuH", "ip-neigh.json": "ip -j neigh",
    "bridge-fdb.json": "bridge -j fdb", "nft-ruleset.json": "nft -j list ruleset", "iptables-nft-save.txt": "iptables-nft-save",
    "ip6tables-nft-save.txt": "ip6tables-nft-save", "ip6-route.json": "ip -6 -j route show table all",
    "ip6-rule.json": "ip -6 -j rule", "sysctl.txt": "sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter",
}  # fmt: skip
DROP_ICMP = "iptables-nft -A OUTPUT -p icmp -j DROP"
CLAMP = "iptables-nft -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS"
STRICT = ("iptables-nft -P OUTPUT DROP", "iptables-nft -A OUTPUT -p udp --dport 8472 -j ACCEPT")
# The pod is behind node a, whose VXLAN leads to node b: MTUs of the pod, the VXLAN and the network between the nodes, the
# options of the VXLAN, the version of IP under it, and what is done on "a" or in the "pod".
BEHIND: dict[str, tuple[tuple[int, int, int], str, int, list[tuple[str, str]]]] = {
    "told by the node": ((1500, 1450, 1500), "", 4, []),
    "the error is dropped": ((1500, 1450, 1500), "", 4, [("a", DROP_ICMP)]),
    "a pod that fits": ((1450, 1450, 1500), "", 4, [("a", DROP_ICMP)]),
    "clamped": ((1500, 1450, 1500), "", 4, [("a", DROP_ICMP), ("a", f"{CLAMP} --clamp-mss-to-pmtu")]),
    "clamped by a number": ((1500, 1450, 1500), "", 4, [("a", DROP_ICMP), ("a", f"{CLAMP} --set-mss 1400")]),
    "clamped too little": ((1500, 1450, 1500), "", 4, [("a", DROP_ICMP), ("a", f"{CLAMP} --set-mss 1440")]),
    "clamped one way": (
        (1500, 1450, 1500), "", 4,
        [("a", DROP_ICMP), ("a", CLAMP.replace("-p tcp", "-o vx0 -p tcp") + " --set-mss 1400")],
    ),
    "clamped by nft": (
        (1500, 1450, 1500), "", 4,
        [
            ("a", DROP_ICMP), ("a", "nft add table ip own"),
            ("a", "nft add chain ip own clamp { type filter hook forward priority 0 ; }"),
            ("a", "nft add rule ip own clamp tcp flags syn tcp option maxseg size set rt mtu"),
        ],
    ),
    "errors of known connections leave": (
        (1500, 1450, 1500), "", 4,
        [("a", command) for command in (
            *STRICT, "iptables-nft -A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        )],
    ),
    "established alone leaves": (
        (1500, 1450, 1500), "", 4,
        [("a", command) for command in (*STRICT, "iptables-nft -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT")],
    ),
    "the pod does not listen to errors": (
        (1500, 1450, 1500), "", 4, [("pod", "iptables-nft -A INPUT -p icmp -j DROP")],
    ),
    "a route knows": (
        (1500, 1500, 1500), "", 4, [("a", "ip route change 10.55.0.0/24 dev vx0 src 10.55.0.1 mtu 1400"), ("a", DROP_ICMP)],
    ),
    "another route": ((1450, 1450, 1500), "", 4, [("a", "ip route add 10.77.0.0/24 dev vx0 mtu 1400"), ("a", DROP_ICMP)]),
    "cut": ((1500, 1500, 1500), "", 4, []),
    "never to be cut": ((1500, 1500, 1500), "df set", 4, []),
    "not to be cut where the inner is not": ((1500, 1500, 1500), "df inherit", 4, []),
    "short enough not to be cut": ((1450, 1450, 1500), "df set", 4, []),
    "not cut in IPv6": ((1500, 1500, 1500), "", 6, []),
    "fits in IPv6": ((1430, 1430, 1500), "", 6, []),
}  # fmt: skip


class Behind:
    """A pod's namespace, its node a, and node b behind a VXLAN."""

    def __init__(self, make_netns: Callable[[str], str], name: str) -> None:
        (pod, inside, under), options, version, edits = BEHIND[name]
        self.spaces = {n: make_netns(f"z{n}") for n in ("pod", "a", "b")}
        self.run("a", f"ip link add eth0 type veth peer name eth0 netns {self.spaces['b']}")
        self.run("pod", f"ip link add eth0 type veth peer name vpod netns {self.spaces['a']}")
        net = "10.9.5.%d" if version == 4 else "fd05::%d"
        for number, node in enumerate(("a", "b"), 1):
            own, other = net % number, net % (3 - number)
            for command in (
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
                f"ip link set eth0 mtu {under} gso_max_segs 1 up",
                f"ip addr add {own}/{24 if version == 4 else 64} dev eth0" + (" nodad" if version == 6 else ""),
                f"ip link add vx0 type vxlan id 1 dstport 8472 local {own} remote {other} {options}",
                f"ip addr add 10.55.0.{number}/24 dev vx0", f"ip link set vx0 mtu {inside} gso_max_segs 1 up",
                "iptables-nft -A FORWARD -p tcp -j ACCEPT", "ip6tables-nft -A FORWARD -p tcp -j ACCEPT",
            ):  # fmt: skip
                self.run(node, command)
        for place, command in (
            ("a", f"ip link set vpod mtu {pod} gso_max_segs 1 up"), ("a", "ip addr add 10.66.0.1/32 dev vpod"),
            ("a", f"ip route add {POD}/32 dev vpod"), ("b", "ip route add 10.66.0.0/24 via 10.55.0.1"),
            ("pod", f"ip link set eth0 mtu {pod} gso_max_segs 1 up"), ("pod", f"ip addr add {POD}/32 dev eth0"),
            ("pod", "ip route add 10.66.0.1 dev eth0"), ("pod", "ip route add default via 10.66.0.1"), *edits,
        ):  # fmt: skip
            self.run(place, command)
        self.own = [(version, int(ip_address(net % number))) for number in (1, 2)]

    def run(self, place: str, command: str) -> str:
        inside = ["ip", "netns", "exec", self.spaces[place], *command.split()]
        done = subprocess.run(inside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def lost(self, asks: str, direction: str) -> bool:
        """What ktp says: whether the long packets of a connection that the pod, or node b, opens are lost."""
        folders = {"a": "nodes/node-a", "b": "nodes/node-b", "pod": "nodes/node-a/pods/test_web"}
        files = {"cluster/services.json": b'{"items": []}'} | {
            f"{folder}/{file}": self.run(place, command).encode()
            for place, folder in folders.items()
            for file, command in BEHIND_READS.items()
        }
        snapshot = parse_snapshot(MemoryCapture(files=files))
        nodes = {n: replace(s, place_unread=False) for n, s in snapshot.nodes.items()}
        snapshot = replace(snapshot, nodes=nodes)
        addresses = {**dict(zip(self.own, NODES, strict=True))}
        addresses |= {(4, int(ip_address(A))): NODES[0], (4, int(ip_address(B))): NODES[1]}
        attached = {(4, int(ip_address(POD))): Attached(name="test/web", node=NODES[0])}
        walker = Walker(Topology(nodes=nodes, attached=attached, node_addresses=addresses))
        src, dst, node = (POD, B, NODES[0]) if asks == "pod" else (B, POD, NODES[1])
        flow = Flow(src=src, dst=dst, port=PORT, from_node=node)
        answer = answer_flow(walker, flow)
        assert answer.symptom is Symptom.CONNECTS, answer.reason
        (path,) = answer.paths
        assert longest(snapshot, path, from_outside=False) is not None
        found = [c.direction for c in crossings(snapshot, path, from_outside=False) if c.is_lost]
        kept = [lost.direction for _, lost in untold(walker, snapshot, flow, (path,), from_outside=False)]
        return direction in [*found, *kept]


@pytest.mark.parametrize("asks", ["pod", "b"])
@pytest.mark.parametrize(
    "name",
    # The quick suite asks every fourth; `make test-kernel` asks all.
    [n if i % 4 == 1 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(BEHIND)],
)
def test_whether_a_pod_is_told(make_netns: Callable[[str], str], name: str, asks: str) -> None:
    world = Behind(make_netns, name)
    server, client = ("b", "pod") if asks == "pod" else ("pod", "b")
    inside = ["ip", "netns", "exec"]
    with subprocess.Popen(
        [*inside, world.spaces[server], sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
    ) as listening:
        assert listening.stdout is not None
        assert listening.stdout.readline() == "ready\n"
        try:
            for direction in ("request", "reply"):
                dialled = B if asks == "pod" else POD
                command = [*inside, world.spaces[client], sys.executable, "-c", ASK, dialled, direction]
                # What one way has learned of the path must not help the other.
                for place in ("pod", "b"):
                    world.run(place, "ip route flush cache")
                said = world.lost(asks, direction)
                met = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                assert (direction, said) == (direction, met == "hangs"), met
        finally:
            listening.kill()
