"""Whom a WireGuard device sends to, and who takes it there (drivers/net/wireguard: allowedips.c, receive.c)."""

from __future__ import annotations

from ipaddress import ip_address

from ktp.dataplane.packet import to_text
from ktp.dataplane.tunnel import WIREGUARD
from ktp.model.host import NodeState
from ktp.model.tunnel import TunnelDevice, TunnelFault, Wireguard, WireguardPeer


def peer_of(device: Wireguard, family: int, address: int) -> WireguardPeer | None:
    """The peer that an address belongs to: that of the longest allowed IP with it."""
    ip = ip_address(to_text(family, address))
    found = [
        (net.prefixlen, peer)
        for peer in device.peers
        for net in peer.allowed
        if net.version == family and ip in net
    ]
    return max(found, key=lambda each: each[0])[1] if found else None


def peer_with(device: Wireguard, key: str) -> WireguardPeer | None:
    """The peer of a public key."""
    return next((peer for peer in device.peers if peer.public_key == key), None)


def taker(
    state: NodeState, own: Wireguard, peer: WireguardPeer, port: int | None, family: int, source: int
) -> tuple[TunnelDevice | None, TunnelFault | None]:
    """The device of a node that decrypts what `own` sends to `peer`, with `source` in it, or why none does.

    `port` is where the packets go, None where that was found out by packets from there. Neither where WireGuard was not
    read of the node.
    """
    devices = [t for t in (state.tunnels or {}).values() if t.kind == WIREGUARD]
    if state.tunnels is None or any(t.wireguard is None for t in devices):
        return None, None
    for device in devices:
        far = device.wireguard
        if far is None or (far.port != port if port is not None else far.public_key != peer.public_key):
            continue
        back = peer_with(far, own.public_key)
        if not device.is_up:  # wg_stop closes its socket
            return None, TunnelFault.DEVICE_DOWN
        if back is None or far.public_key != peer.public_key:
            return None, TunnelFault.KEYS_DIFFER
        if peer_of(far, family, source) is not back:
            return None, TunnelFault.NOT_ALLOWED
        return device, None
    return None, TunnelFault.OTHER_PORT if devices else TunnelFault.NO_DEVICE
