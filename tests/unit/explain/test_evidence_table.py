"""The table of what is concluded without a kind of evidence names every kind."""

from __future__ import annotations

from ktp.explain.evidence import WITHOUT
from ktp.model.assumption import EvidenceKind


def test_every_kind_has_its_row() -> None:
    assert set(WITHOUT) == set(EvidenceKind)
    for kind, row in WITHOUT.items():
        assert row.read, kind
        assert row.instead or row.unknown, kind
