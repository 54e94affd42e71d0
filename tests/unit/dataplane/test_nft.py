from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.host import Host
from ktp.dataplane.nft import nft_base_chains
from ktp.dataplane.nft_sets import MISS, SetLookup
from ktp.dataplane.nft_values import UNKNOWN, Span, constant
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.explain.effects import step_words
from ktp.model.host import Interface, InterfaceAddress, ListeningSocket, NextHop, NodeState, Route
from ktp.model.nftables import Concat, Immediate, NftRuleset, Prefix, Range, SetElement, Wildcard
from ktp.model.ruleset import Backend, Chain, DictRuleset, Rule, Ruleset
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom
from ktp.parse.iptables_save import parse_rule as read_rule
from ktp.parse.nft import parse_nft_text
from ktp.parse.nft_hooks import parse_nft_hooks

NODE, POD, CLIENT = "10.1.0.11", "10.244.1.10", "10.1.0.50"
PRE = "type nat hook prerouting priority dstnat; policy accept;"
POST = "type nat hook postrouting priority srcnat; policy accept;"
IN = "type filter hook input priority filter; policy accept;"


def interface(name: str, index: int, address: str) -> Interface:
    ip, _, length = address.partition("/")
    return Interface(
        name=name,
        index=index,
        flags=frozenset({"UP"}),
        addresses=(InterfaceAddress(ip=ip_address(ip), prefixlen=int(length)),),
    )


def node(nft: NftRuleset | None, rulesets: tuple[Ruleset, ...] = (), *, network: bool = True) -> NodeState:
    if not network:
        return NodeState(name="node", nft=nft, rulesets=rulesets)
    interfaces = (
        Interface(name="lo", index=1, flags=frozenset({"UP", "LOOPBACK"}), link_type="loopback"),
        interface("eth0", 2, f"{NODE}/24"),
        interface("cni0", 3, "10.244.1.1/24"),
    )
    routes = [
        Route(
            dst=ip_network(f"{ip}/32"),
            type="local",
            table="local",
            nexthops=(NextHop(dev=dev),),
            scope="host",
        )
        for ip, dev in ((NODE, "eth0"), ("10.244.1.1", "cni0"))
    ]
    routes += [
        Route(dst=ip_network(net), nexthops=(NextHop(dev=dev),), scope="link")
        for net, dev in (("10.1.0.0/24", "eth0"), ("10.244.1.0/24", "cni0"))
    ]
    sockets = tuple(ListeningSocket(protocol="tcp", ip=None, port=port, family=0) for port in (80, 8080))
    return NodeState(
        name="node",
        interfaces=interfaces,
        routes=tuple(routes),
        sysctls={"net.ipv4.ip_forward": "1"},
        sockets=sockets,
        nft=nft,
        rulesets=rulesets,
    )


def chain(name: str, *lines: str) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def table(*parts: str, family: str = "ip", name: str = "t") -> str:
    return f"table {family} {name} {{\n" + "".join(parts) + "}\n"


def ask(rules: str, *, port: int = 80, dst: str = NODE, state: NodeState | None = None) -> FlowAnswer:
    state = state or node(parse_nft_text(rules, "test"))
    pods = {
        to_int(POD): Attached(name="test/pod", node="node"),
        to_int("10.244.1.11"): Attached(name="test/two", node="node"),
    }
    walker = Walker(Topology(nodes={"node": state}, attached=pods))
    return answer_flow(walker, Flow(dst=dst, port=port, src=CLIENT, via="node"))


def effects(answer: FlowAnswer) -> list[str]:
    return [
        step_words(step)
        for path in answer.paths
        for hop in path.hops
        for step in hop.steps
        if step.backend == "nftables"
    ]


