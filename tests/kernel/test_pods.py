"""A pod's network namespace beside the kernel: real sockets, addresses, routes and rules in it, and real connections to it.

A client, a node that forwards and has a node port, and a pod with two devices, each a network namespace. What is read of
node and pod is what a snapshot has of them.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.capture import MemoryCapture
from ktp.model.host import NodeState
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

CLIENT, NODE, POD = "10.9.0.2", "10.9.0.1", "10.244.9.2"
CLIENT6, NODE6, POD6 = "fd09::2", "fd09::1", "fd44::2"
NODE_PORT, PORT, SIDECAR = 30080, 80, 15006

READS = {
    "ip-addr.json": "ip -j -d addr", "ip-rule.json": "ip -j rule", "ip6-rule.json": "ip -6 -j rule",
    "ip-route.json": "ip -j route show table all", "ip6-route.json": "ip -6 -j route show table all",
    "ip-neigh.json": "ip -j neigh", "ss.txt": "ss -lntuH", "iptables-nft-save.txt": "iptables-nft-save", "ip6tables-nft-save.txt": "ip6tables-nft-save",
}  # fmt: skip
SYSCTLS = ("net.ipv4.ip_forward", "net.ipv4.conf.vpod.forwarding", "net.ipv4.conf.vpod.proxy_arp", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter",
           "net.ipv4.conf.all.route_localnet", "net.ipv4.conf.eth0.route_localnet",
           "net.ipv6.conf.all.forwarding")  # fmt: skip
# Opens the sockets that it is given, answers each datagram, and closes each connection. One of kind "full" is not
# accepted from and has more waiting than it may, one of kind "busy" has some.
SERVE = """
import json, select, socket, sys, time
opened, deaf = [], []
for kind, address, port, only6 in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                      socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
    s.bind((address, port))
    if kind in ("full", "busy"):
        s.listen(3)
        deaf.append(s)
        for _ in range(9 if kind == "full" else 2):
            c = socket.socket(s.family)
            c.setblocking(False)
            c.connect_ex(("::1" if ":" in address else "127.0.0.1", port))
            deaf.append(c)
        time.sleep(0.2)
        continue
    if kind == "tcp":
        s.listen(16)
    opened.append(s)
print("ready", flush=True)
while True:
    for s in select.select(opened, [], [])[0]:
        if s.type == socket.SOCK_STREAM:
            s.accept()[0].close()
        else:
            data, peer = s.recvfrom(100)
            try:
                s.sendto(data, peer)
            except OSError:
                pass  # no way back
