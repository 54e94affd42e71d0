"""Packets that are too long for where they go, and whether their sender is told."""

from __future__ import annotations

from functools import partial

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import ICMP, ICMP6, Conn, Packet
from ktp.dataplane.state import State
from ktp.dataplane.walk.answers import turn
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import AnswerOut
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.routes import source_for
from ktp.model.effect import TooLong
from ktp.model.trace import Disposition, StepKind, Symptom


def fits(walk: Walk, state: State, host: Host, limit: int | None) -> bool:
    """Whether a packet goes on that its route or device may not take whole (ip_forward, ip6_forward).

    Linux sends TCP with DF: its sender is told by an ICMP error, and sends less. Where that error does not come to it
    the packet ends here, and so does each that it sends again. A sender whose route has a locked MTU sends IPv4
    without DF, so that it is cut here (ip_dont_fragment); of IPv6 a lock changes nothing (__ip6_rt_update_pmtu).
    `limit` None: how much it takes was not read.
    """
    p = state.packet
    if limit is None or p.length is None or p.length <= limit:
        return True
    if p.locks_mtu and p.family == 4:
        p.length = limit
        return True
    device = state.hop.dev or "?" if state.hop is not None else "?"
    words = f"{p.length} bytes are too many for {device} of {host.name}, which takes {limit}"
    step = state.note(StepKind.ROUTE, TooLong(p.length, limit, device, words), hook="ROUTING")
    if p.reply:
        leaves = walk.aside(partial(_tell_server, state=state.fork(), host=host))
    else:
        kind = "icmp-frag-needed" if p.family == 4 else "icmp6-packet-too-big"
        leaves = walk.aside(
            partial(
                send_error, state=state.fork(), host=host, kind=kind, disposition=Disposition.LOST, reason=words,
                step=step, cause="route",
            )
        )  # fmt: skip
    untold = [leaf for leaf in leaves if leaf.symptom not in (Symptom.UNREACHABLE, Symptom.CONNECTS)]
    if not untold:
        p.length = limit
        return True
    unknown = next((leaf for leaf in untold if leaf.symptom is Symptom.UNKNOWN), None)
    if unknown is not None:
        why = f"{words}, and whether its sender is told of that is not known: {unknown.reason}"
        end_unknown(walk, state, host.name, why)
        return False
    # The error's way is shown as the packet's end.
    ended(
        walk, untold[0].state, Disposition.LOST, Symptom.TIMES_OUT,
        f"{words}, and its sender is not told: {untold[0].reason}", host, "route", step,
    )  # fmt: skip
    return False


def _tell_server(walk: Walk, state: State, host: Host) -> None:
    """An error about an answer's packet goes to who sent it: to the node's own pod, or back to its node."""
    p = state.packet
    error = Packet(p.family, ICMP if p.family == 4 else ICMP6, 0, p.src, 0, 0)
    error.icmp = (3, 4) if p.family == 4 else (2, 0)
    error.tcp_flags = 0
    error.local = True
    error.src = source_for(host, error, host.route(error, iif="lo")) or 0
    # icmp_send gives it the packet's connection (nf_ct_attach), as which it and its quote are translated.
    ct, error.ctstate = p.ct, pk.RELATED
    masked = (ct.src, ct.sport) if ct is not None else (p.dst, p.dport)
    error.inner = (p.src, p.sport, *masked, p.proto)
    error.ct = Conn(host.name, error)
    error.ct.confirmed = error.ct.src_done = error.ct.dst_done = True
    if ct is not None and ct.snat:
        error.ct.src = ct.src
    close_hop(state, host)
    turn(state, error, "request")
    walk.go(AnswerOut(state, host))
