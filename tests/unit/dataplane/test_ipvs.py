"""IPVS on a packet's way, in small: the recordings of a real kernel's IPVS are asked by test_recorded_clusters.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.ipvs import draw
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.assumption import EvidenceKind
from ktp.model.host import (
    Interface,
    InterfaceAddress,
    ListeningSocket,
    NextHop,
    NodeState,
    Route,
    RoutingRule,
)
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom
from ktp.parse.ipset import parse_ipsets
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.ipvs import parse_ipvs

NODE, VIP, CLIENT = "10.0.0.3", "10.99.0.12", "203.0.113.7"

# What kube-proxy 1.30 keeps in IPVS mode, for one Service of each policy.
RULES = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -j RETURN
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
"""
SETS = """\
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 31465
add KUBE-NODE-PORT-TCP 31015
create KUBE-NODE-PORT-LOCAL-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-LOCAL-TCP 31015
create KUBE-LOAD-BALANCER hash:ip,port family inet hashsize 1024 maxelem 65536
add KUBE-LOAD-BALANCER 10.99.0.12,tcp:80
"""
SERVERS = """\
-A -t 10.0.0.3:31465 -s rr
-a -t 10.0.0.3:31465 -r 10.244.1.10:80 -m -w 1
-a -t 10.0.0.3:31465 -r 10.244.2.11:80 -m -w 1
-A -t 10.0.0.3:31015 -s rr
-a -t 10.0.0.3:31015 -r 10.244.1.10:80 -m -w 1
-A -t 10.99.0.12:80 -s rr
-a -t 10.99.0.12:80 -r 10.244.1.10:80 -m -w 1
-a -t 10.99.0.12:80 -r 10.244.2.11:80 -m -w 0
-A -t 10.0.0.3:30001 -s rr
"""


def _interface(name: str, index: int, *addresses: str) -> Interface:
    return Interface(
        name=name,
        index=index,
        flags=frozenset({"UP", *(["LOOPBACK"] if name == "lo" else [])}),
        link_type="loopback" if name == "lo" else "ether",
        addresses=tuple(
            InterfaceAddress(
                ip=ip_address(a.split("/")[0]),
                prefixlen=int(a.split("/")[1]),
                scope="host" if name == "lo" else "global",
            )
            for a in addresses
        ),
    )


def _route(
    dst: str, dev: str, via: str | None = None, *, kind: str = "unicast", table: str = "main"
) -> Route:
    hop = NextHop(dev=dev, gateway=ip_address(via) if via else None)
    return Route(
        dst=ip_network(dst), type=kind, table=table, nexthops=(hop,), scope="global" if via else "link"
    )


def _node(name: str, address: str, pod: str, pods: str, other: tuple[str, str], **state: object) -> NodeState:
    vips = (VIP, "172.16.0.10")
    return NodeState(
        name=name,
        interfaces=(
            _interface("lo", 1, "127.0.0.1/8"),
            _interface("eth0", 2, f"{address}/24"),
            _interface("veth0", 3),
            _interface("kube-ipvs0", 4, *(f"{v}/32" for v in vips)),
        ),
        routes=(
            _route("0.0.0.0/0", "eth0", "10.0.0.1"),
            _route("10.0.0.0/24", "eth0"),
            _route(f"{pod}/32", "veth0"),
            _route(other[0], "eth0", other[1]),
            _route("127.0.0.0/8", "lo", kind="local", table="local"),
            *(_route(f"{a}/32", "eth0", kind="local", table="local") for a in (address, *vips)),
        ),
        sysctls={"net.ipv4.ip_forward": "1"},
        sockets=(),
        **state,  # type: ignore[arg-type]
    )


