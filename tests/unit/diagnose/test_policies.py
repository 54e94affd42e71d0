"""NetworkPolicies by the API's words: whom they let in, and that ktp says "may" where nobody read who enforces them."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.errors import EvidenceError
from ktp.model.diagnosis import Finding, Severity
from ktp.model.snapshot import Snapshot
from ktp.parse.policy import POLICIES, parse_policies
from ktp.parse.snapshot import parse_snapshot

CASE = Path(__file__).resolve().parents[2] / "data" / "cases" / "core-1.36-iptables-nft"
LOCAL, CLUSTER = "test/nginx-externaltrafficpolicy", "test/nginx-log"


def policy(*ingress: dict[str, Any], namespace: str = "test", **spec: Any) -> dict[str, Any]:
    return {
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": "deny"},
        "spec": {"podSelector": {}, **({"ingress": list(ingress)} if ingress else {}), **spec},
    }


@pytest.fixture(scope="module")
def recorded() -> Snapshot:
    """The API alone: no node was read."""
    return replace(parse_snapshot(open_snapshot(CASE)), nodes={})


def found(recorded: Snapshot, *policies: dict[str, Any], key: str = LOCAL) -> list[Finding]:
    parsed = parse_policies(json.dumps({"items": list(policies)}))
    snapshot = replace(recorded, cluster=replace(recorded.cluster, policies=parsed))
    diagnosis = diagnose_service(snapshot, snapshot.cluster.services[key])
    return [f for f in diagnosis.findings if f.code == "KTP305"]


def block(cidr: str, *excepts: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}


def test_nobody_is_let_in(recorded: Snapshot) -> None:
    (finding,) = found(recorded, policy())
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith("NetworkPolicy test/deny lets no client outside in to test/nginx-")
    assert finding.message.endswith(
        "a network plugin that enforces policies stops them (whether one does was not read)"
    )
    assert finding.cells == ()  # what the cells say is not known to be wrong
    assert any("lets in at port 80: nobody" in e.text for e in finding.evidence)


@pytest.mark.parametrize(
    "policies",
    [
        [],
        [policy({})],
        [policy({"from": [block("0.0.0.0/0")]})],
        [policy({"ports": [{"port": 80}]})],
        [policy({"ports": [{"port": 79, "endPort": 90}]})],
        [policy({"ports": [{"protocol": "TCP"}]})],
        [policy(), policy({"from": [block("0.0.0.0/0")]})],  # one that admits is enough
        [policy(namespace="other")],
        [policy(policyTypes=["Egress"])],
        [policy(podSelector={"matchLabels": {"app": "somebody-else"}})],
    ],
    ids=[
        "none",
        "from all",
        "all addresses",
        "by port",
        "by range",
        "by protocol",
        "another admits",
        "elsewhere",
        "egress",
        "other pods",
    ],
)
def test_who_is_let_in_is_no_finding(recorded: Snapshot, policies: list[dict[str, Any]]) -> None:
    assert found(recorded, *policies) == []


@pytest.mark.parametrize(
    "rule",
    [
        {"from": [{"podSelector": {}}]},
        {"from": [{"namespaceSelector": {}}]},
        {"ports": [{"port": 81}]},
        {"ports": [{"port": 80, "protocol": "UDP"}]},
        {"ports": [{"port": "no-such-name"}]},
        {"from": [block("0.0.0.0/0")], "ports": [{"port": 443}]},
    ],
)
def test_who_is_not_let_in(recorded: Snapshot, rule: dict[str, Any]) -> None:
    (finding,) = found(recorded, policy(rule))
    assert finding.severity is Severity.WARNING


def test_others_are_let_in_as_somebody_wanted(recorded: Snapshot) -> None:
    (finding,) = found(recorded, policy({"from": [block("10.0.0.0/8")]}))
    assert finding.severity is Severity.INFO
    assert "lets nobody at 203.0.113.77 in" in finding.message
    (other,) = found(recorded, policy({"from": [block("0.0.0.0/0", "203.0.113.0/24")]}))
    assert other.severity is Severity.INFO


def test_under_cluster_the_pod_sees_a_node(recorded: Snapshot) -> None:
    """Which plugins let in from the pod's own node: the node that is dialled must be another one."""
    (finding,) = found(recorded, policy({"from": [block("203.0.113.0/24")]}), key=CLUSTER)
    assert "lets nobody at 10.0.0." in finding.message
    assert "a network plugin that enforces policies may stop them" in finding.message
    assert finding.severity is Severity.INFO
    assert found(recorded, policy({"from": [block("10.0.0.0/24")]}), key=CLUSTER) == []


def test_where_the_nodes_were_read_the_walk_has_met_it() -> None:
    assert found(parse_snapshot(open_snapshot(CASE)), policy()) == []


def test_ports_by_name(recorded: Snapshot) -> None:
    rules = parse_policies(json.dumps([policy({"ports": [{"port": "http"}]})]))[0].rules
    assert rules[0].is_for("TCP", 8080, {"http": 8080})
    assert not rules[0].is_for("TCP", 80, {"http": 8080})
    six = parse_policies(json.dumps([policy({"from": [block("2001:db8::/32")]})]))[0].rules[0]
    assert six.admits(ip_address("2001:db8::1"))
    assert not six.admits(ip_address("192.0.2.1"))


def test_what_is_no_policy() -> None:
    for wrong in ({"from": [block("everybody")]}, {"ports": [{"port": [80]}]}, {"from": "x"}):
        with pytest.raises(EvidenceError, match=f"NetworkPolicy deny of {POLICIES} is not usable"):
            parse_policies(json.dumps({"items": [policy(wrong)]}))
