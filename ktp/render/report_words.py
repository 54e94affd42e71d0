"""Words and groupings that the report formats share."""

from __future__ import annotations

from collections.abc import Sequence

from ktp.model.diagnosis import Cell, Finding, FrontEndMatrix, LoadShare, ServiceDiagnosis
from ktp.model.trace import Symptom

VANTAGE_WORDS = {
    "external": "outside",
    "node": "node itself",
    "localhost": "loopback",
    "podSameNode": "pod on the node",
    "podOtherNode": "pod elsewhere",
    "otherNode": "other node",
}
BALANCER_WORDS = {
    "all-nodes": "equally over all nodes",
    "nodes-with-pods": "equally over the nodes with pods",
    "by-pods": "weighted by the nodes' pods",
}


def cell_words(cell: Cell | None) -> str:
    """A cell in a word or two: "ok, kept", "times out", "67 % ok"."""
    if cell is None:
        return "-"
    if cell.symptom is Symptom.CONNECTS:
        return "ok" + {True: ", kept", False: ", SNAT", None: ""}[cell.source_kept]
    if cell.symptom is Symptom.INTERMITTENT:
        good = sum(e.probability or 0 for e in cell.endpoints if e.symptom is Symptom.CONNECTS)
        return f"{good:.0%} ok"
    return str(cell.symptom.value).replace("_", " ")


def shown_matrices(d: ServiceDiagnosis) -> list[FrontEndMatrix]:
    """The front ends worth a table: those for the outside, and a cluster IP that fails or is all there is."""
    outside = [m for m in d.frontends if m.kind != "clusterIP"]
    if not outside:
        return list(d.frontends)
    failing = [
        m
        for m in d.frontends
        if m.kind == "clusterIP" and any(c.symptom is not Symptom.CONNECTS for r in m.nodes for c in r.cells.values())
    ]
    return [*outside, *failing]


def vantages_of(m: FrontEndMatrix) -> list[str]:
    """The vantages that the matrix has a cell of, in order."""
    return [v for v in VANTAGE_WORDS if any(v in r.cells for r in m.nodes)]


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one cause together, gravest first."""
    by_code: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        key = (f.code, "" if f.node is not None and f.code in ("KTP501", "KTP502") else f.message)
        by_code.setdefault(key, []).append(f)
    return list(by_code.values())


def nodes_of(group: Sequence[Finding]) -> list[str]:
    """The nodes that a group of findings is about."""
    return list(dict.fromkeys(n for f in group for n in f.nodes))


def share_rows(d: ServiceDiagnosis) -> list[LoadShare]:
    """The shares worth showing: one front end, each balancer, where there is more than one endpoint."""
    first = next((s.frontend for s in d.shares), None)
    return [s for s in d.shares if s.frontend == first and len(s.pods) > 1]
