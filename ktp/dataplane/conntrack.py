"""Connection tracking (nf_conntrack_core.c): a packet's entry, and what nat made of it taken back in the answer."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import TCP, Conn, Packet
from ktp.dataplane.state import State
from ktp.dataplane.xtables import translation
from ktp.model.effect import Endpoint, Nat, Note, PortsTaken
from ktp.model.passing import TrackedConnection
from ktp.model.trace import StepKind


def remembered(node: str, found: TrackedConnection) -> Conn:
    """An entry that the node has already. nat is not asked of it any more, translated or not (nf_nat_setup_info)."""
    there, back = found.original, found.reply
    opening = Packet(
        there.src.version,
        pk.PROTOCOLS[found.protocol],
        int(there.src),
        int(there.dst),
        there.sport,
        there.dport,
    )
    conn = Conn(node, opening)
    conn.src, conn.sport, conn.dst, conn.dport = int(back.dst), back.dport, int(back.src), back.sport
    conn.snat = (conn.src, conn.sport) != (conn.osrc, conn.osport)
    conn.dnat = (conn.dst, conn.dport) != (conn.odst, conn.odport)
    conn.observed = conn.confirmed = conn.dst_done = conn.src_done = True
    conn.seen_reply = found.is_answered
    return conn


LOOSE = "net.netfilter.nf_conntrack_tcp_loose"


def picks_up(host: Host) -> bool:
    """Whether a segment in the midst of a connection makes an entry (tcp_new); unread, the kernel's default."""
    return host.sysctl(LOOSE) != 0


def track(state: State, host: Host) -> None:
    """nf_conntrack_in: find or make the packet's connection."""
    p = state.packet
    if p.ct is not None or p.ctstate == pk.UNTRACKED:
        return
    mine = [c for c in state.conns if c.node == host.name]
    if p.inner is not None and p.icmp is not None:
        src, sport, dst, dport, proto = p.inner
        for conn in reversed(mine):
            if (conn.src, conn.sport, conn.dst, conn.dport, conn.proto) == (
                src,
                sport,
                dst,
                dport,
                proto,
            ):
                p.ct, p.ctstate = conn.copy(), pk.RELATED
                return
            if (conn.dst, conn.dport, conn.src, conn.sport, conn.proto) == (src, sport, dst, dport, proto):
                # About an answer, on its way to who gave it.
                p.ct, p.ctstate = conn.copy(), pk.RELATED
                p.ct.dport, p.ct.sport = p.dport, p.sport
                if not conn.snat:
                    p.ct.src = p.src
                return
        p.ctstate = pk.INVALID
        return
    if p.reply:
        for conn in reversed(mine):
            if conn.is_reply(p):
                p.ct, p.ctstate = conn.copy(), pk.ESTABLISHED
                p.ct.seen_reply = True
                return
        if p.proto == TCP and (p.tcp_flags & (pk.SYN | pk.RST) or not picks_up(host)):
            # tcp_new: a SYN-ACK or RST does not open a connection
            p.ctstate = pk.INVALID
            state.note(
                StepKind.CONNTRACK,
                Note("INVALID: this node has seen no connection that the answer belongs to"),
                hook="CONNTRACK",
            )
            return
    else:
        for conn in reversed(mine):
            if conn.is_original(p):
                p.ct, p.ctstate = conn.copy(), pk.ESTABLISHED if conn.seen_reply else pk.NEW
                if conn.observed:
                    entry = Note(
                        "the node tracks this connection already: its entry decides, and no rule of nat"
                    )
                    state.note(StepKind.CONNTRACK, entry, hook="CONNTRACK")
                return
    p.ct, p.ctstate = Conn(host.name, p), pk.NEW


def translate_back(state: State, hook: str, destination: bool) -> None:
    """nf_nat_packet and nf_nat_icmp_reply_translation, reply direction."""
    p = state.packet
    ct = p.ct
    assert ct is not None
    if destination:
        if ct.snat:
            before = p.dst, p.dport
            p.dst = ct.osrc
            if p.inner is None or p.icmp is None:
                p.dport = ct.osport
            effect = translation(Nat.SOURCE_UNDONE, p.family, before, (p.dst, p.dport))
            state.note(StepKind.NAT, effect, hook=hook, table="nat")
        if p.inner is not None:
            _, _, dst, dport, proto = p.inner
            p.inner = (ct.osrc, ct.osport, dst, dport, proto)
    else:
        if ct.dnat:
            before = p.src, p.sport
            p.src = ct.odst
            if p.inner is None or p.icmp is None:
                p.sport = ct.odport
            effect = translation(Nat.DESTINATION_UNDONE, p.family, before, (p.src, p.sport))
            state.note(StepKind.NAT, effect, hook=hook, table="nat")
        if p.inner is not None and ct.dnat:
            src, sport, _, _, proto = p.inner
            p.inner = (src, sport, ct.odst, ct.odport, proto)


# Where a rule names no ports, nat keeps a source port within its class (nf_nat_l4proto_unique_tuple).
_CLASSES = ((1, 511), (600, 1023), (1024, 65535))
_MANY = 0.9


def ports_taken(state: State, host: Host) -> PortsTaken | None:
    """How many source ports are taken of those that nat may give this connection; None where there are many left.

    A tuple is unique with its destination: ports towards other endpoints do not count (nf_nat_used_tuple). Where none
    is left __nf_conntrack_confirm drops the packet, and counts insert_failed.
    """
    ct = state.packet.ct
    if ct is None or ct.confirmed or not ct.snat or not isinstance(ct.dport, int) or not host.state.tracked:
        return None
    protocol = pk.PROTOCOL_NAMES[ct.proto]
    low, high = _given_ports(ct)
    taken = {
        port: goes_on
        for port, goes_on in host.taken_ports((protocol, ct.src, ct.dst, ct.dport)).items()
        if low <= port <= high
    }
    number = high - low + 1
    if len(taken) <= _MANY * number:
        return None
    family = state.packet.family
    source, to = pk.to_text(family, ct.src), Endpoint(pk.to_text(family, ct.dst), ct.dport)
    words = (
        f"{len(taken)} of the {number} source ports that {source} may have towards "
        f"{pk.endpoint_text(family, ct.dst, ct.dport)} are taken"
    )
    may_be_left = len(taken) < number or not all(taken.values())
    return PortsTaken(protocol, source, to, len(taken), number, may_be_left, words)


def _given_ports(ct: Conn) -> tuple[int, int]:
    """The ports that nat may give: a rule's, or those of the class of the port that the connection has."""
    if ct.sport != ct.osport:
        return ct.sport if isinstance(ct.sport, tuple) else (ct.sport, ct.sport)
    port = ct.sport[0] if isinstance(ct.sport, tuple) else ct.sport
    return next((low, high) for low, high in _CLASSES if port <= high or high == _CLASSES[-1][1])


def confirm(state: State) -> None:
    """nf_conntrack_confirm: the entry stands from now on."""
    ct = state.packet.ct
    if ct is not None and not ct.confirmed:
        ct.confirmed = True
        state.conns = (*state.conns, ct)
