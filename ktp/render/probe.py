"""What a probe met, beside what was predicted: for people and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ktp.model.probing import MovedRule, ProbeRow, ServiceProbe
from ktp.render.diagnosis_json import API_VERSION, finding_object
from ktp.render.diagnosis_text import print_findings
from ktp.render.probe_json import length_object, row_object, witness_object
from ktp.render.probe_tables import print_lengths, print_rows, print_witnesses
from ktp.render.terminal import write


def print_probe(p: ServiceProbe, console: Console, *, verbose: bool = False) -> None:
    """Verdict, what was dialled, the differences, the rules whose counters moved."""
    write(console, Text(probe_verdict(p), style=_style(p.rows)))
    if p.source:
        console.print()
        write(console, Text(f"Predicted from {p.source}"), 0, 10)
    print_rows(p.rows, console)
    print_lengths(p.lengths or (), console)
    print_witnesses(p.reconciliation, console, verbose=verbose)
    if p.findings:
        print_findings(p.findings, console, verbose=verbose)
    if p.moved is not None:
        _print_moved(p.moved, console)
    for note in p.notes:
        console.print()
        write(console, Text(note, style="dim"))
    if p.left_out:
        console.print()
        write(console, Text(f"{p.left_out} more nodes were not dialled; --node names them", style="dim"))


def probe_verdict(p: ServiceProbe) -> str:
    """One sentence: how many answer, and whether that is what was predicted."""
    rows = [r for r in p.rows if r.verdict != "skipped"]
    if not rows:
        return f"{p.key}: nothing of it could be dialled from here"
    good = sum(not r.fails and r.verdict != "silent" for r in rows)
    differing = sum(r.verdict == "differs" for r in rows)
    silent = sum(r.verdict == "silent" for r in rows)
    said = f"{p.key}: {good} of {len(rows)} addresses answer"
    if silent:
        said += f", {silent} {'stays' if silent == 1 else 'stay'} silent"
    if differing:
        return f"{said}; {differing} {'differs' if differing == 1 else 'differ'} from what ktp predicts"
    if all(r.verdict == "unpredicted" for r in rows):
        return f"{said}; the evidence allows no prediction"
    return f"{said}, as predicted" if not silent else said


def _style(rows: Sequence[ProbeRow]) -> str:
    if any(r.verdict == "differs" or r.fails for r in rows):
        return "bold red"
    return "bold yellow" if any(r.verdict in ("silent", "skipped") for r in rows) else "bold green"


def _print_moved(moved: Sequence[MovedRule], console: Console) -> None:
    console.print()
    console.print(Text("Rules of the Service whose counters moved meanwhile", style="bold"))
    if not moved:
        write(console, Text("none: no packet met them on this node"), 2)
    for m in moved:
        write(console, Text(f"+{m.packets}  {m.backend} {m.table}: {m.rule}"), 2, 6)


def probe_object(p: ServiceProbe) -> dict[str, Any]:
    """kind ServiceProbe."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ServiceProbe",
        "service": {"namespace": p.namespace, "name": p.name},
        "verdict": probe_verdict(p),
        "probes": [row_object(r) for r in p.rows],
        "lengths": None if p.lengths is None else [length_object(r) for r in p.lengths],
        "findings": [finding_object(f) for f in p.findings],
        "reconciliation": [witness_object(r) for r in p.reconciliation],
        "counters": None
        if p.moved is None
        else [
            {"node": m.node, "backend": m.backend, "table": m.table, "rule": m.rule, "packets": m.packets}
            for m in p.moved
        ],
        "nodesLeftOut": p.left_out,
        "notes": list(p.notes),
    }
