"""Connections that open and then hang, for their long packets are lost between two nodes: real ones, through VXLAN."""

from __future__ import annotations

import json
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
from ktp.diagnose.sizes import HEADERS, OUTER, Crossing, Untold, crossings, longest, untold
from ktp.model.capture import MemoryCapture
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Flow, Header, Hop, Path, Symptom
from ktp.parse.ip_text import routes_of
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

PORT = 8000
SERVE = f"""
import socket
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
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
# Node b inside the tunnel; sit carries IPv6.
FAR = {4: "10.55.0.2", 6: "fd55::2"}


# What makes a tunnel of each kind, behind its name and before its ends.
KINDS = {
    "vxlan": "type vxlan id 1 dstport 8472", "geneve": "type geneve id 1", "ipip": "type ipip", "gre": "type gre",
    "gretap": "type gretap", "sit": "type sit",
}  # fmt: skip


@contextmanager
def tunnelled(
    make_netns: Callable[[str], str],
    inside: int,
    underlay: tuple[int, int],
    kind: str = "vxlan",
    version: int = 4,
) -> Iterator[tuple[list[str], Snapshot]]:
    """Two nodes with a tunnel between them, devices of these MTUs; what is longer than a device takes is lost at it.

    `version` is that of IP under it. Skipped where the kernel has no such devices (`make test-vm KERNEL=trixie` has).
    """
    names = [make_netns("za"), make_netns("zb")]

    def run(name: str, *words: str) -> str:
        done = subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=False)
        if "Unknown device type" in done.stderr:
            pytest.skip(f"this kernel has no {kind}")
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    run(names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
    own = {
        node: {
            "metadata": {"name": node},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }
        for node, address in zip(
            NODES, ("10.9.5.1", "10.9.5.2") if version == 4 else ("fd05::1", "fd05::2"), strict=True
        )
    }
    files = {
        "cluster/services.json": b'{"items": []}',
        "cluster/nodes.json": json.dumps({"kind": "List", "items": [*own.values()]}).encode(),
    }
    for number, (name, mtu) in enumerate(zip(names, underlay, strict=True), 1):
        # One segment a packet, as they are on a wire.
        run(name, "link", "set", "eth0", "mtu", str(mtu), "gso_max_segs", "1", "up")
        net, length = ("10.9.5.", "24") if version == 4 else ("fd05::", "64")
        nodad = ("nodad",) if version == 6 else ()
        run(name, "addr", "add", f"{net}{number}/{length}", "dev", "eth0", *nodad)
        # A geneve takes its own address from the route.
        ends = ("local", f"{net}{number}", "remote", f"{net}{3 - number}")[2 if kind == "geneve" else 0 :]
        run(name, "link", "add", "vx0", *KINDS[kind].split(), *ends)
        run(name, "link", "set", "vx0", "mtu", str(inside), "gso_max_segs", "1", "up")
        inner = (f"{FAR[6][:-1]}{number}/64", "nodad") if kind == "sit" else (f"{FAR[4][:-1]}{number}/24",)
        run(name, "addr", "add", inner[0], "dev", "vx0", *inner[1:])
        for file, words in (
            ("ip-addr.json", "-j addr"), ("ip-route.json", "-j route show table all"), ("ip-link.json", "-j -d link"),
        ):  # fmt: skip
            files[f"nodes/{NODES[number - 1]}/{file}"] = run(name, *words.split()).encode()
    yield names, parse_snapshot(MemoryCapture(files=files))


def hop(node: str, direction: str, *, arrives: bool, dst: str = "") -> Hop:
    header = Header(src="", sport=0, dst=dst, dport=0, mark=0)
    device: dict[str, Any] = {"in_interface": "vx0"} if arrives else {"out_interface": "vx0"}
    return Hop(node=node, direction=direction, arrived=header, left=header, **device)


# Lengths that just fit, or do not, for what each kind adds; and devices that promise too much. A veth takes four bytes
# more than its MTU says (is_skb_forwardable).
LENGTHS = [
    *(((inside, underlay), "vxlan", 4) for inside, underlay in [
        (1450, (1500, 1500)), (1450, (1500, 1450)), (1450, (1450, 1500)), (1450, (1500, 1490)), (1400, (1500, 1450)),
        (1500, (1500, 1500)), (1500, (1500, 1490)), (1390, (1440, 1400)), (1350, (1500, 1400)),
    ]),
    *(((1400, (1500, 1400 + added)), "vxlan", 4) for added in (50, 45)),
    *(((1400, (1500, 1400 + added)), "vxlan", 6) for added in (70, 65)),
    *(((1400, (1500, 1400 + added)), "geneve", 4) for added in (50, 45)),
    *(((1400, (1500, 1400 + added)), "geneve", 6) for added in (70, 65)),
    *(((1400, (1500, 1400 + added)), "ipip", 4) for added in (20, 15)),
    *(((1400, (1500, 1400 + added)), "sit", 4) for added in (20, 15)),
    *(((1400, (1500, 1400 + added)), "gre", 4) for added in (24, 19)),
    *(((1400, (1500, 1400 + added)), "gretap", 4) for added in (38, 33)),
    *(((1500, (1500, 1500)), kind, 4) for kind in KINDS if kind != "vxlan"),
    *(((1500, (1500, 1480)), kind, 4) for kind in ("geneve", "ipip", "gre")),
]  # fmt: skip


@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize(("lengths", "kind", "version"), LENGTHS)
def test_what_is_longer_than_the_next_node_takes(
    make_netns: Callable[[str], str],
    lengths: tuple[int, tuple[int, int]],
    kind: str,
    version: int,
    direction: str,
) -> None:
    with tunnelled(make_netns, *lengths, kind, version) as (names, snapshot):
        far = FAR[6 if kind == "sit" else 4]
        hops = [
            hop("node-a", "request", arrives=False, dst=far), hop("node-b", "request", arrives=True),
            hop("node-b", "reply", arrives=False, dst=far), hop("node-a", "reply", arrives=True),
        ]  # fmt: skip
        path = Path(
            probability=1.0,
            disposition=Disposition.DELIVERED,
            symptom=Symptom.CONNECTS,
            reason="",
            hops=tuple(hops),
        )
        found = {c.direction: c.is_lost for c in crossings(snapshot, path, from_outside=False)}
        inside_of = ["ip", "netns", "exec"]
        with subprocess.Popen(
            [*inside_of, names[1], sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            try:
                asked = [*inside_of, names[0], sys.executable, "-c", ASK, far, direction]
                met = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            finally:
                server.kill()
        assert met in ("whole", "hangs")
        assert found[direction] is (met == "hangs"), (met, found)


# Sends a datagram into the tunnel, and says how long its packet is on the wire, from the outer IP header on.
MEASURE = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wire.bind(("eth0", 0))
wire.settimeout(5)
far = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
socket.socket(far[0], socket.SOCK_DGRAM).sendto(b"ktp" * 300, far[4])
while b"ktp" * 300 not in (packet := wire.recv(65536)):
    pass
print(len(packet))
"""


