"""`ktp codes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ktp.cli import run
from ktp.diagnose.checks import ALL_CHECKS
from tests.test_conventions import run_and_list_modules

PAGES = Path(__file__).resolve().parents[3] / "docs" / "reference" / "findings"


def test_the_list_has_every_code_with_severity_name_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[:3] for line in lines if line.startswith("KTP")]
    assert heads == [
        [c.code, c.severity.value, f"{c.name}:"] for c in sorted(ALL_CHECKS, key=lambda c: c.code)
    ]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("text", ["KTP501", "ktp501", "501", "NoLocalEndpoint", "nolocalendpoint"])
def test_the_page_of_one(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", text]) == 0
    out = capsys.readouterr().out
    assert out.startswith("KTP501 NoLocalEndpoint (error)\n\nexternalTrafficPolicy is Local and no usable")
    for heading in ("WHAT IT MEANS", "WHY TRAFFIC FAILS", "EVIDENCE", "CONFIRM BY HAND", "FIX", "EXAMPLE"):
        assert f"\n{heading}\n" in out
    # commands stay whole, and their remarks do not run over the edge
    assert "\n    # on the node\n    iptables-save -c | grep 'NAMESPACE/NAME" in out


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("KTP510", "KTP501 (NoLocalEndpoint)"),
        ("KTP109x", "KTP109"),
        ("LocalEndpoint", "KTP501"),
        ("", ""),
        ("pod", ""),
    ],
)
def test_a_code_that_there_is_not(text: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", text]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"ktp: there is no finding '{text}'")
    assert near in captured.err
    assert "ktp codes" in captured.err


def test_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "FindingPageList"
    assert {i["code"] for i in found["items"]} == {c.code for c in ALL_CHECKS}
    assert set(found["items"][0]) == {"code", "name", "severity", "family", "summary"}
    assert run(["codes", "KTP501", "-o", "yaml"]) == 0
    page = yaml.safe_load(capsys.readouterr().out)
    assert (page["kind"], page["code"], page["severity"]) == ("FindingPage", "KTP501", "error")
    assert {"whatItMeans", "whyTrafficFails", "evidence", "confirmByHand", "fix", "example"} <= set(page)


def test_as_markdown_it_is_the_page_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", "KTP301", "-o", "markdown"]) == 0
    assert capsys.readouterr().out == (PAGES / "KTP301.md").read_text()


def test_other_forms_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", "-o", "html"]) == 2
    assert "has no html form" in capsys.readouterr().err


@pytest.mark.parametrize("color", ["always", "never"])
def test_color(color: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["codes", "--color", color]) == 0
    assert ("\x1b[" in capsys.readouterr().out) == (color == "always")


@pytest.mark.parametrize("arguments", [("codes",), ("codes", "KTP501"), ("codes", "--help")], ids=" ".join)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    status, modules = run_and_list_modules(*arguments)
    assert status == 0
    assert not modules & {"kubernetes", "iptc", "rich", "yaml", "subprocess"}
