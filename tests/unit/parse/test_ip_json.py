from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.errors import EvidenceError
from ktp.model.host import InterfaceAddress, NextHop, Route, RoutingRule
from ktp.parse import ip_text
from ktp.parse.ip_json import merge_routes, parse_interfaces, parse_routes, parse_rules

DATA = Path(__file__).resolve().parents[2] / "data" / "parse" / "ip"


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def routes_of(*entries: dict[str, Any]) -> tuple[Route, ...]:
    return parse_routes(json.dumps(entries))


# ----------------------------------------------------------------------------------------------------- interfaces


def test_interfaces() -> None:
    interfaces = {interface.name: interface for interface in parse_interfaces(read("ip-addr.json"))}
    assert next(iter(interfaces)) == "lo"
    assert interfaces["lo"].is_loopback
    assert not interfaces["eth2p"].is_up
    assert interfaces["veth1"].master == "br0"
    assert interfaces["eth0"].index == 3
    assert interfaces["eth0"].addresses[:2] == (
        InterfaceAddress(ip=ip_address("10.0.0.3"), prefixlen=24),
        InterfaceAddress(ip=ip_address("10.0.0.4"), prefixlen=24, secondary=True),
    )
    by_ip = {str(a.ip): a for interface in interfaces.values() for a in interface.addresses}
    assert by_ip["fd00::4"].deprecated
    assert by_ip["127.0.0.1"].scope == "host"
    assert (by_ip["10.50.0.1"].scope, by_ip["10.51.0.1"].scope) == ("link", "77")
    assert by_ip["192.168.1.1"].peer == ip_address("192.168.1.2")
    assert by_ip["fd09::1"].peer == ip_address("fd09::2")


def test_details_tell_the_kind() -> None:
    interfaces = {interface.name: interface for interface in parse_interfaces(read("ip-addr-details.json"))}
    assert (interfaces["br0"].kind, interfaces["veth1"].kind, interfaces["lo"].kind) == (
        "bridge",
        "veth",
        None,
    )


def test_what_old_iproute2_leaves_empty_is_skipped() -> None:
    text = '[{}, {"ifname": "a", "addr_info": [{}, {"family": "inet", "local": "10.0.0.1", "prefixlen": 8}]}]'
    (interface,) = parse_interfaces(text)
    assert interface.addresses == (InterfaceAddress(ip=ip_address("10.0.0.1"), prefixlen=8),)


# --------------------------------------------------------------------------------------------------------- routes


def test_both_families_in_one_file_are_told_apart() -> None:
    both = parse_routes(read("ip-route.json"))
    only4 = parse_routes(read("ip4-route.json"), family=4)
    only6 = parse_routes(read("ip6-route.json"), family=6)
    assert both == (*only4, *only6)
    assert {route.dst.version for route in only4} == {4}
    assert {route.dst.version for route in only6} == {6}


def test_a_file_that_repeats_routes_adds_none() -> None:
    both, only6 = parse_routes(read("ip-route.json")), parse_routes(read("ip6-route.json"), family=6)
    assert merge_routes(both, only6) == both
    assert merge_routes(parse_routes(read("ip4-route.json")), only6) == both


def test_details_and_numbers_say_the_same() -> None:
    def without_protocol(routes: tuple[Route, ...]) -> list[tuple[object, ...]]:
        return [
            (r.dst, r.type, r.table, r.nexthops, r.prefsrc, r.metric, r.scope, r.tos, r.src) for r in routes
        ]

    plain = parse_routes(read("ip-route.json"))
    assert parse_routes(read("ip-route-details.json")) == plain
    assert without_protocol(parse_routes(read("ip-route-numeric.json"))) == without_protocol(plain)


def test_every_kind_of_route() -> None:
    routes = {
        (str(route.dst), route.table, route.metric): route for route in parse_routes(read("ip-route.json"))
    }
    gateway = ip_address("10.0.0.1")
    assert routes["0.0.0.0/0", "main", 100].nexthops == (NextHop(dev="eth0", gateway=gateway),)
    assert routes["0.0.0.0/0", "main", 200].scope == "link"
    assert routes["::/0", "main", 1024].nexthops == (NextHop(dev="eth0", gateway=ip_address("fd00::1")),)
    assert routes["10.1.0.0/16", "main", 0].nexthops == (
        NextHop(dev="eth0", gateway=gateway, weight=3),
        NextHop(dev="eth1", gateway=ip_address("192.168.1.2")),
    )
    assert routes["10.1.1.0/24", "main", 0].nexthops == (
        NextHop(dev="eth0", gateway=gateway),
        NextHop(dev="eth0", gateway=ip_address("fd00::9")),
        NextHop(dev="eth2", linkdown=True),
    )
    assert routes["10.3.0.0/16", "main", 0].nexthops == (NextHop(dev="eth0", gateway=ip_address("fd00::9")),)
    assert routes["10.12.0.0/16", "main", 0].nexthops[0].weight == 5
    assert routes["10.4.0.0/16", "main", 0] == Route(dst=ip_network("10.4.0.0/16"), type="blackhole")
    assert routes["10.5.0.0/16", "main", 9].type == "unreachable"
    assert routes["10.7.0.0/16", "100", 0].type == "throw"
    assert routes["10.8.0.0/16", "100", 0] == Route(
        dst=ip_network("10.8.0.0/16"),
        table="100",
        nexthops=(NextHop(dev="eth0"),),
        prefsrc=ip_address("10.0.0.4"),
        scope="link",
        protocol="static",
        tos=0x10,
    )
    assert routes["10.9.0.0/24", "main", 0].nexthops == (NextHop(dev="eth2", linkdown=True),)
    assert routes["10.9.0.1/32", "local", 0].type == "local"
    assert routes["fd04::/64", "main", 1024].src == ip_network("fd00::/64")
    assert routes["::/0", "102", 1024].type == "blackhole"
    assert routes["0.0.0.0/0", "102", 0].type == "blackhole"


