"""Checksum offloads of tunnels: a suspicion where packets are lost, and nothing where none are."""

from __future__ import annotations

import json

import pytest

from ktp.diagnose.probing import Predictor, Sender, compare, with_probes
from ktp.model.diagnosis import Severity
from ktp.model.probing import Attempt, Observation
from ktp.model.trace import Symptom
from tests.unit.diagnose.worlds import CLUSTER, Asked, Edit, demo, findings, of_service


def replaced(text: str) -> Edit:
    return lambda _: text


LINKS = json.dumps(
    [
        {"ifname": "flannel.1", "flags": ["UP"], "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1}}},
        {"ifname": "eth0", "flags": ["UP"]},
    ]
)
TABLE = "Udp: InDatagrams InCsumErrors\nUdp: 5 {}\n"


def offloads(checksum: str) -> str:
    return (
        f"Features for flannel.1:\ntx-checksumming: {checksum}\n\ttx-checksum-ip-generic: {checksum}\n"
        "Features for eth0:\n\ttx-checksum-ip-generic: on\n\ttx-checksum-sctp: off [fixed]\n"
    )


def edits(checksum: str, *, grown: int = 0) -> dict[tuple[str, str], Edit]:
    """All nodes have a vxlan; node-b counts so many wrong checksums between two readings."""
    found = {(node, "ip-link.json"): replaced(LINKS) for node in ("node-a", "node-b", "node-c")}
    if checksum:
        found |= {
            (node, "ethtool.txt"): replaced(offloads(checksum)) for node in ("node-a", "node-b", "node-c")
        }
    counted = f"100.00 1.00\n{TABLE.format(3)}105.00 1.00\n{TABLE.format(3 + grown)}"
    return {**found, ("node-b", "netstat.txt"): replaced(counted)}


@pytest.mark.parametrize(
    ("checksum", "grown", "said"), [("on", 4, True), ("off", 4, False), ("", 4, False), ("on", 0, None)]
)
def test_where_wrong_checksums_are_counted(checksum: str, grown: int, said: bool | None) -> None:
    found = findings(Asked(demo(edits(checksum, grown=grown)), CLUSTER).diagnosis(), "KTP219")
    assert bool(found) is (said is not None)
    for finding in found:
        named = [(e.source, e.text) for e in finding.evidence if e.kind == "offload"]
        assert finding.severity is Severity.INFO
        assert ("a suspicion" in finding.message) is said
        assert [source for source, _ in named] == (["node-a", "node-c"] if said else [])
        assert [fix.command for fix in finding.fixes] == (
            ["ethtool -K flannel.1 tx-checksum-ip-generic off"] if said else []
        )


@pytest.mark.parametrize(("checksum", "said"), [("on", True), ("off", False), ("", False)])
def test_where_nothing_is_carried(checksum: str, said: bool) -> None:
    snapshot = demo(edits(checksum))
    service = of_service(snapshot, CLUSTER)
    predictor = Predictor(snapshot, service)
    observed = []
    for target in predictor.targets(Sender()):
        holds = target.node in predictor.predict(target, "10.0.0.100", Sender()).holders
        symptom = Symptom.CONNECTS if holds else Symptom.TIMES_OUT
        observed.append(
            Observation(target=target, source="10.0.0.100", attempts=(Attempt(symptom=symptom, seconds=0.1),))
        )
    report = Asked(snapshot, CLUSTER).diagnosis()
    assert not any(e.kind == "offload" for f in report.findings for e in f.evidence)
    (finding, *_) = findings(with_probes(report, compare(predictor, observed), snapshot), "KTP217")
    assert ("a suspicion" in finding.message) is said
    assert any(fix.command and fix.command.startswith("ethtool") for fix in finding.fixes) is said
    assert any(e.kind == "offload" for e in finding.evidence) is said


def test_without_loss_nothing_is_said_of_offloads() -> None:
    report = Asked(demo(edits("on")), CLUSTER).diagnosis()
    assert {f.code for f in report.findings} == {f.code for f in Asked(demo(), CLUSTER).diagnosis().findings}
