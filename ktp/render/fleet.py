"""What many nodes say of themselves: for people, and as data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ktp.model.fleet import Fleet, FleetRow
from ktp.model.node_check import FrontEndState
from ktp.render.diagnosis_json import API_VERSION, gap_object
from ktp.render.terminal import write

_VERBS = {
    FrontEndState.FAILS: ("fails", "red"),
    FrontEndState.DEVIATES: ("deviates", "yellow"),
    FrontEndState.UNKNOWN: ("unknown", "yellow"),
}
_NAMED = 5
_MOST_ROWS = 60


def print_fleet(fleet: Fleet, console: Console, *, verbose: bool = False) -> None:
    """One line of verdict, then each front end that is not well, with the nodes and the cause."""
    bad = [row for row in fleet.rows if row.count(FrontEndState.FAILS) or row.count(FrontEndState.DEVIATES)]
    style = "bold red" if bad else "bold yellow" if fleet.rows or fleet.silent else "bold green"
    write(console, Text(_verdict(fleet), style=style))
    told = f"{len(fleet.told)} nodes told" if len(fleet.told) != 1 else "1 node told"
    counts = ", ".join(f"{fleet.counts.get(s, 0)} {s.value}" for s in FrontEndState if fleet.counts.get(s))
    write(
        console,
        Text(
            f"{told}, the oldest report is {fleet.oldest:.0f} s old; all their front ends: {counts or 'none'}",
            style="dim",
        ),
        0,
        2,
    )
    shown = fleet.rows if verbose else fleet.rows[:_MOST_ROWS]
    for row in shown:
        write(console, _line(row, verbose), 0, 4)
    if len(shown) < len(fleet.rows):
        console.print(Text(f"… {len(fleet.rows) - len(shown)} more (-v shows them)", style="dim"))
    messages = dict.fromkeys(
        (next(iter(row.causes)), row.message) for row in shown if row.causes and row.message
    )
    for code, message in list(messages)[: None if verbose else _NAMED]:
        console.print()
        write(console, Text.assemble((code, "bold"), f" {message}"), 0, 2)
    for gap in fleet.gaps if verbose else fleet.gaps[:_NAMED]:
        write(console, Text(f"not told: {gap.message}", style="yellow"), 0, 2)
    if not verbose and len(fleet.gaps) > _NAMED:
        console.print(Text(f"… and {len(fleet.gaps) - _NAMED} more nodes (-v names them)", style="yellow"))
    if bad:
        node = next(iter(bad[0].nodes.values()))[0]
        hint = f"ktp diagnose svc {bad[0].key} --node {node} --node-access ssh tells why and what to do"
        console.print(Text(hint, style="dim"), soft_wrap=True)


def _verdict(fleet: Fleet) -> str:
    nodes = len(fleet.told) + len(fleet.silent)
    missing = f"; {len(fleet.silent)} of {nodes} nodes did not tell" if fleet.silent else ""
    failing = _services(fleet, FrontEndState.FAILS)
    if failing:
        on = {n for row in fleet.rows for n in row.nodes.get(FrontEndState.FAILS, ())}
        who, verb = (
            (next(iter(failing)), "fails") if len(failing) == 1 else (f"{len(failing)} Services", "fail")
        )
        return f"{who} {verb} for outside clients on {len(on)} of {nodes} nodes{missing}"
    deviating = _services(fleet, FrontEndState.DEVIATES)
    if deviating:
        return f"{_count(deviating)} not served as the API objects call for on some node{missing}"
    if fleet.rows:
        return f"of {len({row.key for row in fleet.rows})} Services it is not known on some node{missing}"
    asked = " and ".join(sorted(fleet.services))
    every = "all Services" + (f" of namespace {fleet.namespace}" if fleet.namespace is not None else "")
    verb = "does" if len(fleet.services) == 1 else "do"
    return f"{asked or every} {verb} what the API objects call for on {len(fleet.told)} of {nodes} nodes{missing}"


def _services(fleet: Fleet, state: FrontEndState) -> set[str]:
    return {row.key for row in fleet.rows if row.count(state)}


def _count(keys: set[str]) -> str:
    return f"{next(iter(keys))} is" if len(keys) == 1 else f"{len(keys)} Services are"


def _line(row: FleetRow, verbose: bool) -> Text:
    line = Text(f"{row.key} {row.title}:")
    for state, (verb, style) in _VERBS.items():
        names = row.nodes.get(state, ())
        if names:
            named = ", ".join(names if verbose else names[:_NAMED])
            more = "" if verbose or len(names) <= _NAMED else f" and {len(names) - _NAMED} more"
            line.append(f" {verb}", style=style).append(f" on {named}{more}")
    if row.causes:
        line.append(f" ({', '.join(row.causes)})")
    return line


def fleet_object(fleet: Fleet) -> dict[str, Any]:
    """kind FleetReport."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FleetReport",
        "source": fleet.source,
        "nodes": {
            "told": len(fleet.told),
            "silent": list(fleet.silent),
            "oldestSeconds": round(fleet.oldest, 1),
        },
        "frontends": {state.value: fleet.counts.get(state, 0) for state in FrontEndState},
        "items": [
            {
                "service": {"namespace": row.namespace, "name": row.name},
                "frontend": row.title,
                "nodes": {state.value: list(row.nodes.get(state, ())) for state in _VERBS},
                "causes": dict(row.causes),
                "message": row.message,
            }
            for row in fleet.rows
        ],
        "gaps": [gap_object(g) for g in fleet.gaps],
    }
