"""Where a tunnel's packets go (drivers/net/vxlan, net/ipv4/ip_tunnel.c): its far end, and the device there."""

from __future__ import annotations

from ipaddress import ip_address

from ktp.dataplane.packet import to_text
from ktp.model.host import NodeState
from ktp.model.tunnel import IPAddress, TunnelDevice, TunnelFault

WIREGUARD = "wireguard"
BY_IPSEC = frozenset(("xfrm", "vti", "vti6"))
# IPv4 in IPv4 without a fixed far end: the route's next hop is its address (ip_tunnel_xmit).
_BY_NEXT_HOP = frozenset(("ipip", "gre"))


def far_end(
    state: NodeState, tunnel: TunnelDevice, family: int, next_ip: int
) -> IPAddress | TunnelFault | None:
    """The underlay address that a packet for a next hop is sent to; None where what was read does not tell."""
    if tunnel.remote is not None:
        return tunnel.remote
    next_hop = ip_address(to_text(family, next_ip))
    if tunnel.kind in _BY_NEXT_HOP and family == 4:
        return next_hop
    if tunnel.kind != "vxlan" or state.neighbours is None:
        return None
    mac = next((n.mac for n in state.neighbours if (n.device, n.ip) == (tunnel.name, next_hop)), None)
    if mac is None:
        # One that learns asks for the address, which takes a moment the first time.
        return None if tunnel.learns else TunnelFault.NO_NEIGHBOUR
    if state.forwarding is None:
        return None
    ends = [e.to for e in state.forwarding if e.device == tunnel.name and e.mac == mac]
    if ends:
        return ends[0]
    return None if tunnel.learns else TunnelFault.NO_FORWARDING_ENTRY


def device_of(state: NodeState, tunnel: TunnelDevice) -> tuple[str | None, TunnelFault | None]:
    """The device of the far end that takes the packets (by kind, VNI and port), or why none does."""
    if state.tunnels is None:
        return None, None
    alike = [
        t
        for t in state.tunnels.values()
        if t.kind == tunnel.kind
        and (t.is_external or t.kind == WIREGUARD or (t.number, t.port) == (tunnel.number, tunnel.port))
    ]
    if not alike:
        return None, TunnelFault.NO_DEVICE
    up = [t for t in alike if t.is_up]
    return (up[0].name, None) if up else (None, TunnelFault.DEVICE_DOWN)
