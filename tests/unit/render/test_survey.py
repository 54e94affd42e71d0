"""The first line of `ktp diagnose svc -A`."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ktp.diagnose.survey import SurveyRow
from ktp.model.diagnosis import Severity
from ktp.render.survey import headline, print_survey


def row(key: str, *, basis: str = "rules", severity: Severity | None = None, **symptoms: int) -> SurveyRow:
    namespace, _, name = key.partition("/")
    known: dict[str, Any] = {
        "namespace": namespace, "name": name, "type": "NodePort", "policy": "Local", "front_end": "nodePort 30001/TCP",
        "symptoms": symptoms, "failing_nodes": ("node-a",) if symptoms.get("times_out") else (), "cause": None,
        "severity": severity, "basis": basis,
    }  # fmt: skip
    return SurveyRow(**known)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [row("a/b", connects=3), row("a/c", connects=3)],
            "all 2 Services with an external front end answer as they should",
        ),
        (
            [row("a/b", connects=3, basis="api")],
            "by the API objects alone, all 1 Services with an external front end are to answer; what the nodes do was not read",
        ),
        (
            [row("a/b", connects=3, severity=Severity.WARNING), row("a/c", connects=3)],
            "all 2 Services with an external front end answer; 1 of them has findings",
        ),
        (
            [row("a/b", unknown=3, severity=Severity.WARNING), row("a/c", unknown=3)],
            "it is not known of any of the 2 Services with an external front end whether it answers; 1 of them has findings",
        ),
        (
            [row("a/b", unknown=1, connects=2), row("a/c", connects=3)],
            "it is not known of 1 of 2 Services with an external front end whether they answer",
        ),
        (
            [row("a/b", times_out=1, connects=2), row("a/c", unknown=3)],
            "1 of 2 Services with an external front end fail on some node; of 1 more it is not known whether they answer",
        ),
        (
            [row("a/b", times_out=1, connects=2, basis="api"), row("a/b", unknown=3, basis="api")],
            "by the API objects alone, 1 of 1 Services with an external front end are not to answer on some node; "
            "what the nodes do was not read",
        ),
        (
            [row("a/b", connects=3, basis="api", severity=Severity.WARNING)],
            "by the API objects alone, all 1 Services with an external front end are to answer; "
            "1 of them has findings; what the nodes do was not read",
        ),
        (
            [
                row("a/b", times_out=1, basis="api"),
                row("a/c", times_out=1),
                row("a/d", times_out=1, basis="rules and api"),
            ],
            "3 of 3 Services with an external front end fail on some node, 1 of them by the API objects alone",
        ),
    ],
)
def test_the_first_line_says_what_is_not_known(rows: list[SurveyRow], words: str) -> None:
    assert headline(rows)[0] == words


def test_what_the_api_alone_tells_is_marked_in_the_list() -> None:
    console = Console(width=120, file=StringIO())
    print_survey([row("a/b", times_out=3, basis="api"), row("a/c", times_out=3)], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "~3 time out" in said
    assert " 3 time out" in said
    assert "~: by the API objects alone, the nodes' rules were not read" in said


def test_a_list_of_rules_that_were_read_is_not_marked() -> None:
    console = Console(width=120, file=StringIO())
    print_survey([row("a/c", times_out=3)], console)
    assert "~" not in console.file.getvalue()  # type: ignore[attr-defined]
