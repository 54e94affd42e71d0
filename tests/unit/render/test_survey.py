"""The first line of `ktp diagnose svc -A`."""

from __future__ import annotations

from typing import Any

import pytest

from ktp.diagnose.survey import SurveyRow
from ktp.model.diagnosis import Severity
from ktp.render.survey import headline


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
            "by the API objects alone, all 1 Services with an external front end answer",
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
            "by the API objects alone, 1 of 1 Services with an external front end fail on some node",
        ),
    ],
)
def test_the_first_line_says_what_is_not_known(rows: list[SurveyRow], words: str) -> None:
    assert headline(rows)[0] == words