"""


@dataclass(frozen=True)
class World:
    """What a pod is like. `sockets` (protocol, address, port, IPV6_V6ONLY); `commands` run in the pod."""

    sockets: tuple[tuple[str, str, int, int], ...] = ()
    commands: tuple[str, ...] = ()


def listens(address: str, port: int = PORT, only6: int = 1) -> tuple[tuple[str, str, int, int], ...]:
    return tuple((kind, address, port, only6) for kind in ("tcp", "udp"))


EVERY = (*listens("0.0.0.0"), *listens("::"))
REDIRECT = f"-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports {SIDECAR}"
WORLDS = {
    "all addresses": World(EVERY),
    "IPv4 alone": World(listens("0.0.0.0")),
    "IPv6 alone": World(listens("::")),
    "both by one socket": World(listens("::", only6=0)),
    "loopback": World((*listens("127.0.0.1"), *listens("::1"))),
    "the pod's address": World((*listens(POD), *listens(POD6))),
    "another port": World((*listens("0.0.0.0", 8080), *listens("::", 8080))),
    "nothing": World(),
    "a full accept queue": World((("full", "0.0.0.0", PORT, 1), ("full", "::", PORT, 1))),
    "some in the accept queue": World((("busy", "0.0.0.0", PORT, 1), ("busy", "::", PORT, 1))),
    "a sidecar takes the port": World(
        (*EVERY, ("tcp", "0.0.0.0", SIDECAR, 1)), (f"iptables-nft {REDIRECT}",)
    ),
    "a sidecar that is gone": World(EVERY, (f"iptables-nft {REDIRECT}", f"ip6tables-nft {REDIRECT}")),
    "a sidecar and a program on loopback": World(
        (*listens("127.0.0.1"), ("tcp", "0.0.0.0", SIDECAR, 1)), (f"iptables-nft {REDIRECT}",)
    ),
    "a rule that drops": World(EVERY, ("iptables-nft -A INPUT -p tcp --dport 80 -j DROP",)),
    "a rule that rejects": World(EVERY, ("iptables-nft -A INPUT -p udp --dport 80 -j REJECT",)),
    "a policy of DROP": World(EVERY, ("iptables-nft -P INPUT DROP", "iptables-nft -A INPUT -i lo -j ACCEPT")),
    "answers stopped": World(EVERY, ("iptables-nft -A OUTPUT -p tcp --sport 80 -j DROP",)),
    "another way out": World(EVERY, (f"ip route add {CLIENT}/32 dev net1",)),
    "another way out by a rule": World(
        EVERY, ("ip route add default dev net1 table 77", f"ip rule add from {POD} table 77")
    ),
    "no way out": World(EVERY, ("ip route del default",)),
    "a black hole": World(EVERY, (f"ip route add blackhole {CLIENT}/32",)),
    "strict reverse path": World(
        EVERY, ("sysctl -qw net.ipv4.conf.all.rp_filter=1", f"ip route add {CLIENT}/32 dev net1")
    ),
    "not the pod's address any more": World(EVERY, (f"ip addr del {POD}/32 dev eth0", "ip addr add 10.244.9.3/32 dev eth0",
                                                   "ip route add 169.254.1.1 dev eth0", "ip route add default via 169.254.1.1 dev eth0")),
}  # fmt: skip
FLOWS = {
    "tcp to the pod": ("tcp", POD, PORT), "udp to the pod": ("udp", POD, PORT),
    "tcp to the node port": ("tcp", NODE, NODE_PORT), "udp to the node port": ("udp", NODE, NODE_PORT),
    "tcp in IPv6": ("tcp", POD6, PORT), "udp in IPv6": ("udp", POD6, PORT),
}  # fmt: skip
DIAL = """
import json, socket, sys
kind, address, port = json.loads(sys.argv[1])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                  socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(0.7)
try:
    s.connect((address, port))
    if kind == "udp":
        s.send(b"x")
        s.recv(100)
    print("connects")
except TimeoutError:
    print("times_out")
except ConnectionRefusedError:
    print("refused")
except OSError as error:
    print("unreachable")
"""


@dataclass
class Lab:
    client: str
    node: str
    pod: str

    def run(self, namespace: str, command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, *command.split()], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def read(self, namespace: str, folder: str) -> dict[str, bytes]:
        files = {f"{folder}/{file}": self.run(namespace, command) for file, command in READS.items()}
        files[f"{folder}/sysctl.txt"] = self.run(namespace, f"sysctl -e {' '.join(SYSCTLS)}")
        return {name: text.encode() for name, text in files.items()}

    def walker(self) -> Walker:
        none = json.dumps({"kind": "List", "apiVersion": "v1", "items": []}).encode()
        files = {"cluster/services.json": none} | self.read(self.node, "nodes/node-a")
        files |= self.read(self.pod, "nodes/node-a/pods/test_web")
        states = without_kube_proxy(files)
        pod = Attached(name="test/web", node="node-a")
        attached: dict[tuple[int, int], Attached] = {
            (a.version, int(a)): pod for a in map(ip_address, (POD, POD6))
        }
        return Walker(Topology(nodes=states, attached=attached))

    def dial(self, flow: tuple[str, str, int], namespace: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace or self.client, sys.executable, "-c", DIAL, json.dumps(flow)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def without_kube_proxy(files: dict[str, bytes]) -> dict[str, NodeState]:
    """The nodes; that no rules of kube-proxy's are there is meant so."""
    states = parse_snapshot(MemoryCapture(files=files)).nodes
    return {name: replace(state, place_unread=False) for name, state in states.items()}


