"""Packets through small rulesets: one node with an uplink and two pods, asked from all sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.host import Interface, InterfaceAddress, IpSet, ListeningSocket, NextHop, NodeState, Route
from ktp.model.ruleset import Backend
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom
from ktp.parse.iptables_save import open_ruleset
from tests.kernel.cases import save_text

NODE, CLIENT, VIP = "10.1.0.11", "10.1.0.50", "10.96.0.10"
PODS = {"10.244.1.10": "one", "10.244.1.11": "two"}


def _interface(name: str, index: int, address: str | None) -> Interface:
    addresses: tuple[InterfaceAddress, ...] = ()
    if address is not None:
        ip, _, length = address.partition("/")
        scope = "host" if name == "lo" else "global"
        addresses = (InterfaceAddress(ip=ip_address(ip), prefixlen=int(length), scope=scope),)
    flags = frozenset({"UP", "LOOPBACK"} if name == "lo" else {"UP"})
    return Interface(name=name, index=index, flags=flags, addresses=addresses)


@cache
def _node() -> NodeState:
    local = [("127.0.0.0/8", "lo"), (f"{NODE}/32", "eth0"), ("10.244.1.1/32", "vone")]
    links = [("10.1.0.0/24", "eth0"), ("10.244.1.10/32", "vone"), ("10.244.1.11/32", "vtwo")]
    routes = [
        Route(dst=ip_network(net), type="local", table="local", nexthops=(NextHop(dev=dev),), scope="host")
        for net, dev in local
    ]
    routes += [Route(dst=ip_network(net), nexthops=(NextHop(dev=dev),), scope="link") for net, dev in links]
    gateway = NextHop(dev="eth0", gateway=ip_address("10.1.0.1"))
    routes.append(Route(dst=ip_network("0.0.0.0/0"), nexthops=(gateway,)))
    return NodeState(
        name="node",
        interfaces=(
            _interface("lo", 1, "127.0.0.1/8"), _interface("eth0", 2, f"{NODE}/24"),
            _interface("vone", 3, "10.244.1.1/32"), _interface("vtwo", 4, None),
        ),
        routes=tuple(routes),
        sockets=(ListeningSocket(protocol="tcp", ip=None, port=22, family=0),),
        sysctls={"net.ipv4.ip_forward": "1"},
        ipsets={},
    )  # fmt: skip


def ask(rules: str, flow: Flow, **changes: object) -> FlowAnswer:
    text = save_text(rules) if rules else "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
    return ask_text(text, flow, **changes)


def ask_text(text: str, flow: Flow, **changes: object) -> FlowAnswer:
    ruleset = open_ruleset(text.encode(), source="test", family="ip", backend=Backend.NFT)
    state = replace(_node(), rulesets=(ruleset,), **changes)  # type: ignore[arg-type]
    attached = {to_int(ip): Attached(name=name, node="node") for ip, name in PODS.items()}
    attached[to_int(CLIENT)] = Attached(name="client", node=None)
    return answer_flow(Walker(Topology(nodes={"node": state}, attached=attached)), flow)


def to_node(port: int = 22, protocol: str = "tcp") -> Flow:
    return Flow(dst=NODE, port=port, protocol=protocol, src=CLIENT)


def to_pod(port: int = 80, protocol: str = "tcp") -> Flow:
    return Flow(dst="10.244.1.10", port=port, protocol=protocol, src=CLIENT, via="node")


def to_vip(port: int = 80, protocol: str = "tcp") -> Flow:
    return Flow(dst=VIP, port=port, protocol=protocol, src=CLIENT, via="node")


@dataclass(frozen=True)
class Row:
    """A ruleset, a flow, and what becomes of it; `endpoint` and `source` are those of every way that connects."""

    rules: str
    flow: Flow
    symptom: str
    disposition: str = ""
    endpoint: str | None = None
    source: str | None = None


_DNAT = f"nat: -A PREROUTING -d {VIP} -p tcp -j DNAT --to-destination 10.244.1.10:8080"
_SPLIT = (
    f"nat: -A PREROUTING -d {VIP} -p tcp -m statistic --mode random --probability 0.50000000000 "
    "-j DNAT --to-destination 10.244.1.10:80\n"
    f"nat: -A PREROUTING -d {VIP} -p tcp -j DNAT --to-destination 10.244.1.11:80"
)
_TIME = "-m time --timestart 08:00"
ROWS = {
    "no rules, a listener": Row("", to_node(), "connects", "host_process", NODE, CLIENT),
    "no rules, no listener": Row("", to_node(23), "refused", "no_listener"),
    "no rules, no listener, UDP": Row("", to_node(23, "udp"), "refused", "no_listener"),
    "no rules, a pod": Row("", to_pod(), "connects", "delivered", "10.244.1.10", CLIENT),
    "a drop": Row("filter: -A INPUT -p tcp --dport 22 -j DROP", to_node(), "times_out", "dropped"),
    "a drop of another port": Row("filter: -A INPUT -p tcp --dport 23 -j DROP", to_node(), "connects"),
    "an accept before a drop": Row(
        f"filter: -A INPUT -s {CLIENT} -j ACCEPT\nfilter: -A INPUT -j DROP", to_node(), "connects", "host_process",
    ),
    "an accept before a drop, and of what is established": Row(
        f"filter: -A INPUT -s {CLIENT} -j ACCEPT\nfilter: -A INPUT -j DROP\nfilter: -P OUTPUT DROP\n"
        "filter: -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", to_node(), "connects",
    ),
    "a policy": Row("filter: -P FORWARD DROP", to_pod(), "times_out", "dropped"),
    "a policy that lets answers through": Row(
        "filter: -P FORWARD DROP\nfilter: -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "filter: -A FORWARD -d 10.244.1.10 -j ACCEPT", to_pod(), "connects", "delivered",
    ),
    "a policy that forgets the answers": Row(
        "filter: -P FORWARD DROP\nfilter: -A FORWARD -d 10.244.1.10 -j ACCEPT", to_pod(), "times_out", "lost",
    ),
    "a reject": Row("filter: -A FORWARD -j REJECT", to_pod(), "refused", "rejected"),
    "a reject with a hard error": Row(
        "filter: -A FORWARD -j REJECT --reject-with icmp-admin-prohibited", to_pod(), "unreachable", "rejected"
    ),
    "a reject with a soft error, UDP": Row(
        "filter: -A FORWARD -j REJECT --reject-with icmp-host-unreachable", to_pod(80, "udp"), "times_out", "rejected"
    ),
    "a reject whose error is dropped": Row(
        "filter: -A FORWARD -d 10.244.1.10 -j REJECT\n"
        "filter: -A OUTPUT -p icmp -j DROP", to_pod(), "times_out", "rejected"
    ),
    "goto does not come back": Row(
        "filter: -A INPUT -g U\nfilter: -A INPUT -j DROP\nfilter: -A U -p udp", to_node(), "connects"
    ),
    "a jump comes back": Row(
        "filter: -A INPUT -p tcp --dport 22 -j U\nfilter: -A INPUT -p tcp --dport 22 -j DROP\nfilter: -A U -p udp",
        to_node(), "times_out",
    ),
    "return ends a user chain": Row(
        "filter: -A INPUT -p tcp --dport 22 -j U\nfilter: -A U -j RETURN\nfilter: -A U -j DROP", to_node(), "connects"
    ),
    "a rule without target counts": Row("filter: -A INPUT", to_node(), "connects"),
    "tcp flags": Row("filter: -A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", to_node(), "times_out"),
    "tcp flags, not": Row("filter: -A INPUT -p tcp -m tcp ! --syn -j DROP", to_node(), "connects"),
    "multiport": Row("filter: -A INPUT -p tcp -m multiport --dports 80,20:25 -j DROP", to_node(), "times_out"),
    "multiport, not": Row("filter: -A INPUT -p tcp -m multiport ! --dports 80,20:25 -j DROP", to_node(), "connects"),
    "a set that is not in the dump": Row("filter: -A INPUT -m set --match-set lost src -j DROP", to_node(), "unknown"),
    "a set that is not in the dump, where it does not matter": Row(
        "filter: -A INPUT -m set --match-set lost src -j ACCEPT", to_node(), "connects"
    ),
    "an unknown match and one that fails": Row(f"filter: -A INPUT -p udp {_TIME} -j DROP", to_node(), "connects"),
    "an unknown match": Row(f"filter: -A INPUT -p tcp {_TIME} -j DROP", to_node(), "unknown", "undetermined"),
    "an unknown match, both ways alike": Row(
        f"filter: -A INPUT {_TIME} -j DROP\nfilter: -A INPUT -j DROP", to_node(), "times_out", "dropped"
    ),
    "an unknown match, both ways time out, by two rules": Row(
        f"mangle: -A INPUT {_TIME} -j DROP\nfilter: -A INPUT -j DROP", to_node(), "times_out", "dropped"
    ),
    "an unknown match, both ways time out, one of them at a pod": Row(
        f"nat: -A PREROUTING {_TIME} -j DNAT --to-destination 10.244.0.5:80\nfilter: -A FORWARD -j DROP\nfilter: -A INPUT -j DROP",
        to_node(), "times_out", "dropped",
    ),
    "an unknown match that is asked twice is answered alike": Row(
        f"mangle: -A INPUT {_TIME} -j MARK --set-xmark 0x1/0x1\nfilter: -A INPUT -m mark --mark 0x1/0x1 -j ACCEPT",
        to_node(), "connects",
    ),
    "an extension that nobody knows": Row("filter: -A INPUT -m nosuch --thing 1 -j DROP", to_node(), "unknown"),
    "a target that nobody knows": Row("filter: -A INPUT -j NOSUCH --thing 1", to_node(), "unknown"),
    "a line that cannot be parsed": Row('filter: -A INPUT -m comment --comment "open', to_node(), "unknown"),
    "a zone": Row("raw: -A PREROUTING -j CT --zone 3", to_node(), "unknown"),
    "chains that jump in a circle": Row(
        "filter: -A INPUT -j U\nfilter: -A U -j V\nfilter: -A V -j U", to_node(), "unknown"
    ),
    "a chain that is not in the dump": Row("filter: -A INPUT -g GONE", to_node(), "unknown"),
    "DNAT": Row(_DNAT, to_vip(), "connects", "delivered", "10.244.1.10", CLIENT),
    "DNAT and MASQUERADE": Row(
        _DNAT + "\nnat: -A POSTROUTING -j MASQUERADE", to_vip(), "connects", "delivered", "10.244.1.10", "10.244.1.1"
    ),
    "DNAT of another protocol": Row(_DNAT, to_vip(80, "udp"), "times_out", "lost"),
    "DNAT of a packet that is not tracked": Row(
        _DNAT + "\nraw: -A PREROUTING -j CT --notrack", to_vip(), "times_out", "lost"
    ),
    "the first translation counts": Row(
        _DNAT + f"\nnat: -A PREROUTING -d {VIP} -p tcp -j DNAT --to-destination 10.244.1.11", to_vip(), "connects", "",
        "10.244.1.10", CLIENT,
    ),
    "a mark that another table reads": Row(
        _DNAT + f"\nmangle: -A PREROUTING -d {VIP} -j MARK --set-xmark 0x4000/0x4000\n"
        "nat: -A POSTROUTING -m mark --mark 0x4000/0x4000 -j SNAT --to-source 10.1.0.11", to_vip(), "connects", "",
        "10.244.1.10", NODE,
    ),
    "REDIRECT": Row(
        f"nat: -A PREROUTING -d {VIP} -p tcp -j REDIRECT --to-ports 22", to_vip(), "connects", "", NODE, CLIENT
    ),
    "a lot that is always drawn": Row(
        "filter: -A INPUT -m statistic --mode random --probability 1.00000000000 -j DROP", to_node(), "times_out"
    ),
    "a lot that is never drawn": Row(
        "filter: -A INPUT -m statistic --mode random --probability 0.00000000000 -j DROP", to_node(), "connects"
    ),
    "a lot": Row(
        "filter: -A INPUT -m statistic --mode random --probability 0.25000000000 -j DROP", to_node(), "intermittent"
    ),
    "limits are taken as not reached": Row(
        "filter: -A INPUT -m limit --limit 1/sec -j ACCEPT\n"
        "filter: -A INPUT -p tcp --dport 22 -j DROP", to_node(), "connects"
    ),
    "connlimit above nothing": Row(
        "filter: -A INPUT -p tcp --dport 22 -m connlimit --connlimit-above 0 -j DROP", to_node(), "times_out"
    ),
    "recent: nobody was there before": Row(
        "filter: -A INPUT -m recent --name x --rcheck --seconds 60 -j DROP", to_node(), "connects"
    ),
    "recent: the packet itself was": Row(
        "filter: -A INPUT -p tcp --dport 22 -m recent --name x --set\n"
        "filter: -A INPUT -m recent --name x --rcheck -j DROP",
        to_node(), "times_out",
    ),
    "NFQUEUE": Row("filter: -A INPUT -j NFQUEUE --queue-num 0", to_node(), "unknown"),
    "a loopback address from outside": Row(
        "", Flow(dst="127.0.0.1", port=22, src=CLIENT, via="node"), "times_out", "lost"
    ),
    "the node to itself": Row("", Flow(dst=NODE, port=22, from_node="node"), "connects", "host_process", NODE, NODE),
    "the node to a pod": Row("", Flow(dst="10.244.1.11", port=80, from_node="node"), "connects", "delivered"),
    "a pod to a pod": Row(
        "", Flow(dst="10.244.1.11", port=80, src="10.244.1.10", from_node="node"), "connects", "delivered",
        "10.244.1.11",
        "10.244.1.10",
    ),
    "the node, its datagram dropped": Row(
        "filter: -A OUTPUT -j DROP", Flow(dst="10.244.1.11", port=80, protocol="udp", from_node="node"), "unreachable",
        "dropped",
    ),
    "the node, its SYN dropped": Row(
        "filter: -A OUTPUT -j DROP", Flow(dst="10.244.1.11", port=80, from_node="node"), "times_out", "dropped"
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_packet(row: Row) -> None:
    answer = ask(row.rules, row.flow)
    assert answer.symptom.value == row.symptom, answer.reason
    if row.disposition:
        assert answer.disposition.value == row.disposition, answer.reason
    connecting = [path for path in answer.paths if path.symptom is Symptom.CONNECTS]
    if row.endpoint is not None:
        assert {path.endpoint_ip for path in connecting} == {row.endpoint}
    if row.source is not None:
        assert {path.source_seen for path in connecting} == {row.source}


def test_a_lot_between_endpoints_has_their_chances() -> None:
    answer = ask(_SPLIT, to_vip())
    assert {(path.endpoint_name, path.probability) for path in answer.paths} == {("one", 0.5), ("two", 0.5)}
    assert answer.symptom is Symptom.CONNECTS


def test_an_unknown_names_its_rule() -> None:
    answer = ask(f"filter: -A INPUT -p tcp {_TIME} -j DROP", to_node())
    assert [unknown.rule.text for unknown in answer.unknowns if unknown.rule] == [
        f"-A INPUT -p tcp {_TIME} -j DROP"
    ]


def test_a_decision_names_its_rule() -> None:
    answer = ask(
        "filter: -A INPUT -s 192.0.2.1 -j DROP\nfilter: -A INPUT -p tcp --dport 22 -j DROP", to_node()
    )
    decided = answer.decided_by
    assert decided is not None
    assert (decided.node, decided.table, decided.chain) == ("node", "filter", "INPUT")
    assert decided.rule == "-A INPUT -p tcp --dport 22 -j DROP"


def test_assumptions_are_told() -> None:
    answer = ask(
        "filter: -A INPUT -m limit --limit 1/sec -j ACCEPT\nfilter: -A INPUT -p tcp --dport 22 -j DROP",
        to_node(),
    )
    assert any("limit" in a.taken for a in answer.assumptions)


def test_sockets_that_were_not_read_are_assumed_away() -> None:
    answer = ask("", to_node(), sockets=None)
    assert answer.symptom is Symptom.REFUSED
    assert answer.assumptions


def test_routes_of_equal_cost_are_alternatives() -> None:
    hops = (
        NextHop(dev="eth0", gateway=ip_address("10.1.0.2")),
        NextHop(dev="eth0", gateway=ip_address("10.1.0.3"), weight=3),
    )
    routes = (*(_node().routes or ()), Route(dst=ip_network("192.0.2.0/24"), nexthops=hops))
    flow = Flow(dst="192.0.2.1", port=80, src="10.244.1.10", from_node="node")
    answer = ask("", flow, routes=routes)
    assert sorted(path.probability for path in answer.paths) == [0.25, 0.75]
    assert answer.disposition is Disposition.LOST


@pytest.mark.parametrize(
    ("kind", "entries", "directions", "member"),
    [
        ("hash:ip", [CLIENT], "src", True),
        ("hash:ip", ["10.1.0.0/24"], "src", True),
        ("hash:net", ["10.1.0.0/16", f"{CLIENT} nomatch"], "src", False),
        ("hash:net", ["0.0.0.0/0"], "dst", True),
        ("hash:ip,port", [f"{NODE},tcp:22"], "dst,dst", True),
        ("hash:ip,port", [f"{NODE},udp:22"], "dst,dst", False),
        ("hash:net,port", ["10.1.0.0/24,tcp:22"], "src,dst", True),
        ("hash:ip,port,ip", [f"{NODE},tcp:22,{CLIENT}"], "dst,dst,src", True),
        ("hash:ip,port,net", [f"{NODE},tcp:22,10.1.0.0/25"], "dst,dst,src", True),
        ("hash:net,net", ["10.1.0.0/24,10.1.0.0/28"], "src,dst", True),
        ("hash:net,iface", ["10.1.0.0/24,eth0"], "src,src", True),
        ("hash:ip,mark", [f"{CLIENT},0x0"], "src,src", True),
        ("bitmap:port", ["20-30"], "dst", True),
        ("bitmap:ip", ["10.1.0.10-10.1.0.12"], "dst", True),
        ("hash:ip,port", [f"{CLIENT},tcp:22"], "src,src", False),
        ("hash:ip,port", [f"{CLIENT},tcp:40000"], "src,src", None),
    ],
)
def test_set(kind: str, entries: list[str], directions: str, member: bool | None) -> None:
    pairs = tuple((e.split()[0], {"nomatch": ""} if e.endswith("nomatch") else {}) for e in entries)
    sets = {"s": IpSet(name="s", type=kind, entries=pairs)}
    flow = to_node()
    answer = ask(f"filter: -A INPUT -m set --match-set s {directions} -j DROP", flow, ipsets=sets)
    wanted = {True: Symptom.TIMES_OUT, False: Symptom.CONNECTS, None: Symptom.UNKNOWN}[member]
    assert answer.symptom is wanted
