"""A diagnosis as one HTML file: the matrix, the causes, the packet's way as a drawing, the load share as a chart.

The file loads nothing: no script, no font, no image from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ktp.model.diagnosis import Cell, Finding, FrontEndMatrix, LoadShare, ServiceDiagnosis, Way
from ktp.model.trace import Hop, Step, Symptom
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

_STYLE = """
:root { --ok:#1a7f37; --bad:#b42318; --warn:#9a6700; --line:#d0d7de; --soft:#f6f8fa; --ink:#1f2328; --dim:#59636e }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.35rem; line-height: 1.35; margin: 0 0 .5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem } p { margin: .35rem 0 } .dim { color: var(--dim) }
.scroll { overflow-x: auto } table { border-collapse: collapse; min-width: 100% }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; white-space: nowrap; font-size: .92rem }
th { background: var(--soft); font-weight: 600 } td.n { text-align: right }
td.ok { color: var(--ok) } td.bad { color: #fff; background: var(--bad) } td.mid { background: #fff8c5; color: var(--warn) }
.finding { border: 1px solid var(--line); border-left: .35rem solid var(--dim); border-radius: .4rem; margin: 1rem 0;
  padding: .6rem .9rem } .finding.error { border-left-color: var(--bad) } .finding.warning { border-left-color: var(--warn) }
code, pre { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace }
pre { background: var(--soft); padding: .5rem .6rem; border-radius: .3rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 }
ul, ol { margin: .35rem 0; padding-left: 1.3rem } li { margin: .2rem 0 } li code { overflow-wrap: anywhere }
.way { display: flex; flex-wrap: wrap; align-items: stretch; gap: .5rem; margin: .5rem 0 }
.hop, .end { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .7rem; background: var(--soft); max-width: 100% }
.hop { flex: 1 1 17rem } .end { align-self: center; font-weight: 600 } .end.ok { color: var(--ok); border-color: var(--ok) }
.end.bad { color: var(--bad); border-color: var(--bad) } .arrow { align-self: center; color: var(--dim); font-size: 1.3rem }
.hop b { display: block } .hop ol { font-size: .85rem } .hop .last { color: var(--bad); font-weight: 600 }
svg { max-width: 100%; height: auto; display: block } svg text { font: 13px system-ui, "DejaVu Sans", sans-serif }
"""


def html_report(reports: Sequence[ServiceDiagnosis]) -> str:
    """One page for one or several Services."""
    title = reports[0].key if len(reports) == 1 else f"{len(reports)} Services"
    body = "\n".join(_service(d) for d in reports)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>ktp: {escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head><body>\n{body}\n"
        '<p class="dim">Made by ktp, which only reads.</p></body></html>\n'
    )


def _service(d: ServiceDiagnosis) -> str:
    read = [n for n, kinds in d.evidence_nodes.items() if kinds]
    evidence = f"API objects and the rules of {', '.join(read[:8])}" if read else "API objects alone"
    parts = [
        f"<h1>{escape(d.verdict)}</h1>",
        f'<p class="dim">{escape(d.key)}, type {escape(d.type)}, externalTrafficPolicy '
        f"{escape(d.external_traffic_policy)}. Evidence: {escape(evidence)}.</p>",
    ]
    parts += [_matrix(m) for m in shown_matrices(d)]
    if d.findings:
        parts.append("<h2>Causes</h2>")
        parts += [_finding(g) for g in grouped(d.findings)]
    if d.ways:
        parts.append("<h2>The packet's way</h2>")
        parts += [_way(w) for w in d.ways]
    shares = share_rows(d)
    if shares:
        parts.append("<h2>Load share of outside traffic</h2>")
        parts += [_share(s) for s in shares]
    if d.gaps:
        parts.append("<h2>Not known</h2><ul>")
        parts += [
            f"<li>{escape(g.message)}{f' <span class=dim>({escape(g.remedy)})</span>' if g.remedy else ''}</li>"
            for g in d.gaps[:50]
        ]
        parts.append("</ul>")
    return "\n".join(parts)


def _matrix(m: FrontEndMatrix) -> str:
    vantages = vantages_of(m)
    head = "".join(f"<th>{escape(VANTAGE_WORDS[v])}</th>" for v in vantages)
    rows = []
    for row in m.nodes:
        count = "?" if row.local_endpoints is None else str(row.local_endpoints)
        cells = "".join(_cell(row.cells.get(v)) for v in vantages)
        rows.append(f'<tr><td>{escape(row.node)}</td><td class="n">{count}</td>{cells}</tr>')
    return (
        f'<h2>{escape(m.title)}</h2><div class="scroll"><table><tr><th>node</th><th>pods</th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
        "<p class=\"dim\">kept: the pod sees the client's address; SNAT: it sees a node's</p>"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    style = {Symptom.CONNECTS: "ok", Symptom.INTERMITTENT: "mid", Symptom.UNKNOWN: "mid"}.get(cell.symptom, "bad")
    cause = f" {escape(cell.cause)}" if cell.cause else ""
    return f'<td class="{style}" title="{escape(cell.reason)}">{escape(cell_words(cell))}{cause}</td>'


def _finding(group: list[Finding]) -> str:
    f = group[0]
    nodes = nodes_of(group)
    where = f": {escape(', '.join(nodes[:12]))}" if nodes else ""
    evidence = "".join(
        f"<li>{escape(e.kind)}, {escape(e.source)}: <code>{escape(e.text)}</code></li>" for e in f.evidence
    )
    fixes = "".join(
        f"<li>{escape(x.summary)}<br><span class=dim>price: {escape(x.cost)}; "
        f"{'checked' if x.verified else 'not checked by ktp'}{f': {escape(x.outcome)}' if x.outcome else ''}</span>"
        f"{f'<pre>{escape(x.command)}</pre>' if x.command else ''}</li>"
        for x in f.fixes
    )
    return (
        f'<div class="finding {f.severity.value}"><h3>{escape(f.code)} {escape(f.name)} '
        f"({f.severity.value}){where}</h3><p>{escape(f.message)}.</p>"
        f"{f'<ul>{evidence}</ul>' if evidence else ''}"
        f"{f'<p><b>What to do</b></p><ol>{fixes}</ol>' if fixes else ''}</div>"
    )


def _way(w: Way) -> str:
    good = w.symptom is Symptom.CONNECTS
    request = [h for h in w.hops if h.direction == "request"]
    answer = [h for h in w.hops if h.direction != "request"]
    boxes = [f'<div class="end">{escape(w.client)}</div>']
    for number, hop in enumerate(request):
        boxes.append('<div class="arrow">→</div>')
        boxes.append(_hop(hop, last=not good and number + 1 == len(request) and not answer))
    boxes.append('<div class="arrow">→</div>')
    boxes.append(f'<div class="end {"ok" if good else "bad"}">{escape(str(w.symptom.value).replace("_", " "))}</div>')
    nodes = " → ".join(h.node for h in answer)
    back = f'<p class="dim">The answer: {escape(nodes)} → {escape(w.client)}</p>' if answer else ""
    return f'<h3>{escape(w.frontend)} on {escape(w.node)}</h3><div class="way">{"".join(boxes)}</div><p>{escape(w.reason)}</p>{back}'


def _hop(hop: Hop, *, last: bool) -> str:
    steps = [s for s in hop.steps if _telling(s)]
    items = "".join(
        f'<li class="{"last" if last and s is steps[-1] else ""}">{escape(_step(s))}</li>' for s in steps[-9:]
    )
    return (
        f'<div class="hop"><b>{escape(hop.node)}</b><span class="dim">{escape(hop.arrived.src)} → '
        f"{escape(hop.arrived.dst)}:{hop.arrived.dport}</span><ol>{items}</ol>"
        f'<span class="dim">left as {escape(hop.left.src)} → {escape(hop.left.dst)}:{hop.left.dport}</span></div>'
    )


def _telling(step: Step) -> bool:
    return step.kind != "rule" or bool(step.effect)


def _step(step: Step) -> str:
    where = " ".join(x for x in (step.table, step.chain) if x)
    return f"{where or step.hook}: {step.effect}"


def _share(share: LoadShare) -> str:
    """Horizontal bars, one a pod, with the lost part last."""
    rows = [(f"{p.endpoint} ({p.node})", p.share, "#0969da") for p in share.pods[:20]]
    if share.lost > 0.001:
        rows.append(("reaches no pod", share.lost, "#b42318"))
    height = 24 * len(rows) + 8
    bars = []
    for i, (label, value, color) in enumerate(rows):
        y = 6 + 24 * i
        width = round(340 * value, 1)
        bars.append(
            f'<text x="300" y="{y + 13}" text-anchor="end">{escape(label[-44:])}</text>'
            f'<rect x="308" y="{y}" width="{width}" height="17" rx="2" fill="{color}"/>'
            f'<text x="{314 + width}" y="{y + 13}">{value:.0%}</text>'
        )
    ratio = f", busiest to idlest {share.ratio:.1f}" if share.ratio not in (None, float("inf")) else ""
    return (
        f"<h3>Spread {escape(BALANCER_WORDS[share.balancer])}{ratio}</h3>"
        f'<svg viewBox="0 0 710 {height}" role="img" aria-label="load share">{"".join(bars)}</svg>'
    )
