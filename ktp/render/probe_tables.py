"""Tables that reports share: what was dialled beside what was predicted, and the witnesses of a service port."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ktp.model.probing import (
    HealthAnswer,
    LengthAttempt,
    LengthRow,
    Observation,
    Prediction,
    ProbeRow,
    WitnessRow,
)
from ktp.model.trace import Symptom
from ktp.render.terminal import print_table, write

_WORDS = {
    Symptom.CONNECTS: ("connects", "green"),
    Symptom.TIMES_OUT: ("times out", "red"),
    Symptom.REFUSED: ("refused", "red"),
    Symptom.UNREACHABLE: ("unreachable", "red"),
    Symptom.INTERMITTENT: ("varies", "yellow"),
    Symptom.UNKNOWN: ("unknown", "yellow"),
}
_VERDICTS = {
    "agrees": ("", ""),
    "differs": ("differs", "bold red"),
    "silent": ("silent", "yellow"),
    "unpredicted": ("-", "dim"),
    "skipped": ("not tried", "dim"),
}


def print_rows(rows: Sequence[ProbeRow], console: Console) -> None:
    """A table a front end and sender, predicted beside observed, and the notes below it."""
    groups: dict[tuple[str, str], list[ProbeRow]] = {}
    for row in rows:
        groups.setdefault((row.observed.target.frontend, _sender(row.observed)), []).append(row)
    for (title, sender), group in groups.items():
        console.print()
        http = any(r.observed.asked_http for r in group)
        write(console, Text(f"{title}, dialled from {sender}", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
        for name in ("node", "address", "predicted", "observed", *(("HTTP",) if http else ()), ""):
            table.add_column(Text(name), overflow="fold")
        for row in group:
            o = row.observed
            word, style = _VERDICTS[row.verdict]
            table.add_row(
                Text(o.target.node or "-"),
                Text(o.target.dialled),
                _predicted(row.predicted),
                _observed(o),
                *((Text(_http(o)),) if http else ()),
                Text(word, style=style),
            )
        print_table(console, table)
        for note in dict.fromkeys(r.note for r in group if r.note):
            write(console, Text(note, style="dim"), 0, 2)


def _sender(o: Observation) -> str:
    if o.sender is not None:
        return o.sender
    return f"here ({o.source})" if o.source is not None else "here"


def _predicted(p: Prediction) -> Text:
    if not p.symptoms:
        return Text("-", style="dim")
    word, style = _WORDS[p.of]
    if p.of is Symptom.INTERMITTENT:
        words = [_WORDS[s][0] for s in Symptom if s in p.symptoms]
        word = " or ".join(words) if len(words) < 3 else word
    return Text(("~" if p.basis == "api" else "") + word, style=style)


def _observed(o: Observation) -> Text:
    if o.skipped:
        return Text("-", style="dim")
    total = len(o.attempts)
    parts = Text()
    for symptom, number in o.symptoms.most_common():
        word, style = _WORDS[symptom]
        if parts:
            parts.append(", ")
        parts.append(f"{word} {number}/{total}", style=style)
    times = [a.seconds for a in o.attempts if a.symptom is Symptom.CONNECTS]
    if times:
        parts.append(f" {_duration(sorted(times)[len(times) // 2])}", style="dim")
    return parts


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _http(o: Observation) -> str:
    said: dict[str, int] = {}
    for a in o.attempts:
        if a.symptom is Symptom.CONNECTS:
            word = str(a.http) if a.http is not None else "no answer"
            said[word] = said.get(word, 0) + 1
    return (
        ", ".join(f"{w}" + (f" {n}/{len(o.attempts)}" if len(said) > 1 else "") for w, n in said.items())
        or "-"
    )


def print_lengths(rows: Sequence[LengthRow], console: Console) -> None:
    """A table a sender: short and full packets to pods of other nodes."""
    for sender in dict.fromkeys(r.sender for r in rows):
        console.print()
        write(console, Text(f"Packets from {sender} to pods of other nodes", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
        for name in ("node", "pod", "address", "short", "full", ""):
            table.add_column(Text(name), overflow="fold")
        for r in (r for r in rows if r.sender == sender):
            word, style = {True: ("", ""), False: ("lost", "bold red"), None: ("-", "dim")}[r.carries]
            row = (
                Text(r.node),
                Text(r.pod),
                Text(r.host),
                _packets(r.small),
                _packets(r.full),
                Text(word, style),
            )
            table.add_row(*row)
        print_table(console, table)


def _packets(attempts: Sequence[LengthAttempt]) -> Text:
    sizes = [a.size for a in attempts if a.size is not None]
    if not sizes:
        return Text(next((a.problem for a in attempts), "not sent"), style="dim")
    answered = sum(a.answered for a in attempts)
    told = next((a.told for a in attempts if a.told is not None), None)
    words = f"{answered}/{len(attempts)} of {max(sizes)} bytes" + (
        f", told to send {told}" if told is not None else ""
    )
    return Text(words, style="green" if answered else "yellow" if told is not None else "red")


def print_witnesses(rows: Iterable[WitnessRow], console: Console, *, verbose: bool = False) -> None:
    """The witnesses where one disagrees or a health check was asked; all of them with `verbose`."""
    shown = [r for r in rows if verbose or r.odd or r.health is not None]
    if not shown:
        return
    health = any(r.health is not None for r in shown)
    for title in dict.fromkeys(r.frontend for r in shown):
        console.print()
        write(console, Text(f"Endpoints of {title} for outside clients, by who tells them", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
        headings = ("node", "EndpointSlices", "rules", *(("health check",) if health else ()), "disagrees")
        for name in headings:
            table.add_column(Text(name), overflow="fold")
        mine = [r for r in shown if r.frontend == title]
        for r in mine:
            table.add_row(
                Text(r.node),
                Text(_count(r.slices)),
                Text(_count(r.rules)),
                *((Text(_health(r.health)),) if health else ()),
                Text(r.odd or "", style="bold yellow"),
            )
        print_table(console, table)
        words: dict[tuple[str, str], list[str]] = {}
        for r in mine:
            if r.words:
                words.setdefault((r.odd, r.words), []).append(r.node)
        for (odd, said), nodes in words.items():
            write(console, Text(f"{odd} of {', '.join(nodes[:6])}: {said}"), 0, 2)


def _count(endpoints: Sequence[str] | None) -> str:
    return "?" if endpoints is None else str(len(endpoints))


def _health(h: HealthAnswer | None) -> str:
    if h is None:
        return "-"
    if h.problem:
        return h.problem
    return f"{h.status}" + ("" if h.local_endpoints is None else f", counts {h.local_endpoints}")
