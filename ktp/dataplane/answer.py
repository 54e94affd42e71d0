"""Folding the ways of a walk into one answer.

Random forks add up to probabilities. Where an unknown forked the walk, both sides are compared: alike, the answer
stands; different, it is undetermined and names what was not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ktp.dataplane.packet import Packet, Port, some, to_text
from ktp.dataplane.state import ASKED, Decision, Delivery, HopRecord, RuleOfNft, StepRecord
from ktp.dataplane.walk import Attached, Leaf, LimitExceededError, Walker
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.ruleset import Rule
from ktp.model.trace import (
    DecidedBy,
    Disposition,
    Flow,
    FlowAnswer,
    Header,
    Hop,
    Path,
    Step,
    StepKind,
    Symptom,
    Unknown,
)


class _Weighted:
    """A leaf with the probability of its way."""

    __slots__ = ("chance", "leaf")

    def __init__(self, leaf: Leaf, chance: float) -> None:
        self.leaf = leaf
        self.chance = chance


def answer_flow(walker: Walker, flow: Flow, *, trace: bool = True) -> FlowAnswer:
    """Walk `flow` and fold its ways.

    `trace` False leaves the hops out (batches do not show them). Raises ValueError for a flow that is none.

    Where the addresses of nodes were not read and the dialled one may be of any of them, each is asked as if it held
    it: an answer that all give alike stands, as an assumption.
    """
    answer = _answer(walker, flow, trace)
    if answer.disposition is not Disposition.UNDETERMINED:
        return answer
    holders = walker.may_hold(flow.dst)
    answers = [_answer(walker.holding(node, flow.dst), flow, trace) for node in holders]
    if not answers or any(_fate(other) != _fate(answers[0]) for other in answers):
        return answer
    best = answers[0]
    if best.disposition is Disposition.UNDETERMINED:
        return answer
    taken = Assumption(
        f"{flow.dst} is an address of one of {some(holders)}, which would answer alike",
        EvidenceKind.ADDRESSES,
    )
    return replace(
        best,
        assumptions=(taken, *best.assumptions),
        sources_seen=tuple(dict.fromkeys(s for other in answers for s in other.sources_seen)),
    )


def _fate(answer: FlowAnswer) -> tuple[Any, ...]:
    """What a client can tell of an answer: not by which node's address it was translated."""
    ends = {(p.symptom, p.disposition, p.endpoint_ip, p.endpoint_port) for p in answer.paths}
    return answer.symptom, answer.disposition, answer.source_preserved, ends


def _answer(walker: Walker, flow: Flow, trace: bool) -> FlowAnswer:
    try:
        leaves = walker.walk(flow)
    except LimitExceededError as error:
        why = "the flow forks into more ways than ktp follows: too many rules on its way are unknown"
        first = Unknown(node="", what="", why=why) if error.decision is None else _unknown(error.decision)
        return FlowAnswer(
            flow=flow,
            disposition=Disposition.UNDETERMINED,
            symptom=Symptom.UNKNOWN,
            reason=why if error.decision is None else f"{why}, first: {first.why}",
            unknowns=(first,),
        )
    return fold(flow, leaves, trace=trace, names=walker.topology.attached)


