"""Connection tracking (nf_conntrack_core.c): a packet's entry, and what nat made of it taken back in the answer."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.packet import TCP, Conn, Packet
from ktp.dataplane.state import State
from ktp.dataplane.xtables import translation
from ktp.model.effect import Nat, Note
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


def confirm(state: State) -> None:
    """nf_conntrack_confirm: the entry stands from now on."""
    ct = state.packet.ct
    if ct is not None and not ct.confirmed:
        ct.confirmed = True
        state.conns = (*state.conns, ct)
