"""What `ip` prints for people against what it prints as JSON, of one and the same namespace: the models are equal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from ktp.parse.ip_json import parse_interfaces, parse_routes, parse_rules
from ktp.parse.ip_text import addresses_of, routes_of, rules_of

pytestmark = pytest.mark.kernel

SETUP = """
link add br0 type bridge
link add eth0 mtu 1400 type veth peer name peer0
link add vx0 type vxlan id 7 remote 198.51.100.9 dstport 4789 dev eth0
link set eth0 master br0
link set lo up
link set br0 up
link set eth0 up
link set peer0 up
link set vx0 up
addr add 198.51.100.1/24 dev br0
addr add 198.51.100.2/24 dev br0
addr add 192.0.2.1 peer 192.0.2.2/32 dev peer0
addr add 203.0.113.5/32 scope host dev lo
addr add 2001:db8::1/64 dev br0 nodad
addr add 2001:db8::9/64 dev br0 nodad preferred_lft 0
route add 10.1.0.0/16 via 198.51.100.7 dev br0 src 198.51.100.2 metric 5
route add 10.2.0.0/16 nexthop via 198.51.100.7 dev br0 weight 3 nexthop via 192.0.2.2 dev peer0
route add 10.3.0.0/16 dev vx0 table 100 mtu 1300 advmss 1200
route add 10.4.0.0/16 via inet6 fe80::7 dev br0
route add 10.5.0.0/16 tos 0x10 dev br0 proto static
route add unreachable 10.6.0.0/16
route add blackhole 10.7.0.0/16 table 100
route add throw 10.8.0.0/16 table 100
route add prohibit 10.9.0.0/16
route add default via 198.51.100.7 dev br0 onlink
-6 route add 2001:db8:1::/48 via 2001:db8::7 dev br0 metric 7 pref high
-6 route add default via 2001:db8::7 dev br0
-6 route add unreachable 2001:db8:2::/48
-6 route add from 2001:db8:3::/48 2001:db8:4::/48 via 2001:db8::7 dev br0
rule add pref 10 from 10.0.0.0/8 to 10.1.2.3 iif eth0 fwmark 0x1/0xff lookup 100
rule add pref 11 not from all fwmark 0x80000 lookup 52 suppress_prefixlength 0
rule add pref 12 ipproto tcp sport 80 dport 1000-2000 uidrange 0-100 lookup main
rule add pref 13 from 192.0.2.0/24 tos 0x10 unreachable
rule add pref 14 goto 20
rule add pref 20 oif gone blackhole
rule add pref 21 prohibit
rule add pref 22 l3mdev
-6 rule add pref 10 from 2001:db8::/32 lookup 100
"""


@pytest.fixture
def namespace(make_netns: Callable[[str], str]) -> str:
    name = make_netns("text")
    for line in SETUP.split("\n"):
        if line:
            done = subprocess.run(
                ["ip", "-n", name, *line.split()], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}: {done.stderr}"
    return name


def ip(namespace: str, words: str) -> str:
    return subprocess.run(
        ["ip", "-n", namespace, *words.split()], capture_output=True, text=True, check=True
    ).stdout


def test_addresses_are_those_of_json(namespace: str) -> None:
    told = parse_interfaces(ip(namespace, "-j -d address"))
    assert len(told) > 4
    assert parse_interfaces(json.dumps(addresses_of(ip(namespace, "-d address")))) == told
    plain = parse_interfaces(ip(namespace, "-j address"))
    assert parse_interfaces(json.dumps(addresses_of(ip(namespace, "address")))) == plain


@pytest.mark.parametrize("family", ["", "-4 ", "-6 "])
def test_routes_are_those_of_json(namespace: str, family: str) -> None:
    told = parse_routes(ip(namespace, f"{family}-j route show table all"))
    assert len(told) > 10
    assert parse_routes(json.dumps(routes_of(ip(namespace, f"{family}route show table all")))) == told
    detailed = ip(namespace, f"{family}-d route show table all")
    assert parse_routes(json.dumps(routes_of(detailed))) == told


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_rules_are_those_of_json(namespace: str, family: str) -> None:
    number = int(family[1])
    told = parse_rules(ip(namespace, f"{family} -j rule"), family=number)
    assert len(told) > 2
    assert parse_rules(json.dumps(rules_of(ip(namespace, f"{family} rule"))), family=number) == told