def fold(
    flow: Flow,
    leaves: Sequence[Leaf],
    *,
    trace: bool = True,
    names: Mapping[tuple[int, int], Attached] | None = None,
) -> FlowAnswer:
    """Leaves of one walk → the answer. `names` tells whom an address belongs to."""
    unknowns: list[Unknown] = []
    forked = [(_decisions(leaf.state.decisions), leaf) for leaf in leaves]
    if any(d.kind == ASKED for decisions, _ in forked for d in decisions):
        weighted = _combine(forked, unknowns)
    else:
        weighted = [_Weighted(leaf, _chance(decisions)) for decisions, leaf in forked]
    for each in weighted:
        if each.leaf.disposition is Disposition.UNDETERMINED:
            leaf = each.leaf
            found = Unknown(
                node=leaf.node, what=leaf.kind if leaf.kind != "evidence" else "", why=leaf.reason,
                rule=leaf.step.rule if leaf.step is not None else None,
            )  # fmt: skip
            if found not in unknowns:
                unknowns.append(found)
    shown: dict[int, Hop] | None = {} if trace else None
    paths = tuple(_path(w, shown, names) for w in weighted)
    assumptions = tuple(dict.fromkeys(a for p in paths for a in p.assumptions))
    delivered = [w for w in weighted if _delivery(w.leaf) is not None and w.leaf.symptom is Symptom.CONNECTS]
    seen = tuple(
        dict.fromkeys(p.source_seen for p in paths if p.source_seen and p.symptom is Symptom.CONNECTS)
    )
    preserved: bool | None = None
    if delivered:
        original = {
            to_text(w.leaf.state.hops[0].arrived.family, w.leaf.state.hops[0].arrived.src)
            for w in delivered
            if w.leaf.state.hops
        }
        preserved = set(seen) <= original if original else None
    if unknowns:
        first = unknowns[0]
        return FlowAnswer(
            flow=flow, disposition=Disposition.UNDETERMINED, symptom=Symptom.UNKNOWN, reason=first.why, paths=paths,
            unknowns=tuple(unknowns), assumptions=assumptions, sources_seen=seen, source_preserved=preserved,
        )  # fmt: skip
    symptoms = {p.symptom for p in paths}
    # Where chances are equal the choice must not depend on the order in which the ways were walked.
    best = max(paths, key=lambda p: (p.symptom is Symptom.CONNECTS, p.probability, p.disposition.value))
    if len(symptoms) == 1:
        symptom = best.symptom
        worst = best
    else:
        symptom = Symptom.INTERMITTENT
        worst = max(
            (p for p in paths if p.symptom is not Symptom.CONNECTS),
            key=lambda p: (p.probability, p.disposition.value),
            default=best,
        )
    disposition = best.disposition if len(symptoms) == 1 else worst.disposition
    reason = worst.reason
    if symptom is Symptom.INTERMITTENT:
        good = sum(p.probability for p in paths if p.symptom is Symptom.CONNECTS)
        reason = f"connects in {good:.0%} of tries; otherwise: {worst.reason}"
    return FlowAnswer(
        flow=flow, disposition=disposition, symptom=symptom, reason=reason, paths=paths,
        decided_by=_common_decision(paths) if len(paths) > 1 else worst.decided_by,
        assumptions=assumptions, sources_seen=seen, source_preserved=preserved,
    )  # fmt: skip


def _decisions(linked: Any) -> list[Decision]:
    out: list[Decision] = []
    while linked is not None:
        linked, decision = linked
        out.append(decision)
    out.reverse()
    return out


def _chance(decisions: list[Decision]) -> float:
    product = 1.0
    for d in decisions:
        product *= d.chance
    return product


def _combine(forked: list[tuple[list[Decision], Leaf]], unknowns: list[Unknown]) -> list[_Weighted]:
    """The leaves below one fork, weighted; where an unknown's sides differ, `unknowns` gains it."""
    out: list[_Weighted] = []
    stack = [forked]
    while stack:
        group = stack.pop()
        if len(group) == 1:
            decisions, leaf = group[0]
            out.append(_Weighted(leaf, _chance(decisions)))
            continue
        at = _first_difference(group)
        sides: dict[int, list[tuple[list[Decision], Leaf]]] = {}
        for item in group:
            sides.setdefault(item[0][at].choice, []).append(item)
        decision = group[0][0][at]
        if decision.kind != ASKED:
            stack.extend(sides.values())
            continue
        results = [_combine(side, unknowns) for side in sides.values()]
        first = _signature(results[0])
        if any(_signature(other) != first for other in results[1:]):
            found = _unknown(decision)
            if found not in unknowns:
                unknowns.append(found)
        out.extend(results[0])
    return out


def _unknown(decision: Decision) -> Unknown:
    assert isinstance(decision.key, tuple)
    return Unknown(
        node=decision.key[0], what=decision.what, why=_why(decision), rule=decision.rule, forks=True
    )


def _why(decision: Decision) -> str:
    rule = decision.rule
    if rule is None or (isinstance(rule, Rule) and rule.unread is not None):
        return decision.why
    return f"{decision.why}: " + (f"{rule.table} {rule.text}" if isinstance(rule, Rule) else decision.what)


def _first_difference(group: list[tuple[list[Decision], Leaf]]) -> int:
    at = 0
    while True:
        choices = {decisions[at].choice for decisions, _ in group}
        if len(choices) > 1:
            return at
        at += 1


def _signature(weighted: list[_Weighted]) -> dict[tuple[Any, ...], float]:
    """What the client and the endpoints can tell of a set of ways."""
    out: dict[tuple[Any, ...], float] = {}
    total = sum(w.chance for w in weighted) or 1.0
    for w in weighted:
        d = _delivery(w.leaf)
        key = (
            w.leaf.disposition, w.leaf.symptom,
            (d.ip, d.port, d.source) if d is not None else None,
        )  # fmt: skip
        out[key] = out.get(key, 0.0) + w.chance / total
    return {k: round(v, 6) for k, v in out.items()}


