"""Ends of ways, and the record of a node that a packet leaves behind."""

from __future__ import annotations

from ktp.dataplane.host import Host
from ktp.dataplane.state import HopRecord, Refusal, State, StepRecord
from ktp.dataplane.walk.context import MAX_HOPS, Leaf, Walk
from ktp.model.effect import Note
from ktp.model.trace import Disposition, StepKind, Symptom


def close_hop(state: State, host: Host) -> None:
    """The node is done with the packet: what it did is kept."""
    state.hops = (
        *state.hops,
        HopRecord(host.node, state.direction, state.arrived, state.packet.copy(), state.steps, host.pod),
    )
    state.steps = None


def ended(
    walk: Walk,
    state: State,
    disposition: Disposition,
    symptom: Symptom,
    reason: str,
    host: Host | None,
    kind: str,
    step: StepRecord | None = None,
) -> None:
    """A way ends, at `host` where that is known; `kind` is what kind of thing ended it."""
    if state.steps is not None and host is not None:
        close_hop(state, host)
    node, pod = (host.node, host.pod) if host is not None else ("", "")
    walk.end(Leaf(state, disposition, symptom, reason, step, node, kind, pod))


def goes_round(walk: Walk, state: State, host: Host) -> bool:
    """Whether the packet has come to too many nodes: then its way ends here."""
    state.seen_nodes += 1
    if state.seen_nodes > MAX_HOPS:
        reason = "the packet goes round in a circle"
        ended(walk, state, Disposition.LOST, Symptom.TIMES_OUT, reason, host, "route")
        return True
    return False


def lost(
    walk: Walk,
    state: State,
    host: Host,
    reason: str,
    kind: str,
    step: StepRecord | None = None,
    symptom: Symptom = Symptom.TIMES_OUT,
) -> None:
    """The packet, or its answer or error, ends here; a request whose sender is told at once has its `symptom`."""
    if step is None:
        step = state.note(StepKind(kind), Note(reason), hook="ROUTING" if kind in ("route", "sysctl") else "")
    close_hop(state, host)
    if state.direction == "error":
        refused = state.delivery
        assert isinstance(refused, Refusal)
        state.delivery = None
        walk.end(
            Leaf(
                state,
                refused.disposition,
                Symptom.TIMES_OUT,
                f"{refused.reason}; the error that says so is lost: {reason}",
                refused.step,
                refused.node,
                refused.cause,
                refused.pod,
            )
        )
        return
    if state.direction != "request":
        symptom = Symptom.TIMES_OUT
    walk.end(Leaf(state, Disposition.LOST, symptom, reason, step, host.node, kind, host.pod))


def end_unknown(
    walk: Walk, state: State, node: str, why: str, what: str = "", step: StepRecord | None = None
) -> None:
    """It is not known how a way goes on at `node`, "" where there is none; `what` is the text of what is not known."""
    host = walk.places.named(node) if node else None
    if host is not None and state.steps is not None:
        close_hop(state, host)
    if isinstance(state.delivery, Refusal):
        state.delivery = None
    walk.end(
        Leaf(
            state,
            Disposition.UNDETERMINED,
            Symptom.UNKNOWN,
            why,
            step,
            host.node if host is not None else node,
            what or "evidence",
            host.pod if host is not None else "",
        )
    )
