"""The reports for tickets and CI: valid whatever the names are, and in step with the exit status."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from ktp.app.diagnose import status_of
from ktp.cli import run
from ktp.diagnose.probing import Predictor, Sender, compare, with_probes
from ktp.errors import ExitCode
from ktp.model.diagnosis import Cell, Finding, FrontEndMatrix, NodeRow, ServiceDiagnosis, Severity
from ktp.model.probing import Attempt, Observation
from ktp.model.trace import Disposition, Symptom
from ktp.render.diagnosis_json import diagnosis_object
from ktp.render.report_html import html_report
from ktp.render.report_junit import junit_report
from ktp.render.report_markdown import markdown_report
from ktp.render.report_words import grouped
from tests.unit.diagnose.worlds import CLUSTER, LOCAL, RECORDED, Asked, demo, of_service, recorded
from tests.unit.render.poison import poisoned


def dialled(snapshot_service: str) -> ServiceDiagnosis:
    """A diagnosis with probes that differ from it."""
    world = demo()
    service = of_service(world, snapshot_service)
    predictor = Predictor(world, service)
    seen = [
        Observation(target=t, source="10.0.0.200", attempts=(Attempt(symptom=Symptom.REFUSED, seconds=0.1),))
        for t in predictor.targets(Sender())
    ]
    return with_probes(Asked(world, snapshot_service).diagnosis(), compare(predictor, seen))


DIAGNOSES = {
    "article": lambda: Asked(demo(), LOCAL).diagnosis(),
    "healthy": lambda: Asked(demo(), CLUSTER).diagnosis(),
    "uneven": lambda: Asked(recorded(), "edge/local-lb").diagnosis(),
    "no front end": lambda: Asked(recorded(), "edge/headless").diagnosis(),
    "probed": lambda: dialled(LOCAL),
}


@pytest.fixture(params=DIAGNOSES)
def diagnosis(request: pytest.FixtureRequest) -> ServiceDiagnosis:
    return DIAGNOSES[request.param]()


# -------------------------------------------------------------------------------------------------------- markdown


def elements(text: str) -> list[str]:
    """The kinds of things that a Markdown reader finds."""
    out = []
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(text):
        out.append(token.type)
        out += [child.type for child in token.children or ()]
    return out


def plain_text(text: str) -> str:
    """What is not code."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    return " ".join(c.content for t in tokens for c in t.children or () if c.type == "text")