@pytest.mark.parametrize(
    ("text", "locked"), [("mtu lock 1400", True), ("mtu 1400", False), ("advmss lock 1400", None)]
)
def test_a_locked_mtu_is_told_by_text_alone(text: str, locked: bool | None) -> None:
    printed = ip_text.routes_of(f"10.2.0.0/24 via 10.1.0.2 dev eth0 {text} \n")
    assert [route.mtu_locked for route in parse_routes(json.dumps(printed))] == [locked]
    as_json = '[{"dst":"10.2.0.0/24","gateway":"10.1.0.2","dev":"eth0","flags":[],"metrics":[{"mtu":1400}]}]'
    assert [(route.mtu, route.mtu_locked) for route in parse_routes(as_json)] == [(1400, None)]


@pytest.mark.parametrize(
    ("entry", "family"),
    [
        ({"gateway": "10.0.0.1"}, 4),
        ({"gateway": "fd00::1"}, 6),
        ({"via": {"family": "inet6", "host": "fd00::1"}}, 4),
        ({"type": "blackhole", "pref": "medium"}, 6),
        ({"nexthops": [{"gateway": "fd00::1", "dev": "a"}]}, 6),
        ({"nexthops": [{"via": {"family": "inet6", "host": "fd00::1"}, "dev": "a"}]}, 4),
        ({"dev": "a", "prefsrc": "fd00::1"}, 6),
        ({"dev": "a", "from": "fd00::/64"}, 6),
        ({"dev": "a"}, 4),
    ],
)
def test_the_family_of_a_default_route(entry: dict[str, Any], family: int) -> None:
    (route,) = routes_of({"dst": "default", **entry})
    assert (route.dst.version, route.dst.prefixlen) == (family, 0)


def test_a_default_route_that_tells_nothing_is_of_the_family_it_stands_in() -> None:
    first, _, last = routes_of({"dst": "default"}, {"dst": "fd00::/8"}, {"dst": "default"})
    assert (first.dst.version, last.dst.version) == (4, 6)
    (alone,) = parse_routes('[{"dst": "default"}]', family=6)
    assert alone.dst.version == 6


@given(
    st.lists(
        st.tuples(
            st.ip_addresses(v=4),
            st.integers(0, 32),
            st.sampled_from(["main", "local", 100, "254", "255"]),
            st.integers(0, 2**32 - 1),
            st.sampled_from([[], ["linkdown"], ["dead", "linkdown"], ["onlink"]]),
        ),
        max_size=8,
    )
)
def test_routes_read_back(rows: list[tuple[Any, ...]]) -> None:
    networks = [ip_network(f"{ip}/{length}", strict=False) for ip, length, *_ in rows]
    entries = [
        {
            "dst": "default" if not n.prefixlen else str(n),
            "dev": "a",
            "table": table,
            "metric": metric,
            "flags": flags,
        }
        for n, (_ip, _length, table, metric, flags) in zip(networks, rows, strict=True)
    ]
    routes = routes_of(*entries)
    assert [route.dst for route in routes] == networks
    assert [route.metric for route in routes] == [row[3] for row in rows]
    assert [route.nexthops[0].dead for route in routes] == ["dead" in row[4] for row in rows]
    names = {"main": "main", "local": "local", 100: "100", "254": "main", "255": "local"}
    assert [route.table for route in routes] == [names[row[2]] for row in rows]


