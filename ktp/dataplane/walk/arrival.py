"""A packet comes into a node: by a device, from lo, or from a program; it is looked at, and routed."""

from __future__ import annotations

from ktp.dataplane.hooks import PREROUTING
from ktp.dataplane.host import Host
from ktp.dataplane.packet import to_text
from ktp.dataplane.state import State
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import BridgeForward, Forward, LocalIn, PreRouting, RouteIn
from ktp.dataplane.walk.ends import end_unknown, ended, goes_round, lost
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.lengths import fits
from ktp.dataplane.walk.links import bridge_filters, on_bridge
from ktp.dataplane.walk.programs import balance_at_device, onward, undo_balance
from ktp.dataplane.walk.routes import choose_hop, does_forward, hop_words, martian, route_text
from ktp.dataplane.walk.verdicts import passed, run_hook
from ktp.model.effect import Forbid, Note, Setting
from ktp.model.host import NextHop
from ktp.model.trace import Disposition, StepKind, Symptom
from ktp.model.xfrm import SecurityState


def enter(
    walk: Walk,
    state: State,
    host: Host,
    iif: str,
    physin: str | None,
    begun: bool = False,
    mark: int = 0,
    secured: SecurityState | None = None,
) -> None:
    """A packet arrives on an interface of a node; `begun` where a program has seen it there, and set `mark`."""
    p = state.packet
    for each in host.taken[p.family]:
        state.assume(each)
    if goes_round(walk, state, host):
        return
    p.come_in(iif, mark)
    p.secured = secured
    p.physin = physin if physin is not None and bridge_filters(state, host, p.family) else None
    if not begun:
        state.arrived = p.copy()
        state.steps = None
    if p.family == 6 and iif != "lo" and (p.dst == 1 or p.src == 1):
        ended(walk, state, Disposition.LOST, Symptom.TIMES_OUT, "::1 never comes in by a wire", host, "route")
        return
    if host.cilium is not None and host.cilium.has_program(iif):
        if state.direction != "request":
            if undo_balance(state, host):
                onward(walk, state, host)
                return
        elif (found := host.cilium.at_device(p)) is not None:
            balance_at_device(walk, state, host, found)
            return
    walk.go(PreRouting(state, host))


def prerouting(walk: Walk, state: State, host: Host) -> None:
    """PREROUTING, then routing."""
    for verdict in run_hook(walk, state, host, PREROUTING):
        if passed(walk, verdict, host, PREROUTING):
            walk.go(RouteIn(verdict.state, host))


def route_in(walk: Walk, state: State, host: Host) -> None:
    """The routing decision for what came in (ip_route_input_slow, ip6_route_input)."""
    p = state.packet
    iif = p.iif or ""
    if not host.has_network:
        if host.is_local(p.family, p.dst):
            walk.go(LocalIn(state, host))
        else:
            state.hop = NextHop(dev="?")
            walk.go(Forward(state, host, "?"))
        return
    if p.family == 4:
        problem = martian(host, p, iif)
        if problem is not None:
            lost(walk, state, host, problem, "route")
            return
    elif p.dst == 1 and iif != "lo":
        # rt6_need_strict: the route to ::1 is lo's alone, also for an answer translated back to it
        lost(walk, state, host, f"{host.name} has no route for ::1 from {iif}", "route")
        return
    found = host.route(p, iif=iif)
    if found.type == "unknown":
        end_unknown(walk, state, host.name, found.unknown or "routing is unknown")
        return
    forwards = does_forward(host, p.family, iif)
    if found.type in ("local", "anycast") or (found.type == "broadcast" and p.family == 4):
        why = _foul_source(state, host, None)
        if why is not None:
            lost(walk, state, host, f"{host.name} drops the packet: {why}", "sysctl")
            return
        if found.type == "broadcast":
            lost(walk, state, host, f"{to_text(p.family, p.dst)} is a broadcast address", "route")
            return
        state.note(
            StepKind.ROUTE,
            Note(f"for this node ({to_text(p.family, p.dst)} is one of its addresses)"),
            hook="ROUTING",
        )
        walk.go(LocalIn(state, host))
        return
    if (
        p.physin is not None
        and (forwards or p.family == 6)
        and found.hops
        and found.hops[0].dev == iif
        and on_bridge(walk, host, p.family, p.dst, iif)
    ):
        # br_nf_pre_routing_finish: translated to another port of the same bridge, it stays on the bridge. In IPv4
        # the route that is asked for does not lead there where the bridge does not forward.
        walk.go(BridgeForward(state, host, iif))
        return
    if not forwards:
        key = "net.ipv4.ip_forward" if p.family == 4 else "net.ipv6.conf.all.forwarding"
        if p.family == 4 and host.sysctl("net.ipv4.ip_forward"):
            key = f"net.ipv4.conf.{iif}.forwarding"
        reason = f"{host.name} does not forward packets ({key} = 0)"
        step = state.note(StepKind.SYSCTL, Forbid(Setting.FORWARDING, reason), hook="ROUTING")
        lost(walk, state, host, reason, "sysctl", step)
        return
    if found.type in ("unreachable", "hostunreach", "prohibit"):
        kind = {
            (4, "unreachable"): "icmp-net-unreachable",
            (4, "hostunreach"): "icmp-host-unreachable",
            (4, "prohibit"): "icmp-admin-prohibited",
            (6, "unreachable"): "icmp6-no-route",
            (6, "hostunreach"): "icmp6-no-route",
            (6, "prohibit"): "icmp6-adm-prohibited",
        }[p.family, found.type]
        what = "no route" if found.route is None else f"a route of type {found.route.type}"
        step = state.note(
            StepKind.ROUTE, Note(f"{what} to {to_text(p.family, p.dst)}: {kind}"), hook="ROUTING"
        )
        send_error(
            walk,
            state,
            host,
            kind,
            Disposition.LOST,
            f"{host.name} has {what} to {to_text(p.family, p.dst)}",
            step,
            "route",
        )
        return
    if found.type != "unicast" or not found.hops:
        lost(
            walk,
            state,
            host,
            f"{host.name} has only a {found.type} route to {to_text(p.family, p.dst)}",
            "route",
        )
        return
    why = _foul_source(state, host, found.hops[0].dev)
    if why is not None:
        lost(walk, state, host, f"{host.name} drops the packet: {why}", "sysctl")
        return
    for each, hop in choose_hop(state, found):
        each.note(StepKind.ROUTE, Note(hop_words(hop)), hook="ROUTING", text=route_text(found))
        each.hop = hop
        if each.packet.length is None or fits(walk, each, host, host.mtu(found.route, hop.dev)):
            walk.go(Forward(each, host, hop.dev or "?"))


def _foul_source(state: State, host: Host, oif: str | None) -> str | None:
    """Why it is dropped for its source; not asked of what came out of IPsec (secpath_exists)."""
    p = state.packet
    return host.validate_source(p, p.iif or "", oif) if p.secured is None else None


def loop_back(walk: Walk, state: State, host: Host) -> None:
    """Out by lo and in again: the packet keeps its connection and its route (loopback_xmit)."""
    p = state.packet
    p.iif, p.oif = "lo", None
    for verdict in run_hook(walk, state, host, PREROUTING):
        if passed(walk, verdict, host, PREROUTING):
            walk.go(LocalIn(verdict.state, host))
