"""A diagnosis as plain data, in the shape of design §5 (`apiVersion: ktp.dev/v1`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ktp.model.capture import EvidenceGap
from ktp.model.diagnosis import Cell, Cures, Finding, FrontEndMatrix, Hang, NodeRow, ServiceDiagnosis
from ktp.model.trace import DecidedBy, FlowAnswer
from ktp.render.assumptions import assumptions_json
from ktp.render.probe_json import row_object, witness_object

API_VERSION = "ktp.dev/v1"


def diagnosis_object(d: ServiceDiagnosis) -> dict[str, Any]:
    """One Service: kind ServiceDiagnosis."""
    return {"apiVersion": API_VERSION, "kind": "ServiceDiagnosis", **_body(d)}


def diagnosis_list(items: Iterable[ServiceDiagnosis]) -> dict[str, Any]:
    """Several Services: kind ServiceDiagnosisList."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ServiceDiagnosisList",
        "items": [diagnosis_object(d) for d in items],
    }


def _body(d: ServiceDiagnosis) -> dict[str, Any]:
    return {
        **({"dialled": d.dialled} if d.dialled else {}),
        "service": {
            "namespace": d.namespace,
            "name": d.name,
            "type": d.type,
            "externalTrafficPolicy": d.external_traffic_policy,
            "internalTrafficPolicy": d.internal_traffic_policy,
        },
        "verdict": d.verdict,
        "headline": {
            "groups": [
                {
                    "frontend": g.frontend,
                    "nodes": list(g.nodes),
                    "vantage": g.vantage,
                    "symptom": g.symptom.value,
                    "cause": g.cause,
                }
                for g in d.headline
            ]
        },
        "frontends": [_matrix(m) for m in d.frontends],
        "findings": [finding_object(f) for f in d.findings],
        "evidence": {
            "api": d.evidence_api,
            "source": d.source,
            "nodes": {n: list(kinds) for n, kinds in d.evidence_nodes.items()},
            "kubeProxy": dict(d.versions),
        },
        "gaps": [gap_object(g) for g in d.gaps],
        "reconciliation": [witness_object(r) for r in d.reconciliation],
        **({"probes": [row_object(r) for r in d.probes]} if d.probes else {}),
        "loadShare": [
            {
                "frontend": x.frontend,
                "policy": x.policy,
                "balancer": x.balancer,
                "lost": round(x.lost, 6),
                "ratio": round(x.ratio, 3) if x.ratio is not None and x.ratio != float("inf") else None,
                "endpoints": [
                    {"endpoint": p.endpoint, "node": p.node, "share": round(p.share, 6)} for p in x.pods
                ],
            }
            for x in d.shares
        ],
    }


def _matrix(m: FrontEndMatrix) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": m.kind, "protocol": m.protocol, "port": m.port}
    if m.port_name:
        out["portName"] = m.port_name
    if m.node_port:
        out["nodePort"] = m.node_port
    if m.address is not None:
        out["address"] = m.address
    out["ipFamily"] = f"IPv{m.ip_version}"
    out["nodes"] = [_row(r) for r in m.nodes]
    return out


# A row's "node" is the node's name, as everywhere in the report: the vantage of that name needs another key.
_KEYS = {"node": "nodeItself"}


def _row(row: NodeRow) -> dict[str, Any]:
    return {
        "node": row.node,
        "addresses": list(row.addresses),
        "localEndpoints": row.local_endpoints,
        **{_KEYS.get(vantage, vantage): _cell(cell) for vantage, cell in row.cells.items()},
    }


