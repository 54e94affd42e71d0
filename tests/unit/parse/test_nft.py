from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktp.errors import EvidenceError
from ktp.model.nftables import (
    AnonymousSet,
    Binary,
    Concat,
    Counter,
    Ct,
    Fib,
    Flags,
    Immediate,
    Jhash,
    Last,
    Limit,
    Mangle,
    MapLookup,
    Match,
    Meta,
    Nat,
    NftChain,
    NftRule,
    NftRuleset,
    NftTable,
    Numgen,
    Payload,
    Prefix,
    Quota,
    Range,
    Reject,
    SetElement,
    SetReference,
    SetUpdate,
    UnsupportedExpression,
    UnsupportedStatement,
    Verdict,
    Vmap,
    Wildcard,
    Xt,
)
from ktp.parse.nft import parse_nft_json, parse_nft_text, table_names
from tests.support.nft_writer import render_nft, render_priority

DATA = Path(__file__).resolve().parents[2] / "data" / "nft"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))

# What nft 1.0.6 itself prints otherwise in text than it would read: the flags, hexadecimal DSCP, times past a minute.
TEXTS_OF_THEIR_OWN = ("ct expiration 30s-1m", "ip6 dscp 5", "dnat ip addr . port to")


def from_json(name: str) -> NftRuleset:
    return parse_nft_json((DATA / f"{name}.json").read_bytes(), name)


def from_text(name: str) -> NftRuleset:
    return parse_nft_text((DATA / f"{name}.nft").read_text(encoding="utf-8"), name)


def unsupported(item: Any) -> Iterator[str]:
    if isinstance(item, UnsupportedStatement | UnsupportedExpression):
        yield item.raw
    elif dataclasses.is_dataclass(item):
        for part in dataclasses.fields(item):
            yield from unsupported(getattr(item, part.name))
    elif isinstance(item, dict):
        for value in item.values():
            yield from unsupported(value)
    elif isinstance(item, tuple):
        for value in item:
            yield from unsupported(value)


def as_json_tells(ruleset: NftRuleset) -> NftRuleset:
    """Without what nft 1.0.6 leaves out of its JSON."""

    def bare_set(item: Any) -> Any:
        flags = tuple(flag for flag in item.flags if flag != "dynamic")
        return dataclasses.replace(item, auto_merge=False, flags=flags)

    def bare_table(table: NftTable) -> NftTable:
        return dataclasses.replace(
            table,
            comment=None,
            flags=(),
            chains={n: dataclasses.replace(c, comment=None, devices=()) for n, c in table.chains.items()},
            sets={n: bare_set(s) for n, s in table.sets.items()},
            maps={n: bare_set(m) for n, m in table.maps.items()},
        )

    return dataclasses.replace(ruleset, tables=tuple(bare_table(table) for table in ruleset.tables))


def rules(ruleset: NftRuleset) -> list[tuple[str, str, NftRule]]:
    return [(t.name, c.name, r) for t in ruleset.tables for c in t.chains.values() for r in c.rules]


def rule_of(text: str, family: str = "inet") -> NftRule:
    table = parse_nft_text(f"table {family} t {{\n\tchain c {{\n\t\t{text}\n\t}}\n}}\n", "test").tables[0]
    (rule,) = table.chains["c"].rules
    return rule


def statements_of(text: str, family: str = "inet") -> tuple[Any, ...]:
    return rule_of(text, family).statements


def statements_of_json(*expressions: Any, family: str = "inet") -> tuple[Any, ...]:
    place = {"family": family, "table": "t", "chain": "c"}
    document = {"nftables": [{"rule": {**place, "expr": list(expressions)}}]}
    ruleset = parse_nft_json(json.dumps(document).encode(), "test")
    return ruleset.tables[0].chains["c"].rules[0].statements


