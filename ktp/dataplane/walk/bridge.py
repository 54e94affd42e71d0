"""Packets that stay on a bridge, and pass iptables there (net/bridge/br_netfilter_hooks.c)."""

from __future__ import annotations

from ktp.dataplane.hooks import FORWARD, PREROUTING
from ktp.dataplane.host import Host
from ktp.dataplane.state import State
from ktp.dataplane.topology import Attached
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.doors import BridgeForward, PostRouting, Reach, RouteIn
from ktp.dataplane.walk.ends import close_hop, goes_round
from ktp.dataplane.walk.links import bridge_filters
from ktp.dataplane.walk.verdicts import passed, run_hook
from ktp.model.effect import Note
from ktp.model.host import NextHop
from ktp.model.trace import StepKind


def bridged(walk: Walk, state: State, host: Host, bridge: str, target: Attached) -> None:
    """Pod to pod over the bridge, without routing."""
    p = state.packet
    if not bridge_filters(state, host, p.family):
        state.arrived = p.copy()
        close_hop(state, host)
        walk.go(Reach(state, host, target))
        return
    if goes_round(walk, state, host):
        return
    p.come_in(bridge)
    p.physin = "?"
    state.arrived = p.copy()
    state.steps = None
    before = p.dst
    for verdict in run_hook(walk, state, host, PREROUTING):
        if not passed(walk, verdict, host, PREROUTING):
            continue
        each = verdict.state
        if each.packet.dst == before:
            walk.go(BridgeForward(each, host, bridge))
        else:
            walk.go(RouteIn(each, host))


def bridge_forward(walk: Walk, state: State, host: Host, bridge: str) -> None:
    """From one port of a bridge to another."""
    p = state.packet
    p.iif = p.oif = bridge
    p.physin = p.physout = "?"
    p.bridged = True
    state.hop = NextHop(dev=bridge)
    state.note(StepKind.ROUTE, Note(f"stays on the bridge {bridge}"), hook="BRIDGE")
    for verdict in run_hook(walk, state, host, FORWARD):
        if passed(walk, verdict, host, FORWARD):
            walk.go(PostRouting(verdict.state, host))
