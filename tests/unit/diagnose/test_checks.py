"""Every check: its page, its code, a cluster in which it fires, a twin in which it does not."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ktp.diagnose import checks
from ktp.diagnose.checks import ALL_CHECKS, HEADINGS, Check
from ktp.diagnose.codes import FAMILIES, RETIRED, page_markdown, page_of, page_text, pages
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.trace import Disposition, Symptom
from ktp.render.diagnosis_json import diagnosis_object
from tests.support.schema import validate
from tests.unit.diagnose.scenarios import SCENARIOS
from tests.unit.diagnose.scenarios_catalogue import through_wireguard
from tests.unit.diagnose.worlds import cell, codes, findings

REPOSITORY = Path(__file__).resolve().parents[3]
EVER_GIVEN = REPOSITORY / "tests" / "data" / "codes.txt"
FILES = {
    name.partition("_")[0].upper(): name
    for _, name, _ in pkgutil.iter_modules(checks.__path__)
    if name.startswith("ktp")
}
each_check = pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.code)


# ----------------------------------------------------------------------------------------------------- conventions


@each_check
def test_the_page_has_every_heading_with_a_text(check: Check) -> None:
    page = page_of(check)
    assert tuple(heading for heading, _ in page.sections) == HEADINGS
    assert all(text.strip() for _, text in page.sections)


@each_check
def test_the_check_stands_in_a_file_named_after_its_code(check: Check) -> None:
    module = importlib.import_module(f"ktp.diagnose.checks.{FILES[check.code]}")
    assert module.CHECK is check
    assert check.page == module.__doc__
    assert re.fullmatch(r"ktp\d{3}_[a-z0-9_]+", FILES[check.code])


@each_check
def test_the_page_reads_well_at_80_columns(check: Check) -> None:
    page = page_of(check)
    assert page.family in FAMILIES.values()
    for line in page_text(page, 80).splitlines():
        # A command is not folded, since it is to be copied.
        assert len(line) <= 80 or re.match(r" {4}\S+", line), line
    assert page_markdown(page).startswith(f"# {check.code} {check.name}\n")


def test_codes_and_names_are_unique_and_every_file_is_listed() -> None:
    given = [check.code for check in ALL_CHECKS]
    assert len(set(given)) == len(given)
    assert len({check.name for check in ALL_CHECKS}) == len(given)
    assert set(given) == set(FILES)
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", check.name) for check in ALL_CHECKS)


def test_no_number_gets_a_second_meaning() -> None:
    ever = dict(line.split() for line in EVER_GIVEN.read_text().splitlines())
    assert {check.code: check.name for check in ALL_CHECKS}.items() <= ever.items()
    assert set(RETIRED) == set(ever) - {check.code for check in ALL_CHECKS}


def test_the_generated_pages_are_not_stale() -> None:
    """`make pages` writes them again."""
    answer = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "gen_pages.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("One sentence.\n\n# What it means\nx\n", "headings"),
        ("No full stop\n" + "".join(f"\n# {h}\nx\n" for h in HEADINGS), "one sentence"),
        ("One sentence.\n" + "".join(f"\n# {h}\n\n" for h in HEADINGS), "headings"),
        ("One sentence.\n" + "".join(f"\n# {h}\nx\n" for h in reversed(HEADINGS)), "headings"),
    ],
    ids=["headings missing", "no sentence", "empty", "other order"],
)
def test_a_page_that_is_not_whole_is_refused(text: str, why: str) -> None:
    broken = Check("KTP999", "Broken", ALL_CHECKS[0].severity, ALL_CHECKS[0].run, page=text)
    with pytest.raises(ValueError, match=why):
        page_of(broken)


def test_pages_are_in_the_order_of_their_numbers() -> None:
    assert [page.code for page in pages()] == sorted(check.code for check in ALL_CHECKS)


# -------------------------------------------------------------------------------------------- firing and silence


def test_every_code_has_a_scenario() -> None:
    assert set(SCENARIOS) == {check.code for check in ALL_CHECKS}


def fired(code: str) -> ServiceDiagnosis:
    return SCENARIOS[code].fires().diagnosis()


@pytest.mark.parametrize("code", sorted(SCENARIOS))
def test_it_fires_and_every_failing_cell_has_a_cause(code: str) -> None:
    diagnosis = fired(code)
    assert code in codes(diagnosis)
    for finding in findings(diagnosis, code):
        assert finding.message
        assert finding.evidence
        assert all(e.kind and e.source and e.text for e in finding.evidence)
        assert all(fix.summary and fix.cost for fix in finding.fixes)
        # an index into the matrix, and nothing else
        assert set(finding.cells) <= set(cells_of(diagnosis))
    _every_failing_cell_has_a_cause_and_no_other_has(diagnosis)


@pytest.mark.parametrize("code", sorted(SCENARIOS))
def test_it_is_silent_on_the_healthy_twin(code: str) -> None:
    assert code not in codes(SCENARIOS[code].silent().diagnosis())


def _every_failing_cell_has_a_cause_and_no_other_has(diagnosis: ServiceDiagnosis) -> None:
    given = codes(diagnosis)
    swallowed = {
        (
            matrix.title,
            row.node,
            vantage,
        )  # a socket of the node itself takes the connection: the Service is not reached
        for matrix in diagnosis.frontends
        for row in matrix.nodes
        for vantage, cell in row.cells.items()
        if cell.disposition is Disposition.HOST_PROCESS
    }
    for key, (symptom, cause) in cells_of(diagnosis).items():
        if symptom in (Symptom.CONNECTS, Symptom.UNKNOWN) and key not in swallowed:
            assert (
                cause is None or cause == "KTP402"
            )  # both back ends: also where the order of the two decides
        else:
            assert cause in given


def cells_of(d: ServiceDiagnosis) -> dict[tuple[str, str, str], tuple[Symptom, str | None]]:
    return {
        (matrix.title, row.node, vantage): (cell.symptom, cell.cause)
        for matrix in d.frontends
        for row in matrix.nodes
        for vantage, cell in row.cells.items()
    }


def test_rules_that_draw_the_same_endpoints_do_not_disagree() -> None:
    """One endpoint may be there twice, with two fates: it is the same endpoint."""
    from types import SimpleNamespace

    from ktp.diagnose.checks.ktp401_rules_disagree import _differs
    from ktp.model.diagnosis import Cell, CellEndpoint

    def cell(*drawn: tuple[str, Symptom], symptom: Symptom = Symptom.INTERMITTENT) -> Cell:
        endpoints = tuple(
            CellEndpoint(ip=ip, port=80, name=None, node=None, probability=0.5, symptom=fate)
            for ip, fate in drawn
        )
        return Cell(
            vantage="external", symptom=symptom, disposition=Disposition.LOST, reason="", basis="rules", endpoints=endpoints,
        )  # fmt: skip

    def differs(before: Cell, after: Cell, *, certain: bool = True) -> bool:
        entry = SimpleNamespace(cell=before, asked=SimpleNamespace(is_certain_of_endpoints=certain))
        return _differs(entry, after)  # type: ignore[arg-type]

    twice = cell(("10.244.1.2", Symptom.CONNECTS), ("10.244.1.2", Symptom.TIMES_OUT))
    once = cell(("10.244.1.2", Symptom.CONNECTS))
    assert not differs(twice, once)
    assert differs(once, cell(("10.244.1.3", Symptom.CONNECTS)))
    assert differs(once, cell())
    lost = cell(("10.244.1.9", Symptom.UNKNOWN), symptom=Symptom.UNKNOWN)
    assert differs(lost, once)
    assert not differs(lost, once, certain=False)
    assert not differs(cell(("10.244.1.2", Symptom.UNKNOWN), symptom=Symptom.UNKNOWN), once)


def test_a_cell_tells_where_its_connections_hang() -> None:
    data = diagnosis_object(SCENARIOS["KTP222"].fires().diagnosis())
    validate(data)
    rows = {row["node"]: row for front_end in data["frontends"][:1] for row in front_end["nodes"]}
    cell = rows["node-a"]["external"]
    assert (cell["symptom"], cell["cause"]) == ("connects", None)
    stopped = cell["hang"].pop("stoppedBy")
    assert (stopped["node"], stopped["rule"]) == ("node-a", "-A OUTPUT -p icmp -j DROP")
    assert cell["hang"] == {
        "direction": "request", "segment": 1500, "sent": 1500, "taken": 1400, "certain": True, "node": "node-a",
        "device": "eth0",
    }  # fmt: skip
    assert "hang" not in rows["node-b"]["external"]


@pytest.mark.parametrize(("allowed", "fires"), [("10.244.1.0/24", False), ("10.244.7.0/24", True)])
def test_wireguard_that_does_not_carry_is_a_broken_tunnel(allowed: str, fires: bool) -> None:
    found = findings(through_wireguard(allowed)().diagnosis(), "KTP214")
    assert [finding.node for finding in found] == (["node-b"] if fires else [])
    assert all("allowed IPs" in finding.message and finding.fixes[0].verified for finding in found)


@pytest.mark.parametrize(("endpoint", "added"), [("10.0.0.3", 60), ("[fd00:10::3]", 80)])
def test_wireguard_adds_its_headers_to_full_segments(endpoint: str, added: int) -> None:
    """A larger MTU at the sender's network than at the receiver's: what is too long arrives, and is lost."""
    for mtu, lost in ((1500, False), (9000, True)):
        diagnosis = through_wireguard("10.244.1.0/24", endpoint, mtu)().diagnosis()
        hang = cell(diagnosis, "node-b").hang
        assert (hang is not None) is lost
        assert hang is None or (hang.segment, hang.sent, hang.taken) == (1500, 1500 + added, 1500)
