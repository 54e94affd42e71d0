"""A node's own sockets: one takes the packet and answers, or the stack refuses."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import TCP, Packet, endpoint_text, to_text
from ktp.dataplane.routing import Lookup
from ktp.dataplane.state import Delivery, State
from ktp.dataplane.walk.answers import answer_arrives, reply_of, turn
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import AnswerOut
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended, lost
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.routes import source_for
from ktp.dataplane.walk.through import local_out
from ktp.dataplane.walk.unread import port_number
from ktp.dataplane.walk.xfrm import lets_in
from ktp.model.assumption import PROGRAM_LISTENS, Assumption, EvidenceKind
from ktp.model.effect import Drop, Note
from ktp.model.host import ListeningSocket, NextHop
from ktp.model.trace import Disposition, StepKind, Symptom


def deliver(walk: Walk, state: State, host: Host) -> None:
    """The packet is for the node itself: a process takes it or the stack refuses."""
    p = state.packet
    if not lets_in(walk, state, host, "in"):
        return
    if p.reply:
        close_hop(state, host)
        if state.client.node == host.name and not state.client.pod:
            answer_arrives(walk, state, host)
        else:
            ended(
                walk, state, Disposition.LOST, Symptom.TIMES_OUT,
                f"the answer ends at {host.name}, which knows no connection it belongs to", host, "conntrack",
            )  # fmt: skip
        return
    if walk.one_way:
        ended(walk, state, Disposition.DELIVERED, Symptom.CONNECTS, f"it comes to {host.name}", host, "")
        return
    if walk.echo is not None:
        state.delivery = Delivery(p.dst, p.dport, None, host.name, p.src, p.family)
        _answer(walk, state, host, walk.echo)
        return
    name = walk.topology.processes.get((host.name, p.proto, port_number(p.dport)))
    socket = host.listener(p.family, p.proto, p.dst, p.dport, p.iif)
    where = endpoint_text(p.family, p.dst, p.dport)
    proto = pk.PROTOCOL_NAMES.get(p.proto, str(p.proto))
    if socket is None and host.pod:
        state.assume(PROGRAM_LISTENS)
    elif socket is None and name is None:
        # Most ports have no listener, and kube-proxy since 1.24 holds none. The answer says what it stands on.
        state.assume(
            Assumption(
                f"no process of the node listens on {where}/{proto} (its sockets were not read)",
                EvidenceKind.SOCKETS,
                host.name,
            )
        )
        socket = False
    if socket is False:
        what = "nothing in" if host.pod else "no process of"
        step = state.note(
            StepKind.SOCKET, Note(f"{what} {host.name} listens on {where}/{proto}"), hook="LOCAL"
        )
        kind = (
            "tcp-reset"
            if p.proto == TCP
            else "icmp-port-unreachable"
            if p.family == 4
            else "icmp6-port-unreachable"
        )
        if p.proto == pk.SCTP:
            kind = "tcp-reset"  # an ABORT, with the same effect
        send_error(
            walk,
            state,
            host,
            kind,
            Disposition.NO_LISTENER,
            f"nothing {'in' if host.pod else 'on'} {host.name} listens on {where}/{proto}",
            step,
            "socket",
        )
        return
    if p.proto == TCP and isinstance(socket, ListeningSocket) and host.is_queue_full(socket):
        # tcp_conn_request drops the SYN before anything else is made of it; so does a client's own kernel.
        why = f"the accept queue of {where}/{proto} {'in' if host.pod else 'on'} {host.name} is full"
        step = state.note(StepKind.SOCKET, Drop(), hook="LOCAL", text=why)
        ended(walk, state, Disposition.DROPPED, Symptom.TIMES_OUT, why, host, "socket", step)
        return
    if host.pod:
        state.note(
            StepKind.SOCKET, Note(f"a program in {host.name} listens on {where}/{proto}"), hook="LOCAL"
        )
        _answer(walk, state, host)
        return
    silent = name is None and (host.name, p.proto, port_number(p.dport)) in walk.topology.silent
    state.note(StepKind.SOCKET, Note(f"a process of {host.name} listens on {where}/{proto}"), hook="LOCAL")
    state.delivery = Delivery(
        p.dst, p.dport, name, host.name, p.src, p.family, process=name is None, silent=silent
    )
    if silent and p.proto != TCP:
        close_hop(state, host)
        ended(
            walk, state, Disposition.HOST_PROCESS, Symptom.TIMES_OUT,
            f"kube-proxy on {host.name} holds the port {where}/{proto} and never answers", host, "socket",
        )  # fmt: skip
        return
    _answer(walk, state, host)


def _answer(walk: Walk, state: State, host: Host, mark: int = 0) -> None:
    """A socket here takes the packet, and its stack answers."""
    reply = reply_of(state.packet)
    reply.local, reply.mark = True, mark
    close_hop(state, host)
    turn(state, reply, "reply")
    walk.go(AnswerOut(state, host))


def answer_out(walk: Walk, state: State, host: Host) -> None:
    """The node itself sends the answer or the error."""
    p = state.packet
    if not host.has_network:
        found = (
            Lookup("local", table="local")
            if host.is_local(p.family, p.dst)
            else Lookup("unicast", hops=(NextHop(dev="?"),))
        )
    else:
        found = host.route(p, iif="lo")
        if host.pod and p.proto == pk.UDP and state.direction == "reply" and _chooses(host, p, found):
            why = f"the program in {host.name} may answer from another address than was asked (IP_PKTINFO)"
            end_unknown(walk, state, host.name, why)
            return
    if found.type not in ("unicast", "local"):
        lost(walk, state, host, f"{host.name} has no route back to {to_text(p.family, p.dst)}", "route")
        return
    if p.src == 0:
        p.src = source_for(host, p, found) or 0
    state.arrived = p.copy()
    local_out(walk, state, host, found)


def _chooses(host: Host, p: Packet, found: Lookup) -> bool:
    """Whether a datagram goes another way while its socket, bound to no address, has not chosen the source yet."""
    socket = host.listener(p.family, p.proto, p.src, p.sport, None)
    if isinstance(socket, ListeningSocket) and socket.ip is not None:
        return False
    unbound = p.copy()
    unbound.src = 0
    return host.route(unbound, iif="lo").hops != found.hops
