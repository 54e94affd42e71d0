"""The turn of a packet into its answer, and what the client makes of what comes back."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.conntrack import LOOSE
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import symptom_of
from ktp.dataplane.packet import Packet, endpoint_text
from ktp.dataplane.state import Delivery, Refusal, State
from ktp.dataplane.walk.context import Leaf, Walk
from ktp.dataplane.walk.doors import AnswerOut, PreRouting
from ktp.dataplane.walk.ends import end_unknown, ended
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.trace import Disposition, Symptom


def answer_arrives(walk: Walk, state: State, host: Host | None) -> None:
    """The answer, or the error, is at the client: does the client take it for its own?"""
    p = state.packet
    client = state.client
    if p.inner is not None:
        src, _, dst, dport, _ = p.inner
        known = src == client.ip and dst == client.dst and dport == client.dport
    else:
        known = p.src == client.dst and p.sport == client.dport and p.dst == client.ip
    if state.direction == "error":
        _error_arrived(walk, state, known)
        return
    if known and state.later is not None:
        _walk_later(walk, state, host, state.later)
        return
    if known:
        delivered(walk, state, host, "")
        return
    shown = endpoint_text(p.family, p.src, p.sport)
    wanted = endpoint_text(p.family, client.dst, client.dport)
    d = state.delivery
    assert isinstance(d, Delivery)
    ended(
        walk, state, Disposition.LOST, Symptom.TIMES_OUT,
        f"the answer of {d.name or endpoint_text(p.family, d.ip, d.port)} comes back by a way on which no node "
        f"undoes the translation: the client asked {wanted}, is answered by {shown}, and does not know it",
        host, "conntrack",
    )  # fmt: skip


def _walk_later(walk: Walk, state: State, host: Host | None, answer: Packet) -> None:
    """The handshake ends well. What the server sends next is no SYN-ACK: to conntrack, which knows nothing of the
    connection, it is NEW, and rules that let the SYN-ACK pass as INVALID may stop it.
    """
    assert state.served is not None
    node = walk.places.named(state.served.node)
    assert node is not None

    def send(aside: Walk) -> None:
        each = state.fork()
        each.later, each.steps, each.packet = None, None, answer.copy()
        each.packet.tcp_flags = pk.ACK
        each.arrived = each.packet.copy()
        aside.go(PreRouting(each, node) if answer.iif is not None else AnswerOut(each, node))

    for leaf in walk.aside(send):
        each = leaf.state
        if leaf.symptom is Symptom.CONNECTS and _is_opened_in_vain(state, node):
            # Seen in Linux 6.1: its next segment is INVALID to that entry, which saw no SYN-ACK, and a new connection
            # where IPVS sends it on: nat may change it, and the server then answers with a reset.
            why = "IPVS took the request from an entry of conntrack's; what follows the handshake is not modelled"
            end_unknown(walk, each, node.name, why)
        elif leaf.symptom is Symptom.CONNECTS:
            each.hops, each.steps, each.arrived, each.packet = (
                state.hops, state.steps, state.arrived, state.packet,
            )  # fmt: skip
            delivered(walk, each, host, "")
        elif leaf.symptom is Symptom.UNKNOWN:
            walk.end(leaf)
        else:
            if node.sysctl(LOOSE) is None:
                taken = f"{LOOSE} is 1, the kernel's default"
                each.assume(Assumption(taken, EvidenceKind.SYSCTLS, node.name))
            what = "an older entry of conntrack's" if state.served.tracked else "no entry of conntrack's"
            why = (
                f"IPVS with {what}: the handshake ends well, and then nothing more of the server's arrives, for its "
                f"next packets are NEW to conntrack: {leaf.reason}"
            )
            end_unknown(walk, each, leaf.node, why, step=leaf.step)


def _is_opened_in_vain(state: State, node: Host) -> bool:
    """Whether the node has an entry for what the client dialled: its request had gone by lo before IPVS took it."""
    dialled = (state.client.ip, state.client.dst, state.client.dport)
    return any((c.osrc, c.odst, c.odport) == dialled for c in state.conns if c.node == node.name)


def _error_arrived(walk: Walk, state: State, known: bool) -> None:
    refused = state.delivery
    assert isinstance(refused, Refusal)
    lost = "; the error that says so reaches the client in a form that it does not take for its own"
    walk.end(
        Leaf(
            state,
            refused.disposition,
            symptom_of(refused.error, refused.protocol) if known else Symptom.TIMES_OUT,
            refused.reason if known else refused.reason + lost,
            refused.step,
            refused.node,
            refused.cause,
            refused.pod,
        )
    )
    state.delivery = None


def delivered(walk: Walk, state: State, host: Host | None, note: str) -> None:
    """The client has its answer; `note` says what was not followed on the way."""
    d = state.delivery
    assert isinstance(d, Delivery)
    name = d.name or endpoint_text(d.family, d.ip, d.port)
    if note:
        state.assume(Assumption(note, EvidenceKind.ROUTES, host.name if host is not None else ""))
    if d.process:
        what = "kube-proxy's own socket, which never answers" if d.silent else "a process of the node"
        ended(
            walk,
            state,
            Disposition.HOST_PROCESS,
            Symptom.CONNECTS,
            f"{what} takes it on {d.node}",
            host,
            "socket",
        )
    else:
        ended(walk, state, Disposition.DELIVERED, Symptom.CONNECTS, f"delivered to {name}", host, "")


def reply_of(p: Packet) -> Packet:
    """The packet that answers `p`."""
    reply = Packet(p.family, p.proto, p.dst, p.src, p.dport, p.sport)
    reply.reply = True
    reply.tcp_flags = pk.SYN | pk.ACK
    return reply


def turn(state: State, packet: Packet, direction: str) -> None:
    """From here the walk follows `packet`, a reply or an error."""
    packet.length = state.answer_length if direction == "reply" else None
    state.packet = packet
    state.direction = direction
    state.arrived = packet.copy()
    state.steps = None
    state.seen_nodes = 0
