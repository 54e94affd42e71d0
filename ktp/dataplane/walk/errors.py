"""Refusals: the error that a rule, a route or the stack sends goes back to the sender."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import ICMP_CODES
from ktp.dataplane.packet import ICMP, ICMP6, TCP, Packet
from ktp.dataplane.state import Refusal, State, StepRecord
from ktp.dataplane.walk.answers import answer_arrives, turn
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import AnswerOut
from ktp.dataplane.walk.ends import close_hop, ended, lost
from ktp.model.trace import Disposition, Symptom


def send_error(
    walk: Walk,
    state: State,
    host: Host,
    kind: str,
    disposition: Disposition,
    reason: str,
    step: StepRecord | None,
    cause: str,
    *,
    routed: bool = True,
) -> None:
    """A rule, a route or the stack refuses: the error walks back to the sender."""
    p = state.packet
    if p.reply:
        lost(walk, state, host, f"{host.name} refuses the answer ({reason})", cause, step)
        return
    if disposition is Disposition.NO_LISTENER and kind == "tcp-reset" and p.family == 6 and p.src == 1:
        if host.has_network and host.interface_of(6, p.dst) != "lo":
            # tcp_v6_send_response asks for ::1 by the interface of the dialled address, and there is no such route
            ended(
                walk,
                state,
                disposition,
                Symptom.TIMES_OUT,
                f"{reason}; the reset for ::1 finds no route",
                host,
                cause,
                step,
            )
            return
    if kind == "tcp-reset" and p.proto not in (TCP, pk.SCTP):
        ended(
            walk,
            state,
            disposition,
            Symptom.TIMES_OUT,
            f"{reason}; a TCP reset cannot be sent for this protocol",
            host,
            cause,
            step,
        )
        return
    if kind == "tcp-reset":
        error = Packet(p.family, p.proto, p.dst, p.src, p.dport, p.sport)
        error.tcp_flags = pk.RST | pk.ACK
        if disposition is Disposition.NO_LISTENER:
            error.tos = p.tos  # tcp_v4_send_reset answers with the packet's TOS
    else:
        source = p.dst if host.is_local(p.family, p.dst) else 0
        if p.family == 4 and not routed:
            source = (
                0  # nf_reject_fill_skb_dst gives it the way back for its route, which is none to this node
            )
        error = Packet(p.family, ICMP if p.family == 4 else ICMP6, source, p.src, 0, 0)
        error.icmp = ICMP_CODES[kind]
        error.tcp_flags = 0
        if p.family == 4:
            error.tos = p.tos & 0x1E | 0xC0  # icmp_send: precedence internetwork control
    error.inner = (p.src, p.sport, p.dst, p.dport, p.proto)
    error.reply = True
    error.local = True
    # icmp_send and nf_send_reset give the error the refused packet's connection (nf_ct_attach), already before raw;
    # at a socket the packet has lost it (nf_reset_ct in ip_local_deliver), and conntrack looks the error's up.
    ct = p.ct if disposition is not Disposition.NO_LISTENER else None
    close_hop(state, host)
    turn(state, error, "error")
    state.delivery = Refusal(disposition, kind, reason, step, cause, host.node, host.pod, p.proto)
    if kind == "tcp-reset" and disposition is Disposition.REJECTED and p.physin is not None:
        # nf_send_reset puts it straight on the bridge port: no hook sees it, nothing is translated back
        answer_arrives(walk, state, host)
        return
    if ct is not None:
        error.ct, error.ctstate = ct.copy(), pk.RELATED
    walk.go(AnswerOut(state, host))
