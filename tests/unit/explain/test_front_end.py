"""What a dump tells of node ports, versions and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktp.explain.explain import jumps_to
from ktp.explain.front_end import (
    family_of,
    near_node_ports,
    node_address,
    node_port_rules,
    node_ports,
    pod_network,
)
from ktp.kubeproxy.names import RuleFamily
from ktp.model.ruleset import Ruleset
from ktp.parse.iptables_save import open_ruleset

DATA = Path(__file__).resolve().parents[2] / "data" / "explain"


def ruleset(name: str) -> Ruleset:
    return open_ruleset(DATA / name, source=name)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("1.20-node-a.txt", RuleFamily.LE_1_23),
        ("1.24.txt", RuleFamily.V1_24),
        ("1.30-node-a.txt", RuleFamily.GE_1_25),
        ("1.36-node-b.txt", RuleFamily.GE_1_25),
        ("1.36-node-b-ip6.txt", RuleFamily.GE_1_25),
    ],
)
def test_family(name: str, family: RuleFamily) -> None:
    assert family_of(ruleset(name)) is family


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