class TestVerdicts:
    def test_the_deciding_rule_is_named(self) -> None:
        answer = ask(
            table(chain("input", IN, "ip saddr 10.9.9.9 accept", "tcp dport 80 drop"), family="inet")
        )
        assert answer.disposition is Disposition.DROPPED
        decided = answer.decided_by
        assert decided is not None
        assert (decided.table, decided.chain, decided.rule) == ("inet t", "input", "tcp dport 80 drop")
        assert (decided.backend, decided.hook, decided.line) == ("nftables", "INPUT", 5)

    def test_the_trace_has_every_rule_that_held(self) -> None:
        rules = table(
            chain("inner", "ct state new meta mark set 0x5", "ip saddr 10.9.9.9 drop", "return"),
            chain("input", IN, "counter", "jump inner", "meta mark 0x5 accept"),
        )
        assert effects(ask(rules))[:5] == ["counted", "jump inner", "mark set to 0x5", "return", "accept"]

    def test_a_rule_that_changes_and_then_does_not_hold(self) -> None:
        rules = table(chain("input", IN, "meta mark set 0x5 tcp dport 22 accept", "meta mark 0x5 drop"))
        assert effects(ask(rules)) == ["mark set to 0x5, then no match", "drop"]

    def test_continue_goes_on_in_its_rule(self) -> None:
        rules = table(chain("input", IN, "tcp dport vmap { 80 : continue } tcp sport 1-65535 drop"))
        assert effects(ask(rules)) == ["continue, drop"]

    def test_a_policy_of_drop(self) -> None:
        answer = ask(
            table(chain("input", "type filter hook input priority 0; policy drop;", "tcp dport 22 accept"))
        )
        assert answer.disposition is Disposition.DROPPED
        assert answer.decided_by is not None
        assert answer.decided_by.kind == "policy"

    def test_a_chain_that_is_not_listed(self) -> None:
        answer = ask(table(chain("input", IN, "jump nowhere")))
        assert answer.symptom is Symptom.UNKNOWN
        assert "chain nowhere is not in the listing" in answer.reason

    def test_chains_that_jump_in_a_circle_end(self) -> None:
        answer = ask(table(chain("a", "jump b"), chain("b", "jump a"), chain("input", IN, "jump a")))
        assert answer.symptom is Symptom.UNKNOWN

    @pytest.mark.parametrize(
        ("rule", "kind"),
        [("reject", "icmp-port-unreachable"), ("reject with icmpx no-route", "icmp-net-unreachable")],
    )
    def test_reject(self, rule: str, kind: str) -> None:
        answer = ask(table(chain("input", IN, rule), family="inet"))
        assert answer.disposition is Disposition.REJECTED
        assert kind in answer.reason


class TestChance:
    def test_endpoints_with_their_chances(self) -> None:
        rules = table(
            chain(
                "p",
                PRE,
                "tcp dport 99 dnat to numgen random mod 4 map { 0 : 10.244.1.10 . 80, 1-3 : 10.244.1.11 . 80 }",
            )
        )
        answer = ask(rules, port=99)
        assert {(p.endpoint_ip, p.probability) for p in answer.paths} == {(POD, 0.25), ("10.244.1.11", 0.75)}

    def test_values_without_an_element_leave_the_rule(self) -> None:
        rules = table(
            chain(
                "p",
                PRE,
                "tcp dport 99 dnat to numgen random mod 2 map { 0 : 10.244.1.10 . 80 }",
                "tcp dport 99 redirect to :8080",
            )
        )
        answer = ask(rules, port=99)
        assert {(p.endpoint_ip, p.endpoint_port, p.probability) for p in answer.paths} == {
            (POD, 80, 0.5),
            (NODE, 8080, 0.5),
        }

    def test_a_hash_is_an_assumption(self) -> None:
        rules = table(
            chain(
                "p",
                PRE,
                "tcp dport 99 dnat to jhash ip saddr mod 2 map { 0 : 10.244.1.10, 1 : 10.244.1.11 }:80",
            )
        )
        answer = ask(rules, port=99)
        assert len(answer.paths) == 2
        assert any("hash" in a.taken for a in answer.assumptions)

    def test_a_thousand_endpoints(self) -> None:
        ends = ", ".join(f"{n} : 10.244.{n // 250 + 1}.{n % 250 + 1} . 80" for n in range(1000))
        answer = ask(
            table(chain("p", PRE, f"tcp dport 99 dnat to numgen random mod 1000 map {{ {ends} }}")), port=99
        )
        assert len(answer.paths) == 1000


