"""A packet on its way through a node: on to another, to its processes, or from them."""

from __future__ import annotations

from ktp.dataplane.conntrack import confirm, ports_taken
from ktp.dataplane.hooks import FORWARD, INPUT, OUTPUT, POSTROUTING
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import send_symptom
from ktp.dataplane.packet import to_text
from ktp.dataplane.routing import Lookup
from ktp.dataplane.state import IPVS, State
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import Deliver, Emit, Output, PostRouting
from ktp.dataplane.walk.ends import end_unknown, ended, lost
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.links import is_loopback
from ktp.dataplane.walk.routes import choose_hop, hop_words, leaves_loopback, limit_own, route_text
from ktp.dataplane.walk.verdicts import passed, run_hook
from ktp.dataplane.walk.xfrm import lets_in, lets_out
from ktp.model.effect import Note
from ktp.model.host import NextHop
from ktp.model.trace import Disposition, StepKind, Symptom


def forward(walk: Walk, state: State, host: Host, oif: str) -> None:
    """FORWARD, with a TTL one less."""
    p = state.packet
    p.oif = oif
    if not lets_in(walk, state, host, "fwd"):
        return
    if p.ttl <= 1:
        reason = f"the packet's TTL ends at {host.name}"
        step = state.note(StepKind.ROUTE, Note(reason), hook="ROUTING")
        p.oif = None
        kind = "icmp-time-exceeded" if p.family == 4 else "icmp6-time-exceeded"
        send_error(walk, state, host, kind, Disposition.LOST, reason, step, "route")
        return
    p.ttl -= 1
    if not lets_out(walk, state, host):
        return
    for verdict in run_hook(walk, state, host, FORWARD):
        if passed(walk, verdict, host, FORWARD):
            walk.go(PostRouting(verdict.state, host))


def local_in(walk: Walk, state: State, host: Host) -> None:
    """INPUT, then a socket, or a real server of IPVS."""
    p = state.packet
    p.oif = None
    for verdict in run_hook(walk, state, host, INPUT):
        if verdict.code == IPVS:
            _ipvs_out(walk, verdict.state, host)
        elif passed(walk, verdict, host, INPUT):
            confirm(verdict.state)
            walk.go(Deliver(verdict.state, host))


def _ipvs_out(walk: Walk, state: State, host: Host) -> None:
    """ip_vs_nat_xmit: what IPVS took leaves by LOCAL_OUT, from its start, and POSTROUTING.

    __ip_vs_get_out_rt asks for a route to the address alone: neither source nor mark nor ports matter, until nat at
    OUTPUT, where conntrack translates for IPVS, routes it again. Whoever sent the packet is told by ICMP, if at all:
    its own hook has ended (NF_STOLEN).
    """
    p = state.packet
    p.local = False
    if not host.has_network:
        state.hop = NextHop(dev="?")
        walk.go(Output(state, host))
        return
    if is_loopback(p.family, p.src):
        lost(walk, state, host, f"IPVS on {host.name} sends nothing from a loopback address", "route")
        return
    found = host.fib[p.family].lookup(p.dst, iif="lo")
    if found.type == "unknown":
        end_unknown(walk, state, host.name, found.unknown or "routing is unknown")
        return
    if found.type != "unicast" or not found.hops:
        reason = f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})"
        step = state.note(StepKind.ROUTE, Note(reason), hook="ROUTING")
        kind = "icmp-host-unreachable" if p.family == 4 else "icmp6-addr-unreachable"
        send_error(walk, state, host, kind, Disposition.LOST, reason, step, "route")
        return
    if p.ttl <= 1:
        lost(walk, state, host, f"the packet's TTL ends at {host.name}", "route")
        return
    p.ttl -= 1
    for each, hop in choose_hop(state, found):
        each.hop = hop
        each.note(StepKind.ROUTE, Note(hop_words(hop)), hook="ROUTING", text=route_text(found))
        walk.go(Output(each, host))


def output(walk: Walk, state: State, host: Host) -> None:
    """OUTPUT, then POSTROUTING."""
    state.packet.iif, state.packet.oif = None, state.hop.dev if state.hop is not None else None
    for verdict in run_hook(walk, state, host, OUTPUT):
        if verdict.code == IPVS:
            _ipvs_out(walk, verdict.state, host)
        elif passed(walk, verdict, host, OUTPUT):
            walk.go(PostRouting(verdict.state, host))


def local_out(walk: Walk, state: State, host: Host, found: Lookup) -> None:
    """A packet of the node itself: OUTPUT, then POSTROUTING. `found` is its first route."""
    for each, hop in choose_hop(state, found) if found.hops else [(state, NextHop(dev="?"))]:
        each.hop = NextHop(dev="lo") if found.type == "local" else hop
        limit_own(each.packet, host, found, each.hop.dev)
        why = leaves_loopback(host, each.packet, each.hop.dev)
        if why is not None:
            # connect() or sendto() fails with EINVAL
            lost(walk, each, host, why, "sysctl", symptom=Symptom.UNREACHABLE)
            continue
        if each.hop.dev == "lo" or lets_out(walk, each, host):
            walk.go(Output(each, host))


def _finds_port(walk: Walk, state: State, host: Host) -> bool:
    """Whether nat finds a source port for a new connection; where not, its end is recorded."""
    found = ports_taken(state, host)
    if found is None:
        return True
    step = state.note(StepKind.CONNTRACK, found, hook="CONNTRACK")
    if found.taken < found.of:
        return True
    if found.may_be_left:
        why = f"{found.words}, some of them by connections that have ended, whose ports the kernel may give again"
        end_unknown(walk, state, host.name, why)
        return False
    symptom = send_symptom(state.packet, POSTROUTING)
    reason = f"{host.name} drops the packet: {found.words}"
    ended(walk, state, Disposition.DROPPED, symptom, reason, host, "conntrack", step)
    return False


def postrouting(walk: Walk, state: State, host: Host) -> None:
    """POSTROUTING, then out; what conntrack knows of it is confirmed."""
    if state.hop is not None:
        state.packet.oif = state.hop.dev
    for verdict in run_hook(walk, state, host, POSTROUTING):
        if passed(walk, verdict, host, POSTROUTING) and _finds_port(walk, verdict.state, host):
            confirm(verdict.state)
            walk.go(Emit(verdict.state, host))
