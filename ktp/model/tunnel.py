"""Tunnel devices of a node, and who is behind them (`ip -j -d link`, `ip -j neigh`, `bridge -j fdb`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


class TunnelFault(str, Enum):
    """Why a packet that a route sends into a tunnel does not come out of it."""

    NO_NEIGHBOUR = "no neighbour entry"
    NO_FORWARDING_ENTRY = "no forwarding entry"
    NO_SUCH_PEER = "no node has the far end's address"
    NO_DEVICE = "no such tunnel at the far end"
    DEVICE_DOWN = "the tunnel at the far end is down"


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDevice:
    """A device of kind vxlan, geneve, ipip, gre, sit …; `number` is its VNI, `port` the UDP port that it sends to.

    `is_external`: a program says for each packet where it goes. `learns`: vxlan that learns where addresses are.
    `df` ("set", "unset", "inherit"), `finds_mtu` (pmtudisc) and `ignores_df` tell whether its packets may be cut.
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
