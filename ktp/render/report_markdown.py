"""A diagnosis as Markdown, for a ticket."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ktp.model.diagnosis import Finding, ServiceDiagnosis, Severity
from ktp.render import report_words as report
from ktp.render.assumptions import some_nodes
from ktp.render.tables import tables_of


def markdown_report(d: ServiceDiagnosis) -> str:
    """The report of one Service."""
    out = [f"## {_text(d.key)}", "", f"**{_text(d.verdict)}**", ""]
    out.append(
        f"Type {_text(report.policies_of(d))}. Evidence: {_text(_evidence(d) + report.unread_pods(d))}."
    )
    for table in tables_of(report.shown_matrices(d)):
        vantages = report.vantages_of(table.matrix)
        out += ["", f"### {_text(', '.join(table.titles))}", ""]
        out.append("| node | pods | " + " | ".join(report.VANTAGE_WORDS[v] for v in vantages) + " |")
        out.append("|---|---:|" + "---|" * len(vantages))
        for row in table.rows:
            cells = " | ".join(report.cell_words(row.first.cells.get(v)) for v in vantages)
            out.append(f"| {_text(row.label)} | {row.pods} | {cells} |")
        for label, names in table.joined():
            out += ["", f"{label}: {_text(', '.join(names))}"]
    if d.frontends:
        out += ["", f"_{report.KEPT_LEGEND}_"]
    all_cells = report.cells_of(report.shown_matrices(d))
    if any(c.rests_on for c in all_cells):
        out += ["", f"_{_text(report.ASSUMED_LEGEND)}_", "", "### Assumed", ""]
        out += [f"- {_text(words)}." for words in report.assumed_of(all_cells, len(d.evidence_nodes))]
    groups = report.grouped(d.findings)
    for group in groups:
        if group[0].severity is not Severity.INFO:
            out += _finding(group)
    remarks = [g[0] for g in groups if g[0].severity is Severity.INFO]
    if remarks:
        out += ["", "### Good to know", ""]
        out += [f"- {_text(f.code)}: {_text(f.message)}." for f in remarks]
    if d.probes:
        out += ["", "### Dialled for real", "", *_table(report.PROBE_COLUMNS, report.probe_rows(d.probes))]
    witnesses = [r for r in d.reconciliation if r.odd or r.health is not None]
    if witnesses:
        out += ["", "### Endpoints for outside clients, by who tells them", ""]
        out += _table(report.WITNESS_COLUMNS, report.witness_rows(witnesses))
    shares = report.share_rows(d)
    if shares:
        out += ["", "### Load share of outside traffic", ""]
        for share in shares:
            parts = ", ".join(f"{_text(p.endpoint)} {p.share:.0%}" for p in share.pods[:12])
            lost = f"; {share.lost:.0%} reaches no pod" if share.lost > 0.001 else ""
            out.append(f"- {report.BALANCER_WORDS[share.balancer]}: {parts}{lost}")
    if d.gaps:
        out += ["", "### Not known", ""]
        out += [f"- {_text(g.message)}" + (f" ({_text(g.remedy)})" if g.remedy else "") for g in d.gaps[:20]]
    return "\n".join(out) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    out = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return out + [f"| {' | '.join(map(_text, row))} |" for row in rows]


def _evidence(d: ServiceDiagnosis) -> str:
    read = [n for n, kinds in d.evidence_nodes.items() if kinds]
    return f"API objects and the rules of {', '.join(read[:6])}" if read else "API objects alone"


def _finding(group: list[Finding]) -> list[str]:
    f = group[0]
    nodes = report.nodes_of(group)
    where = f": {_text(some_nodes(nodes))}" if nodes else ""
    out = ["", f"### {_text(f.code)} {_text(f.name)} ({f.severity.value}){where}", ""]
    out.append(_text(f.message) + ".")
    if f.evidence:
        out.append("")
        for e in f.evidence:
            text = _code(e.text) if e.kind == "rule" else _text(e.text)
            what = "tried" if e.kind == "counterfactual" else f"{_text(e.kind)}, {_text(e.source)}"
            out.append(f"- {what}: {text}")
    if f.fixes:
        out.append("")
        for number, fix in enumerate(f.fixes, 1):
            mark = (
                f" ({_text(report.fix_words(fix))})"
                if fix.verified or fix.outcome or fix.cures is not None
                else ""
            )
            out.append(f"{number}. {_text(fix.summary)}{mark}. Price: {_text(fix.cost)}.")
            if fix.command:
                out += ["", *_block(fix.command, "   ")]
    return out


_MARKS = re.compile(r"([\\`*_\[\]<>#|~$]|&(?=[#\w]))")
_AT_START = re.compile(r"^(\s*)([-+=]|\d+(?=[.)]))")


def _text(text: str) -> str:
    """Plain text that Markdown leaves alone, on one line: no link, image, HTML, heading or mention comes of it."""
    text = " ".join(report.printable(text).split())
    text = _MARKS.sub(r"\\\1", text)
    text = _AT_START.sub(r"\1\\\2" if not text[:1].isdigit() else r"\1\2\\", text)
    # A URL or a mention would become a link by itself: a joiner of no width keeps it from that.
    return text.replace("://", ":\u200b//").replace("@", "@\u200b").replace("www.", "www\u200b.")


def _code(text: str) -> str:
    """A code span that holds whatever it holds."""
    text = " ".join(report.printable(text).split())
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}"


def _block(text: str, indent: str) -> list[str]:
    """A fenced block of shell commands."""
    lines = report.printable(text).splitlines() or [""]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{indent}{fence}sh", *(indent + line for line in lines), indent + fence]