@pytest.mark.parametrize(("kind", "version"), [(kind, 4) for kind in KINDS] + [("vxlan", 6), ("geneve", 6)])
def test_what_a_tunnel_adds(make_netns: Callable[[str], str], kind: str, version: int) -> None:
    with tunnelled(make_netns, 1400, (1500, 1500), kind, version) as (names, _):
        inner = 6 if kind == "sit" else 4
        measured = subprocess.run(
            ["ip", "netns", "exec", names[0], sys.executable, "-c", MEASURE, FAR[inner]],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        sent = 900 + 8 + OUTER[inner]
        assert int(measured) - sent == HEADERS[kind] + OUTER[version]


A, B, POD, GATEWAY = "10.55.0.1", "10.55.0.2", "10.66.0.5", "10.66.0.1"
INNER = {4: (A, B, POD, GATEWAY), 6: ("fd55::1", "fd55::2", "fd66::5", "fd66::1")}
BEHIND_READS = {
    "ip-addr.json": "ip -j addr", "ip-route.json": "ip -j route show table all", "ip-link.json": "ip -j -d link",
    "ip-rule.json": "ip -j rule", "ss.txt": "ss -lntuH", "ip-neigh.json": "ip -j neigh",
    "bridge-fdb.json": "bridge -j fdb", "nft-ruleset.json": "nft -j list ruleset", "iptables-nft-save.txt": "iptables-nft-save",
    "ip6tables-nft-save.txt": "ip6tables-nft-save", "ip6-route.json": "ip -6 -j route show table all",
    "ip6-rule.json": "ip -6 -j rule", "sysctl.txt": "sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter",
}  # fmt: skip
DROP_ICMP = "iptables-nft -A OUTPUT -p icmp -j DROP"
NARROW = "ip route change 10.55.0.0/24 dev vx0 src 10.55.0.1 mtu 1400"
NARROW6 = "ip -6 route change fd55::/64 dev vx0 metric 256 mtu 1400"
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
        (1500, 1500, 1500), "", 4, [("a", NARROW), ("a", DROP_ICMP)],
    ),
    "another route": ((1450, 1450, 1500), "", 4, [("a", "ip route add 10.77.0.0/24 dev vx0 mtu 1400"), ("a", DROP_ICMP)]),
    "cut": ((1500, 1500, 1500), "", 4, []),
    "never to be cut": ((1500, 1500, 1500), "df set", 4, []),
    "not to be cut where the inner is not": ((1500, 1500, 1500), "df inherit", 4, []),
    "short enough not to be cut": ((1450, 1450, 1500), "df set", 4, []),
    "not cut in IPv6": ((1500, 1500, 1500), "", 6, []),
    "fits in IPv6": ((1430, 1430, 1500), "", 6, []),
    # Of an MTU that is locked packets are sent without DF, and cut on their way.
    **{
        f"the pod's MTU is {mtu}": (
            (1500, 1500, 1500), "", 4,
            [("a", NARROW), ("a", DROP_ICMP), ("pod", f"ip route change default via {GATEWAY} mtu {mtu}")],
        )
        for mtu in ("1450", "lock 1450", "lock 1400")
    },
    # Of IPv6, nobody cuts, and who has a locked MTU does not heed what it is told.
    **{
        f"the pod's MTU in IPv6 is {mtu}": (
            (1500, 1500, 1500), "inner6", 4,
            [("a", NARROW6), ("pod", f"ip -6 route change default via fd66::1 mtu {mtu}")],
        )
        for mtu in ("1450", "lock 1450", "lock 1400")
    },
}  # fmt: skip


