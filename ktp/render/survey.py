"""The list of all Services, for people and as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ktp.model.diagnosis import Severity
from ktp.model.snapshot import Snapshot
from ktp.render.terminal import print_table


class Row(Protocol):
    """What a survey knows of one front end (ktp.diagnose.survey.SurveyRow)."""

    @property
    def key(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def front_end(self) -> str: ...
    @property
    def symptoms(self) -> dict[str, int]: ...
    @property
    def failing_nodes(self) -> tuple[str, ...]: ...
    @property
    def cause(self) -> str | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def basis(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def failing(self) -> int: ...
    @property
    def silent(self) -> int: ...
    @property
    def severity(self) -> Severity | None: ...
    @property
    def unknown(self) -> int: ...


def _is_open(row: Row) -> bool:
    """Whether it is not known of a node, or of no node at all."""
    return bool(row.unknown) or not row.total


def _is_faulty(row: Row) -> bool:
    """Whether something is wrong although outside clients get through."""
    return row.severity in (Severity.ERROR, Severity.WARNING)


def headline(rows: Sequence[Row]) -> tuple[str, str]:
    """The survey in one sentence, and its style. Of the API alone it says what is meant, and that no node was read."""

    def keys(of: Callable[[Row], object]) -> set[str]:
        return {r.key for r in rows if of(r)}

    services, broken, opened = {r.key for r in rows}, keys(lambda r: r.failing), keys(_is_open)
    faulty = len(keys(_is_faulty))
    alone = all(r.basis == "api" for r in rows)
    by, unread = ("by the API objects alone, ", "; what the nodes do was not read") if alone else ("", "")
    which = "Services with an external front end"
    findings = f"{faulty} of them {'has' if faulty == 1 else 'have'} findings"
    if broken:
        words = f"{by}{len(broken)} of {len(services)} {which} {'are not to answer' if by else 'fail'} on some node"
        meant = len(broken - keys(lambda r: r.failing and r.basis != "api"))
        if meant and not alone:
            words += f", {meant} of them by the API objects alone"
        if opened - broken:
            words += f"; of {len(opened - broken)} more it is not known whether they answer"
        return words + unread, "bold red"
    if opened:
        if opened == services:
            words = f"it is not known of any of the {len(services)} {which} whether it answers"
        else:
            words = f"it is not known of {len(opened)} of {len(services)} {which} whether they answer"
        return words + (f"; {findings}" if faulty else ""), "bold yellow"
    if faulty:
        verb = "are to answer" if alone else "answer"
        return f"{by}all {len(services)} {which} {verb}; {findings}{unread}", "bold yellow"
    return (
        f"{by}all {len(services)} {which} {'are to answer' if alone else 'answer as they should'}{unread}",
        "bold green",
    )


def print_survey(rows: Sequence[Row], console: Console, *, verbose: bool = False, guessed: int = 0) -> None:
    """One line a front end, worst first; those that are fine are counted only, unless `verbose`.

    Of `guessed` Services the cause was not tried.
    """
    bad = [r for r in rows if r.failing or _is_open(r) or _is_faulty(r)]
    fine = len(rows) - len(bad)
    if not rows:
        console.print(Text("no Service with an external front end", style="bold"))
        return
    words, style = headline(rows)
    console.print(Text(words, style=style))
    shown = rows if verbose else bad
    if shown:
        console.print()
        wide = console.width >= 100
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("Service", "front end", *(["policy"] if wide else []), "outside clients", "cause"):
            table.add_column(Text(title), overflow="fold")
        for r in shown:
            style = "red" if r.failing == r.total else "yellow" if r.failing else ""
            counts = Text("~" * (r.basis == "api") + _counts(r), style=style)
            policy = [Text(r.policy)] if wide else []
            table.add_row(Text(r.key), Text(r.front_end), *policy, counts, Text(r.cause or ""))
        print_table(console, table)
    if any(r.basis == "api" for r in shown):
        console.print(Text("~: by the API objects alone, the nodes' rules were not read", style="dim"))
    if fine and not verbose:
        answer = (
            "are to answer by the API objects"
            if all(r.basis == "api" for r in rows)
            else "answer as they should"
        )
        console.print()
        console.print(Text(f"{fine} more front ends {answer} (-v shows them)", style="dim"))
    if guessed:
        words = f"the causes of {guessed} of them were not tried: -n NAMESPACE or --node NODE asks for fewer"
        console.print(Text(words, style="dim"))
    if bad:
        console.print(Text(f"ktp diagnose svc {bad[0].key} tells why and what to do", style="dim"))


def _counts(r: Row) -> str:
    words = {
        "connects": "ok", "times_out": "time out", "refused": "refused", "unreachable": "unreachable",
        "intermittent": "now and then", "unknown": "unknown", "host_process": "own socket",
    }  # fmt: skip
    said = []
    silent = r.silent
    for s in ("times_out", "refused", "unreachable", "intermittent", "host_process", "unknown", "connects"):
        count = r.symptoms.get(s, 0)
        if s not in ("unknown", "connects"):
            count, silent = max(0, count - silent), max(0, silent - count)
        if count:
            said.append(f"{count} {words[s]}")
    if r.silent:
        said.append(f"{r.silent} silent by design")
    return ", ".join(said) or "not known"


def survey_object(rows: Sequence[Row], snapshot: Snapshot, guessed: int = 0) -> dict[str, Any]:
    """kind ServiceDiagnosisList with `summary`: one item a front end, worst first, instead of whole diagnoses."""
    return {
        "apiVersion": "ktp.dev/v1",
        "kind": "ServiceDiagnosisList",
        "summary": True,
        "undiagnosed": guessed,
        "source": snapshot.source,
        "items": [
            {
                "summary": True,
                "service": {
                    "namespace": r.key.split("/", 1)[0],
                    "name": r.key.split("/", 1)[1],
                    "type": r.type,
                    "externalTrafficPolicy": r.policy,
                },
                "frontend": r.front_end,
                "nodes": dict(r.symptoms),
                "failingNodes": list(r.failing_nodes),
                "silentByDesign": r.silent,
                "cause": r.cause,
                "reason": r.reason,
                "basis": r.basis,
            }
            for r in rows
        ],
    }