def _delivery(leaf: Leaf) -> Delivery | None:
    d = leaf.state.delivery
    return d if isinstance(d, Delivery) else None


def _path(
    weighted: _Weighted, shown: dict[int, Hop] | None, names: Mapping[tuple[int, int], Attached] | None
) -> Path:
    """One way; `shown` holds the hops made so far, by their records, which ways share up to where they part."""
    leaf = weighted.leaf
    d = _delivery(leaf)
    ip: str | None = None
    port: int | None = None
    name: str | None = None
    node: str | None = None
    if d is not None:
        ip, port, name, node = to_text(d.family, d.ip), _port(d.port), d.name, d.node
    else:
        drawn = _drawn(leaf)
        if drawn is not None:
            family, number, drawn_port = drawn
            ip, port = to_text(family, number), _port(drawn_port)
            attached = names.get((family, number)) if names is not None else None
            if attached is not None:
                name, node = attached.name, attached.node
    return Path(
        probability=weighted.chance,
        disposition=leaf.disposition,
        symptom=leaf.symptom,
        reason=leaf.reason,
        hops=tuple(shown.get(id(h)) or _hop(h, shown) for h in leaf.state.hops) if shown is not None else (),
        endpoint_ip=ip,
        endpoint_port=port,
        endpoint_name=name,
        endpoint_node=node,
        source_seen=to_text(d.family, d.source) if d is not None else None,
        decided_by=_decided_by(leaf),
        assumptions=leaf.state.assumptions,
    )


def _port(port: Port) -> int | None:
    return port if isinstance(port, int) else None


def _drawn(leaf: Leaf) -> tuple[int, int, Port] | None:
    """The endpoint that a request was translated to which did not arrive there: (family, address, port)."""
    # What a pod's own rules make of the packet is past the endpoint.
    requests = [h for h in leaf.state.hops if h.direction == "request" and not h.pod]
    if not requests:
        return None
    first, last = requests[0].arrived, requests[-1].left
    if (first.dst, first.dport) == (last.dst, last.dport):
        return None
    return last.family, last.dst, last.dport


def _decided_by(leaf: Leaf) -> DecidedBy | None:
    step = leaf.step
    node, pod = leaf.node, leaf.pod
    if step is None:
        if (
            leaf.disposition in (Disposition.DELIVERED, Disposition.HOST_PROCESS)
            and leaf.state.nat_step is not None
        ):
            step = leaf.state.nat_step
            node, pod = (leaf.state.hops[0].node, "") if leaf.state.hops else (node, pod)
        else:
            known = leaf.kind and leaf.disposition is not Disposition.UNDETERMINED
            kind = StepKind(leaf.kind) if known else None
            return DecidedBy(node=node, kind=kind, words=leaf.reason, pod=pod) if kind is not None else None
    return DecidedBy(node=node, kind=step.kind, step=_step(step), pod=pod)


def _common_decision(paths: Sequence[Path]) -> DecidedBy | None:
    """The decision that all ways share, else that of the likeliest way that does not connect."""
    decided = [p.decided_by for p in paths]
    if all(d == decided[0] for d in decided):
        return decided[0]
    bad = [p for p in paths if p.symptom is not Symptom.CONNECTS]
    return max(bad, key=lambda p: p.probability).decided_by if bad else None


def _hop(record: HopRecord, shown: dict[int, Hop]) -> Hop:
    steps: list[Step] = []
    linked = record.steps
    while linked is not None:
        linked, step = linked
        steps.append(_step(step))
    steps.reverse()
    made = shown[id(record)] = Hop(
        node=record.node,
        pod=record.pod,
        direction=record.direction,
        arrived=_header(record.arrived),
        left=_header(record.left),
        in_interface=record.arrived.iif,
        out_interface=record.left.oif,
        steps=tuple(steps),
    )
    return made


def _step(s: StepRecord) -> Step:
    if s.shown is not None:
        return s.shown
    rule = s.rule
    s.shown = Step(
        kind=s.kind,
        hook=s.hook,
        table=s.table,
        chain=s.chain,
        text=rule.text if rule is not None else s.text,
        effects=s.effects,
        backend=s.backend,
        line=rule.line if rule is not None else 0,
        position=rule.position if rule is not None else 0,
        rule=rule if isinstance(rule, Rule) else None,
        nft_rule=rule.source if isinstance(rule, RuleOfNft) else None,
    )
    return s.shown


def _header(p: Packet) -> Header:
    return Header(
        src=to_text(p.family, p.src),
        sport=p.sport if isinstance(p.sport, int) else -1,
        dst=to_text(p.family, p.dst),
        dport=p.dport if isinstance(p.dport, int) else -1,
        mark=p.mark,
    )