class TestTheUnknown:
    def test_both_ways_alike_is_an_answer(self) -> None:
        answer = ask(table(chain("input", IN, "socket transparent 1 drop", "drop")))
        assert answer.disposition is Disposition.DROPPED

    def test_ways_that_differ_name_the_rule(self) -> None:
        answer = ask(table(chain("input", IN, "socket transparent 1 drop")))
        assert answer.symptom is Symptom.UNKNOWN
        assert answer.unknowns[0].what == "socket transparent 1 drop"
        assert answer.unknowns[0].node == "node"

    @pytest.mark.parametrize(
        "rule",
        [
            "frobnicate 5 drop",
            "xt match recent drop",
            "xt target MARK",
            'osf name "Linux" drop',
            "queue to 5",
            "meta cpu 3 drop",
            "tcp dport vmap @nowhere",
            "ip saddr @nowhere drop",
            "meta l4proto tcp tproxy to :9000",
            "tcp option maxseg size 1000 drop",
            "meta mark set meta random",
            "ct label 5 drop",
            'limit name "nowhere" drop',
        ],
    )
    def test_what_cannot_be_told_is_said(self, rule: str) -> None:
        answer = ask(table(chain("input", IN, rule), chain("pre", PRE, "tcp dport 7 drop")))
        assert answer.symptom is Symptom.UNKNOWN
        assert answer.unknowns

    def test_an_unknown_that_does_not_apply_is_no_matter(self) -> None:
        answer = ask(
            table(chain("input", IN, "udp dport 53 frobnicate 5 drop", "ip saddr 10.9.9.9 xt target FOO"))
        )
        assert answer.symptom is Symptom.CONNECTS

    def test_a_comment_match_of_x_tables_asks_nothing(self) -> None:
        answer = ask(table(chain("input", IN, "xt match comment tcp dport 80 drop")))
        assert answer.disposition is Disposition.DROPPED

    def test_ephemeral_ports(self) -> None:
        for rule, fate in (
            ("tcp sport 1024-65535 drop", Symptom.TIMES_OUT),
            ("tcp sport 1-1023 drop", Symptom.CONNECTS),
            ("tcp sport 40000-41000 drop", Symptom.UNKNOWN),
        ):
            assert ask(table(chain("input", IN, rule))).symptom is fate

    def test_interfaces_that_were_not_read(self) -> None:
        rules = parse_nft_text(table(chain("input", IN, 'iifname "eth0" drop')), "test")
        state = NodeState(name="node", nft=rules)
        walker = Walker(Topology(nodes={"node": state}, assumed_local={"node": frozenset({to_int(NODE)})}))
        answer = answer_flow(walker, Flow(dst=NODE, port=80, src=CLIENT, via="node"))
        assert answer.symptom is Symptom.UNKNOWN

    def test_a_range_that_nft_has_garbled(self) -> None:
        """nft 1.0.6 lists `meta length < 2000 meta mark > 1` so."""
        answer = ask(table(chain("input", IN, "meta mark != 0x000007d0-0x00000001 drop")))
        assert answer.symptom is Symptom.UNKNOWN


class TestAssumptions:
    def test_a_limit_is_not_reached(self) -> None:
        answer = ask(table(chain("input", IN, "limit rate over 1/hour drop")))
        assert answer.symptom is Symptom.CONNECTS
        assert any("limit" in a.taken for a in answer.assumptions)

    def test_a_client_was_not_seen_before(self) -> None:
        rules = table(
            "\tset stuck { type ipv4_addr; flags dynamic,timeout; timeout 3h; }\n",
            chain("end", "update @stuck { ip saddr }", "meta l4proto tcp dnat to 10.244.1.10:80"),
            chain("p", PRE, "ip saddr @stuck tcp dport 99 drop", "tcp dport 99 goto end"),
        )
        answer = ask(rules, port=99)
        assert answer.symptom is Symptom.CONNECTS
        assert any("stuck" in a.taken for a in answer.assumptions)

    def test_a_client_that_the_listing_remembers(self) -> None:
        rules = table(
            "\tset stuck { type ipv4_addr; flags dynamic,timeout;\n"
            f"\t\telements = {{ {CLIENT} timeout 3h expires 2h }}; }}\n",
            chain("p", "type filter hook prerouting priority dstnat;", "ip saddr @stuck tcp dport 99 drop"),
            chain("q", IN, "update @stuck { ip saddr }"),
        )
        answer = ask(rules, port=99)
        assert answer.disposition is Disposition.DROPPED
        assert not any("stuck" in a.taken for a in answer.assumptions)

    @pytest.mark.parametrize(
        ("quota", "fate"),
        [
            ("over 5 bytes used 5 bytes", Symptom.TIMES_OUT),
            ("over 5 mbytes used 5 bytes", Symptom.CONNECTS),
            ("5 bytes used 5 bytes", Symptom.CONNECTS),
            ("5 mbytes", Symptom.TIMES_OUT),
        ],
    )
    def test_quotas(self, quota: str, fate: Symptom) -> None:
        rules = table(f"\tquota q {{\n\t\t{quota}\n\t}}\n", chain("input", IN, 'quota name "q" drop'))
        assert ask(rules).symptom is fate


