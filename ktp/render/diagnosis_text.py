"""A diagnosis for people: one line of verdict, the matrix, the causes with proof and cure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ktp.model.capture import EvidenceGap
from ktp.model.diagnosis import Cell, Evidence, Finding, FrontEndMatrix, ServiceDiagnosis, Severity
from ktp.model.trace import Disposition, FlowAnswer, Symptom
from ktp.render import report_words as report
from ktp.render.probe_tables import print_rows, print_witnesses
from ktp.render.tables import Row, short_names, tables_of
from ktp.render.tables import Table as Matrices
from ktp.render.terminal import print_table, write

_HEADINGS = {
    "external": "outside",
    "node": "node\nitself",
    "localhost": "127.0.0.1",
    "podSameNode": "pod on\nnode",
    "podOtherNode": "pod\nelsewhere",
    "otherNode": "other\nnode",
}
_WORDS = {
    Symptom.TIMES_OUT: ("times out", "red"),
    Symptom.REFUSED: ("refused", "red"),
    Symptom.UNREACHABLE: ("unreach.", "red"),
    Symptom.UNKNOWN: ("unknown", "yellow"),
}
_SEVERITY = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_MAX_ROWS = 40
_MOST_NAMED = 6


def print_diagnosis(d: ServiceDiagnosis, console: Console, *, verbose: bool = False) -> None:
    """Write the report of one Service."""
    bad = any(f.severity is Severity.ERROR for f in d.findings)
    style = "bold red" if bad else "bold yellow" if d.undetermined or d.findings else "bold green"
    write(console, Text(report.named_verdict(d), style=style))
    write(
        console,
        Text(f"{report.policies_of(d)}. Evidence: {_evidence(d)}{report.unread_pods(d)}", style="dim"),
        0,
        2,
    )
    print_matrices(d, console, verbose=verbose)
    causes = {group.cause for group in d.headline}
    print_findings(d.findings, console, verbose=verbose, causes=causes, service=d.key)
    print_rows(d.probes, console)
    print_witnesses(d.reconciliation, console, verbose=verbose)
    _print_gaps(d, console, verbose=verbose)


def print_border(console: Console) -> None:
    """What keeps the reports of two Services apart."""
    console.print()
    console.print(Text("-" * 40, style="dim"))
    console.print()


def print_dialled(words: str, answer: FlowAnswer | None, console: Console) -> None:
    """An address that is no Service's, and what a client outside gets there."""
    if answer is not None:
        words += f". A client outside: {answer.symptom.value.replace('_', ' ')}: {answer.reason}"
    write(console, Text(words), 0, 2)


# What the first says of the same nodes, the second says within its own sentence.
_SAID_BY = {"KTP504": "KTP501"}


def print_findings(
    findings: Iterable[Finding],
    console: Console,
    *,
    verbose: bool = False,
    causes: Collection[str] = (),
    service: str = "",
) -> None:
    """The findings, those of one cause together: what fails with its proof and cure, the rest in a sentence or by name.

    `causes` are the codes that the headline names, `service` is the Service of all. With `verbose` everything is said.
    """
    groups = report.grouped(findings)
    lead = [g for g in groups if g[0].code in causes or g[0].severity is Severity.ERROR]
    lead = lead or [g for g in groups if g[0].severity is Severity.WARNING]
    names: list[str] = []
    sentences: list[Text] = []
    for group in groups:
        first = group[0]
        if verbose or group in lead:
            console.print()
            _print_finding(group, console, service, verbose=verbose)
        elif first.severity is not Severity.INFO or not lead:
            sentences.append(_sentence(group))
        elif not _is_said(group, lead):
            names.append(f"{first.code} {first.name}")
    if names:
        sentences.append(Text(f"good to know (-v): {', '.join(dict.fromkeys(names))}", style="dim"))
    if sentences:
        console.print()
    for sentence in sentences:
        write(console, sentence, 0, 2)


