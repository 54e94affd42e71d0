"""A flow's answer → plain data: the object of `ktp trace --batch` (design §5), and the same with every step."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from ktp.explain.effects import step_words
from ktp.model.trace import DecidedBy, Flow, FlowAnswer, Header, Hop, Path, Step, StepKind, Unknown
from ktp.render.assumptions import assumptions_json

_DIGITS = 6  # probabilities are products of what iptables prints with eleven digits


def answer_object(answer: FlowAnswer, pods: Container[str] | None = None) -> dict[str, Any]:
    """The fields of a batch answer, without `id`.

    `pods` holds the names that are pods; an endpoint of another name has no `pod`. None: every name is one.
    """
    out: dict[str, Any] = {
        "disposition": answer.disposition.value,
        "symptom": answer.symptom.value,
        "reason": answer.reason,
        "backends": _backends(answer.paths, pods),
        "client_source": {"seen": list(answer.sources_seen), "preserved": answer.source_preserved},
        "decided_by": _decided_by(answer.decided_by),
    }
    if answer.assumptions:
        out["assumptions"] = assumptions_json(answer.assumptions)
    if answer.unknowns:
        out["unknown"] = [_unknown(u) for u in answer.unknowns]
    return out


def trace_object(answer: FlowAnswer, pods: Container[str] | None = None) -> dict[str, Any]:
    """The object of a single `ktp trace`: the flow, the batch answer, and the hops of every way."""
    return {
        "flow": flow_object(answer.flow),
        **answer_object(answer, pods),
        "paths": [_path(p, pods) for p in answer.paths],
    }


def trace_list(
    answers: Iterable[tuple[FlowAnswer, Sequence[str]]], pods: Container[str] | None = None
) -> dict[str, Any]:
    """One flow by several nodes: an item for those that end alike, with the nodes as `via`."""
    items = [{"via": list(via), **trace_object(answer, pods)} for answer, via in answers]
    return {"apiVersion": "ktp.dev/v1", "kind": "TraceList", "items": items}


def flow_object(flow: Flow) -> dict[str, Any]:
    """The flow as a line for `--batch`."""
    fields = {
        "from": flow.src,
        "from_node": flow.from_node,
        "via": flow.via,
        "to": flow.dst,
        "port": flow.port,
        "protocol": flow.protocol,
    }
    return {name: value for name, value in fields.items() if value is not None}


def merged(paths: Iterable[Path]) -> list[tuple[Path, float]]:
    """One path for each endpoint and fate, with the probabilities of all that end alike added up."""
    together: dict[Any, tuple[Path, float]] = {}
    for p in paths:
        key = (
            p.endpoint_ip, p.endpoint_port, p.endpoint_name, p.endpoint_node, p.disposition, p.symptom, p.source_seen,
        )  # fmt: skip
        if key in together:
            first, chance = together[key]
            together[key] = (first, chance + p.probability)
        else:
            together[key] = (p, p.probability)
    return list(together.values())


def _backends(paths: Iterable[Path], pods: Container[str] | None) -> list[dict[str, Any]]:
    return [
        {
            "ip": p.endpoint_ip,
            "port": p.endpoint_port,
            "pod": _pod(p, pods),
            "node": p.endpoint_node,
            "probability": round(chance, _DIGITS),
            "disposition": p.disposition.value,
            "symptom": p.symptom.value,
            "source_seen": p.source_seen,
        }
        for p, chance in merged(p for p in paths if p.endpoint_ip is not None)
    ]


def _pod(path: Path, pods: Container[str] | None) -> str | None:
    name = path.endpoint_name
    return name if name is None or pods is None or name in pods else None


def _decided_by(d: DecidedBy | None) -> dict[str, Any] | None:
    if d is None:
        return None
    return {
        "node": d.node,
        **({"pod": d.pod} if d.pod else {}),
        "kind": d.kind.value,
        "hook": d.hook or None,
        "backend": d.backend or None,
        "table": d.table or None,
        "chain": d.chain or None,
        "line": d.line or None,
        "rule": d.rule,
    }


def _unknown(u: Unknown) -> dict[str, Any]:
    out: dict[str, Any] = {"node": u.node or None, "what": u.what or None, "why": u.why}
    if u.rule is not None:
        out.update(table=u.rule.table, chain=u.rule.chain, line=u.rule.line or None, rule=u.rule.text)
    return out


def _path(p: Path, pods: Container[str] | None) -> dict[str, Any]:
    endpoint = None
    if p.endpoint_ip is not None:
        endpoint = {
            "ip": p.endpoint_ip, "port": p.endpoint_port, "pod": _pod(p, pods), "node": p.endpoint_node,
        }  # fmt: skip
    return {
        "probability": round(p.probability, _DIGITS),
        "disposition": p.disposition.value,
        "symptom": p.symptom.value,
        "reason": p.reason,
        "endpoint": endpoint,
        "source_seen": p.source_seen,
        "decided_by": _decided_by(p.decided_by),
        "assumptions": assumptions_json(p.assumptions),
        "hops": [_hop(h) for h in p.hops],
    }


def _hop(h: Hop) -> dict[str, Any]:
    return {
        "node": h.node,
        **({"pod": h.pod} if h.pod else {}),
        "direction": h.direction,
        "in_interface": h.in_interface,
        "out_interface": h.out_interface,
        "arrived": _header(h.arrived),
        "left": _header(h.left),
        "steps": [_step(s) for s in h.steps],
    }


def _header(h: Header) -> dict[str, Any]:
    return {
        "src": h.src,
        "sport": h.sport if h.sport > 0 else None,
        "dst": h.dst,
        "dport": h.dport if h.dport > 0 else None,
        "mark": h.mark,
    }


def _step(s: Step) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "kind": s.kind.value,
        "hook": s.hook,
        "table": s.table,
        "chain": s.chain,
        "position": s.position,
        "line": s.line,
        "backend": s.backend,
        "rule" if s.kind is StepKind.RULE else "text": s.text,
        "effect": step_words(s),
    }
    return {name: value for name, value in fields.items() if value or name in ("kind", "effect")}