def parse_rule(table: str, chain: str, text: str, line: int, position: int) -> Rule:
    raise AssertionError("an empty chain has no rules")


def order(first: str, second: str) -> str:
    """Two chains of one priority: `second` was made last."""
    return (
        "table ip t { # handle 1\n"
        "\tchain one { # handle 1\n\t\t" + IN + f"\n\t\t{first}\n\t}}\n"
        "\tchain two { # handle 3\n\t\t" + IN + f"\n\t\t{second}\n\t}}\n}}\n"
    )


class TestOrder:
    def test_the_chain_made_last_runs_first(self) -> None:
        answer = ask(order("meta mark 0x1 drop", "meta mark set 0x1"))
        assert answer.disposition is Disposition.DROPPED
        assert not answer.assumptions  # one table counts its chains: there is no doubt
        assert ask(order("meta mark set 0x1", "meta mark 0x1 drop")).symptom is Symptom.CONNECTS

    def test_without_handles_it_is_not_known(self) -> None:
        rules = order("meta mark 0x1 drop", "meta mark set 0x1").replace("# handle", "#")
        assert ask(rules).symptom is Symptom.UNKNOWN

    def test_of_two_tables_it_is_assumed(self) -> None:
        one = "table ip old { # handle 1\n" + chain("i", IN, "meta mark 0x1 drop") + "}\n"
        two = "table ip new { # handle 2\n" + chain("i", IN, "meta mark set 0x1") + "}\n"
        answer = ask(two + one)
        assert answer.disposition is Disposition.DROPPED
        assert any("made last" in a.taken for a in answer.assumptions)

    @pytest.mark.parametrize(
        ("first", "second", "fate"),
        [
            ("own", "mangle", Symptom.CONNECTS),
            ("mangle", "own", Symptom.TIMES_OUT),
            ("", "own", Symptom.UNKNOWN),
        ],
    )
    @pytest.mark.parametrize("backend", [Backend.LEGACY, Backend.NFT])
    @pytest.mark.parametrize("third", [False, True])
    def test_a_listing_of_hooks_tells_the_order(
        self, backend: Backend, first: str, second: str, fate: Symptom, third: bool
    ) -> None:
        """The rule of iptables sets the mark that the native chain drops; three are listed rightly since nft 1.1.7."""
        chains = {
            "INPUT": Chain(
                "mangle",
                "INPUT",
                ("-A INPUT -j MARK --set-xmark 0x1/0xffffffff",),
                read_rule,
                policy="ACCEPT",
            )
        }
        save = DictRuleset("ip", backend, "save", {"mangle": chains})
        rules = table(chain("input", "type filter hook input priority mangle;", "meta mark 0x1 drop"))
        native = parse_nft_text(rules, "test")
        iptables = (
            "ipt_do_table [ip_tables]" if backend is Backend.LEGACY else "chain ip mangle INPUT [nf_tables]"
        )
        entries = {
            "own": f"chain {native.tables[0].family} t input [nf_tables]",
            "mangle": iptables,
            "": "selinux_ipv4_input",
        }
        words = [entries[first], entries[second], *(["chain ip idle input [nf_tables]"] if third else [])]
        text = "family ip {\n\thook input {\n" + "".join(f"\t\t-0000000150 {w}\n" for w in words) + "\t}\n}\n"
        for version in (None, "1.0.6", "1.1.7"):
            state = replace(node(replace(native, version=version), (save,)), nft_hooks=parse_nft_hooks(text))
            known = not third or version == "1.1.7"
            assert ask("", state=state).symptom is (fate if known else Symptom.UNKNOWN)

    def test_a_chain_of_iptables_nft_comes_later_than_its_table(self) -> None:
        """Seen in Linux 6.12: its table's handle is the lower one, and its chain runs first, having been made last."""
        chains = {
            "INPUT": Chain(
                "mangle",
                "INPUT",
                ("-A INPUT -j MARK --set-xmark 0x1/0xffffffff",),
                read_rule,
                policy="ACCEPT",
            )
        }
        save = DictRuleset("ip", Backend.NFT, "save", {"mangle": chains})
        text = (
            "table ip mangle { # handle 1\n}\ntable ip t { # handle 2\n"
            + chain("input", "type filter hook input priority mangle;", "meta mark 0x1 drop").replace(
                "{", "{ # handle 1", 1
            )
            + "}\n"
        )
        assert ask("", state=node(parse_nft_text(text, "test"), (save,))).symptom is Symptom.UNKNOWN

    def test_a_chain_that_minds_the_mark_of_the_other_is_not_idle(self) -> None:
        """It leaves the packet alone as it came, and drops it as a legacy table of the same priority leaves it."""
        text = "-A INPUT -j MARK --set-xmark 0x1/0xffffffff"
        chains = {"INPUT": Chain("mangle", "INPUT", (text,), read_rule, policy="ACCEPT")}
        legacy = DictRuleset("ip", Backend.LEGACY, "save", {"mangle": chains})
        rules = table(chain("input", "type filter hook input priority mangle;", "meta mark 0x1 drop"))
        state = node(parse_nft_text(rules, "test"), (legacy,))
        assert ask("", state=state).symptom is Symptom.UNKNOWN