# ---------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "rule",
    [
        RoutingRule(priority=0, table="local"),
        RoutingRule(
            priority=100,
            table="100",
            src=ip_network("10.0.0.0/8"),
            dst=ip_network("10.1.0.0/16"),
            iif="eth0",
            oif="eth1",
        ),
        RoutingRule(priority=101, table="5000", fwmark=0x4000, fwmask=0x4000),
        RoutingRule(priority=102, table="main", fwmark=7, suppress_prefixlength=0),
        RoutingRule(priority=103, action="blackhole", src=ip_network("10.9.9.9/32"), inverted=True),
        RoutingRule(priority=104, action="unreachable", dst=ip_network("1.2.3.4/32")),
        RoutingRule(priority=105, action="prohibit", dst=ip_network("1.2.3.5/32")),
        RoutingRule(priority=106, table="100", ipproto="tcp", dport=(80, 80)),
        RoutingRule(priority=107, table="100", ipproto="udp", sport=(1000, 2000), dport=(53, 54)),
        RoutingRule(priority=108, table="100", uidrange=(1000, 2000)),
        RoutingRule(priority=109, action="goto", goto=32766),
        RoutingRule(priority=110, table="100", tos=0x10),
        RoutingRule(priority=111, l3mdev=True),
        RoutingRule(priority=112, action="nop"),
        RoutingRule(priority=113, table="main", unsupported=("suppress_ifgroup 5",)),
        RoutingRule(priority=114, table="100"),
        RoutingRule(priority=116, table="100", ipproto="sctp"),
        RoutingRule(priority=118, table="100", unsupported=("tun_id 5",)),
        RoutingRule(priority=119, table="100", iif="nodev"),
        RoutingRule(priority=121, table="100", ipproto="200"),
        RoutingRule(priority=123, table="100", fwmark=0, fwmask=0xFF),
        RoutingRule(priority=124, table="main", src=ip_network("10.0.0.9/32"), unsupported=("masquerade",)),
        RoutingRule(priority=32767, table="default"),
    ],
    ids=lambda rule: str(rule.priority),
)
def test_every_kind_of_rule(rule: RoutingRule) -> None:
    assert {found.priority: found for found in parse_rules(read("ip-rule.json"))}[rule.priority] == rule
    assert {found.priority: found for found in parse_rules(read("ip-rule-details.json"))}[
        rule.priority
    ] == rule


def test_rules_of_ipv6() -> None:
    rules = parse_rules(read("ip6-rule.json"), family=6)
    assert [rule.priority for rule in rules] == [0, 100, 101, 102, 32766]
    assert (rules[1].src, rules[1].dst) == (ip_network("fd00::/64"), ip_network("fd01::/64"))
    assert rules[2].src == ip_network("fd00::1/128")


def test_a_condition_of_a_later_iproute2_is_named() -> None:
    (rule,) = parse_rules('[{"priority": 1, "src": "all", "dscp": "CS1", "dport": 80, "dport_mask": "0xff"}]')
    assert rule.unsupported == ("dscp CS1", "dport_mask 0xff")


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('[{"dst": "default"', "not valid JSON"),
        ("0:\tfrom all lookup local\n", "not valid JSON|entry"),
        ("{}", "not the output of"),
        ('[{"dst": "10.0.0.0/99"}]', "entry 1 of"),
        ('[{}, {"dst": "default", "nexthops": 3}]', "entry 2 of"),
        ('[{"dst": "default", "tos": "mystery"}]', "entry 1 of"),
        ("[3]", "entry 1 of"),
    ],
)
def test_what_is_no_such_output_is_named(text: str, words: str) -> None:
    with pytest.raises(EvidenceError, match=words) as raised:
        parse_routes(text, source="nodes/node-b/ip-route.json")
    assert "nodes/node-b/ip-route.json" in raised.value.message
    assert raised.value.hint == "write it again: ip -j route show table all"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["dst", "gateway", "via", "nexthops", "flags", "src", "srclen", "priority", "ifname", "tos"]
            ),
            st.none()
            | st.integers()
            | st.text(max_size=4)
            | st.lists(st.integers(), max_size=2)
            | st.just({"a": 1}),
        ),
        max_size=3,
    )
)
def test_no_shape_makes_a_parser_crash(entries: list[dict[str, Any]]) -> None:
    for parse in (parse_routes, parse_rules, parse_interfaces):
        with contextlib.suppress(EvidenceError):
            parse(json.dumps(entries))


def test_recorded_nodes(recorded_cases: tuple[Path, ...]) -> None:
    folders = [path for case in recorded_cases for path in case.glob("nodes/*")]
    assert folders
    for folder in folders:
        interfaces = parse_interfaces((folder / "ip-addr.json").read_bytes())
        routes = parse_routes((folder / "ip-route.json").read_bytes())
        routes6 = parse_routes((folder / "ip6-route.json").read_bytes(), family=6)
        assert merge_routes(routes, routes6) == routes
        devices = {interface.name for interface in interfaces}
        assert {hop.dev for route in routes for hop in route.nexthops} <= devices
        local = {
            route.dst.network_address
            for route in routes
            if route.type == "local" and route.dst.num_addresses == 1
        }
        assert {address.ip for interface in interfaces for address in interface.addresses} <= local
        rules = parse_rules((folder / "ip-rule.json").read_bytes())
        assert [rule.table for rule in rules] == ["local", "main", "default"]