def _walker(servers: str = SERVERS, rules: str = RULES) -> Walker:
    ruleset = open_ruleset(rules.encode(), source="rules")
    a = _node(
        "node-a", NODE, "10.244.1.10", "10.244.1.0/24", ("10.244.2.0/24", "10.0.0.10"),
        rulesets=(ruleset,), ipsets=parse_ipsets(SETS, source="sets"), ipvs=parse_ipvs(servers, source="ipvs"),
    )  # fmt: skip
    b = _node(
        "node-b", "10.0.0.10", "10.244.2.11", "10.244.2.0/24", ("10.244.1.0/24", NODE),
        rulesets=(open_ruleset(b"# Generated by iptables-save v1.8.9\n", source="none"),),
    )  # fmt: skip
    attached = {
        (4, int(ip_address(ip))): Attached(name=f"pod-{node}", node=node)
        for ip, node in (("10.244.1.10", "node-a"), ("10.244.2.11", "node-b"))
    }
    return Walker(Topology(nodes={"node-a": a, "node-b": b}, attached=attached))


def _ask(dst: str, port: int, **flow: Any) -> FlowAnswer:
    question = Flow(dst=dst, port=port, via="node-a", **({"src": CLIENT} | flow))
    return answer_flow(_walker(), question)


def test_a_node_port_is_balanced_and_masqueraded() -> None:
    answer = _ask(NODE, 31465)
    assert answer.symptom is Symptom.CONNECTS
    assert {(p.endpoint_ip, p.probability) for p in answer.paths} == {
        ("10.244.1.10", 0.5),
        ("10.244.2.11", 0.5),
    }
    remote = next(p for p in answer.paths if p.endpoint_ip == "10.244.2.11")
    assert remote.source_seen == NODE
    chains = {s.hook for h in remote.hops if h.node == "node-a" and h.direction == "request" for s in h.steps}
    assert "INPUT" in chains
    assert "FORWARD" not in chains


def test_local_keeps_the_source() -> None:
    answer = _ask(NODE, 31015)
    assert answer.symptom is Symptom.CONNECTS
    assert answer.sources_seen == (CLIENT,)


def test_weight_0_is_not_drawn() -> None:
    answer = _ask(VIP, 80)
    assert [p.endpoint_ip for p in answer.paths] == ["10.244.1.10"]
    assert answer.sources_seen != (CLIENT,)


@pytest.mark.parametrize("method", ["g", "i"])
@pytest.mark.parametrize(("end", "symptom"), [(NODE, Symptom.REFUSED), ("10.244.2.11", Symptom.UNKNOWN)])
def test_what_is_not_rewritten_goes_on_to_this_node_or_is_unknown(
    method: str, end: str, symptom: Symptom
) -> None:
    servers = f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {end}:80 -{method} -w 1\n"
    answer = answer_flow(_walker(servers), Flow(dst=VIP, port=80, src=CLIENT, via="node-a"))
    assert answer.symptom is symptom
    assert VIP in answer.reason


ENDS = {("10.244.1.10", 1), ("10.244.2.11", 0), ("10.244.2.12", 2)}


@pytest.mark.parametrize(
    ("scheduler", "shares"),
    [
        ("rr", {"10.244.1.10": 1 / 2, "10.244.2.12": 1 / 2}),
        ("wrr", {"10.244.1.10": 1 / 3, "10.244.2.12": 2 / 3}),
        ("mh", {"10.244.1.10": 1 / 3, "10.244.2.12": 2 / 3}),
        ("sh", {"10.244.1.10": 1 / 4, "10.244.2.12": 2 / 4, None: 1 / 4}),
        ("dh", {"10.244.1.10": 1 / 3, "10.244.2.12": 1 / 3, None: 1 / 3}),
        ("fo", {"10.244.2.12": 1.0}),
        ("ovf", {"10.244.2.12": 1.0}),
    ],
)
def test_what_a_scheduler_draws(scheduler: str, shares: dict[str | None, float]) -> None:
    """Seen in Linux 6.1: sh and dh hash to quiesced servers too and refuse then, fo takes the highest weight."""
    ends = "".join(f"-a -t {VIP}:80 -r {ip}:80 -m -w {weight}\n" for ip, weight in sorted(ENDS))
    table = parse_ipvs(f"-A -t {VIP}:80 -s {scheduler}\n{ends}", source="ipvs")
    drawn = {str(s.ip) if s is not None else None: chance for s, chance in draw(table.services[0]).choices}
    assert drawn == pytest.approx(shares)