# Whether it is said that a lock was not told, where nobody is told of what is lost.
UNTOLD = {"the pod's MTU is lock 1450": True, "the pod's MTU is 1450": True, "a route knows": False}


class Behind:
    """A pod's namespace, its node a, and node b behind a VXLAN."""

    def __init__(self, make_netns: Callable[[str], str], name: str) -> None:
        (pod, inside, under), options, version, edits = BEHIND[name]
        self.inner = 6 if options == "inner6" else 4
        options = options.replace("inner6", "")
        a, b, address, gateway = INNER[self.inner]
        ip, host, net_length = ("ip", 32, 24) if self.inner == 4 else ("ip -6", 128, 64)
        nodad = "" if self.inner == 4 else " nodad"
        self.spaces = {n: make_netns(f"z{n}") for n in ("pod", "a", "b")}
        self.run("a", f"ip link add eth0 type veth peer name eth0 netns {self.spaces['b']}")
        self.run("pod", f"ip link add eth0 type veth peer name vpod netns {self.spaces['a']}")
        net = "10.9.5.%d" if version == 4 else "fd05::%d"
        for number, node in enumerate(("a", "b"), 1):
            own, other = net % number, net % (3 - number)
            for command in (
                "sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
                f"ip link set eth0 mtu {under} gso_max_segs 1 up",
                f"ip addr add {own}/{24 if version == 4 else 64} dev eth0" + (" nodad" if version == 6 else ""),
                f"ip link add vx0 type vxlan id 1 dstport 8472 local {own} remote {other} {options}",
                f"ip link set vx0 mtu {inside} gso_max_segs 1 up",
                f"ip addr add {a if node == 'a' else b}/{net_length} dev vx0{nodad}",
                "iptables-nft -A FORWARD -p tcp -j ACCEPT", "ip6tables-nft -A FORWARD -p tcp -j ACCEPT",
            ):  # fmt: skip
                self.run(node, command)
        for place, command in (
            ("a", f"ip link set vpod mtu {pod} gso_max_segs 1 up"), ("a", f"ip addr add {gateway}/{host} dev vpod{nodad}"),
            ("a", f"{ip} route add {address}/{host} dev vpod"), ("b", f"{ip} route add {address}/{host} via {a}"),
            ("pod", f"ip link set eth0 mtu {pod} gso_max_segs 1 up"),
            ("pod", f"ip addr add {address}/{host} dev eth0{nodad}"),
            ("pod", f"{ip} route add {gateway} dev eth0"), ("pod", f"{ip} route add default via {gateway}"), *edits,
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
        crossed, kept = self.found(asks)
        return direction in [*(c.direction for c in crossed), *(lost.direction for lost in kept)]

    def found(self, asks: str, *, as_text: bool = True) -> tuple[list[Crossing], list[Untold]]:
        """What is lost; without `as_text` the routes are as `ip -j` prints them, which tells of no lock."""
        folders = {"a": "nodes/node-a", "b": "nodes/node-b", "pod": "nodes/node-a/pods/test_web"}
        files = {"cluster/services.json": b'{"items": []}'} | {
            f"{folder}/{file}": self.run(place, command).encode()
            for place, folder in folders.items()
            for file, command in BEHIND_READS.items()
        }
        for folder, place in (
            (("nodes/node-a/pods/test_web", "pod"), ("nodes/node-b", "b")) if as_text else ()
        ):
            for family in ("", "6"):
                text = self.run(place, f"ip {f'-{family}' if family else '-4'} route show table all")
                files[f"{folder}/ip{family}-route.json"] = json.dumps(routes_of(text)).encode()
        snapshot = parse_snapshot(MemoryCapture(files=files))
        nodes = {n: replace(s, place_unread=False) for n, s in snapshot.nodes.items()}
        snapshot = replace(snapshot, nodes=nodes)
        addresses = {**dict(zip(self.own, NODES, strict=True))}
        a, b, pod, _ = INNER[self.inner]
        addresses |= {
            (self.inner, int(ip_address(own))): node for own, node in zip((a, b), NODES, strict=True)
        }
        attached = {(self.inner, int(ip_address(pod))): Attached(name="test/web", node=NODES[0])}
        walker = Walker(Topology(nodes=nodes, attached=attached, node_addresses=addresses))
        src, dst, node = (pod, b, NODES[0]) if asks == "pod" else (b, pod, NODES[1])
        flow = Flow(src=src, dst=dst, port=PORT, from_node=node)
        answer = answer_flow(walker, flow)
        assert answer.symptom is Symptom.CONNECTS, answer.reason
        (path,) = answer.paths
        assert longest(snapshot, path, from_outside=False) is not None
        crossed = [c for c in crossings(snapshot, path, from_outside=False) if c.is_lost]
        return crossed, [lost for _, lost in untold(walker, snapshot, flow, (path,), from_outside=False)]


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
                dialled = INNER[world.inner][1 if asks == "pod" else 2]
                command = [*inside, world.spaces[client], sys.executable, "-c", ASK, dialled, direction]
                # What one way has learned of the path must not help the other.
                for place in ("pod", "b"):
                    world.run(place, f"ip -{world.inner} route flush cache")
                said = world.lost(asks, direction)
                met = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                assert (direction, said) == (direction, met == "hangs"), met
            if name in UNTOLD:
                assert {lost.lock_unread for lost in world.found(asks, as_text=False)[1]} == {UNTOLD[name]}
        finally:
            listening.kill()