def _cell(c: Cell) -> dict[str, Any]:
    out: dict[str, Any] = {
        "symptom": c.symptom.value,
        "cause": c.cause,
        "disposition": c.disposition.value,
        "reason": c.reason,
        "basis": c.basis,
        "client": c.client,
        "clientSourcePreserved": c.source_kept,
        "sourcesSeen": list(c.sources_seen),
        "endpoints": [
            {
                "ip": e.ip,
                "port": e.port,
                "pod": e.name,
                "node": e.node,
                "probability": round(e.probability, 6) if e.probability is not None else None,
                "symptom": e.symptom.value,
            }
            for e in c.endpoints
        ],
    }
    if c.decided_by is not None:
        out["decidedBy"] = decided_object(c.decided_by)
    if c.intended is not None and c.intended is not c.symptom:
        out["intended"] = {"symptom": c.intended.value, "decidedBy": c.intended_by}
    if c.assumptions:
        out["assumptions"] = assumptions_json(c.assumptions)
    if c.hang is not None:
        out["hang"] = hang_object(c.hang)
    if c.addresses:
        out["otherAddresses"] = [
            {"address": o.address, "symptom": o.symptom.value, "reason": o.reason} for o in c.addresses
        ]
    if c.others:
        out["otherClients"] = [
            {"who": o.who, "client": o.client, "symptom": o.symptom.value, "reason": o.reason}
            for o in c.others
        ]
    return out


def hang_object(h: Hang) -> dict[str, Any]:
    """Where the longest packets of a connection that opens are lost."""
    out: dict[str, Any] = {
        "direction": h.direction,
        "segment": h.segment,
        "sent": h.sent,
        "taken": h.taken,
        "certain": h.certain,
        "node": h.sender,
        "device": h.device,
    }
    if h.tunnel is not None:
        out["tunnel"] = h.tunnel
    if h.receiver:
        out |= {"receiver": h.receiver, "receivingDevice": h.receiving_device}
    if h.stopped_by is not None:
        out["stoppedBy"] = decided_object(h.stopped_by)
    return out


def decided_object(d: DecidedBy) -> dict[str, Any]:
    """What decided a fate."""
    out: dict[str, Any] = {"node": d.node, **({"pod": d.pod} if d.pod else {}), "kind": d.kind.value}
    if d.table:
        out |= {"table": d.table, "chain": d.chain}
    out["rule"] = d.rule
    if d.line:
        out["line"] = d.line
    if d.backend:
        out["backend"] = d.backend
    return out


def finding_object(f: Finding) -> dict[str, Any]:
    """A finding with its proof and cures."""
    return {
        "code": f.code,
        "name": f.name,
        "severity": f.severity.value,
        "node": f.node,
        "nodes": list(f.nodes),
        "message": f.message,
        "evidence": [{"kind": e.kind, "source": e.source, "text": e.text} for e in f.evidence],
        "fixes": [
            {
                "summary": x.summary,
                "cost": x.cost,
                "patch": dict(x.patch) if x.patch is not None else None,
                "command": x.command,
                "verified": x.verified,
                "outcome": x.outcome,
                **({"cures": _cures(x.cures)} if x.cures is not None else {}),
                **({"whatIf": list(x.change.arguments)} if x.change is not None else {}),
            }
            for x in f.fixes
        ],
        "explains": [{"frontend": t, "node": n, "vantage": v} for t, n, v in f.cells],
    }


def gap_object(g: EvidenceGap) -> dict[str, Any]:
    """A gap in the evidence."""
    return {"kind": g.kind, "subject": g.subject, "message": g.message, "remedy": g.remedy}


def _cures(c: Cures) -> dict[str, Any]:
    """`lost`, the ways in that work today and then do not, is absent where there are none."""
    lost = [{"frontend": title, "node": node, "vantage": vantage} for title, node, vantage in c.lost]
    return {"tried": c.tried, "cured": c.cured, "better": c.better, **({"lost": lost} if lost else {})}


def dialled_object(words: str, answer: FlowAnswer | None) -> dict[str, Any]:
    """kind Dialled: an address that is no Service's, in words, and what a client outside gets there."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Dialled",
        "dialled": words,
        "symptom": answer.symptom.value if answer is not None else "unknown",
        "reason": answer.reason if answer is not None else "",
    }