def test_a_hash_may_lead_to_a_quiesced_server_that_refuses() -> None:
    servers = SERVERS.replace("-A -t 10.99.0.12:80 -s rr", "-A -t 10.99.0.12:80 -s sh")
    answer = answer_flow(_walker(servers), Flow(dst=VIP, port=80, src=CLIENT, via="node-a"))
    assert {(p.symptom, p.probability) for p in answer.paths} == {
        (Symptom.CONNECTS, 0.5),
        (Symptom.REFUSED, 0.5),
    }


@pytest.mark.parametrize("what", ["-t 10.99.0.12:0", "-f 7"])
def test_a_real_server_of_port_0_is_asked_at_the_port_that_was_dialled(what: str) -> None:
    servers = f"-A {what} -s rr -p 300\n-a {what} -r 10.244.1.10:0 -m -w 1\n"
    mark = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j MARK --set-xmark 0x7/0xffffffff\nCOMMIT\n"
    walker = _walker(servers, RULES + mark)
    answer = answer_flow(walker, Flow(dst=VIP, port=8443, src=CLIENT, via="node-a"))
    assert [(p.endpoint_ip, p.endpoint_port) for p in answer.paths] == [("10.244.1.10", 8443)]


@pytest.mark.parametrize("words", ["-f 7 -6", "--fwmark-service 7 --ipv6"])
def test_a_firewall_mark_is_of_one_family(words: str) -> None:
    table = parse_ipvs(f"-A {words} -s rr\n", source="ipvs")
    assert table.services[0].family == 6
    walker = _walker(f"-A {words} -s rr\n", RULES)
    answer = answer_flow(walker, Flow(dst=NODE, port=30001, src=CLIENT, via="node-a"))
    assert answer.disposition is Disposition.NO_LISTENER


def test_a_datagram_that_is_dropped_behind_ipvs_is_lost_in_silence() -> None:
    """NF_STOLEN: the sender's own hook has ended, and nothing comes back as -EPERM does without IPVS."""
    servers = SERVERS.replace("-t 10.99.0.12:80", "-u 10.99.0.12:80").replace(
        "10.244.1.10:80 -m", "10.244.2.11:80 -m"
    )
    rule = "-A OUTPUT -d 10.244.2.11/32 -p udp -j DROP\nCOMMIT\n"
    walker = _walker(servers, RULES.removesuffix("COMMIT\n") + rule)
    asked = [Flow(dst=dst, port=80, protocol="udp", from_node="node-a") for dst in (VIP, "10.244.2.11")]
    assert [answer_flow(walker, flow).symptom for flow in asked] == [Symptom.TIMES_OUT, Symptom.UNREACHABLE]


