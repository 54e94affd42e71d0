"""What is said where evidence is missing: reports that once were answered with the opposite of the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.model.assumption import EvidenceKind
from ktp.model.diagnosis import Cell, ServiceDiagnosis, Severity
from ktp.model.trace import Symptom
from ktp.parse.snapshot import parse_snapshot

REPORTS = Path(__file__).resolve().parents[2] / "data" / "reports"


def diagnosis(report: str, service: str) -> ServiceDiagnosis:
    snapshot = parse_snapshot(open_snapshot(REPORTS / report))
    return diagnose_service(snapshot, snapshot.cluster.services[service])


def cells(d: ServiceDiagnosis, node: str | None = None) -> Iterator[Cell]:
    for matrix in d.frontends:
        for row in matrix.nodes:
            if node is None or row.node == node:
                yield from row.cells.values()


@pytest.mark.parametrize("report", ["missing/flannel-one-node", "missing/flannel-one-node-addrs"])
def test_one_node_of_a_healthy_flannel_cluster(report: str) -> None:
    """The next hops behind flannel.1 are other nodes, of which nothing was read: an assumption, and no missing route."""
    found = diagnosis(report, "test/nginx-log")
    assert {c.symptom for c in cells(found)} == {Symptom.CONNECTS}
    assert not [f for f in found.findings if f.severity is not Severity.INFO]
    external = [c for c in cells(found, "node-b") if c.vantage == "external"]
    assert all(any(a.evidence is EvidenceKind.RULES for a in c.rests_on) for c in external)


def test_virtual_servers_that_were_not_read_are_not_none() -> None:
    found = diagnosis("ipvs/without-ipvsadm", "default/web")
    assert {c.symptom for c in cells(found)} == {Symptom.UNKNOWN}
    assert found.undetermined
    assert any("ipvsadm" in g.message for g in found.gaps)
    assert not [f for f in found.findings if f.code == "KTP409"]


def test_endpoints_of_virtual_servers_are_endpoints_of_the_rules() -> None:
    found = diagnosis("ipvs/healthy", "default/web")
    assert {c.symptom for c in cells(found) if c.vantage == "external"} == {Symptom.CONNECTS}
    assert not [f for f in found.findings if f.code == "KTP409"]


def test_kube_proxys_own_reject_in_ipvs_mode_is_not_foreign() -> None:
    found = diagnosis("ipvs/external-ip-local", "default/web")
    assert not [f for f in found.findings if f.code == "KTP410"]


def test_another_data_plane_known_by_its_pods_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report = str(REPORTS / "data-planes" / "cilium-api-only")
    found = diagnosis("data-planes/cilium-api-only", "edge/udp-local")
    assert {c.symptom for c in cells(found)} == {Symptom.UNKNOWN}
    assert found.findings[0].code == "KTP403"
    assert {c.intended for c in cells(found)} & {
        Symptom.CONNECTS,
        Symptom.TIMES_OUT,
    }  # what the API calls for
    assert run(["--snapshot", report, "diagnose", "svc", "edge/udp-local", "-o", "json"]) == 4
    assert json.loads(capsys.readouterr().out)
