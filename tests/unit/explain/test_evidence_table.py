"""The table of what is concluded without a kind of evidence names every kind."""

from __future__ import annotations

import runpy
from pathlib import Path

from ktp.model.assumption import EvidenceKind

REPOSITORY = Path(__file__).resolve().parents[3]


def test_every_kind_has_its_row() -> None:
    table = runpy.run_path(str(REPOSITORY / "tools" / "evidence_page.py"))["WITHOUT"]
    assert set(table) == set(EvidenceKind)
    for kind, row in table.items():
        assert row.read, kind
        assert row.instead or row.unknown, kind