def _is_said(group: list[Finding], lead: list[list[Finding]]) -> bool:
    said = [g for g in lead if g[0].code == _SAID_BY.get(group[0].code)]
    return set(report.nodes_of(group)) <= {node for g in said for node in report.nodes_of(g)} and bool(said)


def _sentence(group: list[Finding]) -> Text:
    text = _head(group)
    text.append(": " if report.nodes_of(group) else "  ")
    return text.append(_message(group))


def _head(group: list[Finding]) -> Text:
    first, nodes = group[0], report.nodes_of(group)
    head = Text(f"{first.code} {first.severity.value}", style=_SEVERITY[first.severity])
    words = f"{len(nodes)} nodes" if len(nodes) > _MOST_NAMED else ", ".join(nodes)
    return head.append(f"  {words}", style="bold") if nodes else head


def _message(group: list[Finding]) -> str:
    first = group[0]
    named = {first.node, *first.nodes} - {*first.alike}
    others = [n for n in report.nodes_of(group) if n not in named]
    if len(others) > _MOST_NAMED:  # below a matrix are some of their names, with -v all
        return f"{first.message} (the same on {len(others)} more nodes)"
    return first.message + (f" (the same on {_some(others)})" if others else "")


def print_matrices(d: ServiceDiagnosis, console: Console, *, verbose: bool = False) -> None:
    """The matrices of the front ends worth a table, and the legend."""
    named: set[tuple[str, tuple[str, ...]]] = set()
    for table in tables_of(_shown(d, verbose), every=verbose):
        console.print()
        _print_table(table, console, verbose=verbose)
        for label, those in table.joined():
            if (label, those) not in named:
                write(console, Text(f"{label}: {', '.join(those[:3])}, … (-v lists them)", style="dim"), 0, 2)
            named.add((label, those))
    shown_cells = any(
        c.source_kept is not None for m in d.frontends for r in m.nodes for c in r.cells.values()
    )
    if shown_cells:
        console.print(Text(report.KEPT_LEGEND, style="dim"))
    if any(c.basis == "api" for m in d.frontends for r in m.nodes for c in r.cells.values()):
        console.print(Text("~: by the API objects alone, the node's rules were not read", style="dim"))
    if any(c.rests_on and c.basis != "api" for c in report.cells_of(_shown(d, verbose))):
        console.print(Text(report.ASSUMED_LEGEND, style="dim"))
    _print_reasons(d, console, verbose=verbose)


def _print_reasons(d: ServiceDiagnosis, console: Console, *, verbose: bool) -> None:
    """Why cells are unknown, and what was assumed for the others: once each, without the nodes' names."""
    cells = report.cells_of(_shown(d, verbose))
    for words in report.others_of(_shown(d, verbose)):
        write(console, Text(words, style="yellow"), 0, 2)
    for words in report.addresses_of(_shown(d, verbose), every=verbose):
        write(console, Text(words, style="dim"), 0, 2)
    said = [("unknown", c.reason) for c in cells if c.symptom is Symptom.UNKNOWN]
    said += [("assumed", words) for words in report.assumed_of(cells, len(d.evidence_nodes))]
    if verbose:
        said += [("assumed", a.detail) for c in cells for a in c.assumptions if a.detail]
    lines = list(dict.fromkeys(said))
    shown = lines if verbose else lines[:4]
    for label, words in shown:
        write(console, Text(f"{label}: {words}", style="dim"), 0, 2)
    if len(lines) > len(shown):
        console.print(Text(f"and {len(lines) - len(shown)} more remarks (-v shows them)", style="dim"))


def _evidence(d: ServiceDiagnosis) -> str:
    read = [n for n, kinds in d.evidence_nodes.items() if kinds]
    missing = [n for n, kinds in d.evidence_nodes.items() if not kinds]
    if not read:
        return "API objects alone (what should happen); no node's rules were read"
    kinds = sorted({k for n in read for k in d.evidence_nodes[n]})
    whose = f"all {len(read)} nodes" if len(read) > 1 and not missing else _some(read)
    words = f"API objects; rules of {whose} ({', '.join(kinds)})"
    versions = sorted({d.versions[n] for n in read if n in d.versions})
    if len(versions) == 1:
        words += f", kube-proxy {versions[0]}"
    return words + (f"; API objects alone for {_some(missing)}" if missing else "")