@pytest.mark.parametrize("tracked", ["0", "1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_error_of_a_real_server_on_the_node_reaches_the_client(tracked: str, protocol: str) -> None:
    """ip_vs_nat_icmp turns it back where conntrack does not: the client knows it for its own."""
    option = f"-{protocol[0]} {VIP}:443"
    servers = f"-A {option} -s rr\n-a {option} -r {NODE}:8443 -m -w 1\n"
    walker = _walker(servers)
    for state in walker.topology.nodes.values():
        state.sysctls["net.ipv4.vs.conntrack"] = tracked  # type: ignore[index]
    answer = answer_flow(
        Walker(walker.topology), Flow(dst=VIP, port=443, protocol=protocol, src=CLIENT, via="node-a")
    )
    assert (answer.disposition, answer.symptom) == (Disposition.NO_LISTENER, Symptom.REFUSED), answer.reason


def test_no_real_server_is_refused() -> None:
    answer = _ask(NODE, 30001)
    assert (answer.disposition, answer.symptom) == (Disposition.REJECTED, Symptom.REFUSED)
    assert answer.decided_by is not None
    assert "30001" in answer.decided_by.rule


def test_a_process_of_the_node_is_scheduled_on_its_way_out() -> None:
    question = Flow(dst=VIP, port=80, from_node="node-a")
    answer = answer_flow(_walker(), question)
    assert answer.symptom is Symptom.CONNECTS
    assert [p.endpoint_ip for p in answer.paths] == ["10.244.1.10"]


@pytest.mark.parametrize("port", [31465, 80])
def test_loopback_has_no_virtual_server(port: int) -> None:
    answer = answer_flow(_walker(), Flow(dst="127.0.0.1", port=port, from_node="node-a"))
    assert answer.symptom is Symptom.REFUSED


def test_local_without_local_endpoint_since_1_24_loses_the_answer() -> None:
    """All endpoints behind a Local port: forwarded without masquerading, answered past the node (reference 4.7)."""
    servers = "-A -t 10.0.0.3:31015 -s rr\n-a -t 10.0.0.3:31015 -r 10.244.2.11:80 -m -w 1\n"
    answer = answer_flow(_walker(servers), Flow(src=CLIENT, dst=NODE, port=31015, via="node-a"))
    assert answer.symptom is Symptom.TIMES_OUT
    assert answer.disposition is Disposition.LOST


# One rule each in filter's OUTPUT (or nat's POSTROUTING), where a request to the virtual server has been translated.
IPVS_MATCHES = {
    "--ipvs": True,
    "! --ipvs": False,
    "--vaddr 10.99.0.12": True,
    "--vaddr 10.99.0.0/24": True,
    "! --vaddr 10.99.0.12": False,
    "--vaddr 10.99.0.13": False,
    "--vproto 6 --vaddr 10.99.0.12 --vport 80": True,
    "--vproto 17 --vaddr 10.99.0.12 --vport 80": False,
    "--vport 81": False,
    "! --vport 81": True,
    "--vdir ORIGINAL": True,
    "--vdir REPLY": False,
    "! --vdir REPLY": True,
    "--vmethod MASQ": True,
    "--vmethod GATE": False,
    "! --vmethod IPIP": True,
    "--vportctl 80": False,
}


@pytest.mark.parametrize("client", ["node", "outside"])
@pytest.mark.parametrize(("match", "matches"), IPVS_MATCHES.items())
def test_a_rule_sees_the_connection_of_ipvs(match: str, matches: bool, client: str) -> None:
    """ipvs_mt of net/netfilter/xt_ipvs.c; the rules of KUBE-IPVS-OUT-FILTER are like them."""
    rule = f"-A OUTPUT -m ipvs {match} -j DROP\nCOMMIT\n"
    walker = _walker(rules=RULES.removesuffix("COMMIT\n") + rule)
    flow = Flow(dst=VIP, port=80, from_node="node-a")
    if client == "outside":
        flow = Flow(dst=VIP, port=80, src=CLIENT, via="node-a")
    answer = answer_flow(walker, flow)
    assert answer.disposition is (Disposition.DROPPED if matches else Disposition.DELIVERED), answer.reason


@pytest.mark.parametrize(
    ("match", "matches"), [("--ipvs", False), ("! --ipvs", True), ("! --vport 81", False)]
)
def test_a_packet_that_ipvs_does_not_serve(match: str, matches: bool) -> None:
    """Every option but a lone `! --ipvs` asks for a packet that IPVS has."""
    rule = f"-A INPUT -m ipvs {match} -j DROP\nCOMMIT\n"
    walker = _walker(rules=RULES.removesuffix("COMMIT\n") + rule)
    answer = answer_flow(walker, Flow(dst=NODE, port=22, src=CLIENT, via="node-a"))
    assert (answer.disposition is Disposition.DROPPED) is matches


def test_a_persistent_virtual_server_has_a_template() -> None:
    """`--vportctl` is of the connection that controls this one: the template of persistence."""
    servers = SERVERS.replace("-A -t 10.99.0.12:80 -s rr", "-A -t 10.99.0.12:80 -s rr -p 10800")
    rules = RULES.removesuffix("COMMIT\n") + "-A OUTPUT -m ipvs --vportctl 80 -j DROP\nCOMMIT\n"
    answer = answer_flow(_walker(servers, rules), Flow(dst=VIP, port=80, from_node="node-a"))
    assert answer.disposition is Disposition.DROPPED


def test_what_is_taken_for_granted_of_a_draw_is_all_said() -> None:
    """A persistent virtual server whose scheduler hashes: neither assumption takes the other's place."""
    ends = "".join(f"-a -t {VIP}:80 -r {ip}:80 -m -w 1\n" for ip in ("10.244.1.10", "10.244.2.11"))
    table = parse_ipvs(f"-A -t {VIP}:80 -s sh -p 300\n{ends}", source="ipvs")
    assert {a.evidence for a in draw(table.services[0]).assumptions} == {EvidenceKind.CONNTRACK, None}


@pytest.mark.parametrize("tracked", ["0", "1"])
@pytest.mark.parametrize(("value", "connects"), [(None, True), ("1", True), ("0", False)])
def test_an_answer_is_routed_as_if_the_node_sent_it(
    value: str | None, tracked: str, *, connects: bool
) -> None:
    """ip_vs_route_me_harder: a table for what comes from pods is left again, unless net.ipv4.vs.snat_reroute is 0."""
    walker = _walker()
    node = walker.topology.nodes["node-a"]
    aside = _route("0.0.0.0/0", "eth0", "10.0.0.10", table="100")  # node-b, which forwards nothing
    rules = tuple(
        RoutingRule(priority=n, table=t, iif=dev)
        for n, t, dev in ((0, "local", None), (50, "100", "veth0"), (32766, "main", None))
    )
    sysctls = {**(node.sysctls or {}), "net.ipv4.vs.conntrack": tracked}
    if value is not None:
        sysctls["net.ipv4.vs.snat_reroute"] = value
    node = replace(node, routes=(*(node.routes or ()), aside), rules4=rules, sysctls=sysctls)
    deaf = replace(walker.topology.nodes["node-b"], sysctls={"net.ipv4.ip_forward": "0"})
    walker = Walker(replace(walker.topology, nodes={"node-a": node, "node-b": deaf}))
    answer = answer_flow(walker, Flow(dst=NODE, port=31015, src=CLIENT, via="node-a"))
    assert (answer.symptom is Symptom.CONNECTS) is connects, answer.reason


@pytest.mark.parametrize(
    ("chain", "matches"), [("PREROUTING", False), ("FORWARD", False), ("POSTROUTING", True)]
)
def test_an_answer_is_ipvs_s_behind_its_translation(chain: str, *, matches: bool) -> None:
    rules = "".join(
        f"-A {chain} -s {source} -p tcp --sport {port} -m ipvs --ipvs -j DROP\n"
        for source, port in (("10.244.1.10", 80), (NODE, 31015))
    )
    walker = _walker(rules=f"{RULES}*mangle\n:{chain} ACCEPT [0:0]\n{rules}COMMIT\n")
    answer = answer_flow(walker, Flow(dst=NODE, port=31015, src=CLIENT, via="node-a"))
    assert (answer.symptom is Symptom.TIMES_OUT) is matches, answer.reason


@pytest.mark.parametrize(
    ("protocol", "tracked", "symptom"),
    [
        ("tcp", "0", Symptom.UNKNOWN), ("tcp", "1", Symptom.UNKNOWN),
        ("udp", "0", Symptom.CONNECTS), ("udp", "1", Symptom.TIMES_OUT),
    ],
)  # fmt: skip
def test_a_process_asks_its_own_node_and_a_mark_sends_it_on(
    protocol: str, tracked: str, symptom: Symptom
) -> None:
    """Seen in Linux 6.1: by lo its request comes back with an entry of conntrack that IPVS cannot make fit any more.

    With net.ipv4.vs.conntrack the answer is a connection of its own with the first one's addresses: nat gives it another
    port. Without, the client's second segment is one of its own, which nat may change: a reset, in the end.
    """
    rules = f"*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p {protocol} --dport 9090 -j MARK --set-mark 7\nCOMMIT\n"
    walker = _walker(f"{SERVERS}-A -f 7 -s rr\n-a -f 7 -r 10.244.2.11:0 -m -w 1\n", RULES + rules)
    nodes = {
        name: replace(node, sysctls={**(node.sysctls or {}), "net.ipv4.vs.conntrack": tracked})
        for name, node in walker.topology.nodes.items()
    }
    walker = Walker(replace(walker.topology, nodes=nodes))
    answer = answer_flow(walker, Flow(dst=NODE, port=9090, protocol=protocol, from_node="node-a"))
    assert answer.symptom is symptom, answer.reason


@pytest.mark.parametrize(("rule", "kept"), [("", True), ("-A POSTROUTING -j MASQUERADE\n", False)])
def test_what_is_not_tracked_on_its_way_in_is_on_its_way_back(rule: str, *, kept: bool) -> None:
    """NOTRACK in PREROUTING, net.ipv4.vs.conntrack=1: the answer is a new connection, and nat is asked (Linux 6.1)."""
    raw = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport 9090 -j NOTRACK\nCOMMIT\n"
    rules = RULES.replace("-A KUBE-POSTROUTING -j MARK", f"{rule}-A KUBE-POSTROUTING -j MARK")
    walker = _walker(
        f"{SERVERS}-A -u {VIP}:9090 -s rr\n-a -u {VIP}:9090 -r {NODE}:9090 -g -w 1\n", raw + rules
    )
    node = walker.topology.nodes["node-a"]
    listening = ListeningSocket(protocol="udp", ip=None, port=9090, family=4)
    node = replace(node, sockets=(listening,), sysctls={**(node.sysctls or {}), "net.ipv4.vs.conntrack": "1"})
    walker = Walker(replace(walker.topology, nodes={**walker.topology.nodes, "node-a": node}))
    answer = answer_flow(walker, Flow(dst=VIP, port=9090, protocol="udp", src=CLIENT, via="node-a"))
    assert (answer.symptom is Symptom.CONNECTS) is kept, answer.reason


@pytest.mark.parametrize("method", ["-g", "-i"])
def test_the_answer_of_what_is_not_rewritten_leaves_conntrack_too(method: str) -> None:
    """Seen in Linux 6.1, net.ipv4.vs.conntrack=0: nat is asked of the answer in OUTPUT, and not behind IPVS."""
    rules = RULES.replace(
        "-A KUBE-POSTROUTING -j MARK", "-A POSTROUTING -j MASQUERADE\n-A KUBE-POSTROUTING -j MARK"
    )
    walker = _walker(
        f"{SERVERS}-A -u {VIP}:9090 -s rr\n-a -u {VIP}:9090 -r {NODE}:9090 {method} -w 1\n", rules
    )
    node = walker.topology.nodes["node-a"]
    listening = ListeningSocket(protocol="udp", ip=None, port=9090, family=4)
    sysctls = {**(node.sysctls or {}), "net.ipv4.vs.conntrack": "0"}
    nodes = {**walker.topology.nodes, "node-a": replace(node, sockets=(listening,), sysctls=sysctls)}
    answer = answer_flow(
        Walker(replace(walker.topology, nodes=nodes)),
        Flow(dst=VIP, port=9090, protocol="udp", src=CLIENT, via="node-a"),
    )
    assert answer.symptom is Symptom.CONNECTS, answer.reason
    steps = [s for h in answer.paths[0].hops if h.direction == "reply" for s in h.steps]
    assert [s.hook for s in steps if s.table == "nat"].count("POSTROUTING") == 0
