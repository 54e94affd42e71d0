"""Words and groupings that the report formats share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.model.assumption import POD_AS_MADE, PROGRAM_LISTENS, EvidenceKind
from ktp.model.diagnosis import Cell, Cures, Finding, Fix, FrontEndMatrix, LoadShare, ServiceDiagnosis
from ktp.model.trace import Symptom
from ktp.render.assumptions import assumed_words, some_nodes

if TYPE_CHECKING:
    from ktp.model.probing import ProbeRow, WitnessRow

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


# Control characters, lone surrogates (JSON may spell them) and the two non-characters that XML 1.0 cannot hold.
_UNFIT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """The text with a mark in place of what no report can hold."""
    return _UNFIT.sub("\ufffd", text)


_VANTAGES_LEFT = {
    "external": "clients outside",
    "node": "the node itself",
    "localhost": "loopback",
    "podSameNode": "pods of the node",
    "podOtherNode": "pods elsewhere",
    "otherNode": "other nodes",
}


def fix_words(fix: Fix) -> str:
    """What is known of a fix: "checked: …", what it leaves, or that it was not tried."""
    if fix.cures is None:
        if fix.verified:
            return "checked" + (f": {fix.outcome}" if fix.outcome else "")
        return "not checked by ktp" + (f": {fix.outcome}" if fix.outcome else "")
    return _cured_words(fix.cures) + _lost_words(fix.cures)


def _lost_words(c: Cures) -> str:
    """Who connects today, and then does not, or not always."""
    if not c.lost:
        return ""
    nodes = some_nodes(list(dict.fromkeys(node for _, node, _ in c.lost)))
    lost = {vantage for _, _, vantage in c.lost}
    if lost <= {vantage for _, _, vantage in c.left}:
        return f" (on {nodes} too, where they do today)"
    who = ", ".join(_VANTAGES_LEFT.get(vantage, vantage) for vantage in _VANTAGES_LEFT if vantage in lost)
    return f"; then no longer (always): {who} on {nodes}"


def _cured_words(c: Cures) -> str:
    ways = "the one way" if c.tried == 1 else f"all {c.tried} ways"
    if c.is_whole:
        return f"checked: {ways} in that fail{'s' if c.tried == 1 else ''} then connect{'s' if c.tried == 1 else ''}"
    left = ", ".join(dict.fromkeys(_VANTAGES_LEFT.get(vantage, vantage) for _, _, vantage in c.left))
    if not c.cured and not c.better:
        return f"tried, and not enough: none of {c.tried} ways in then connects"
    more = f", {c.better} more often than now" if c.better else ""
    return f"checked in part: {c.cured} of {c.tried} ways in then connect{more}; not always: {left}"


def named_verdict(d: ServiceDiagnosis) -> str:
    """The verdict, with the Service that it is about."""
    # What was dialled, or what is wrong with it everywhere, names it; a cause may name a pod of the same name.
    head = d.verdict.partition(". Cause")[0].partition(";")[0]
    return d.verdict if d.key in head else f"{d.key}: {d.verdict}"


def policies_of(d: ServiceDiagnosis) -> str:
    """The Service's type, and the policies that mean something to it."""
    words = d.type
    if d.type in ("NodePort", "LoadBalancer") or any(m.kind == "externalIP" for m in d.frontends):
        words += f", externalTrafficPolicy {d.external_traffic_policy}"
    if d.internal_traffic_policy != "Cluster":
        words += f", internalTrafficPolicy {d.internal_traffic_policy}"
    return words


KEPT_LEGEND = "kept: the pod sees the client's address; SNAT: it sees a node's"
ASSUMED_LEGEND = "*: given what is assumed below, since it was not read"


def cells_of(matrices: Iterable[FrontEndMatrix]) -> list[Cell]:
    """Every cell of the matrices."""
    return [c for m in matrices for r in m.nodes for c in r.cells.values()]


def assumed_of(cells: Iterable[Cell], nodes: int = 0) -> list[str]:
    """What the answers of cells take for granted, in words; of pods' programs `unread_pods` tells.

    `nodes` is how many the report is about.
    """
    found = (
        a
        for c in cells
        if c.symptom is not Symptom.UNKNOWN
        for a in c.assumptions
        if a.evidence is not EvidenceKind.POD_NAMESPACE
    )
    return assumed_words(found, nodes)


def unread_pods(d: ServiceDiagnosis) -> str:
    """What ends the line of evidence where no program of an endpoint was looked at, else ""."""
    assumed = {a for c in cells_of(d.frontends) for a in c.assumptions}
    if PROGRAM_LISTENS in assumed:
        return "; pods' sockets not read"
    return "; pods' own rules not read" if POD_AS_MADE in assumed else ""


_SEEN = {
    Symptom.CONNECTS: "connect",
    Symptom.TIMES_OUT: "time out",
    Symptom.REFUSED: "are refused",
    Symptom.UNREACHABLE: "find it unreachable",
    Symptom.INTERMITTENT: "connect now and then",
}


def others_of(matrices: Iterable[FrontEndMatrix]) -> list[str]:
    """Which clients see something else than the one that stands for their kind, and where."""
    nodes: dict[tuple[str, str, Symptom], list[str]] = {}
    for m in matrices:
        for row in m.nodes:
            for vantage, cell in row.cells.items():
                for other in cell.others:
                    key = (_VANTAGES_LEFT.get(vantage, vantage), other.who, other.symptom)
                    where = nodes.setdefault(key, [])
                    if row.node not in where:
                        where.append(row.node)
    return [
        f"not all {kind} alike: {who} {_SEEN.get(symptom, 'fail')} at {', '.join(where)}"
        for (kind, who, symptom), where in nodes.items()
    ]