@pytest.fixture
def lab(make_netns: Callable[[str], str]) -> Lab:
    lab = Lab(make_netns("pc"), make_netns("pn"), make_netns("pp"))
    wires = (
        (lab.client, "eth0", lab.node, "eth0"),
        (lab.pod, "eth0", lab.node, "vpod"),
        (lab.pod, "net1", lab.node, "vnet1"),
    )
    for one, dev, other, peer in wires:
        subprocess.run(
            ["ip", "-n", one, "link", "add", dev, "type", "veth", "peer", "name", peer, "netns", other],
            check=True,
        )
    for namespace, commands in {
        lab.node: (
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0",
            f"ip addr add {NODE}/24 dev eth0", f"ip -6 addr add {NODE6}/64 dev eth0 nodad",
            "ip addr add 169.254.1.1/32 dev vpod", "ip -6 addr add fe80::1/64 dev vpod nodad",
            *(f"ip link set {dev} up" for dev in ("lo", "eth0", "vpod", "vnet1")),
            f"ip route add {POD}/32 dev vpod", f"ip -6 route add {POD6}/128 dev vpod",
            f"iptables-nft -t nat -A PREROUTING -p tcp --dport {NODE_PORT} -j DNAT --to-destination {POD}:{PORT}",
            f"iptables-nft -t nat -A PREROUTING -p udp --dport {NODE_PORT} -j DNAT --to-destination {POD}:{PORT}",
            "ip6tables-nft -P FORWARD ACCEPT",
        ),
        lab.pod: (
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0",
            f"ip addr add {POD}/32 dev eth0", f"ip -6 addr add {POD6}/128 dev eth0 nodad",
            "ip addr add 10.77.0.2/24 dev net1",
            *(f"ip link set {dev} up" for dev in ("lo", "eth0", "net1")),
            "ip route add 169.254.1.1 dev eth0", "ip route add default via 169.254.1.1 dev eth0",
            "ip -6 route add default via fe80::1 dev eth0",
        ),
        lab.client: (
            f"ip addr add {CLIENT}/24 dev eth0", f"ip -6 addr add {CLIENT6}/64 dev eth0 nodad",
            "ip link set lo up", "ip link set eth0 up",
            f"ip route add default via {NODE}", f"ip -6 route add default via {NODE6}",
        ),
    }.items():  # fmt: skip
        for command in commands:
            lab.run(namespace, command)
    return lab


def symptoms(answer: FlowAnswer) -> set[str]:
    return {p.symptom.value for p in answer.paths}


@pytest.mark.parametrize(
    "name",
    # The quick suite asks every third; `make test-kernel` asks all.
    [n if i % 3 == 2 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(WORLDS)],
)
def test_the_answer_is_what_a_connection_meets(name: str, lab: Lab) -> None:
    world = WORLDS[name]
    for command in world.commands:
        lab.run(lab.pod, command)
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.pod, sys.executable, "-c", SERVE, json.dumps(world.sockets)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        walker = lab.walker()
        dialled = {flow: lab.dial(asked) for flow, asked in FLOWS.items()}
        wrong: dict[str, Any] = {}
        for flow, process in dialled.items():
            met = process.communicate(timeout=20)[0].strip()
            kind, address, port = FLOWS[flow]
            client = CLIENT6 if ":" in address else CLIENT
            answer = answer_flow(
                walker, Flow(dst=address, port=port, protocol=kind, src=client, via="node-a")
            )
            if answer.symptom is Symptom.UNKNOWN:
                assert (name, kind) == ("another way out by a rule", "udp"), answer.reason
            elif symptoms(answer) != {met}:
                wrong[flow] = (answer.reason, symptoms(answer), met)
        assert not wrong
    finally:
        server.kill()
        server.communicate()


def without_address(lab: Lab) -> None:
    """The pod's device as Calico makes it; with its last address the routes of a device go (fib_disable_ip)."""
    lab.run(lab.node, "ip addr del 169.254.1.1/32 dev vpod")
    lab.run(lab.node, f"ip route add {POD}/32 dev vpod")


