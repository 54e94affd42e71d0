"""What stands above the matrix is as true as the matrix: every failing cell of outside clients has its cause, and fixes
cure what they say.

Of the packaged recordings every Service is asked; with KTP_HEADLINES=FOLDER also of the recordings in that folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktp.diagnose.case import share
from ktp.diagnose.service import diagnose_service
from ktp.diagnose.survey import rows_of, survey, surveyed
from ktp.diagnose.whatif import changed_by
from ktp.model.change import Change
from ktp.model.diagnosis import Cell, ServiceDiagnosis, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Symptom
from tests.support.recordings import diagnosis_of, snapshot_of

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = REPOSITORY / "ktp" / "demo" / "article"


def cases() -> Iterator[Any]:
    folders = [DEMO, *sorted((REPOSITORY / "tests" / "data" / "cases").glob("*/"))]
    if os.environ.get("KTP_HEADLINES"):
        folders += sorted(Path(os.environ["KTP_HEADLINES"]).glob("*/"))
    for folder in folders:
        if (folder / "cluster").is_dir():
            yield pytest.param(folder, id=folder.name)


def diagnoses(folder: Path) -> tuple[tuple[Snapshot, str, ServiceDiagnosis], ...]:
    snapshot = snapshot_of(folder)
    return tuple((snapshot, key, diagnosis_of(folder, key)) for key in snapshot.cluster.services)


def cells_of(d: ServiceDiagnosis) -> dict[tuple[str, str, str], Cell]:
    return {
        (m.title, row.node, vantage): cell
        for m in d.frontends
        for row in m.nodes
        for vantage, cell in row.cells.items()
    }


def fails(cell: Cell) -> bool:
    swallowed = cell.disposition is Disposition.HOST_PROCESS and cell.symptom is Symptom.CONNECTS
    return swallowed or cell.symptom not in (Symptom.CONNECTS, Symptom.UNKNOWN)


@pytest.mark.parametrize("folder", list(cases()))
def test_each_failing_cell_of_outside_clients_is_in_one_group_and_explained(folder: Path) -> None:
    seen = 0
    for _, key, d in diagnoses(folder):
        inside = {m.title for m in d.frontends if m.kind == "clusterIP"}
        failing = {
            k for k, cell in cells_of(d).items() if k[2] == "external" and k[0] not in inside and fails(cell)
        }
        grouped = [(g.frontend, node, g.vantage) for g in d.headline for node in g.nodes]
        assert sorted(grouped) == sorted(failing), key
        for group in d.headline:
            for node in group.nodes:
                cell = (group.frontend, node, group.vantage)
                assert any(f.code == group.cause and cell in f.cells for f in d.findings), (
                    key,
                    cell,
                    group.cause,
                )
        seen += len(failing)
        if failing:
            shown = d.headline if len({g.frontend for g in d.headline}) <= 3 else ()
            assert all(any(f"{g.cause}{end}" in d.verdict for end in " ;)") for g in shown), d.verdict
    assert seen


@pytest.mark.parametrize("folder", list(cases()))
def test_fixes_and_what_if_agree(folder: Path) -> None:
    """What `ktp what-if` can make up cures, makes better and costs what the fix says, cell by cell."""
    afters: dict[tuple[str, Change], dict[tuple[str, str, str], Cell]] = {}
    for snapshot, key, d in diagnoses(folder):
        before = cells_of(d)
        for finding in d.findings:
            for fix in finding.fixes:
                if fix.change is None or fix.cures is None:
                    continue
                if (key, fix.change) not in afters:
                    service = snapshot.cluster.services[key]
                    changed, _ = changed_by(snapshot, service, [fix.change])
                    afters[key, fix.change] = cells_of(
                        diagnose_service(changed, changed.cluster.services[key])
                    )
                after = afters[key, fix.change]
                cured = [cell for cell in finding.cells if share(after[cell]) >= 1]
                assert len(cured) == fix.cures.cured, (key, finding.code, finding.node, fix.change)
                assert fix.verified is (len(cured) == len(finding.cells)), (key, finding.node)
                lost = {k for k, cell in before.items() if share(after[k]) < share(cell)}
                assert lost.issuperset(fix.cures.lost), (key, finding.node, fix.change)


@pytest.mark.parametrize("folder", list(cases()))
def test_a_verified_fix_leaves_nothing_that_it_was_tried_on(folder: Path) -> None:
    for _, key, d in diagnoses(folder):
        for finding in d.findings:
            for fix in finding.fixes:
                if fix.cures is not None:
                    assert fix.verified is (0 < fix.cures.tried == fix.cures.cured), key
                    assert len(fix.cures.left) == fix.cures.tried - fix.cures.cured, key


@pytest.mark.parametrize("folder", list(cases()))
def test_a_fault_of_no_cell_is_no_error(folder: Path) -> None:
    for _, key, d in diagnoses(folder):
        failing = {k for k, cell in cells_of(d).items() if fails(cell) or cell.symptom is Symptom.UNKNOWN}
        for finding in d.findings:
            if finding.code in ("KTP402", "KTP408") and failing.isdisjoint(finding.cells):
                assert finding.severity is Severity.INFO, (key, finding.code)


@pytest.mark.parametrize("folder", list(cases()))
def test_the_list_of_all_says_what_the_reports_say(folder: Path) -> None:
    """Causes, symptoms, what is silent by design, and the exit status."""
    reports = [d for _, _, d in diagnoses(folder)]
    rows = rows_of(reports)
    named = {(d.key, g.frontend): g.cause for d in reports for g in reversed(d.headline) if g not in d.silent}
    assert {(r.key, r.front_end): r.cause for r in rows if r.failing} == named
    snapshot = diagnoses(folder)[0][0]
    guessed = {(r.key, r.front_end): r for r in survey(snapshot)}
    assert set(guessed) == {(r.key, r.front_end) for r in rows}
    for row in rows:
        other = guessed[row.key, row.front_end]
        assert row.symptoms == other.symptoms, row.key
        # The guess for large clusters knows neither a stopped health check nor two faults behind one another.
        stopped = any(f.code == "KTP603" for d in reports if d.key == row.key for f in d.findings)
        assert (
            stopped or "fault" in folder.name or (row.silent, row.failing) == (other.silent, other.failing)
        ), (
            row.key,
            row.front_end,
        )
    assert set(surveyed(snapshot)) == {r.key for r in rows}


@pytest.mark.parametrize("folder", list(cases()))
def test_what_works_as_its_owner_asked_is_no_error(folder: Path) -> None:
    """A LoadBalancer Service with Local is silent where it has no pod, and its health check says so."""
    for snapshot, key, d in diagnoses(folder):
        service = snapshot.cluster.services[key]
        if service.type != "LoadBalancer" or not service.health_check_node_port:
            continue
        for group in d.silent:
            assert group.cause == "KTP501"
        if all(g in d.silent for g in d.headline):
            assert "KTP501" not in {f.code for f in d.findings if f.severity is not Severity.INFO}, key
            assert not d.silent or "silent by design" in d.verdict


@pytest.mark.parametrize("folder", list(cases()))
def test_a_fix_mends_something_and_says_who_loses(folder: Path) -> None:
    for _, key, d in diagnoses(folder):
        today = {k for k, cell in cells_of(d).items() if share(cell) >= 1}
        for finding in d.findings:
            for fix in finding.fixes:
                if fix.cures is not None and fix.cures.tried:
                    assert fix.cures.cured + fix.cures.better > 0, (key, finding.code, fix.summary)
                    assert today.issuperset(fix.cures.lost), (key, finding.code, fix.summary)
