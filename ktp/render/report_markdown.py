"""A diagnosis as Markdown, for a ticket."""

from __future__ import annotations

from ktp.model.diagnosis import Finding, ServiceDiagnosis
from ktp.render.report_words import (
    BALANCER_WORDS,
    VANTAGE_WORDS,
    cell_words,
    grouped,
    nodes_of,
    share_rows,
    shown_matrices,
    vantages_of,
)


def markdown_report(d: ServiceDiagnosis) -> str:
    """The report of one Service."""
    out = [f"## {_text(d.key)}", "", f"**{_text(d.verdict)}**", ""]
    out.append(
        f"Type {d.type}, externalTrafficPolicy {d.external_traffic_policy}. Evidence: {_text(_evidence(d))}."
    )
    for m in shown_matrices(d):
        vantages = vantages_of(m)
        out += ["", f"### {_text(m.title)}", ""]
        out.append("| node | pods | " + " | ".join(VANTAGE_WORDS[v] for v in vantages) + " |")
        out.append("|---|---:|" + "---|" * len(vantages))
        for row in m.nodes:
            count = "?" if row.local_endpoints is None else str(row.local_endpoints)
            cells = " | ".join(cell_words(row.cells.get(v)) for v in vantages)
            out.append(f"| {_text(row.node)} | {count} | {cells} |")
    if d.frontends:
        out += ["", "_kept: the pod sees the client's address; SNAT: it sees a node's_"]
    for group in grouped(d.findings):
        out += _finding(group)
    shares = share_rows(d)
    if shares:
        out += ["", "### Load share of outside traffic", ""]
        for share in shares:
            parts = ", ".join(f"{_text(p.endpoint)} {p.share:.0%}" for p in share.pods[:12])
            lost = f"; {share.lost:.0%} reaches no pod" if share.lost > 0.001 else ""
            out.append(f"- {BALANCER_WORDS[share.balancer]}: {parts}{lost}")
    if d.gaps:
        out += ["", "### Not known", ""]
        out += [f"- {_text(g.message)}" + (f" ({_text(g.remedy)})" if g.remedy else "") for g in d.gaps[:20]]
    return "\n".join(out) + "\n"


def _evidence(d: ServiceDiagnosis) -> str:
    read = [n for n, kinds in d.evidence_nodes.items() if kinds]
    return f"API objects and the rules of {', '.join(read[:6])}" if read else "API objects alone"


def _finding(group: list[Finding]) -> list[str]:
    f = group[0]
    nodes = nodes_of(group)
    out = ["", f"### {f.code} {f.name} ({f.severity.value})" + (f": {', '.join(nodes[:8])}" if nodes else ""), ""]
    out.append(_text(f.message) + ".")
    if f.evidence:
        out.append("")
        for e in f.evidence:
            text = f"`` {e.text} ``" if e.kind == "rule" else _text(e.text)
            out.append(f"- {e.kind}, {_text(e.source)}: {text}")
    if f.fixes:
        out.append("")
        for number, fix in enumerate(f.fixes, 1):
            mark = " (checked by ktp)" if fix.verified else ""
            out.append(f"{number}. {_text(fix.summary)}{mark}. Price: {_text(fix.cost)}.")
            if fix.command:
                out += ["", f"   ```sh\n   {fix.command}\n   ```"]
    return out


def _text(text: str) -> str:
    """Plain text that Markdown leaves alone."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, "\\" + mark) if mark not in "<>" else text.replace(mark, f"\\{mark}")
    return text
