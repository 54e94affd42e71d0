"""Routing decisions of a node (net/ipv4/route.c, net/ipv6/route.c)."""

from __future__ import annotations

from ktp.dataplane.hooks import OUTPUT
from ktp.dataplane.host import Host
from ktp.dataplane.icmp import send_symptom
from ktp.dataplane.packet import Packet, to_text
from ktp.dataplane.routing import Lookup
from ktp.dataplane.state import RANDOM, Decision, State
from ktp.dataplane.walk.context import Walk
from ktp.dataplane.walk.ends import end_unknown, ended, lost
from ktp.model.effect import Note
from ktp.model.host import NextHop
from ktp.model.trace import Disposition, StepKind, Symptom


def first_route(walk: Walk, state: State, host: Host, src: int | None) -> Lookup | None:
    """A process's first route, where it chose no source (`src` None) asked for without one; None where the way ends."""
    p = state.packet
    if not host.has_network:
        return (
            Lookup("local", table="local")
            if host.is_local(p.family, p.dst)
            else Lookup("unicast", hops=(NextHop(dev="?"),))
        )
    found = host.route(p, iif="lo", src=src or 0)
    if found.type == "unknown":
        end_unknown(walk, state, host.name, found.unknown or "routing is unknown")
        return None
    if found.type in ("unreachable", "hostunreach", "prohibit", "blackhole"):
        ended(
            walk, state, Disposition.LOST, Symptom.UNREACHABLE,
            f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})", host, "route",
        )  # fmt: skip
        return None
    return found


def source_for(host: Host, p: Packet, found: Lookup) -> int | None:
    """The address from which the node sends by a route, None where it has none, or none that was read."""
    route = found.route
    if route is not None and route.prefsrc is not None and route.prefsrc.version == p.family:
        return int(route.prefsrc)
    if found.type == "local":
        return p.dst
    hop = found.hops[0] if found.hops else NextHop()
    if not host.has_network:
        return None
    toward = int(hop.gateway) if hop.gateway is not None and hop.gateway.version == p.family else p.dst
    scope = route.scope if route is not None else "global"
    if p.family == 6:
        toward = p.dst
    return host.select_source(p.family, hop.dev, toward, scope)


def limit_own(p: Packet, host: Host, found: Lookup, device: str | None) -> None:
    """A socket of `host` sends what its route takes: it knows that at once, and whether the route's MTU is locked."""
    if p.length is None or (limit := host.mtu(found.route, device)) is None:
        return
    p.length = min(p.length, limit)
    p.locks_mtu = found.route is not None and bool(found.route.mtu_locked)


def martian(host: Host, p: Packet, iif: str) -> str | None:
    """Why an address must not come by `iif` (martian, ip_route_input_slow), None where all is well."""
    if p.src >> 28 == 0xE or p.src in (0xFFFFFFFF, 0):
        return f"{to_text(4, p.src)} is no source address (martian source)"
    if (p.src >> 24 == 127 or p.dst >> 24 == 127) and not host.conf("ipv4", iif, "route_localnet"):
        which = "source" if p.src >> 24 == 127 else "destination"
        return (
            f"{host.name} drops packets with a loopback {which} from {iif} (martian; "
            "net.ipv4.conf.all.route_localnet = 0)"
        )
    return None


def does_forward(host: Host, family: int, iif: str) -> bool:
    """Whether what comes in by `iif` may be routed on."""
    if family == 6:
        value = host.sysctl("net.ipv6.conf.all.forwarding")
        return value is None or bool(value)
    return bool(host.conf("ipv4", iif, "forwarding"))


def choose_hop(state: State, found: Lookup) -> list[tuple[State, NextHop]]:
    """The ways by the next hops of a route, each with its chance by weight."""
    if len(found.hops) == 1:
        return [(state, found.hops[0])]
    total = sum(h.weight for h in found.hops)
    out = []
    for number, hop in enumerate(found.hops):
        each = state.fork() if number + 1 < len(found.hops) else state
        out.append((each, hop))
    for number, (each, hop) in enumerate(out):
        each.decide(
            Decision(RANDOM, ("multipath", id(found.route)), number, hop.weight / total, "", "", None)
        )
    return out


def leaves_loopback(host: Host, p: Packet, oif: str | None) -> str | None:
    """Why a packet from a loopback address may not leave by `oif`, None where it may."""
    # __mkroute_output: a loopback source may leave by another interface with route_localnet only
    if p.family == 4 and p.src >> 24 == 127 and oif not in ("lo", "?") and host.has_network:
        if not host.conf("ipv4", oif or "", "route_localnet"):
            return (
                f"{host.name} does not let a packet from {to_text(4, p.src)} out "
                "(net.ipv4.conf.all.route_localnet = 0)"
            )
    return None


def reroute(walk: Walk, state: State, host: Host) -> bool:
    """ip_route_me_harder: route again after OUTPUT changed the packet. False where it is dropped."""
    p = state.packet
    # The rest of OUTPUT still sees the first route's interface (nf_hook_state.out); POSTROUTING the new one.
    if not host.has_network:
        state.hop = NextHop(dev="lo" if host.is_local(p.family, p.dst) else "?")
        return True
    found = host.route(p, iif="lo")
    if found.type == "unknown":
        end_unknown(walk, state, host.name, found.unknown or "routing is unknown")
        return False
    if found.type not in ("unicast", "local") or (found.type == "unicast" and not found.hops):
        lost(
            walk, state, host, f"{host.name} has no route to {to_text(p.family, p.dst)} ({found.type})", "route",
            symptom=send_symptom(p, OUTPUT),
        )  # fmt: skip
        return False
    local = found.type == "local" or not found.hops
    state.hop = hop = NextHop(dev="lo") if local else found.hops[0]
    state.note(
        StepKind.ROUTE,
        Note("for this node" if local else hop_words(hop)),
        hook="ROUTING",
        text=route_text(found),
    )
    why = leaves_loopback(host, p, hop.dev)
    if why is not None:
        lost(walk, state, host, why, "sysctl", symptom=send_symptom(p, OUTPUT))
        return False
    return True


def hop_words(hop: NextHop) -> str:
    """A next hop as steps have it."""
    return f"out by {hop.dev}" + (f" to {hop.gateway}" if hop.gateway is not None else "")


def route_text(found: Lookup) -> str:
    """A route as steps have it, "" where there is none."""
    route = found.route
    if route is None:
        return ""
    dst = "default" if route.dst.prefixlen == 0 else str(route.dst)
    return " ".join(
        [
            *([route.type] if route.type != "unicast" else []),
            dst,
            *(hop_words(h)[7:] for h in found.hops[:1]),
        ]
    )
