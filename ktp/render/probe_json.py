"""Probes and witnesses as plain data."""

from __future__ import annotations

from typing import Any

from ktp.model.probing import LengthAttempt, LengthRow, ProbeRow, WitnessRow


def row_object(r: ProbeRow) -> dict[str, Any]:
    """A prediction beside what happened."""
    o, p = r.observed, r.predicted
    return {
        "frontend": o.target.frontend,
        "node": o.target.node,
        "address": o.target.host,
        "port": o.target.port,
        "protocol": o.target.protocol,
        "from": {"node": o.sender, "address": o.source},
        "predicted": {
            "symptom": p.of.value,
            "possible": sorted(s.value for s in p.symptoms),
            "vantage": p.vantage,
            "basis": p.basis,
            "reason": p.reason,
        },
        "observed": {
            "symptom": o.symptom.value,
            "tries": len(o.attempts),
            "symptoms": {s.value: n for s, n in o.symptoms.items()},
            "seconds": [round(a.seconds, 6) for a in o.attempts],
            "details": list(dict.fromkeys(a.detail for a in o.attempts if a.detail)),
            "http": [a.http for a in o.attempts] if o.asked_http else None,
        },
        "verdict": r.verdict,
        "note": r.note,
    }


def length_object(r: LengthRow) -> dict[str, Any]:
    """Short and full packets from a node to a pod."""
    return {
        "from": r.sender,
        "pod": r.pod,
        "node": r.node,
        "address": r.host,
        "carries": r.carries,
        "small": [_packet_object(a) for a in r.small],
        "full": [_packet_object(a) for a in r.full],
    }


def _packet_object(a: LengthAttempt) -> dict[str, Any]:
    return {"bytes": a.size, "answered": a.answered, "told": a.told, "problem": a.problem or None}


def witness_object(r: WitnessRow) -> dict[str, Any]:
    """The witnesses of a service port on a node."""
    h = r.health
    return {
        "frontend": r.frontend,
        "node": r.node,
        "endpointSlices": None if r.slices is None else list(r.slices),
        "rules": None if r.rules is None else list(r.rules),
        "localReady": r.local_ready,
        "health": None
        if h is None
        else {
            "address": h.target.address,
            "port": h.target.port,
            "status": h.status,
            "localEndpoints": h.local_endpoints,
            "serviceProxyHealthy": h.proxy_healthy,
            "problem": h.problem or None,
        },
        "disagrees": r.odd or None,
        "words": r.words,
    }