@pytest.mark.parametrize("name", NAMES)
class TestListings:
    def test_everything_is_understood(self, name: str) -> None:
        assert list(unsupported(from_json(name))) == []
        assert list(unsupported(from_text(name))) == []

    def test_text_and_json_say_the_same(self, name: str) -> None:
        left, right = as_json_tells(from_json(name)), as_json_tells(from_text(name))
        assert [(t.family, t.name) for t in left.tables] == [(t.family, t.name) for t in right.tables]
        for a, b in zip(rules(left), rules(right), strict=True):
            assert a == b
        assert left == right

    def test_rules_of_json_read_like_the_listing(self, name: str) -> None:
        for (_, _, ours), (_, _, listed) in zip(rules(from_json(name)), rules(from_text(name)), strict=True):
            if not any(text in ours.text for text in TEXTS_OF_THEIR_OWN):
                assert ours.text == listed.text

    def test_what_is_written_reads_back_the_same(self, name: str) -> None:
        for ruleset in (from_json(name), from_text(name)):
            assert parse_nft_text(render_nft(ruleset), "again") == ruleset

    def test_table_names_agree_with_the_whole(self, name: str) -> None:
        ruleset = from_json(name)
        data = (DATA / f"{name}.json").read_bytes()
        assert table_names(data) == tuple((t.family, t.name) for t in ruleset.tables)

    def test_rules_know_their_place(self, name: str) -> None:
        for table in from_json(name).tables:
            for chain in table.chains.values():
                assert [rule.index for rule in chain.rules] == list(range(len(chain.rules)))
                assert all(rule.handle > 0 for rule in chain.rules)


class TestKubeProxy:
    def test_the_entry_chains(self) -> None:
        table = from_json("kube-proxy-1.36").table("ip", "kube-proxy")
        assert table is not None
        base = {c.name: (c.type, c.hook, c.priority, c.policy) for c in table.base_chains}
        assert base["nat-prerouting"] == ("nat", "prerouting", -100, "accept")
        assert base["filter-prerouting-pre-dnat"] == ("filter", "prerouting", -110, "accept")
        assert base["nat-postrouting"] == ("nat", "postrouting", 100, "accept")

    def test_the_node_port_map(self) -> None:
        table = from_json("kube-proxy-1.36").table("ip", "kube-proxy")
        assert table is not None
        ports = table.maps["service-nodeports"]
        assert ports.key_types == ("inet_proto", "inet_service")
        assert ports.value_types == ("verdict",)
        values = {element.key: element.value for element in ports.elements}
        target = "external-GWV5UQX5-test/nginx-externaltrafficpolicy/tcp/80-80-tcp"
        assert values[Concat((Immediate("tcp"), Immediate(31015)))] == Verdict("goto", target)

    def test_comments_of_elements_are_kept(self) -> None:
        table = from_json("kube-proxy-1.36").table("ip", "kube-proxy")
        assert table is not None
        elements = table.maps["no-endpoint-nodeports"].elements
        assert "test/nginx-externaltrafficpolicy:80-80-tcp" in {e.comment for e in elements}

    def test_the_balancing_rule(self) -> None:
        found = statements_of(
            "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.1.1 . 80, 1 : 10.1.1.2 . 80 }"
        )
        assert found[1].address == MapLookup(
            Numgen("random", 2),
            AnonymousSet(
                (
                    SetElement(Immediate(0), Concat((Immediate("10.1.1.1"), Immediate(80)))),
                    SetElement(Immediate(1), Concat((Immediate("10.1.1.2"), Immediate(80)))),
                )
            ),
        )


