"""Conditions of nft rules, asked of the kernel and of ktp about the same packets.

Each condition stands in a rule of its own with a counter, at every hook of a node that a client's packets pass. What
ktp says must hold or not hold has to be what the counter says; "unknown" is right only where it is expected.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Leaf, Topology, Walker
from ktp.model.effect import Leave
from ktp.model.host import ListeningSocket, NodeState
from ktp.model.nftables import NftRuleset
from ktp.model.trace import Flow, Symptom
from ktp.parse.ip_json import merge_routes, parse_interfaces, parse_routes, parse_rules
from ktp.parse.nft import parse_nft_json, parse_nft_text

pytestmark = pytest.mark.kernel

# Answers on each port with its name, the port, and the address it was asked from.
SERVE = """
import socket, sys, threading
name, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]

def words(port, peer):
    return f"{name} {port} {peer[0].removeprefix('::ffff:')}".encode()

def tcp(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    ready.append(port)
    while True:
        one, peer = listener.accept()
        one.sendall(words(port, peer))
        one.close()

def udp(port):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Answers with the address that was asked.
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    s.bind(("::", port))
    ready.append(port)
    while True:
        _, told, _, peer = s.recvmsg(64, 256)
        s.sendmsg([words(port, peer)], told, 0, peer)

ready = []
for port in ports:
    for serve in (tcp, udp):
        threading.Thread(target=serve, args=(port,), daemon=True).start()
while len(ready) < 2 * len(ports):
    pass
print("ready", flush=True)
sys.stdin.read()
"""
# Asks `count` times; prints each time what was answered, or how it failed.
SEND = """
import errno, socket, sys
host, port, kind, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
for _ in range(count):
    s = socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET,
        socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM,
    )
    # An error that comes while connect() still runs is not told: only what the second SYN meets, after a second.
    s.settimeout(1.7)
    try:
        s.connect((host, port))
        if kind == "udp":
            s.send(b"x")
        print(s.recv(100).decode(), flush=True)
    except TimeoutError:
        print("times_out", flush=True)
    except ConnectionRefusedError:
        print("refused", flush=True)
    except OSError as error:
        print("unreachable", errno.errorcode[error.errno], file=sys.stderr)
        print("unreachable", flush=True)
    s.close()