def _some(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"{len(names)} nodes ({', '.join(names[:3])}, …)"
    return ", ".join(names)


def _shown(d: ServiceDiagnosis, verbose: bool) -> list[FrontEndMatrix]:
    """Front ends worth a table: those for the outside, and a cluster IP that fails or is all there is."""
    outside = [m for m in d.frontends if m.kind != "clusterIP"]
    inside = [m for m in d.frontends if m.kind == "clusterIP"]
    if verbose or not outside:
        return [*outside, *inside]
    return [
        *outside,
        *(
            m
            for m in inside
            if any(c.symptom is not Symptom.CONNECTS for r in m.nodes for c in r.cells.values())
        ),
    ]


def _print_table(shown: Matrices, console: Console, *, verbose: bool) -> None:
    m = shown.matrix
    vantages = [v for v in _HEADINGS if any(v in r.cells for r in m.nodes)]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        expand=False,
    )
    table.add_column(Text("node"), no_wrap=True, min_width=6)
    table.add_column(Text("pods"), justify="right", min_width=4)
    for vantage in vantages:
        table.add_column(Text(_heading(m, vantage)), no_wrap=True)
    rows = list(shown.rows) if verbose or len(shown.rows) <= _MAX_ROWS else _worst(shown)
    cells = [[_cell_text(row.first.cells.get(v)) for v in vantages] for row in rows]
    widths = [
        max(len(line) for line in (*_heading(m, v).splitlines(), *(r[at].plain for r in cells)))
        for at, v in enumerate(vantages)
    ]
    addressed = console.width >= 100 and all(len(row.nodes) == 1 for row in rows)
    addresses = {row.label: row.first.addresses[0] for row in rows if addressed and row.first.addresses}
    room = console.width - 6 - sum(w + 2 for w in widths)
    room -= max((len(a) + 1 for a in addresses.values()), default=0)
    names = short_names([row.label for row in rows], max(room, 8))
    for row, found in zip(rows, cells, strict=True):
        address = f" {addresses[row.label]}" if row.label in addresses else ""
        table.add_row(
            Text(names[row.label] + address),
            Text(row.pods, style="dim" if row.pods == "0" else ""),
            *found,
        )
    write(console, Text(shown.title, style="bold"))  # not the table's title, which is folded to its width
    print_table(console, table)
    if len(shown.rows) > len(rows):
        left = sum(len(row.nodes) for row in shown.rows) - sum(len(row.nodes) for row in rows)
        console.print(Text(f"and {left} more nodes (-v lists them)", style="dim"))


def _heading(m: FrontEndMatrix, vantage: str) -> str:
    return "::1" if vantage == "localhost" and m.ip_version == 6 else _HEADINGS[vantage]


def _worst(table: Matrices) -> list[Row]:
    ranked = sorted(
        table.rows, key=lambda r: sum(c.symptom is Symptom.CONNECTS for c in r.first.cells.values())
    )
    keep = {id(r) for r in ranked[:_MAX_ROWS]}
    return [r for r in table.rows if id(r) in keep]


def _cell_text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    text = _fate_text(cell)
    if cell.rests_on and cell.basis != "api":  # "~" says it of those
        text.append("*")
    return text


def _fate_text(cell: Cell) -> Text:
    intent = "~" if cell.basis == "api" else ""
    if cell.disposition is Disposition.HOST_PROCESS:
        return Text(
            f"{intent}own socket", style="yellow"
        )  # of the node: the client connects to nobody it meant
    if cell.symptom is Symptom.CONNECTS:
        kept = {True: " kept", False: " SNAT", None: ""}[cell.source_kept]
        return Text(f"{intent}ok{kept}", style="green")
    if cell.symptom is Symptom.INTERMITTENT:
        good = sum(e.probability or 0 for e in cell.endpoints if e.symptom is Symptom.CONNECTS)
        return Text(f"{intent}{good:.0%} ok", style="yellow")
    words, style = _WORDS[cell.symptom]
    return Text(f"{intent}{words}", style=style)


