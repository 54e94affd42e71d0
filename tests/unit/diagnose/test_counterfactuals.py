"""What a counterfactual leaves out because it must be the same: asked in full, it is."""

from __future__ import annotations

import pytest

from ktp.diagnose import case as cases
from tests.unit.diagnose.scenarios import SCENARIOS


@pytest.mark.parametrize(
    "code", ["KTP201", "KTP203", "KTP301", "KTP302", "KTP401", "KTP404", "KTP408", "KTP410"]
)
def test_who_loses_is_the_same_where_every_way_in_is_asked(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of one node is asked for of the packets that come by it alone."""
    fires = SCENARIOS[code].fires
    pruned = fires().diagnosis()
    left_out: list[bool] = []
    may_differ = cases._may_differ

    def asked_all_the_same(entry: cases.Entry, touched: frozenset[str] | None) -> bool:
        left_out.append(not may_differ(entry, touched))
        return True

    monkeypatch.setattr(cases, "_may_differ", asked_all_the_same)
    whole = fires().diagnosis()
    assert [f.fixes for f in pruned.findings] == [f.fixes for f in whole.findings]
    if code == "KTP401":
        assert any(left_out)


def test_many_worlds_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other is made again where it is asked for again, with the same answers."""
    fires = SCENARIOS["KTP501"].fires
    usual = fires().diagnosis()
    monkeypatch.setattr(cases, "_MOST_WORLDS", 1)
    assert fires().diagnosis() == usual
