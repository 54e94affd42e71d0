"""Tunnel devices of a node, and who is behind them (`ip -j -d link`, `ip -j neigh`, `bridge -j fdb`, `wg show`)."""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ktp.model.record import dataclass

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class TunnelFault(str, Enum):
    """Why a packet that a route sends into a tunnel does not come out of it."""

    NO_NEIGHBOUR = "no neighbour entry"
    NO_FORWARDING_ENTRY = "no forwarding entry"
    NO_SUCH_PEER = "no node has the far end's address"
    NO_DEVICE = "no such tunnel at the far end"
    DEVICE_DOWN = "the tunnel at the far end is down"
    LOOP = "its own packets are routed into it"
    NO_PEER = "no peer has the address among its allowed IPs"
    NO_ENDPOINT = "its peer has no endpoint"
    OTHER_PORT = "nothing of WireGuard listens on that port"
    KEYS_DIFFER = "the keys of the two ends are not each other's"
    NOT_ALLOWED = "the far end does not allow the source to the peer that it comes from"
    NO_STATE = "there is no IPsec state for it"
    BLOCKED = "an IPsec policy blocks it"
    NO_POLICY = "no IPsec policy lets in what comes out there"
    UNPROTECTED = "an IPsec policy takes only what comes by IPsec"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardPeer:
    """A peer of a WireGuard device. `endpoint` is its address and port: as configured, or where it last sent from.

    `answered` tells that a handshake with it ever ended, `heard` and `sent` that bytes came from it and went to it;
    `keepalive` that this end sends to it even when it has nothing to say.
    """

    public_key: str
    endpoint: tuple[IPAddress, int] | None = None
    allowed: tuple[IPNetwork, ...] = ()
    answered: bool = False
    heard: bool = False
    sent: bool = False
    keepalive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wireguard:
    """A WireGuard device: its public key, the UDP port that it sends from and listens on, its packets' mark."""

    public_key: str
    port: int
    mark: int = 0
    peers: tuple[WireguardPeer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDevice:
    """A device of kind vxlan, geneve, ipip, gre, sit …; `number` is its VNI, `port` the UDP port that it sends to.

    `is_external`: a program says for each packet where it goes. `learns`: vxlan that learns where addresses are.
    `df` ("set", "unset", "inherit"), `finds_mtu` (pmtudisc) and `ignores_df` tell whether its packets may be cut.
    `wireguard` is None of all other kinds, and where it was not read.
    """

    name: str
    kind: str
    is_up: bool = True
    is_external: bool = False
    learns: bool = False
    number: int | None = None
    port: int | None = None
    local: IPAddress | None = None
    remote: IPAddress | None = None
    df: str = "unset"
    finds_mtu: bool = True
    ignores_df: bool = False
    wireguard: Wireguard | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An entry of the neighbour table that has a hardware address."""

    device: str
    ip: IPAddress
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardingEntry:
    """An entry of a vxlan's forwarding database: behind which underlay address a hardware address is."""

    device: str
    mac: str
    to: IPAddress
