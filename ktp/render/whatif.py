"""A what-if for people and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from ktp.model.diagnosis import Cell, ServiceDiagnosis
from ktp.model.trace import Symptom
from ktp.render.diagnosis_json import API_VERSION, diagnosis_object
from ktp.render.diagnosis_text import print_matrices
from ktp.render.report_words import VANTAGE_WORDS
from ktp.render.terminal import write


class Altered(Protocol):
    """A cell that the change alters (ktp.diagnose.whatif.CellChange)."""

    @property
    def front_end(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def vantage(self) -> str: ...
    @property
    def before(self) -> Cell: ...
    @property
    def after(self) -> Cell: ...
    @property
    def effect(self) -> str: ...


class Asked(Protocol):
    """A change that was asked about."""

    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def words(self) -> str: ...


class Answer(Protocol):
    """The answer (ktp.diagnose.whatif.WhatIf)."""

    @property
    def changes(self) -> Sequence[Asked]: ...
    @property
    def before(self) -> ServiceDiagnosis: ...
    @property
    def after(self) -> ServiceDiagnosis: ...
    @property
    def altered(self) -> Sequence[Altered]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def darkens(self) -> bool: ...


_WORDS: Mapping[str, tuple[str, str]] = {
    "newly reachable": ("newly reachable", "green"),
    "more reliable": ("more reliable", "green"),
    "newly dark": ("newly dark", "bold red"),
    "less reliable": ("less reliable", "red"),
    "fails in another way": ("fails in another way", "yellow"),
    "source lost": ("the client's address is lost", "yellow"),
    "source kept": ("the client's address is kept", "green"),
    "other endpoints": ("other endpoints answer", ""),
}


def print_what_if(w: Answer, console: Console) -> None:
    """Verdict, before, after, and what changes, grouped by effect."""
    words = " and ".join(c.words for c in w.changes)
    effects = list(dict.fromkeys(a.effect for a in w.altered))
    if not effects:
        head = f"With {words} nothing changes for the clients of {w.before.key}"
    else:
        counts = "; ".join(f"{_WORDS[e][0]}: {_ways(sum(a.effect == e for a in w.altered))}" for e in effects)
        head = f"{w.before.key} with {words}: {counts}"
    write(console, Text(head, style="bold red" if w.darkens else "bold"))
    console.print()
    console.print(Text("Before", style="bold"))
    print_matrices(w.before, console)
    console.print()
    console.print(Text("After", style="bold"))
    print_matrices(w.after, console)
    for effect in effects:
        label, style = _WORDS[effect]
        console.print()
        console.print(Text(label[:1].upper() + label[1:], style=style or "bold"))
        seen: dict[tuple[str, str, str], list[str]] = {}
        for a in w.altered:
            if a.effect == effect:
                seen.setdefault((a.front_end, a.vantage, _change(a)), []).append(a.node)
        for (front_end, vantage, change), nodes in seen.items():
            who = VANTAGE_WORDS.get(vantage, vantage)
            write(console, Text(f"{front_end}, {who}, on {', '.join(nodes)}: {change}"), 2, 4)
    for note in w.notes:
        console.print()
        write(console, Text(note, style="dim"))


def _ways(count: int) -> str:
    return "1 way in" if count == 1 else f"{count} ways in"


def _change(a: Altered) -> str:
    before, after = _cell(a.before), _cell(a.after)
    if before == after:  # by another rule, or at another place
        return f"{after}, now since {a.after.reason}"
    return f"{before} → {after}"


def _cell(c: Cell) -> str:
    if c.symptom is Symptom.CONNECTS:
        source = {True: ", source kept", False: ", source rewritten", None: ""}[c.source_kept]
        return f"connects to {len(c.endpoints)} endpoint{'s' * (len(c.endpoints) != 1)}{source}"
    if c.symptom is Symptom.INTERMITTENT:
        return f"{sum(e.probability or 0 for e in c.endpoints if e.symptom is Symptom.CONNECTS):.0%} connect"
    return str(c.symptom.value).replace("_", " ")


def what_if_object(w: Answer) -> dict[str, Any]:
    """kind WhatIf."""
    return {
        "apiVersion": API_VERSION,
        "kind": "WhatIf",
        "changes": [{"kind": c.kind, "value": c.value} for c in w.changes],
        "altered": [
            {
                "frontend": a.front_end,
                "node": a.node,
                "vantage": a.vantage,
                "effect": a.effect,
                "before": a.before.symptom.value,
                "after": a.after.symptom.value,
            }
            for a in w.altered
        ],
        "notes": list(w.notes),
        "before": diagnosis_object(w.before),
        "after": diagnosis_object(w.after),
    }
