"""A diagnosis as one HTML file: the matrix, the causes, the packet's way as a drawing, the load share as a chart.

The file loads nothing: no script, no font, no image from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ktp.explain.effects import step_words
from ktp.model.capture import EvidenceGap
from ktp.model.diagnosis import (
    Cell,
    Evidence,
    Finding,
    Fix,
    LoadShare,
    ServiceDiagnosis,
    Severity,
    Way,
)
from ktp.model.trace import Header, Hop, Step, StepKind, Symptom
from ktp.render import report_words as report
from ktp.render.assumptions import some_nodes
from ktp.render.tables import Table, tables_of

_STYLE = """
:root { --ok:#1a7f37; --bad:#b42318; --warn:#9a6700; --line:#d0d7de; --soft:#f6f8fa; --ink:#1f2328; --dim:#59636e }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.35rem; line-height: 1.35; margin: 0 0 .5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem } .finding h3 { margin-top: .25rem }
p { margin: .35rem 0 } .dim { color: var(--dim) } hr { border: 0; border-top: 1px solid var(--line); margin: 2.5rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; min-width: 100% }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; font-size: .92rem }
th, td { white-space: nowrap } th { background: var(--soft); font-weight: 600 } td.n { text-align: right }
td.ok { color: var(--ok) } td.bad { color: #fff; background: var(--bad) }
td.mid { background: #fff8c5; color: var(--warn) }
.finding { border: 1px solid var(--line); border-left: .35rem solid var(--dim); border-radius: .4rem; margin: 1rem 0;
  padding: .6rem .9rem }
.finding.error { border-left-color: var(--bad) } .finding.warning { border-left-color: var(--warn) }
code, pre { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace }
pre { background: var(--soft); padding: .5rem .6rem; border-radius: .3rem; white-space: pre-wrap; margin: .35rem 0 }
ul, ol { margin: .35rem 0; padding-left: 1.3rem } li { margin: .2rem 0 }
.way { display: flex; flex-wrap: wrap; align-items: stretch; gap: .5rem; margin: .5rem 0 }
.hop, .end { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .7rem; background: var(--soft) }
.hop { flex: 1 1 17rem; min-width: 0 } .end { align-self: center; font-weight: 600 }
.end.ok { color: var(--ok); border-color: var(--ok) } .end.bad { color: var(--bad); border-color: var(--bad) }
.arrow { align-self: center; color: var(--dim); font-size: 1.3rem }
.hop b { display: block } .hop ol { font-size: .85rem } .hop .last { color: var(--bad); font-weight: 600 }
.bars { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem .7rem; max-width: 46rem }
.bars span { font-size: .92rem } .bar { display: flex; align-items: center; gap: .45rem; white-space: nowrap }
.bar i { display: block; height: 1.05rem; border-radius: .15rem; background: #0969da; min-width: 1px }
.bar.lost i { background: var(--bad) }
"""


def html_report(reports: Sequence[ServiceDiagnosis]) -> str:
    """One page for one or several Services."""
    title = reports[0].key if len(reports) == 1 else f"{len(reports)} Services"
    body = "\n<hr>\n".join(_service(d) for d in reports)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>ktp: {_e(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style></head><body>\n{body}\n"
        '<p class="dim">Made by ktp, which only reads.</p></body></html>\n'
    )


def _service(d: ServiceDiagnosis) -> str:
    read = [n for n, kinds in d.evidence_nodes.items() if kinds]
    evidence = f"API objects and the rules of {', '.join(read[:8])}" if read else "API objects alone"
    evidence += report.unread_pods(d)
    parts = [
        f"<h1>{_e(d.verdict)}</h1>",
        f'<p class="dim">{_e(d.key)}, type {_e(report.policies_of(d))}. Evidence: {_e(evidence)}.</p>',
    ]
    parts += [_matrix(table) for table in tables_of(report.shown_matrices(d))]
    if d.frontends:
        parts.append(f'<p class="dim">{_e(report.KEPT_LEGEND)}</p>')
    cells = report.cells_of(report.shown_matrices(d))
    if any(c.rests_on for c in cells):
        parts.append(f'<p class="dim">{_e(report.ASSUMED_LEGEND)}</p><h2>Assumed</h2><ul>')
        parts += [f"<li>{_e(words)}.</li>" for words in report.assumed_of(cells, len(d.evidence_nodes))]
        parts.append("</ul>")
    groups = report.grouped(d.findings)
    causes = [g for g in groups if g[0].severity is not Severity.INFO]
    if causes:
        parts.append("<h2>Causes</h2>")
        parts += [_finding(g) for g in causes]
    if len(causes) < len(groups):
        parts.append("<h2>Good to know</h2><ul>")
        parts += [_remark(g) for g in groups if g[0].severity is Severity.INFO]
        parts.append("</ul>")
    if d.probes:
        parts.append("<h2>Dialled for real</h2>")
        parts.append(_table(report.PROBE_COLUMNS, report.probe_rows(d.probes)))
    witnesses = [r for r in d.reconciliation if r.odd or r.health is not None]
    if witnesses:
        parts.append("<h2>Endpoints for outside clients, by who tells them</h2>")
        parts.append(_table(report.WITNESS_COLUMNS, report.witness_rows(witnesses)))
    if d.ways:
        parts.append("<h2>The packet's way</h2>")
        parts += [_way(w) for w in _drawn(d.ways)]
    shares = report.share_rows(d)
    if shares:
        parts.append("<h2>Load share of outside traffic</h2>")
        parts += [_share(s) for s in shares]
    if d.gaps:
        parts.append("<h2>Not known</h2><ul>")
        parts += [_gap(g) for g in d.gaps[:50]]
        parts.append("</ul>")
    return "\n".join(parts)


def _gap(g: EvidenceGap) -> str:
    remedy = f' <span class="dim">({_e(g.remedy)})</span>' if g.remedy else ""
    return f"<li>{_e(g.message)}{remedy}</li>"


def _remark(group: list[Finding]) -> str:
    return f"<li><b>{_e(group[0].code)}</b> {_e(group[0].message)}.</li>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_e(c)}</th>" for c in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_e(c)}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _matrix(table: Table) -> str:
    vantages = report.vantages_of(table.matrix)
    head = "".join(f"<th>{_e(report.VANTAGE_WORDS[v])}</th>" for v in vantages)
    rows = []
    for row in table.rows:
        cells = "".join(_cell(row.first.cells.get(v)) for v in vantages)
        rows.append(f'<tr><td>{_e(row.label)}</td><td class="n">{row.pods}</td>{cells}</tr>')
    joined = "".join(
        f'<details><summary>{_e(label)}</summary><p class="dim">{_e(", ".join(names))}</p></details>'
        for label, names in table.joined()
    )
    return (
        f'<h2>{_e(", ".join(table.titles))}</h2><div class="scroll"><table><tr><th>node</th><th>pods</th>{head}</tr>'
        f"{''.join(rows)}</table></div>{joined}"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    style = {Symptom.CONNECTS: "ok", Symptom.INTERMITTENT: "mid", Symptom.UNKNOWN: "mid"}.get(
        cell.symptom, "bad"
    )
    cause = f" {_e(cell.cause)}" if cell.cause else ""
    return f'<td class="{style}" title="{_e(cell.reason)}">{_e(report.cell_words(cell))}{cause}</td>'


def _finding(group: list[Finding]) -> str:
    f = group[0]
    nodes = report.nodes_of(group)
    where = f": {_e(some_nodes(nodes))}" if nodes else ""
    evidence = "".join(f"<li>{_evidence(e)} <code>{_e(e.text)}</code></li>" for e in f.evidence)
    fixes = "".join(_fix(x) for x in f.fixes)
    return (
        f'<div class="finding {f.severity.value}"><h3>{_e(f.code)} {_e(f.name)} '
        f"({f.severity.value}){where}</h3><p>{_e(f.message)}.</p>"
        f"{f'<ul>{evidence}</ul>' if evidence else ''}"
        f"{f'<p><b>What to do</b></p><ol>{fixes}</ol>' if fixes else ''}</div>"
    )


def _evidence(e: Evidence) -> str:
    return "tried:" if e.kind == "counterfactual" else f"{_e(e.kind)}, {_e(e.source)}:"


def _fix(x: Fix) -> str:
    command = f"<pre>{_e(x.command)}</pre>" if x.command else ""
    price = f"cost: {_e(x.cost)}; {_e(report.fix_words(x))}"
    return f'<li>{_e(x.summary)}<br><span class="dim">{price}</span>{command}</li>'


def _drawn(ways: Sequence[Way]) -> list[Way]:
    """The ways that fail, each front end's, and one that succeeds beside them."""
    failing = [w for w in ways if w.symptom is not Symptom.CONNECTS]
    return [*failing[:6], *[w for w in ways if w.symptom is Symptom.CONNECTS][:1]]


def _way(w: Way) -> str:
    good = w.symptom is Symptom.CONNECTS
    request = [h for h in w.hops if h.direction == "request"]
    answer = [h for h in w.hops if h.direction != "request"]
    boxes = [f'<div class="end">{_e(w.client)}</div>']
    for number, hop in enumerate(request):
        boxes.append('<div class="arrow">→</div>')
        boxes.append(_hop(hop, last=not good and number + 1 == len(request) and not answer))
    boxes.append('<div class="arrow">→</div>')
    end = _e(w.symptom.value.replace("_", " "))
    boxes.append(f'<div class="end {"ok" if good else "bad"}">{end}</div>')
    nodes = " → ".join(h.place for h in answer)
    back = f'<p class="dim">The answer: {_e(nodes)} → {_e(w.client)}</p>' if answer else ""
    title = f"<h3>{_e(w.frontend)} on {_e(w.node)}</h3>"
    return f'{title}<div class="way">{"".join(boxes)}</div><p>{_e(w.reason)}</p>{back}'


# Steps of a hop that are drawn; what comes before them is counted.
_STEPS = 16


def _hop(hop: Hop, *, last: bool) -> str:
    steps = [s for s in hop.steps if _telling(s)]
    shown = steps[-_STEPS:]
    items = "".join(
        f"<li{' class=last' if last and s is shown[-1] else ''}>{_e(_step(s))}</li>" for s in shown
    )
    start = len(steps) - len(shown) + 1
    left = f'<span class="dim">left as {_header(hop.left)}</span>'
    return (
        f'<div class="hop"><b>{_e(hop.place)}</b><span class="dim">{_header(hop.arrived)}</span>'
        f'<ol start="{start}">{items}</ol>{"" if last else left}</div>'
    )


def _header(h: Header) -> str:
    dst = f"[{h.dst}]" if ":" in h.dst else h.dst
    return f"{_e(h.src)} → {_e(dst)}:{h.dport}"


def _telling(step: Step) -> bool:
    return step.kind is not StepKind.RULE or bool(step.effects)


def _step(step: Step) -> str:
    where = " ".join(x for x in (step.table, step.chain) if x)
    return f"{where or step.hook}: {step_words(step)}"


def _share(share: LoadShare) -> str:
    """Horizontal bars, one a pod, with the lost part last."""
    longest = max([*(p.share for p in share.pods), share.lost, 0.01])
    bars = [_bar(f"{p.endpoint} ({p.node})", p.share, longest) for p in share.pods[:20]]
    if len(share.pods) > 20:
        bars.append(f'<span></span><span class="dim">and {len(share.pods) - 20} more pods</span>')
    if share.lost > 0.001:
        bars.append(_bar("reaches no pod", share.lost, longest, "lost"))
    ratio = f", busiest to idlest {share.ratio:.1f}" if share.ratio not in (None, float("inf")) else ""
    return (
        f"<h3>Spread {_e(report.BALANCER_WORDS[share.balancer])}{ratio}</h3>"
        f'<div class="bars" role="img" aria-label="load share">{"".join(bars)}</div>'
    )


def _bar(label: str, value: float, longest: float, kind: str = "") -> str:
    return (
        f'<span>{_e(label)}</span><span class="bar {kind}"><i style="width:{70 * value / longest:.1f}%"></i>'
        f"{value:.0%}</span>"
    )


def _e(text: str) -> str:
    """Text that is only text."""
    return escape(report.printable(text))
