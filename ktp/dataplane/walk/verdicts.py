"""A packet through all that hangs at a hook, and what its verdicts mean for it."""

from __future__ import annotations

from ktp.dataplane.hooks import INPUT, OUTPUT, PREROUTING
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import send_symptom
from ktp.dataplane.packet import Packet
from ktp.dataplane.stages import run_group
from ktp.dataplane.state import (
    ACCEPT,
    DROP,
    MOST_WAYS,
    REJECT,
    LimitExceededError,
    State,
    StepRecord,
    Verdict,
)
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended, lost
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.routes import reroute
from ktp.model.trace import Disposition, StepKind, Symptom


def run_hook(walk: Walk, state: State, host: Host, hook: str) -> list[Verdict]:
    """How each way through `hook` ends: what drops, rejects or is not known in its order, then what passes."""
    done: list[Verdict] = []
    states = [state]
    for group in walk.places.groups_of(host, state.packet.family, hook):
        after: list[State] = []
        for each in states:
            p = each.packet
            before = (p.dst, p.mark, p.tos)
            for verdict in run_group(each, host, hook, group):
                if verdict.code != ACCEPT:
                    done.append(verdict)
                    continue
                then = verdict.state
                q = then.packet
                # What IPVS gives to this node keeps the route that it had.
                if hook == OUTPUT and (
                    (q.dst != before[0] and group.kind != "ipvs")
                    or (group.reroutes and (q.mark, q.tos) != before[1:])
                    or (group.hooked and _translated_by_ipvs(q))
                ):
                    if not reroute(walk, then, host):
                        continue
                elif (
                    group.kind == "ipvs"
                    and _is_answer_of_ipvs(q, hook)
                    and not _reroute_answer(walk, then, host)
                ):
                    continue
                after.append(then)
        states = after
        if len(states) + walk.count_ended() > MOST_WAYS:
            raise LimitExceededError
    done.extend(Verdict(ACCEPT, s) for s in states)
    return done


def _translated_by_ipvs(p: Packet) -> bool:
    """nf_nat_ipv4_local_fn, nf_nat_ipv6_local_fn: whoever translated it, it is routed again, by source and mark."""
    return p.ipvs is not None and not p.reply and p.ct is not None and p.ct.odst != p.ct.dst


def _is_answer_of_ipvs(p: Packet, hook: str) -> bool:
    return p.ipvs_property and p.ipvs is None and hook != INPUT


_SNAT_REROUTE = "net.ipv4.vs.snat_reroute"


def _reroute_answer(walk: Walk, state: State, host: Host) -> bool:
    """ip_vs_route_me_harder: what IPVS made an answer of, forwarded or sent, is routed as if the node sent it.

    The sysctl is for IPv6, too; unread, it is the kernel's default, 1. False where the packet is dropped.
    """
    p = state.packet
    if host.sysctl(_SNAT_REROUTE) == 0 or host.is_local(p.family, p.dst):
        return True
    return reroute(walk, state, host)


def passed(walk: Walk, verdict: Verdict, host: Host, hook: str) -> bool:
    """Whether the packet goes on; where not, its end is recorded."""
    code = verdict.code
    if code == ACCEPT:
        return True
    state, step = verdict.state, verdict.step
    if code == DROP:
        words = _step_words(step) if step is not None else verdict.detail
        if verdict.detail:
            words = verdict.detail
        if state.direction != "request":
            lost(
                walk,
                state,
                host,
                f"{host.name} drops the answer: {words}",
                step.kind if step else "rule",
                step,
            )
        else:
            close_hop(state, host)
            ended(
                walk, state, Disposition.DROPPED, send_symptom(state.packet, hook),
                f"{host.name} drops the packet: {words}", host,
                step.kind if step is not None else "rule", step,
            )  # fmt: skip
    elif (
        code == REJECT
        and state.direction == "request"
        and send_symptom(state.packet, hook) is Symptom.UNREACHABLE
    ):
        close_hop(state, host)
        ended(
            walk, state, Disposition.REJECTED, Symptom.UNREACHABLE,
            f"{host.name} rejects the packet with {verdict.detail}: {_step_words(step)}", host, "rule", step,
        )  # fmt: skip
    elif code == REJECT:
        send_error(
            walk, state, host, verdict.detail, Disposition.REJECTED,
            f"{host.name} rejects the packet with {verdict.detail}: {_step_words(step)}", step, "rule",
            routed=hook != PREROUTING or state.packet.iif == "lo",
        )  # fmt: skip
    else:
        text = getattr(step.rule, "text", step.text) if step is not None else ""
        end_unknown(walk, state, host.name, verdict.detail, text, step)
    return False


def _step_words(step: StepRecord | None) -> str:
    if step is None:
        return ""
    if step.kind is StepKind.POLICY:
        return f"{step.table} {step.text}"
    return f"{step.table} {step.rule.text if step.rule is not None else step.text}"