@pytest.mark.parametrize("entry", ["", "failed", "reachable"])
@pytest.mark.parametrize("forwards", [0, 1])
def test_behind_proxy_arp_a_node_that_does_not_forward_reaches_pods_that_know_their_gateway(
    lab: Lab, forwards: int, entry: str
) -> None:
    """Calico's way to a pod: a gateway that nobody has, for which the node answers ARP as long as it forwards."""
    mac = json.loads(lab.run(lab.node, "ip -j link show vpod"))[0]["address"]
    words = {"failed": "nud failed", "reachable": f"lladdr {mac} nud reachable"}.get(entry)
    without_address(lab)
    # What proxy ARP waits for before it answers (neigh/*/proxy_delay) is no part of the question.
    settings = (
        "net.ipv4.conf.vpod.proxy_arp=1",
        "net.ipv4.neigh.vpod.proxy_delay=0",
        f"net.ipv4.ip_forward={forwards}",
    )
    lab.run(lab.node, f"sysctl -qw {' '.join(settings)}")
    lab.run(lab.node, "ip route add default via 10.9.0.254")
    lab.run(lab.pod, "ip neigh flush all")
    if words:
        lab.run(lab.pod, f"ip neigh replace 169.254.1.1 dev eth0 {words}")
    server = subprocess.Popen(
        ["ip", "netns", "exec", lab.pod, sys.executable, "-c", SERVE, json.dumps(EVERY)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        walker = lab.walker()
        met = lab.dial(("tcp", POD, PORT), lab.node).communicate(timeout=20)[0].strip()
        answer = answer_flow(walker, Flow(dst=POD, port=PORT, from_node="node-a"))
        assert symptoms(answer) == {met} == {"connects" if forwards or entry == "reachable" else "times_out"}
    finally:
        server.kill()
        server.communicate()


def test_whether_a_pod_knows_its_gateway_is_unknown_where_it_was_not_read(lab: Lab) -> None:
    without_address(lab)
    lab.run(lab.node, "sysctl -qw net.ipv4.conf.vpod.proxy_arp=1 net.ipv4.ip_forward=0")
    states = without_kube_proxy(
        {"cluster/services.json": b'{"items": []}', **lab.read(lab.node, "nodes/node-a")}
    )
    key = (4, int(ip_address(POD)))
    walker = Walker(Topology(nodes=states, attached={key: Attached(name="test/web", node="node-a")}))
    answer = answer_flow(walker, Flow(dst=POD, port=PORT, from_node="node-a"))
    assert answer.symptom is Symptom.UNKNOWN
    assert "hardware address of its gateway" in answer.reason


def test_the_hop_into_the_pod_is_one_of_its_own(lab: Lab) -> None:
    lab.run(lab.pod, "iptables-nft -A INPUT -p tcp --dport 80 -j DROP")
    answer = answer_flow(lab.walker(), Flow(dst=NODE, port=NODE_PORT, src=CLIENT, via="node-a"))
    assert [(h.node, h.pod) for h in answer.paths[0].hops] == [("node-a", ""), ("node-a", "test/web")]
    assert answer.decided_by is not None
    assert (answer.decided_by.node, answer.decided_by.pod) == ("node-a", "test/web")
    assert answer.decided_by.rule == "-A INPUT -p tcp -m tcp --dport 80 -j DROP"
    assert (answer.paths[0].endpoint_ip, answer.paths[0].endpoint_port) == (POD, PORT)


def test_sockets_alone_tell_whether_a_program_listens() -> None:
    """With ss.txt alone of the pod, its addresses and routes are those that Kubernetes gives it."""
    none = b'{"kind":"List","apiVersion":"v1","items":[]}'
    rules = b"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    route = [{"dst": POD, "dev": "vpod"}, {"dst": "default", "dev": "eth0", "gateway": "10.9.0.254"}]
    files = {
        "cluster/services.json": none, "nodes/node-a/iptables-nft-save.txt": rules,
        "nodes/node-a/ip-route.json": json.dumps(route).encode(), "nodes/node-a/sysctl.txt": b"net.ipv4.ip_forward = 1\n",
        "nodes/node-a/ip-addr.json": b'[{"ifindex":2,"ifname":"eth0","flags":["UP"],"addr_info":[]}]',
        "nodes/node-a/pods/test_web/ss.txt": b"tcp LISTEN 0 5 127.0.0.1:81 0.0.0.0:*\ntcp LISTEN 0 5 *:80 *:*\n",
    }  # fmt: skip
    states = without_kube_proxy(files)
    key = (4, int.from_bytes(socket.inet_aton(POD), "big"))
    walker = Walker(Topology(nodes=states, attached={key: Attached(name="test/web", node="node-a")}))
    for port, symptom in ((80, Symptom.CONNECTS), (81, Symptom.REFUSED), (82, Symptom.REFUSED)):
        answer = answer_flow(walker, Flow(dst=POD, port=port, src="10.8.0.1", via="node-a"))
        assert answer.symptom is symptom, answer.reason