def columns(text: str) -> list[set[int]]:
    """For each table the numbers of cells in its rows, by unescaped bars."""
    tables: list[set[int]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append(set())
            tables[-1].add(len(re.split(r"(?<!\\)\|", line)))
        inside = line.startswith("|")
    return tables


def test_markdown_is_what_it_was_meant_to_be(diagnosis: ServiceDiagnosis) -> None:
    text = markdown_report(diagnosis)
    assert all(len(widths) == 1 for widths in columns(text))
    found = elements(text)
    assert "html_inline" not in found
    assert "html_block" not in found
    assert "link_open" not in found
    assert found.count("heading_open") == text.count("\n###") + 1
    assert "\n\n\n" not in text


def test_hostile_words_change_nothing_in_markdown(diagnosis: ServiceDiagnosis) -> None:
    text, hostile = markdown_report(diagnosis), markdown_report(poisoned(diagnosis))
    found = elements(hostile)
    for kind in ("html_inline", "html_block", "link_open", "image", "s_open", "hr"):
        assert kind not in found, kind
    assert "\ud800" not in hostile
    assert "\x1b" not in hostile
    assert "://evil" not in plain_text(hostile), "nothing that becomes a link by itself"
    assert elements(text).count("table_open") == found.count("table_open")
    assert all(len(widths) == 1 for widths in columns(hostile))


def test_a_command_with_a_fence_stays_in_its_block() -> None:
    d = Asked(demo(), LOCAL).diagnosis()
    first = d.findings[0]
    fix = replace(first.fixes[0], command="echo '```'\nrm -rf /")
    text = markdown_report(replace(d, findings=(replace(first, fixes=(fix,)),)))
    fences = [t.content for t in MarkdownIt().parse(text) if t.type == "fence"]
    assert "echo '```'\nrm -rf /\n" in fences


# ----------------------------------------------------------------------------------------------------------- junit


@pytest.mark.parametrize("limit", list(Severity))
def test_junit_fails_where_the_exit_status_does(limit: Severity, diagnosis: ServiceDiagnosis) -> None:
    root = ET.fromstring(junit_report([diagnosis, diagnosis], limit))
    failed = int(root.get("failures") or 0)
    assert failed == len(root.findall(".//failure"))
    assert (failed > 0) == (status_of([diagnosis], limit.value) is ExitCode.FINDINGS)
    assert len(root.findall("testsuite")) == 2
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        assert len(cases) == int(suite.get("tests") or 0)
        assert len(suite.findall("testcase/skipped")) == int(suite.get("skipped") or 0)
        names = [case.get("name") for case in cases]
        assert len(set(names)) == len(names)


def test_hostile_words_are_xml(diagnosis: ServiceDiagnosis) -> None:
    text = junit_report([poisoned(diagnosis)], Severity.INFO)
    root = ET.fromstring(text.encode("utf-8"))
    assert {e.tag for e in root.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "skipped"}


def test_a_cell_that_is_not_known_is_skipped() -> None:
    unknown = Cell(
        vantage="external",
        symptom=Symptom.UNKNOWN,
        disposition=Disposition.UNDETERMINED,
        reason="no rules \x00 were read",
        basis="none",
    )
    row = NodeRow(node="n", addresses=(), local_endpoints=None, cells={"external": unknown})
    d = replace(
        Asked(demo(), CLUSTER).diagnosis(),
        frontends=(FrontEndMatrix(kind="nodePort", protocol="TCP", port=80, node_port=30000, nodes=(row,)),),
        findings=(),
    )
    root = ET.fromstring(junit_report([d], Severity.WARNING))
    assert root.get("skipped") == "1"
    assert root.find(".//skipped").get("message") == "no rules \ufffd were read"  # type: ignore[union-attr]


def test_a_finding_about_no_cell_is_a_case_of_its_own() -> None:
    d = Asked(demo(), CLUSTER).diagnosis()
    finding = Finding(code="KTP503", name="UnevenLoad", severity=Severity.WARNING, message="uneven")
    root = ET.fromstring(junit_report([replace(d, findings=(finding,))], Severity.WARNING))
    (failure,) = root.findall(".//failure")
    assert failure.get("type") == "KTP503"
    assert root.find(".//testcase[@name='KTP503 UnevenLoad']") is not None


# --------------------------------------------------------------------------------------------------------- fail-on


@pytest.mark.parametrize(
    ("service", "limit", "status"),
    [
        (LOCAL, "error", 1),
        (LOCAL, "info", 1),
        (CLUSTER, "error", 0),
        (CLUSTER, "warning", 0),
    ],
)
@pytest.mark.parametrize("form", ["text", "json", "yaml", "markdown", "html", "junit"])
def test_fail_on(
    service: str, limit: str, status: int, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--demo", "diagnose", "svc", service, "--fail-on", limit, "-o", form]) == status
    assert capsys.readouterr().out


@pytest.mark.parametrize(("limit", "status"), [("error", 0), ("warning", 0), ("info", 1)])
def test_what_is_less_grave_passes(limit: str, status: int) -> None:
    """The gravest finding of edge/lb-ranges is an info."""
    assert (
        run(["--snapshot", str(RECORDED), "diagnose", "svc", "edge/lb-ranges", "--fail-on", limit]) == status
    )


# --------------------------------------------------------------------------------------------------- all of a kind


def test_what_is_alike_of_several_front_ends_is_said_once() -> None:
    def said(title: str) -> Finding:
        return Finding(
            code="KTP504",
            name="X",
            severity=Severity.INFO,
            message=f"a curl to {title} proves nothing",
            nodes=("a",),
            cells=((title, "a", "node"),),
        )

    titles = ["nodePort 30006/TCP", "nodePort 30006/TCP (IPv6)", "loadBalancer [fd00::1]:80/TCP"]
    other = replace(said(titles[0]), nodes=("b",))
    groups = grouped([*map(said, titles), other])
    assert [g[0].message for g in groups] == [
        "a curl to nodePort 30006/TCP, nodePort 30006/TCP (IPv6) and loadBalancer [fd00::1]:80/TCP proves nothing",
        "a curl to nodePort 30006/TCP proves nothing",
    ]
    assert len(groups[0][0].cells) == 3


def test_every_report_names_the_verdict_and_the_gravest_cause_first() -> None:
    d = Asked(recorded(), "edge/local-lb").diagnosis()
    order = [f.code for f in d.findings]
    for text in (markdown_report(d), html_report([d])):
        places = [text.index(code) for code in dict.fromkeys(order) if f"{code} " in text]
        assert places == sorted(places)
    ranks = [f.severity.rank for f in d.findings]
    assert ranks == sorted(ranks)


def test_probes_and_witnesses_are_in_every_form() -> None:
    d = dialled(LOCAL)
    data = diagnosis_object(d)
    assert {r["verdict"] for r in data["probes"]} == {"differs"}
    assert [r["node"] for r in data["reconciliation"]] == ["node-a", "node-b", "node-c"]
    assert (
        data["reconciliation"][0]["endpointSlices"]
        == data["reconciliation"][0]["rules"]
        == ["10.244.1.10:80"]
    )
    assert "Dialled for real" in markdown_report(d)
    assert "Dialled for real" in html_report([d])
    assert "KTP902" in junit_report([d], Severity.WARNING)
    assert "probes" not in diagnosis_object(Asked(demo(), LOCAL).diagnosis())