class TestExpressions:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ip saddr 10.0.0.0/8", Match("==", Payload("ip", "saddr"), Prefix(Immediate("10.0.0.0"), 8))),
            ("tcp dport 80-90", Match("==", Payload("tcp", "dport"), Range(Immediate(80), Immediate(90)))),
            ("tcp dport != 22", Match("!=", Payload("tcp", "dport"), Immediate(22))),
            ("ct state new", Match("in", Ct("state"), Immediate("new"))),
            ("ct state != new", Match("!=", Ct("state"), Immediate("new"))),
            (
                "ct state established,related",
                Match("in", Ct("state"), Flags((Immediate("established"), Immediate("related")))),
            ),
            (
                "ct state { new, untracked }",
                Match(
                    "==",
                    Ct("state"),
                    AnonymousSet((SetElement(Immediate("new")), SetElement(Immediate("untracked")))),
                ),
            ),
            ("meta mark 0x4000", Match("==", Meta("mark"), Immediate(0x4000))),
            ("mark 0x4000", Match("==", Meta("mark"), Immediate(0x4000))),
            (
                "meta mark & 0x4000 != 0",
                Match("!=", Binary("&", Meta("mark"), Immediate(0x4000)), Immediate(0)),
            ),
            (
                "tcp flags syn / fin,syn",
                Match(
                    "==",
                    Binary("&", Payload("tcp", "flags"), Flags((Immediate("fin"), Immediate("syn")))),
                    Immediate("syn"),
                ),
            ),
            (
                "tcp flags & (fin | syn) == syn",
                Match(
                    "==",
                    Binary("&", Payload("tcp", "flags"), Flags((Immediate("fin"), Immediate("syn")))),
                    Immediate("syn"),
                ),
            ),
            (
                "fib saddr . iif oif missing",
                Match("==", Fib("oif", ("saddr", "iif")), Immediate(False)),
            ),
            ("fib daddr type local", Match("==", Fib("type", ("daddr",)), Immediate("local"))),
            ("ip daddr @nodeport-ips", Match("==", Payload("ip", "daddr"), SetReference("nodeport-ips"))),
            ('iifname "eth*"', Match("==", Meta("iifname"), Immediate("eth*"))),
            ("ct original ip daddr 10.0.0.1", Match("==", Ct("ip daddr", "original"), Immediate("10.0.0.1"))),
            ("ct expiration > 1d2h", Match(">", Ct("expiration"), Immediate(93600))),
            (
                "meta mark set meta mark & 0xff | 0x100 ^ 0x2",
                Mangle(
                    Meta("mark"),
                    Binary(
                        "|",
                        Binary("&", Meta("mark"), Immediate(0xFF)),
                        Binary("^", Immediate(0x100), Immediate(2)),
                    ),
                ),
            ),
            (
                "jhash ip saddr . tcp dport mod 4 seed 0xabc 2",
                Match(
                    "==",
                    Jhash(Concat((Payload("ip", "saddr"), Payload("tcp", "dport"))), 4, 0xABC),
                    Immediate(2),
                ),
            ),
            ("meta l4proto tcp", Match("==", Meta("l4proto"), Immediate("tcp"))),
            ("meta protocol ip6", Match("==", Meta("protocol"), Immediate("ip6"))),
            (
                "tcp dport vmap { 22 : accept, * : drop }",
                Vmap(
                    Payload("tcp", "dport"),
                    AnonymousSet(
                        (
                            SetElement(Immediate(22), Verdict("accept")),
                            SetElement(Wildcard(), Verdict("drop")),
                        )
                    ),
                ),
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_of_text(self, text: str, expected: Any) -> None:
        assert statements_of(text) == (expected,)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"|": ["syn", "ack"]}, Flags((Immediate("syn"), Immediate("ack")))),
            (
                {"|": [{"|": ["fin", "syn"]}, "ack"]},
                Flags((Immediate("fin"), Immediate("syn"), Immediate("ack"))),
            ),
            (["syn", "ack"], Flags((Immediate("syn"), Immediate("ack")))),
            (["syn"], Immediate("syn")),
            ("@name", SetReference("name")),
            ({"range": [1, 2]}, Range(Immediate(1), Immediate(2))),
        ],
    )
    def test_of_json(self, value: Any, expected: Any) -> None:
        found = statements_of_json(
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "tcp", "field": "flags"}},
                    "right": value,
                }
            }
        )
        assert found == (Match("==", Payload("tcp", "flags"), expected),)

    def test_old_nft_says_the_family_of_a_ct_key_apart(self) -> None:
        left = {"ct": {"key": "saddr", "family": "ip", "dir": "original"}}
        (found,) = statements_of_json({"match": {"op": "==", "left": left, "right": "10.0.0.1"}})
        assert found.left == Ct("ip saddr", "original")