class TestTables:
    def test_dormant(self) -> None:
        assert (
            ask("table ip t {\n\tflags dormant\n" + chain("input", IN, "drop") + "}\n").symptom
            is Symptom.CONNECTS
        )

    def test_a_flag_that_the_listing_garbles(self) -> None:
        answer = ask("table ip t {\n\tflags unreadable\n" + chain("input", IN, "drop") + "}\n")
        assert answer.symptom is Symptom.UNKNOWN
        assert "dormant" in answer.reason

    def test_of_the_other_family(self) -> None:
        assert ask(table(chain("input", IN, "drop"), family="ip6")).symptom is Symptom.CONNECTS

    def test_ingress_of_the_device(self) -> None:
        for device, fate in (("eth0", Symptom.TIMES_OUT), ("cni0", Symptom.CONNECTS)):
            hook = f'type filter hook ingress device "{device}" priority 0;'
            rules = table(chain("in", hook, "tcp dport 80 drop"), family="netdev")
            assert ask(rules).symptom is fate

    def test_ingress_of_a_device_that_json_leaves_out(self) -> None:
        rules = table(
            chain("in", "type filter hook ingress priority 0;", "tcp dport 80 drop"), family="netdev"
        )
        assert ask(rules).symptom is Symptom.UNKNOWN

    def test_tables_that_iptables_save_dumped_are_not_asked_twice(self) -> None:
        rules = table(
            chain("INPUT", "type filter hook input priority filter; policy accept;", "drop"), name="filter"
        )
        nft = parse_nft_text(rules, "test")
        base = Chain("filter", "INPUT", (), parse_rule, policy="ACCEPT")
        dumped = DictRuleset("ip", Backend.NFT, "save", {"filter": {"INPUT": base}})
        legacy = DictRuleset("ip", Backend.LEGACY, "save", {"filter": {}})
        assert nft_base_chains(Host(node(nft, (dumped,))), 4) == []
        assert len(nft_base_chains(Host(node(nft, (legacy,))), 4)) == 1
        assert len(nft_base_chains(Host(node(nft)), 4)) == 1

    def test_a_bridge_table_that_cannot_stop_packets(self) -> None:
        rules = table(chain("f", "type filter hook forward priority filter;", "counter"), family="bridge")
        (only,) = nft_base_chains(Host(node(parse_nft_text(rules, "test"))), 4)
        assert only.is_idle("FORWARD")