"""

SETS = """
	set nets { type ipv4_addr; flags interval; elements = { 10.1.0.0/26, 10.244.1.1-10.244.1.20, 192.0.2.1 }; }
	set clients { type ipv4_addr; elements = { 10.1.0.50, 10.1.0.51 }; }
	set nets6 { type ipv6_addr; flags interval; elements = { fd00:1::/64, fd00:244::1-fd00:244::ff }; }
	set services { type inet_proto . inet_service; flags interval; elements = { tcp . 80-90, udp . 53 }; }
	set pairs { type ipv4_addr . inet_service; elements = { 10.1.0.11 . 80, 10.244.1.10 . 53 }; }
	set ranges { type ipv4_addr . ipv4_addr . inet_service; flags interval;
		elements = { 10.1.0.0/24 . 10.1.0.0/24 . 80-85, 10.1.0.0/24 . 10.244.0.0/16 . 0-100 }; }
	set links { type ifname . inet_proto; elements = { "eth0" . tcp, "lo" . udp }; }
	set wild { type ifname; flags interval; elements = { "eth*", "cali*" }; }
	set marks { type mark; flags interval; elements = { 0x0-0x5, 0x4000 }; }
	set dyn { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
	set written { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
	map by_port { type inet_service : verdict; flags interval;
		elements = { 80 : continue, 53 : continue, 81-90 : drop }; }
	quota spent { 5 bytes used 5 bytes }
	quota plenty { 100 mbytes }
"""
CONDITIONS = """
ip saddr 10.1.0.50
ip saddr != 10.1.0.50
ip saddr 10.1.0.0/24
ip saddr != 10.1.0.0/24
ip saddr 10.1.0.40-10.1.0.60
ip saddr { 10.1.0.50, 10.1.0.60 }
ip saddr != { 10.1.0.0/28, 10.9.0.1-10.9.0.9 }
ip saddr & 0.0.0.255 == 0.0.0.50
ip saddr @nets
ip saddr != @nets
ip saddr @clients
ip daddr @nets
ip6 saddr fd00:1::/64
ip6 saddr != fd00:9::/64
ip6 saddr @nets6
ip6 daddr @nets6
ip6 saddr { fd00:1::50, fd00:2::/64 }
ip protocol tcp
ip protocol != tcp
ip protocol { udp, 132 }
ip6 nexthdr tcp
meta l4proto tcp
meta l4proto { udp, sctp }
meta l4proto != udp
meta nfproto ipv4
meta nfproto ipv6
meta protocol ip
meta protocol ip6
ip version 4
tcp dport 80
tcp dport != 80
tcp dport 80-90
tcp dport { 22, 80 }
tcp dport != { 22, 443 }
tcp dport >= 80
tcp dport > 80
tcp dport < 80
tcp sport > 1023
tcp sport 1-1023
tcp sport != 22
tcp sport 32768-65535
udp dport 53
udp dport != 53
udp sport >= 1024
udp dport { 53, 123 }
th dport 53
th dport 80
th dport { 53, 80 }
th sport >= 1024
sctp dport 80
tcp flags syn
tcp flags != syn
tcp flags == syn
tcp flags ! ack
tcp flags syn,ack
tcp flags { syn, ack }
icmp type echo-request
icmpv6 type != echo-request
ip dscp cs0
ip dscp != cs1
ip ttl >= 60
ip ttl < 10
ip6 hoplimit >= 60
ip frag-off & 0x1fff != 0
ip frag-off & 0x1fff == 0
exthdr frag exists
ct state new
ct state != new
ct state established,related
ct state new,established
ct state { new, untracked }
ct state invalid
ct state vmap { new : continue, established : drop }
ct direction original
ct direction reply
ct status dnat
ct status ! dnat,snat
ct status confirmed
ct status seen-reply
ct mark 0
ct mark != 0
ct mark & 0xff == 0
ct original ip saddr 10.1.0.50
ct original ip daddr 10.1.0.0/24
ct reply ip daddr 10.1.0.50
ct reply ip saddr != 10.244.1.10
ct original ip6 saddr fd00:1::50
meta l4proto tcp ct original proto-dst 80
meta l4proto tcp ct original proto-dst != 80
meta l4proto udp ct reply proto-src 53
meta l4proto tcp ct original proto-src >= 1024
ct protocol tcp
ct zone 0
ct helper "ftp"
iif "eth0"
iif "lo"
iif != "lo"
iifname "eth0"
iifname != "eth0"
iifname "eth*"
iifname != "eth*"
iifname { "eth0", "lo" }
iifname { "eth*", "lo" }
iifname @wild
iifname != { "lo", "cni0" }
oif "eth1"
oifname "eth1"
oifname != "eth1"
oifname != "lo"
oifname "eth*"
oifname @wild
iifname . meta l4proto @links
iifname . ip saddr { "eth0" . 10.1.0.50 }
meta iiftype ether
meta oiftype loopback
meta pkttype host
meta pkttype { broadcast, multicast }
meta mark 0
meta mark != 0
meta mark & 0xff == 0x0
meta mark @marks
meta mark { 0x1, 0x2-0x9 }
meta mark > 5
meta skuid 0
meta ipsec missing
meta rtclassid 0
meta l4proto . th dport @services
meta l4proto . th dport { tcp . 80, udp . 53 }
ip daddr . tcp dport @pairs
ip daddr . th dport @pairs
ip saddr . ip daddr . th dport @ranges
ip saddr . ip daddr { 10.1.0.50 . 10.1.0.11, 10.1.0.0/24 . 10.244.0.0/16 }
ip saddr . meta mark { 10.1.0.50 . 0x0 }
tcp dport vmap { 80 : continue, 81 : drop }
th dport vmap @by_port
tcp dport vmap { 22 : drop, * : continue }
fib saddr type local
fib daddr type local
fib daddr type != local
fib daddr type unicast
fib daddr type { local, broadcast, multicast }
fib saddr type unicast
fib daddr . iif type local
fib saddr . iif oif exists
fib saddr . iif oif missing
fib saddr oif exists
fib saddr oifname "eth0"
fib saddr oif "eth0"
fib daddr oifname "eth1"
fib daddr oif missing
fib saddr . mark . iif oif exists
socket transparent 1
socket transparent 0
ip saddr @dyn
ip saddr != @dyn
limit rate 100/second
limit rate over 100/second
ct count 5
ct count over 5
quota name "spent"
quota over 100 mbytes
quota name "plenty"
numgen random mod 1 0
jhash ip saddr mod 1 == 0
tcp dport 80 ip saddr 10.1.0.50 iifname "eth0" ct state new
tcp dport 80 ip saddr 10.1.0.51
@th,16,16 80
@nh,96,32 0x0a010032
ether type ip
meta mark set 0x7 meta mark 0x7 counter meta mark set 0x0
meta mark set meta mark | 0x10 meta mark & 0x10 == 0x10 counter meta mark set meta mark & 0xffffffef
meta mark set meta mark ^ 0x3 meta mark 0x3 counter meta mark set 0x0
meta mark set 0x1 meta mark set meta mark ^ 0x3 meta mark 0x2 counter meta mark set 0x0
meta mark set ip saddr map { 10.1.0.50 : 0x5, * : 0x0 } meta mark 0x5 counter meta mark set 0x0
meta mark set ip saddr map { 10.1.0.51 : 0x5 } counter
ct mark set 0x9 ct mark 0x9 counter ct mark set 0
update @written { ip saddr } ip saddr @written
ip dscp set cs1 ip dscp cs1 counter ip dscp set cs0
""".strip().splitlines()
# ktp does not say, and may not: what is asked is not in a snapshot. At any hook.
UNKNOWABLE = frozenset(
    {
        "socket transparent 1",
        "socket transparent 0",
        "@nh,96,32 0x0a010032",
        "meta skuid 0",
        "ip ttl >= 60",
        "ip6 hoplimit >= 60",
    }
)
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.icmp.ratelimit=0",
)
PORTS = (53, 80, 8080, 8081, 8443)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


@dataclass(frozen=True)
class Lab:
    client: str
    node: str
    server: str


def run(*argv: str, stdin: str | None = None, check: bool = True) -> str:
    answer = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if check:
        assert answer.returncode == 0, f"{' '.join(argv)}: {answer.stderr}"
    return answer.stdout


def inside(netns: str, *argv: str, stdin: str | None = None) -> str:
    return run("ip", "netns", "exec", netns, *argv, stdin=stdin)


@pytest.fixture
def lab(make_netns: Callable[[str], str]) -> Iterator[Lab]:
    lab = Lab(make_netns("client"), make_netns("node"), make_netns("server"))
    for netns in (lab.client, lab.node, lab.server):
        inside(netns, "sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")
    for peer, dev, net, host in ((lab.client, "eth0", "1", "50"), (lab.server, "eth1", "244", "10")):
        run("ip", "-n", lab.node, "link", "add", dev, "type", "veth", "peer", "name", "eth0", "netns", peer)
        four = (
            ("10.1.0.11/24", f"10.1.0.{host}/24") if net == "1" else ("10.244.1.1/24", f"10.244.1.{host}/24")
        )
        six = (f"fd00:{net}::11/64", f"fd00:{net}::{host}/64")
        for netns, name, v4, v6 in ((lab.node, dev, four[0], six[0]), (peer, "eth0", four[1], six[1])):
            run("ip", "-n", netns, "link", "set", name, "up")
            run("ip", "-n", netns, "addr", "add", v4, "dev", name)
            run("ip", "-n", netns, "addr", "add", v6, "dev", name, "nodad")
            run("ip", "-n", netns, "link", "set", name, "up")
        gateway = four[0].partition("/")[0]
        run("ip", "-n", peer, "route", "add", "default", "via", gateway)
        run("ip", "-n", peer, "-6", "route", "add", "default", "via", f"fd00:{net}::11")
    inside(lab.node, "sysctl", "-q", "-w", *SYSCTLS)
    for extra in ("10.244.1.11/24", "10.244.1.12/24", "192.0.2.20/32"):
        run("ip", "-n", lab.server, "addr", "add", extra, "dev", "eth0")
    run("ip", "-n", lab.node, "route", "add", "192.0.2.20", "dev", "eth1")
    servers = [
        subprocess.Popen(
            ["ip", "netns", "exec", netns, sys.executable, "-c", SERVE, name, *map(str, PORTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for netns, name in ((lab.node, "node"), (lab.server, "server"))
    ]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    yield lab
    for server in servers:
        server.kill()
        server.wait()


def node_state(netns: str, nft: NftRuleset | None) -> NodeState:
    def ip(*words: str) -> bytes:
        return run("ip", "-n", netns, "-j", *words).encode()

    routes = merge_routes(
        parse_routes(ip("route", "show", "table", "all"), family=4),
        parse_routes(ip("-6", "route", "show", "table", "all"), family=6),
    )
    return NodeState(
        name="node",
        interfaces=parse_interfaces(ip("-d", "addr")),
        routes=routes,
        rules4=parse_rules(ip("rule"), family=4),
        rules6=parse_rules(ip("-6", "rule"), family=6),
        sysctls={"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"},
        sockets=tuple(
            ListeningSocket(protocol=protocol, ip=None, port=port, family=0)
            for protocol in ("tcp", "udp")
            for port in PORTS
        ),
        nft=nft,
    )


def walker_over(state: NodeState) -> Walker:
    server = Attached(name="server", node="node")
    addresses = ("10.244.1.10", "10.244.1.11", "10.244.1.12", "192.0.2.20", "fd00:244::10")
    return Walker(Topology(nodes={"node": state}, attached=dict.fromkeys(map(to_int, addresses), server)))


FLOWS = {
    "tcp to the node": Flow(dst="10.1.0.11", port=80, src="10.1.0.50", via="node"),
    "udp to the node": Flow(dst="10.1.0.11", port=53, protocol="udp", src="10.1.0.50", via="node"),
    "tcp through the node": Flow(dst="10.244.1.10", port=80, src="10.1.0.50", via="node"),
    "udp through the node": Flow(dst="10.244.1.10", port=53, protocol="udp", src="10.1.0.50", via="node"),
    "tcp from the node": Flow(dst="10.244.1.10", port=80, from_node="node"),
    "udp from the node to itself": Flow(dst="10.1.0.11", port=53, protocol="udp", from_node="node"),
    "udp from the node in IPv6": Flow(dst="fd00:244::10", port=53, protocol="udp", from_node="node"),
    "tcp to the node in IPv6": Flow(dst="fd00:1::11", port=80, src="fd00:1::50", via="node"),
    "udp through the node in IPv6": Flow(
        dst="fd00:244::10", port=53, protocol="udp", src="fd00:1::50", via="node"
    ),
}


def load(netns: str) -> None:
    """The table with a rule for each condition at each hook, but for those that this nft or kernel refuses."""
    chains = "".join(
        f"\tchain {hook} {{\n\t\ttype filter hook {hook} priority 10; policy accept;\n"
        # Only what the client sends, and of a TCP connection only its first packet.
        "\t\tmeta l4proto != { tcp, udp } accept\n\t\tct direction reply accept\n"
        "\t\tmeta l4proto tcp tcp flags != syn accept\n\t}\n"
        for hook in HOOKS
    )
    inside(netns, "nft", "-f", "-", stdin=f"table inet probe {{\n{SETS}\n{chains}\n}}\n")
    lines = [
        f'add rule inet probe {hook} {condition}{"" if " counter" in condition else " counter"} comment "{number}"'
        for hook in HOOKS
        for number, condition in enumerate(CONDITIONS)
    ]
    refused = 0
    while lines:
        command = ["ip", "netns", "exec", netns, "nft", "-f", "-"]
        answer = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
        if not answer.returncode:
            break
        # What follows the first line that the kernel refuses is refused with it.
        first = re.search(r"^/dev/stdin:(\d+):", answer.stderr, re.MULTILINE)
        assert first is not None, answer.stderr
        refused += 1
        del lines[int(first[1]) - 1]
    assert refused < len(CONDITIONS) / 5, "this nft knows too few of the conditions"


def counters(listing: bytes) -> dict[tuple[str, int], bool]:
    """(chain, number of the condition) → whether its rule counted a packet."""
    found = {}
    for item in json.loads(listing)["nftables"]:
        rule = item.get("rule", {})
        if rule.get("comment") is not None:
            packets = next(e["counter"]["packets"] for e in rule["expr"] if "counter" in e)
            found[rule["chain"], int(rule["comment"])] = packets > 0
    return found


def held(leaves: list[Leaf], chain: str, position: int) -> bool | None:
    """Whether the rule held on every way of the walk (and counted), on none, or on some."""
    answers = set()
    for leaf in leaves:
        hit = False
        for hop in leaf.state.hops:
            linked = hop.steps if hop.direction == "request" else None
            while linked is not None:
                linked, step = linked
                if step.chain == chain and step.rule is not None and step.rule.position == position:
                    hit = hit or step.effects[-1:] != (Leave(),)
        answers.add(hit)
    return answers.pop() if len(answers) == 1 else None


@pytest.mark.parametrize(
    "name",
    # The quick suite asks IPv6 once, and each protocol half of the ways; `make test-kernel` asks all.
    [
        n
        if n in ("tcp to the node", "tcp through the node", "udp from the node", "udp from the node in IPv6")
        else pytest.param(n, marks=pytest.mark.slow)
        for n in FLOWS
    ],
)
def test_conditions(name: str, lab: Lab) -> None:
    flow = FLOWS[name]
    load(lab.node)
    ruleset = parse_nft_json(inside(lab.node, "nft", "-j", "list", "ruleset").encode(), "before")
    sender = lab.node if flow.from_node else lab.client
    inside(sender, sys.executable, "-c", SEND, flow.dst, str(flow.port), flow.protocol, "1")
    counted = counters(inside(lab.node, "nft", "-j", "list", "ruleset").encode())
    assert any(counted.values())
    state = node_state(lab.node, None)
    (table,) = ruleset.tables
    wrong, unknown = [], set()
    for hook in HOOKS:
        chain = table.chains[hook]
        for rule in chain.rules[3:]:
            # ktp is asked about each rule alone: what one leaves unknown is not to fork the others.
            alone = replace(table, chains={hook: replace(chain, rules=(*chain.rules[:3], rule))})
            leaves = walker_over(replace(state, nft=replace(ruleset, tables=(alone,)))).walk(flow)
            said = held(leaves, hook, rule.index + 1)
            condition = CONDITIONS[int(rule.comment or "")]
            fact = counted[hook, int(rule.comment or "")]
            if said is None:
                unknown.add(condition)
            elif said != fact:
                wrong.append(f"{hook}: {condition}: ktp says {said}, the kernel {fact}")
    assert not wrong, "\n".join(wrong)
    # What `fib` says of packets that a node sends itself depends on the kernel's version.
    allowed = UNKNOWABLE | ({c for c in CONDITIONS if c.startswith("fib")} if flow.from_node else set())
    assert unknown <= allowed


NODE, SERVER, VIP = "10.1.0.11", "10.244.1.10", "10.1.0.11"
PRE = "type nat hook prerouting priority dstnat; policy accept;"
POST = "type nat hook postrouting priority srcnat; policy accept;"
IN = "type filter hook input priority filter; policy accept;"
FWD = "type filter hook forward priority filter; policy accept;"


def chain(name: str, *lines: str) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def ip(*parts: str, family: str = "ip") -> str:
    return f"table {family} t {{\n" + "".join(parts) + "}\n"


# name → (ruleset, destination, port, protocol)
SCENARIOS: dict[str, tuple[str, str, int, str]] = {
    "dnat": (ip(chain("a", PRE, "tcp dport 99 dnat to 10.244.1.10:8080")), NODE, 99, "tcp"),
    "dnat of the address alone": (
        ip(chain("a", PRE, "ip daddr 10.1.0.11 dnat to 10.244.1.11")),
        NODE,
        80,
        "tcp",
    ),
    "dnat of the port alone": (
        ip(chain("a", PRE, "tcp dport 99 dnat to :8081"), family="inet"),
        NODE,
        99,
        "tcp",
    ),
    "dnat with a map by port": (
        ip(
            chain(
                "a",
                PRE,
                "dnat ip addr . port to tcp dport map { 98 : 10.244.1.10 . 80, 99 : 10.244.1.11 . 8443 }",
            )
        ),
        NODE,
        99,
        "tcp",
    ),
    "dnat with a map that has no such key": (
        ip(chain("a", PRE, "dnat to tcp dport map { 98 : 10.244.1.10 }", "tcp dport 80 redirect to :8080")),
        NODE,
        80,
        "tcp",
    ),
    "dnat at random": (
        ip(
            chain(
                "a",
                PRE,
                "tcp dport 99 dnat to numgen random mod 3 map"
                " { 0 : 10.244.1.10 . 80, 1 : 10.244.1.11 . 8080, 2 : 10.244.1.12 . 8081 }",
            )
        ),
        NODE,
        99,
        "tcp",
    ),
    "dnat in turn": (
        ip(chain("a", PRE, "tcp dport 80 dnat to numgen inc mod 2 map { 0 : 10.244.1.10, 1 : 10.244.1.12 }")),
        NODE,
        80,
        "tcp",
    ),
    "a random verdict": (
        ip(
            chain("one", "tcp dport 99 dnat to 10.244.1.10:80"),
            chain("two", "tcp dport 99 dnat to 10.244.1.10:8081"),
            chain("a", PRE, "numgen random mod 2 vmap { 0 : goto one, 1 : goto two }"),
        ),
        NODE,
        99,
        "tcp",
    ),
    "a random condition": (
        ip(
            chain(
                "a",
                PRE,
                "tcp dport 99 numgen random mod 10 < 5 dnat to 10.244.1.10:80",
                "tcp dport 99 redirect to :8080",
            )
        ),
        NODE,
        99,
        "tcp",
    ),
    "a hash of ports": (
        ip(
            chain(
                "a",
                PRE,
                "tcp dport 99 dnat to jhash tcp sport mod 2 seed 0x5 map { 0 : 10.244.1.10, 1 : 10.244.1.11 }:8080",
            )
        ),
        NODE,
        99,
        "tcp",
    ),
    "netmap": (
        ip(
            chain("a", PRE, "dnat ip prefix to ip daddr map { 10.1.0.0/24 : 192.0.2.0/24 }"),
            chain("b", POST, "masquerade"),
        ),
        "10.1.0.20",
        80,
        "tcp",
    ),
    "redirect": (ip(chain("a", PRE, "tcp dport 99 redirect to :8443")), SERVER, 99, "tcp"),
    "redirect with a map": (
        ip(chain("a", PRE, "meta l4proto tcp redirect to :tcp dport map { 99 : 8081 }")),
        SERVER,
        99,
        "tcp",
    ),
    "redirect of udp": (ip(chain("a", PRE, "udp dport 99 redirect to :53")), NODE, 99, "udp"),
    "masquerade": (ip(chain("b", POST, 'oifname "eth1" masquerade fully-random')), SERVER, 80, "tcp"),
    "snat": (ip(chain("b", POST, "ip daddr 10.244.1.10 snat to 10.244.1.1")), SERVER, 80, "udp"),
    "snat in IPv6": (
        ip(chain("b", POST, "snat ip6 to fd00:244::11"), family="inet"),
        "fd00:244::10",
        80,
        "tcp",
    ),
    "dnat in IPv6": (
        ip(
            chain("a", PRE, "ip6 daddr fd00:1::11 tcp dport 99 dnat ip6 to [fd00:244::10]:8080"),
            family="inet",
        ),
        "fd00:1::11",
        99,
        "tcp",
    ),
    "dnat and masquerade by mark": (
        ip(
            chain("set_mark", "meta mark set meta mark | 0x4000"),
            chain("a", PRE, "tcp dport 99 jump set_mark", "tcp dport 99 dnat to 10.244.1.10:80"),
            chain(
                "b", POST, "meta mark & 0x4000 == 0 return", "meta mark set meta mark ^ 0x4000", "masquerade"
            ),
        ),
        NODE,
        99,
        "tcp",
    ),
    "the first chain that translates wins": (
        ip(
            chain("late", "type nat hook prerouting priority -90;", "tcp dport 99 dnat to 10.244.1.10:8080"),
            chain(
                "early", "type nat hook prerouting priority -110;", "tcp dport 99 dnat to 10.244.1.10:8081"
            ),
        ),
        NODE,
        99,
        "tcp",
    ),
    "input sees the translated port": (
        ip(
            chain("a", PRE, "tcp dport 99 redirect to :80"),
            chain("i", IN, "tcp dport 99 drop", "tcp dport 80 reject"),
        ),
        NODE,
        99,
        "tcp",
    ),
    "ct original sees the dialled port": (
        ip(
            chain("a", PRE, "tcp dport 99 redirect to :80"),
            chain("i", IN, "ct status dnat meta l4proto tcp ct original proto-dst 99 reject with tcp reset"),
        ),
        NODE,
        99,
        "tcp",
    ),
    "drop": (ip(chain("i", IN, "tcp dport 80 drop")), NODE, 80, "tcp"),
    "policy drop": (
        ip(
            chain(
                "i",
                IN.replace("accept", "drop"),
                "ct state established,related accept",
                "tcp dport 22 accept",
            )
        ),
        NODE,
        80,
        "tcp",
    ),
    "policy drop with an exception": (
        ip(
            chain(
                "i",
                IN.replace("accept", "drop"),
                "ct state vmap { established : accept, related : accept }",
                "tcp dport { 80, 443 } accept",
            )
        ),
        NODE,
        80,
        "tcp",
    ),
    "accept ends one chain only": (
        ip(
            chain("first", IN.replace("priority filter", "priority -5"), "tcp dport 80 accept"),
            chain("second", IN.replace("priority filter", "priority 5"), "tcp dport 80 drop"),
        ),
        NODE,
        80,
        "tcp",
    ),
    "return in a base chain is its policy": (
        ip(chain("i", IN.replace("accept", "drop"), "tcp dport 80 return", "accept")),
        NODE,
        80,
        "tcp",
    ),
    "return from a chain goes on with the caller": (
        ip(chain("u", "return", "drop"), chain("i", IN, "jump u", "reject with tcp reset")),
        NODE,
        80,
        "tcp",
    ),
    "the end of a chain that was gone to is the policy": (
        ip(chain("u", "tcp dport 81 drop"), chain("i", IN.replace("accept", "drop"), "goto u", "accept")),
        NODE,
        80,
        "tcp",
    ),
    "a chain gone to from a chain jumped to returns to the first": (
        ip(chain("w"), chain("u", "goto w", "drop"), chain("i", IN, "jump u", "reject with tcp reset")),
        NODE,
        80,
        "tcp",
    ),
    "continue": (
        ip(chain("i", IN, "tcp dport vmap { 80 : continue }", "tcp dport 80 reject")),
        NODE,
        80,
        "tcp",
    ),
    "continue goes on in its rule": (
        ip(chain("i", IN, "tcp dport vmap { 80 : continue } reject with tcp reset")),
        NODE,
        80,
        "tcp",
    ),
    "of two chains of one priority the one made last runs first": (
        ip(
            chain("first", IN, "meta mark 0x1 reject with tcp reset"),
            chain("second", IN, "meta mark set 0x1"),
        ),
        NODE,
        80,
        "tcp",
    ),
    "an element carries what it was made with": (
        ip(
            "\tset seen { type ipv4_addr; flags dynamic; size 9; }\n",
            chain(
                "i",
                IN,
                "tcp dport 80 add @seen { ip saddr }",
                "tcp dport 80 update @seen { ip saddr limit rate over 100/second } reject with tcp reset",
            ),
        ),
        NODE,
        80,
        "tcp",
    ),
    "an element that is not there yet carries what the rule says": (
        ip(
            "\tset seen { type ipv4_addr; flags dynamic; size 9; }\n",
            chain(
                "i",
                IN,
                "tcp dport 80 add @seen { ip daddr }",
                "tcp dport 80 update @seen { ip saddr limit rate over 100/second } reject with tcp reset",
            ),
        ),
        NODE,
        80,
        "tcp",
    ),
    "an element that is looked up is asked what it carries": (
        ip(
            "\tset seen { type ipv4_addr; flags dynamic; size 9; }\n",
            chain(
                "i",
                IN,
                "update @seen { ip saddr limit rate over 100/second }",
                "ip saddr @seen drop",
                "ip saddr != @seen drop",
                "tcp dport 80 reject with tcp reset",
            ),
        ),
        NODE,
        80,
        "tcp",
    ),
    "an element that is listed carries nothing": (
        ip(
            "\tset seen { type ipv4_addr; flags dynamic; size 9; elements = { 10.1.0.50 } }\n",
            chain(
                "i",
                IN,
                "tcp dport 80 update @seen { ip saddr limit rate over 100/second } reject with tcp reset",
            ),
        ),
        NODE,
        80,
        "tcp",
    ),
    "a chain of type nat where nothing needs connection tracking": (
        ip(chain("a", PRE, "tcp dport 80 drop")),
        NODE,
        80,
        "tcp",
    ),
    "a chain of type nat where something does": (
        ip(chain("a", PRE, "tcp dport 80 drop"), chain("i", IN, "ct state invalid drop")),
        NODE,
        80,
        "tcp",
    ),
    "nat is asked about a reset of a connection that it has not seen": (
        ip(
            chain("f", FWD, "tcp dport 80 reject with tcp reset"),
            chain("p", POST, "tcp flags & rst == rst drop", "masquerade"),
        ),
        SERVER,
        80,
        "tcp",
    ),
    "what nat translates of such a reset is the other direction": (
        ip(
            chain("f", FWD, "tcp dport 80 reject with tcp reset"),
            chain("p", POST, "snat to 10.99.0.1"),
        ),
        SERVER,
        80,
        "tcp",
    ),
    "a verdict map with a catch-all": (
        ip(chain("i", IN, "tcp dport vmap { 22 : accept, 8000-9000 : accept, * : drop }")),
        NODE,
        80,
        "tcp",
    ),
    "a verdict map of intervals": (
        ip(
            chain(
                "i", IN, "ip saddr . tcp dport vmap { 10.1.0.0/24 . 70-90 : drop, 10.1.0.50 . 8080 : accept }"
            )
        ),
        NODE,
        80,
        "tcp",
    ),
    **{
        f"reject with {kind}": (
            ip(chain("f", FWD, f"reject with {kind}"), family="inet"),
            SERVER,
            80,
            protocol,
        )
        for kind in (
            "icmp port-unreachable",
            "icmp net-unreachable",
            "icmp host-unreachable",
            "icmp prot-unreachable",
            "icmp net-prohibited",
            "icmp host-prohibited",
            "icmp admin-prohibited",
            "icmpx no-route",
            "icmpx host-unreachable",
            "icmpx admin-prohibited",
            "icmpx port-unreachable",
        )
        for protocol in ("tcp",)
    },
    **{
        f"reject with {kind} in IPv6": (
            ip(chain("f", FWD, f"reject with {kind}"), family="inet"),
            "fd00:244::10",
            80,
            "tcp",
        )
        for kind in (
            "icmpv6 no-route",
            "icmpv6 admin-prohibited",
            "icmpv6 addr-unreachable",
            "icmpv6 port-unreachable",
            "icmpx no-route",
            "icmpx host-unreachable",
            "icmpx admin-prohibited",
            "icmp port-unreachable",
        )
    },
    "reject of udp": (ip(chain("f", FWD, "udp dport 53 reject")), SERVER, 53, "udp"),
    "reject of udp with tcp reset": (
        ip(chain("f", FWD, "meta l4proto tcp reject with tcp reset", "drop")),
        SERVER,
        53,
        "udp",
    ),
    "reject before routing": (
        ip(chain("p", "type filter hook prerouting priority -110;", "tcp dport 80 reject with tcp reset")),
        NODE,
        80,
        "tcp",
    ),
    "untracked": (
        ip(
            chain("r", "type filter hook prerouting priority raw;", "tcp dport 80 notrack"),
            chain("i", IN, "ct state untracked reject with icmp host-prohibited"),
        ),
        NODE,
        80,
        "tcp",
    ),
    "a packet remembers itself in a set": (
        ip(
            "\tset seen { type ipv4_addr; flags dynamic,timeout; timeout 1m; }\n",
            chain("p", "type filter hook prerouting priority -150;", "tcp dport 80 add @seen { ip saddr }"),
            chain("i", IN, "ip saddr @seen reject with tcp reset"),
        ),
        NODE,
        80,
        "tcp",
    ),
    "a limit that is not reached": (ip(chain("i", IN, "limit rate over 5/second drop")), NODE, 80, "tcp"),
    "a header of the other family is not set": (
        ip(
            chain("p", "type filter hook prerouting priority raw;", "ip6 dscp set cs1", "udp dport set 81"),
            chain("i", IN, "ip dscp cs0 tcp dport 80 reject with tcp reset"),
            family="inet",
        ),
        NODE,
        80,
        "tcp",
    ),
    "a quota that is used up": (
        ip("\tquota q { over 5 bytes used 5 bytes\n\t}\n", chain("i", IN, 'quota name "q" drop')),
        NODE,
        80,
        "tcp",
    ),
    "a count that is not reached": (
        ip(chain("i", IN, "ct state new ct count over 9 reject")),
        NODE,
        80,
        "tcp",
    ),
    "a dormant table": ("table ip t {\n\tflags dormant\n" + chain("i", IN, "drop") + "}\n", NODE, 80, "tcp"),
    "another family's table": (ip(chain("i", IN, "drop"), family="ip6"), NODE, 80, "tcp"),
    "ingress": (
        ip(
            chain("g", 'type filter hook ingress device "eth0" priority 0;', "tcp dport 80 drop"),
            family="netdev",
        ),
        NODE,
        80,
        "tcp",
    ),
    "ingress of another device": (
        ip(
            chain("g", 'type filter hook ingress device "eth1" priority 0;', "tcp dport 80 drop"),
            family="netdev",
        ),
        NODE,
        80,
        "tcp",
    ),
    "a rewritten header": (
        ip(chain("p", "type filter hook prerouting priority -400;", "tcp dport 99 tcp dport set 80")),
        NODE,
        99,
        "tcp",
    ),
    "the answer is dropped": (
        ip(
            chain("o", "type filter hook output priority 0;", "tcp sport 80 tcp flags syn,ack / syn,ack drop")
        ),
        NODE,
        80,
        "tcp",
    ),
    "the answer is dropped by its direction": (
        ip(chain("f", FWD, "ct direction reply drop")),
        SERVER,
        80,
        "tcp",
    ),
}


def predicted(state: NodeState, flow: Flow) -> dict[str, float]:
    """What the client gets, in the words of SEND, with its probability."""
    answer = answer_flow(walker_over(state), flow)
    assert answer.symptom is not Symptom.UNKNOWN, answer.reason
    chances: dict[str, float] = {}
    for path in answer.paths:
        what = path.symptom.value
        if path.symptom is Symptom.CONNECTS:
            what = f"{path.endpoint_name or 'node'} {path.endpoint_port} {path.source_seen}"
        chances[what] = chances.get(what, 0) + path.probability
    return chances


@pytest.mark.parametrize(
    "group",
    # The quick suite asks an eighth of them; `make test-kernel` asks all.
    [0, *(pytest.param(group, marks=pytest.mark.slow) for group in range(1, 8))],
)
def test_scenarios(group: int, lab: Lab) -> None:
    state = node_state(lab.node, None)
    wrong = []
    for name, (rules, dst, port, protocol) in list(SCENARIOS.items())[group::8]:
        inside(lab.node, "nft", "flush", "ruleset")
        inside(lab.node, "nft", "-f", "-", stdin=rules)
        listed = parse_nft_text(inside(lab.node, "nft", "-a", "list", "ruleset"), name)
        src = "fd00:1::50" if ":" in dst else "10.1.0.50"
        flow = Flow(dst=dst, port=port, protocol=protocol, src=src, via="node")
        chances = predicted(replace(state, nft=listed), flow)
        count = 1 if len(chances) == 1 else 24
        if dst == "10.1.0.20":  # an address that nobody has, led to the node
            run("ip", "-n", lab.client, "route", "replace", "10.1.0.20", "via", NODE)
        seen = inside(
            lab.client, sys.executable, "-c", SEND, dst, str(port), protocol, str(count)
        ).splitlines()
        if not set(seen) <= set(chances) or any(
            chance > 0.3 and what not in seen for what, chance in chances.items()
        ):
            wrong.append(f"{name}: ktp says {chances}, the kernel {sorted(set(seen))}")
    assert not wrong, "\n".join(wrong)