class TestStatements:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("reject", Reject("icmpx", Immediate("port-unreachable"))),
            ("reject with icmp host-prohibited", Reject("icmp", Immediate("host-prohibited"))),
            ("reject with icmp type host-prohibited", Reject("icmp", Immediate("host-prohibited"))),
            ("reject with tcp reset", Reject("tcp reset")),
            ("dnat ip to 10.0.0.1:80", Nat("dnat", "ip", Immediate("10.0.0.1"), Immediate(80))),
            ("dnat ip6 to [fd00::1]:80", Nat("dnat", "ip6", Immediate("fd00::1"), Immediate(80))),
            ("dnat ip6 to fd00::1", Nat("dnat", "ip6", Immediate("fd00::1"))),
            (
                "dnat to 10.0.0.1-10.0.0.5:80-90 random,persistent",
                Nat(
                    "dnat",
                    None,
                    Range(Immediate("10.0.0.1"), Immediate("10.0.0.5")),
                    Range(Immediate(80), Immediate(90)),
                    ("random", "persistent"),
                ),
            ),
            ("redirect to :8080", Nat("redirect", port=Immediate(8080))),
            ("masquerade fully-random", Nat("masquerade", flags=("fully-random",))),
            ("masquerade", Nat("masquerade")),
            ("limit rate 10/second", Limit(10)),
            ("limit rate 10/second burst 5 packets", Limit(10)),
            (
                "limit rate over 3 mbytes/minute burst 7 kbytes",
                Limit(3, "minute", 7, "mbytes", "kbytes", True),
            ),
            ("quota over 10 mbytes", Quota(10 * 1024**2, over=True)),
            ("counter", Counter()),
            ("counter packets 3 bytes 4", Counter()),
            ('counter name "x"', Counter(name=Immediate("x"))),
            ("last used 5s", Last()),
            (
                "update @a { ip saddr timeout 1m }",
                SetUpdate("update", "a", SetElement(Payload("ip", "saddr"), timeout=60)),
            ),
            (
                "update @m { ip saddr : tcp dport }",
                SetUpdate("update", "m", SetElement(Payload("ip", "saddr"), Payload("tcp", "dport"))),
            ),
            ("xt match comment", Xt("match", "comment")),
            ('xt target "MASQUERADE"', Xt("target", "MASQUERADE")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_of_text(self, text: str, expected: Any) -> None:
        assert statements_of(text) == (expected,)

    @pytest.mark.parametrize(
        ("family", "type_"), [("ip", "icmp"), ("ip6", "icmpv6"), ("inet", "icmpx"), ("bridge", "icmpx")]
    )
    def test_a_bare_reject_is_of_its_family(self, family: str, type_: str) -> None:
        assert statements_of("reject", family) == (Reject(type_, Immediate("port-unreachable")),)
        assert statements_of_json({"reject": None}, family=family) == statements_of("reject", family)

    def test_what_json_prints_as_text_is_read_as_text(self) -> None:
        (found,) = statements_of_json("update @dm { ip saddr : tcp dport }")
        assert found == SetUpdate("update", "dm", SetElement(Payload("ip", "saddr"), Payload("tcp", "dport")))

    def test_newer_json_of_a_map_update(self) -> None:
        elem, data = (
            {"payload": {"protocol": "ip", "field": "saddr"}},
            {"payload": {"protocol": "tcp", "field": "dport"}},
        )
        (found,) = statements_of_json({"map": {"op": "update", "elem": elem, "data": data, "map": "@dm"}})
        assert found == SetUpdate("update", "dm", SetElement(Payload("ip", "saddr"), Payload("tcp", "dport")))

    def test_comment_and_handle(self) -> None:
        rule = rule_of('tcp dport 22 accept comment "ssh, of course" # handle 17')
        assert rule.comment == "ssh, of course"
        assert rule.handle == 17
        assert rule.text == 'tcp dport 22 accept comment "ssh, of course"'
        assert rule.line == 3


class TestTheUnknown:
    def test_an_unknown_statement_is_kept_and_the_rest_is_read(self) -> None:
        found = statements_of("tcp dport 80 frobnicate the { packet; well } counter drop")
        assert found[1] == UnsupportedStatement("frobnicate the { packet; well }")
        assert found[2:] == (Counter(), Verdict("drop"))

    def test_an_unknown_header_is_kept(self) -> None:
        found = statements_of("vxlan vni 5 accept")
        assert found == (UnsupportedStatement("vxlan vni 5"), Verdict("accept"))

    def test_an_unknown_field_is_kept(self) -> None:
        assert isinstance(statements_of("tcp colour 5 accept")[0], UnsupportedStatement)

    def test_a_comment_of_an_old_nft_for_an_x_tables_match_is_kept(self) -> None:
        assert statements_of("ip saddr 10.0.0.1 counter # xt_MASQUERADE")[-1] == Xt("", "MASQUERADE")
        assert isinstance(statements_of("ip saddr 10.0.0.1 # recent: SET")[-1], UnsupportedStatement)

    def test_unknown_json_is_kept(self) -> None:
        assert statements_of_json({"frobnicate": {"a": 1}}) == (
            UnsupportedStatement('{"frobnicate": {"a": 1}}'),
        )
        left = {"colour": {"of": "packet"}}
        (found,) = statements_of_json({"match": {"op": "==", "left": left, "right": 1}})
        assert found == Match("==", UnsupportedExpression('{"colour": {"of": "packet"}}'), Immediate(1))

    def test_known_json_with_unknown_content_is_kept(self) -> None:
        (found,) = statements_of_json({"limit": {"rate": "often"}})
        assert isinstance(found, UnsupportedStatement)

    def test_a_garbled_table_flag(self) -> None:
        data = b'{"nftables": [{"table": {"family": "ip", "name": "x", "handle": 1, "flags": "ip"}}]}'
        assert parse_nft_json(data, "test").tables[0].flags == ("unreadable",)

    def test_a_dormant_table(self) -> None:
        assert parse_nft_text("table ip x {\n\tflags dormant\n}\n", "test").tables[0].is_dormant

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{}",
            b"[]",
            b'{"nftables": 3}',
            b"not json",
            b'{"nftables": [{"rule": {}}]}',
            b'{"nftables": [{"x": {}}]}',
        ],
    )
    def test_json_that_is_none_of_nft(self, data: bytes) -> None:
        with pytest.raises(EvidenceError, match=r"dump\.json"):
            parse_nft_json(data, "dump.json")

    @pytest.mark.parametrize(
        "text",
        [
            "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
            "table ip x {",
            "table ip x {\n\tchain y {\n\t\taccept\n",
            "table ip x {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 1.1.1.1, \n",
            "hello",
        ],
    )
    def test_text_that_is_none_of_nft(self, text: str) -> None:
        with pytest.raises(EvidenceError, match=r"dump\.nft"):
            parse_nft_text(text, "dump.nft")

    def test_no_tables_at_all(self) -> None:
        assert parse_nft_text("", "x") == NftRuleset(tables=())
        assert parse_nft_json(b'{"nftables": [{"metainfo": {"version": "1.0.9"}}]}', "x").version == "1.0.9"