def _print_finding(group: list[Finding], console: Console, service: str, *, verbose: bool) -> None:
    first = group[0]
    console.print(_head(group))
    write(console, Text(_message(group)), 2)
    if verbose and len(report.nodes_of(group)) > _MOST_NAMED:
        write(console, _labelled("nodes:", ", ".join(report.nodes_of(group))), 2, 4)
    if first.severity is Severity.INFO and not verbose:
        return  # good to know, and no more: the proof is in -v and in the data
    for e in first.evidence if verbose else _proof(first):
        if e.kind == "counterfactual":
            write(console, _labelled("tried:", e.text), 2, 4)
        else:
            write(console, _labelled(f"{e.kind}:", f"{e.source}: {e.text}"), 2, 4)
    if first.fixes:
        write(console, Text("What to do", style="bold"), 2)
    for number, fix in enumerate(first.fixes, 1):
        write(console, Text(f"{number}. {fix.summary}"), 4, 7)
        cost = f"cost: {fix.cost}; {report.fix_words(fix)}"
        write(console, Text(cost, style="dim"), 7)
        if fix.command:  # not folded: it is to be copied
            console.print(Text(" " * 7 + fix.command), soft_wrap=True)
        if fix.change is not None and service and verbose:
            console.print(
                Text(f"{' ' * 7}ktp what-if {service} {' '.join(fix.change.arguments)}"), soft_wrap=True
            )
    if verbose:
        write(console, Text(f"more: ktp codes {first.code}", style="dim"), 2)


def _proof(finding: Finding) -> list[Evidence]:
    """What proves it at a glance: what decides on the node, else fields, and what was tried unless a fix says so."""
    fields = [e for e in finding.evidence if e.kind == "field"]
    tried = [e for e in finding.evidence if e.kind == "counterfactual"]
    decides = [e for e in finding.evidence if e not in fields and e not in tried]
    shown = [*fields[: max(0, 2 - len(decides))], *decides[:2]]
    return shown if any(fix.cures is not None for fix in finding.fixes) else [*shown, *tried[:1]]


def _labelled(label: str, text: str) -> Text:
    return Text.assemble((f"{label} ", "dim"), text)


def _print_gaps(d: ServiceDiagnosis, console: Console, *, verbose: bool) -> None:
    gaps = list(d.gaps)
    if any(g.kind == "node-access" for g in gaps) and not verbose:
        # Why nodes were not read is said once, with the way to do it; what each lacks is in -v and in the data.
        unread = {node for node, kinds in d.evidence_nodes.items() if not kinds}
        gaps = [g for g in gaps if g.kind != "node-rules" or g.subject not in unread]
    if not gaps:
        return
    console.print()
    console.print(Text("Not known", style="bold"))
    by_kind: dict[str, list[EvidenceGap]] = {}
    for g in gaps:
        by_kind.setdefault(g.kind, []).append(g)
    for group in by_kind.values():
        messages = _merged_messages(group, len(d.evidence_nodes))
        shown = messages if verbose else messages[:3]
        for words in shown:
            write(console, Text(words), 2)
        if len(messages) > len(shown):
            write(console, Text(f"and {len(messages) - len(shown)} more of this kind (-v shows them)"), 2)
        if group[0].remedy:
            write(console, Text(f"to know it: {group[0].remedy}", style="dim"), 2)


def _merged_messages(gaps: Iterable[EvidenceGap], every: int) -> list[str]:
    """What is said alike of several nodes is said once, of all of them; `every` is how many there are."""
    nodes: dict[str, list[str]] = {}
    for g in gaps:
        nodes.setdefault(g.message.replace(g.subject, "\0") if g.subject else g.message, []).append(g.subject)
    return [
        words.replace("\0", f"all {every} nodes" if len(names) == every > _MOST_NAMED else _some(names))
        for words, names in nodes.items()
    ]