def addresses_of(matrices: Iterable[FrontEndMatrix], *, every: bool = False) -> list[str]:
    """What outside clients see at further addresses of nodes: where it is not what they see at the first, or all."""
    found: dict[Symptom, dict[str, str]] = {}
    for m in matrices:
        for row in m.nodes:
            for cell in row.cells.values():
                for other in cell.addresses:
                    if every or other.symptom is not cell.symptom:
                        found.setdefault(other.symptom, {}).setdefault(other.address, row.node)
    return [
        f"clients outside {_SEEN.get(symptom, 'fail')} at other addresses of the nodes: "
        + ", ".join(f"{address} ({node})" for address, node in where.items())
        for symptom, where in found.items()
    ]


def cell_words(cell: Cell | None) -> str:
    """A cell in a word or two: "ok, kept", "times out", "67 % ok"; with a star where it rests on what was not read."""
    return "-" if cell is None else _fate_words(cell) + ("*" if cell.rests_on else "")


def _fate_words(cell: Cell) -> str:
    if cell.symptom is Symptom.CONNECTS and cell.hang is not None and cell.hang.certain:
        return "hangs"
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
        if m.kind == "clusterIP"
        and any(c.symptom is not Symptom.CONNECTS for r in m.nodes for c in r.cells.values())
    ]
    return [*outside, *failing]


def vantages_of(m: FrontEndMatrix) -> list[str]:
    """The vantages that the matrix has a cell of, in order."""
    return [v for v in VANTAGE_WORDS if any(v in r.cells for r in m.nodes)]


# A front end as `FrontEndMatrix.title` writes it.
_TITLE = re.compile(r"(?:nodePort \d+|(?:loadBalancer|externalIP|clusterIP) \S+:\d+)/[A-Z]+(?: \(IPv6\))?")


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one cause together, gravest first.

    What is said alike of several front ends is said once, of all of them; what each node has of its own stays in a
    group, of which the first speaks for all.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in _merged(findings):
        key = (f.code, "" if f.node is not None and f.code in ("KTP501", "KTP502") else f.message)
        groups.setdefault(key, []).append(f)
    return list(groups.values())


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in the one front end that they name are one that names all."""
    alike: dict[tuple[str, str, tuple[str, ...]], list[Finding]] = {}
    for f in findings:
        said = _TITLE.sub("\0", f.message) if len(set(_TITLE.findall(f.message))) == 1 else f.message
        alike.setdefault((f.code, said, f.nodes), []).append(f)
    out = []
    for group in alike.values():
        first = group[0]
        titles = list(dict.fromkeys(t for f in group for t in _TITLE.findall(f.message)))
        if len(group) > 1 and len(titles) > 1:
            last = titles[-1]
            if len(titles) > _MOST_TITLES:
                titles, last = titles[:_MOST_TITLES], f"{len(titles) - _MOST_TITLES + 1} more front ends"
            words = f"{', '.join(titles[:-1])} and {last}"
            found = _TITLE.search(first.message)
            assert found is not None
            message = first.message[: found.start()] + words + first.message[found.end() :]
            cells = tuple(dict.fromkeys(c for f in group for c in f.cells))
            out.append(replace(first, message=message, cells=cells))
        else:
            out += group
    return out


_MOST_TITLES = 4


def nodes_of(group: Sequence[Finding]) -> list[str]:
    """The nodes that a group of findings is about."""
    return list(dict.fromkeys(n for f in group for n in f.nodes))


def share_rows(d: ServiceDiagnosis) -> list[LoadShare]:
    """The shares worth showing: one front end, each balancer, where there is more than one endpoint."""
    first = next((s.frontend for s in d.shares), None)
    return [s for s in d.shares if s.frontend == first and len(s.pods) > 1]


PROBE_COLUMNS = ("front end", "node", "address", "predicted", "observed", "")
WITNESS_COLUMNS = ("front end", "node", "EndpointSlices", "rules", "health check", "disagrees")


def probe_rows(rows: Sequence[ProbeRow]) -> list[tuple[str, ...]]:
    """What was dialled, as rows of words under PROBE_COLUMNS."""
    out: list[tuple[str, ...]] = []
    for r in rows:
        o = r.observed
        total = len(o.attempts)
        seen = ", ".join(f"{_spoken(s)} {n}/{total}" for s, n in o.symptoms.most_common())
        if o.asked_http and total:
            seen += f", HTTP {o.answered_http}/{total}"
        predicted = _spoken(r.predicted.of) if r.predicted.symptoms else "-"
        verdict = "" if r.verdict == "agrees" else r.verdict
        out.append(
            (o.target.frontend, o.target.node or "-", o.target.dialled, predicted, seen or "-", verdict)
        )
    return out


def witness_rows(rows: Iterable[WitnessRow]) -> list[tuple[str, ...]]:
    """The witnesses, as rows of words under WITNESS_COLUMNS."""
    out: list[tuple[str, ...]] = []
    for r in rows:
        health = "-"
        if r.health is not None:
            count = f", counts {r.health.local_endpoints}" if r.health.local_endpoints is not None else ""
            health = r.health.problem or f"{r.health.status}{count}"
        slices = "?" if r.slices is None else str(len(r.slices))
        rules = "?" if r.rules is None else str(len(r.rules))
        odd = f"{r.odd}: {r.words}" if r.odd else ""
        out.append((r.frontend, r.node, slices, rules, health, odd))
    return out


def _spoken(symptom: Symptom) -> str:
    return symptom.value.replace("_", " ")