class TestTables:
    def test_skipped_tables_are_not_read(self) -> None:
        data = (DATA / "kube-proxy-1.36.json").read_bytes()
        kept = parse_nft_json(data, "x", skip={("ip6", "kube-proxy")})
        assert [(t.family, t.name) for t in kept.tables] == [("ip", "kube-proxy")]

    @pytest.mark.parametrize(
        ("table", "chain", "expected"),
        [
            ("nat", NftChain(name="PREROUTING", type="nat", hook="prerouting", priority=-100), True),
            ("nat", NftChain(name="PREROUTING", type="nat", hook="prerouting", priority=-90), False),
            ("nat", NftChain(name="pre", type="nat", hook="prerouting", priority=-100), False),
            ("filter", NftChain(name="FORWARD", type="filter", hook="forward", priority=0), True),
            ("kube-proxy", NftChain(name="FORWARD", type="filter", hook="forward", priority=0), False),
            ("filter", NftChain(name="FORWARD"), False),
        ],
    )
    def test_which_tables_are_those_of_iptables(self, table: str, chain: NftChain, expected: bool) -> None:
        assert NftTable(family="ip", name=table, chains={chain.name: chain}).is_xtables is expected

    def test_a_chain_of_nft_in_a_table_of_iptables(self) -> None:
        own = NftChain(name="PREROUTING", type="nat", hook="prerouting", priority=-100)
        other = NftChain(name="pre", type="nat", hook="prerouting", priority=-100)
        table = NftTable(
            family="ip", name="nat", chains={c.name: c for c in (own, other, NftChain(name="x"))}
        )
        assert not table.is_xtables
        assert [table.is_of_xtables(chain) for chain in table.chains.values()] == [True, False, False]

    def test_typeof_of_newer_json(self) -> None:
        key = {
            "typeof": {
                "concat": [{"payload": {"protocol": "ip", "field": "saddr"}}, {"meta": {"key": "mark"}}]
            }
        }
        item = {"set": {"family": "ip", "name": "s", "table": "t", "type": key, "handle": 1}}
        found = parse_nft_json(json.dumps({"nftables": [item]}).encode(), "x").tables[0].sets["s"]
        assert found.key_types == ("ipv4_addr", "mark")
        assert found.typeof == "ip saddr . meta mark"


@pytest.mark.parametrize(
    ("family", "hook", "priority", "text"),
    [
        ("ip", "prerouting", -100, "dstnat"),
        ("ip", "output", -100, "-100"),
        ("ip", "output", -90, "-90"),
        ("inet", "postrouting", 99, "srcnat - 1"),
        ("inet", "input", 10, "filter + 10"),
        ("inet", "input", 11, "11"),
        ("ip6", "forward", 50, "security"),
        ("bridge", "prerouting", -300, "dstnat"),
        ("bridge", "forward", -200, "filter"),
        ("netdev", "ingress", -150, "-150"),
        ("netdev", "ingress", 0, "filter"),
    ],
)
def test_priorities(family: str, hook: str, priority: int, text: str) -> None:
    assert render_priority(family, hook, priority) == text
    device = ' device "lo"' if family == "netdev" else ""
    line = f"type filter hook {hook}{device} priority {text}; policy accept;"
    listing = f"table {family} t {{\n\tchain c {{\n\t\t{line}\n\t}}\n}}\n"
    chain = parse_nft_text(listing, "x").tables[0].chains["c"]
    assert (chain.priority, chain.policy) == (priority, "accept")
    assert render_nft(parse_nft_text(listing, "x")) == listing