def lookup(*elements: SetElement, types: tuple[str, ...]) -> SetLookup:
    return SetLookup(elements, types, lambda element: str(element.key))


class TestSets:
    def test_exact_and_intervals(self) -> None:
        found = lookup(
            SetElement(Prefix(Immediate("10.0.0.0"), 8)),
            SetElement(Range(Immediate("192.168.0.5"), Immediate("192.168.0.9"))),
            SetElement(Immediate("172.16.0.1")),
            types=("ipv4_addr",),
        )
        for address, key in (
            ("10.0.0.0", "10.0.0.0/8"),
            ("10.255.255.255", "10.0.0.0/8"),
            ("11.0.0.0", None),
            ("9.255.255.255", None),
            ("192.168.0.4", None),
            ("192.168.0.5", "192.168.0.5-192.168.0.9"),
            ("192.168.0.9", "192.168.0.5-192.168.0.9"),
            ("192.168.0.10", None),
            ("172.16.0.1", "172.16.0.1"),
        ):
            assert found.find(to_int(address)[1]).element == key

    def test_concatenations(self) -> None:
        found = lookup(
            SetElement(Concat((Immediate("tcp"), Immediate(80)))),
            SetElement(Concat((Immediate("tcp"), Range(Immediate(100), Immediate(200))))),
            types=("inet_proto", "inet_service"),
        )
        assert found.find((6, 80)).element == "tcp . 80"
        assert found.find((6, 150)).element == "tcp . 100-200"
        assert found.find((17, 80)) is MISS

    def test_parts_that_are_not_known(self) -> None:
        found = lookup(
            SetElement(Concat((Immediate("tcp"), Immediate(80)))),
            SetElement(Concat((Immediate("udp"), Immediate(53)))),
            types=("inet_proto", "inet_service"),
        )
        assert found.find((132, UNKNOWN)) is MISS
        assert found.find((6, UNKNOWN)).maybe == ("tcp . 80", None)
        assert found.find((6, Span(1024, 65535))) is MISS
        assert found.find((UNKNOWN, UNKNOWN)).maybe == ("tcp . 80", "udp . 53", None)

    def test_the_catch_all(self) -> None:
        found = lookup(SetElement(Immediate(80)), SetElement(Wildcard()), types=("inet_service",))
        assert found.find(80).element == "80"
        assert found.find(81).element == "*"

    def test_an_element_that_is_not_understood_may_be_any(self) -> None:
        found = lookup(SetElement(Immediate("gibberish")), types=("inet_proto",))
        assert UNKNOWN in found.find(6).maybe

    def test_a_concatenation_that_is_listed_in_part(self) -> None:
        found = lookup(SetElement(Concat((Immediate("10.0.0.1"),))), types=("ipv4_addr", "inet_service"))
        assert UNKNOWN in found.find((1, 2)).maybe

    def test_interface_names(self) -> None:
        found = lookup(SetElement(Immediate("eth*")), SetElement(Immediate("lo")), types=("ifname",))
        assert found.find("eth7").element == "eth*"
        assert found.find("lo").element == "lo"
        assert found.find("wlan0") is MISS


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ("tcp", "inet_proto", 6),
        (132, "inet_proto", 132),
        ("10.0.0.1", "ipv4_addr", 0x0A000001),
        ("::1", "ipv6_addr", 1),
        ("established", "ct_state", 2),
        ("echo-request", "icmp_type", 8),
        ("echo-request", "icmpv6_type", 128),
        ("local", "fib_addrtype", "local"),
        ("cs1", "dscp", 8),
        ("ipv6", "nf_proto", 10),
        ("00:11:22:33:44:55", "ether_addr", 0x001122334455),
    ],
)
def test_constants(value: int | str, datatype: str, expected: int | str) -> None:
    assert constant(Immediate(value), datatype) == expected
