"""IPVS at a hook: a packet is given to a real server, an answer of one comes from the virtual server again."""

from __future__ import annotations

from ktp.dataplane import packet as pk
from ktp.dataplane.hooks import FORWARD, OUTPUT
from ktp.dataplane.host import Host
from ktp.dataplane.ipvs import Scheduled
from ktp.dataplane.packet import to_text
from ktp.dataplane.state import (
    ACCEPT,
    DROP,
    IPVS,
    RANDOM,
    REJECT,
    UNKNOWN,
    Decision,
    Served,
    State,
    StepRecord,
    Verdict,
)
from ktp.dataplane.xtables import translation
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.effect import Effect, Nat, Note, Refuse, Unmodelled
from ktp.model.trace import StepKind


def serve(state: State, host: Host, hook: str) -> list[Verdict]:
    """ip_vs_in: a packet to a virtual server goes to one of its real servers; without any it is refused."""
    p = state.packet
    servers = host.virtual_servers
    if state.direction != "request":
        step = _undo_ipvs(state, host, hook)
        if step is not None and p.ct is not None and p.ctstate & pk.NEW:
            if _is_clash(state, host):
                # Seen in Linux 6.1: the entry of a request that came back by lo stood before IPVS took it.
                why = "conntrack has the request's connection for the answer's addresses, and nat gives it another port"
                return [Verdict(DROP, state, why, step)]
            p.ct.src, p.ct.sport = p.src, p.sport
        if (
            step is not None
            and p.family == 6
            and p.icmp is not None
            and p.local
            and p.ct is None
            and hook == OUTPUT
        ):
            # handle_response_icmp checks it without the pseudo-header that ICMPv6 sums up (seen in Linux 6.1), unless
            # nat, which asks conntrack's entry, found it right before.
            why = "IPVS without conntrack takes the checksum of the node's own ICMPv6 error for wrong"
            return [Verdict(DROP, state, why, step)]
        return [Verdict(ACCEPT, state)]
    if p.ipvs_property or p.reply or hook == FORWARD:
        return [Verdict(ACCEPT, state)]
    if host.state.ipvs_unread and host.is_local(p.family, p.dst):
        if not host.listener(p.family, p.proto, p.dst, p.dport, p.iif):
            why = f"the virtual servers of IPVS on {host.name} were not read (ipvsadm -Sn)"
            step = state.note(StepKind.RULE, Unmodelled("IPVS"), hook=hook, table="ipvs", backend="ipvs")
            return [Verdict(UNKNOWN, state, why, step)]
    if servers is None:
        return [Verdict(ACCEPT, state)]
    found = servers.schedule(p)
    if found is None:
        return [Verdict(ACCEPT, state)]
    for assumption in found.assumptions:
        state.assume(assumption)
    if not found.choices:
        return [_no_real_server(state, hook, found)]
    by_conntrack = _is_ipvs_tracked(state, host)
    out: list[Verdict] = []
    for number, (server, chance) in enumerate(found.choices):
        each = state.fork() if number + 1 < len(found.choices) else state
        if len(found.choices) > 1:
            each.decide(Decision(RANDOM, ("ipvs", found.text), number, chance, "", "", None))
        if server is None:
            out.append(_no_real_server(each, hook, found))
            continue
        q = each.packet
        before = q.dst, q.dport
        # ip_vs_schedule: port 0 is the one that was dialled
        real = int(server.ip), server.port or q.dport
        q.ipvs = pk.IpvsConn(
            (q.src, q.sport), before, real, server.method, found.server.persistent is not None
        )
        q.ipvs_property = True
        rewrites = server.method == "masq"
        effect: Effect
        if not by_conntrack:
            # ip_vs_notrack: from here on the packet has no entry, and nat leaves it alone
            q.ct, q.ctstate = None, pk.UNTRACKED
        if rewrites:
            effect = translation(Nat.IPVS, q.family, before, real)
            q.dst, q.dport = real
            if q.ct is not None and not q.ct.confirmed:
                # ip_vs_update_conntrack: the entry waits for the real server's answer, which nat leaves alone
                q.ct.dst, q.ct.dport = real
                q.ct.dst_done = True
        else:
            effect = Note("sent on unchanged")
        each.served = Served(host.name, before, (q.dst, q.dport), by_conntrack)
        each.nat_step = each.note(
            StepKind.RULE, effect, hook=hook, table="ipvs", text=found.text, backend="ipvs"
        )
        here = host.is_local(q.family, real[0])
        if not rewrites and not here:
            end = to_text(q.family, real[0])
            why = f"whether {end} takes packets for {to_text(q.family, q.dst)} (IPVS -g or -i) was not read"
            out.append(Verdict(UNKNOWN, each, why, each.nat_step))
            continue
        # Behind ip_vs_nat_send_or_cont a packet for this node goes on in its hook, any other begins LOCAL_OUT.
        out.append(Verdict(ACCEPT if here else IPVS, each))
    return out


def _no_real_server(state: State, hook: str, found: Scheduled) -> Verdict:
    kind = "icmp-port-unreachable" if state.packet.family == 4 else "icmp6-port-unreachable"
    step = state.note(StepKind.RULE, Refuse(kind), hook=hook, table="ipvs", text=found.text, backend="ipvs")
    return Verdict(REJECT, state, kind, step)


_CONNTRACK_OF_IPVS = "net.ipv4.vs.conntrack"


def _is_ipvs_tracked(state: State, host: Host) -> bool:
    """Whether IPVS lets conntrack track what it translates (IP_VS_CONN_F_NFCT).

    kube-proxy sets the sysctl (pkg/proxy/ipvs/proxier.go); the kernel's default is 0.
    """
    value = host.sysctl(_CONNTRACK_OF_IPVS)
    if value is None:
        words = f"{_CONNTRACK_OF_IPVS} is 1, as kube-proxy sets it"
        state.assume(Assumption(words, EvidenceKind.SYSCTLS, host.name))
    return value != 0


def _is_clash(state: State, host: Host) -> bool:
    """Whether the node tracks who asked whom for what IPVS has just made an answer, in that connection's own words."""
    p = state.packet
    asked = (p.dst, p.dport, p.src, p.sport)
    return any((c.osrc, c.osport, c.odst, c.odport) == asked for c in state.conns if c.node == host.name)


def _undo_ipvs(state: State, host: Host, hook: str) -> StepRecord | None:
    """handle_response, handle_response_icmp: what a real server answers comes from the virtual one again, so does an
    error about it (ip_vs_nat_icmp). Without conntrack neither is tracked.
    """
    p, served = state.packet, state.served
    if served is None or served.node != host.name or p.ipvs_property:
        return None
    if p.icmp is None:
        if (p.src, p.sport) != served.real:
            return None
        if p.proto == pk.TCP and p.ctstate == pk.INVALID and p.tcp_flags & pk.SYN:
            state.later = state.arrived
        p.src, p.sport = served.virtual
    elif p.inner is None or p.inner[2:4] != served.real:
        return None
    else:
        p.src = served.virtual[0]
    if p.inner is not None:
        p.inner = (*p.inner[:2], *served.virtual, p.inner[4])
    p.ipvs_property = True
    if not served.tracked:
        p.ct, p.ctstate = None, pk.UNTRACKED
    effect = translation(Nat.DESTINATION_UNDONE, p.family, served.real, served.virtual)
    return state.note(StepKind.NAT, effect, hook=hook, table="ipvs", backend="ipvs")
