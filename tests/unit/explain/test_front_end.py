"""What a dump tells of node ports, versions and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktp.explain.explain import jumps_to
from ktp.explain.front_end import (
    generation_of,
    near_node_ports,
    node_address,
    node_port_rules,
    node_ports,
    pod_network,
)
from ktp.model.ruleset import Ruleset
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.rules import open_rules_dump

DATA = Path(__file__).resolve().parents[2] / "data" / "explain"


def ruleset(name: str) -> Ruleset:
    return open_ruleset(DATA / name, source=name)


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("1.20-node-a.txt", "1.23 or older"),
        ("1.24.txt", "1.24"),
        ("1.30-node-a.txt", "1.25 or newer"),
        ("1.36-node-b.txt", "1.25 or newer"),
        ("1.36-node-b-ip6.txt", "1.25 or newer"),
    ],
)
def test_generation(name: str, versions: str) -> None:
    found = generation_of(ruleset(name))
    assert found is not None
    assert found[0] == versions


def test_nothing_is_concluded_from_a_filter_table_that_was_not_read() -> None:
    text = (DATA / "1.24.txt").read_text()
    nat = text[text.index("*nat") :]
    found = generation_of(open_rules_dump(nat.encode(), "nat alone").hosts[0].rulesets[0])
    assert found == ("1.24 or newer", "KUBE-EXT chains")
    fragment = '-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "a/b has no local endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30100 -j DROP\n'
    dump = open_rules_dump(f"*filter\n{fragment}COMMIT\n".encode(), "fragment").hosts[0].rulesets[0]
    assert generation_of(dump) is None
    assert generation_of(dump, node_port_rules(dump, "tcp", 30100).refusing) == (
        "1.25 or newer",
        "KUBE-EXTERNAL-SERVICES drops",
    )


def test_a_node_port_without_local_endpoint_has_nat_and_filter_rules() -> None:
    rules = node_port_rules(ruleset("1.36-node-b.txt"), "tcp", 31015)
    assert [r.target.name for r in rules.nat if r.target] == ["KUBE-EXT-3LS5F4HE6J2O753K"] * 2
    assert [r.target.name for r in rules.refusing if r.target] == ["DROP"]
    assert rules.service == "test/nginx-externaltrafficpolicy:80-80-tcp"
    assert not node_port_rules(ruleset("1.36-node-b.txt"), "udp", 31015)


def test_health_check_ports_are_no_node_ports() -> None:
    dump = ruleset("1.36-node-b.txt")
    assert dump.chain("filter", "KUBE-NODEPORTS")
    ports = {port for port, _, _ in node_ports(dump)}
    assert 31015 in ports
    assert not ports & {30206}


def test_near_node_ports() -> None:
    known = [(30001, "tcp", "a/b"), (31015, "tcp", "c/d"), (31465, "tcp", "e/f"), (31015, "udp", "g/h")]
    assert near_node_ports(known, "tcp", 31051)[0] == (31015, "tcp", "c/d")
    assert near_node_ports(known, "udp", 31465)[0] == (31465, "tcp", "e/f")


def test_node_address_is_told_by_node_port_addresses_only() -> None:
    assert node_address(ruleset("1.20-node-a.txt")) is None
    text = (
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n"
        "-A KUBE-SERVICES -d 10.0.0.3/32 -m comment --comment x -j KUBE-NODEPORTS\nCOMMIT\n"
    )
    assert node_address(open_ruleset(text.encode(), source="x")) == "10.0.0.3"


def test_pod_network() -> None:
    for name in ("1.20-node-b.txt", "1.36-node-b.txt"):
        dump = ruleset(name)
        assert pod_network(dump, node_port_rules(dump, "tcp", 31015).nat) == "10.244.0.0/16"


def test_jumps_to_finds_every_caller() -> None:
    dump = ruleset("1.36-node-b.txt")
    callers = jumps_to(dump, "filter", "KUBE-SERVICES")
    assert sorted(r.chain for r in callers) == ["FORWARD", "OUTPUT"]
    assert len(jumps_to(dump, "nat", "KUBE-MARK-MASQ")) > 10
