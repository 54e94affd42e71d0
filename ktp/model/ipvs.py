"""IPVS virtual servers as `ipvsadm -Sn` prints them."""

from __future__ import annotations

from dataclasses import dataclass

from ktp.model.host import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class RealServer:
    """A destination of a virtual server. `method` is "masq" (-m), "route" (-g) or "tunnel" (-i)."""

    ip: IPAddress
    port: int
    weight: int
    method: str = "masq"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """A virtual server; `protocol` tcp, udp, sctp, or "fwmark" with the mark in `port`."""

    protocol: str
    ip: IPAddress | None
    port: int
    scheduler: str = "rr"
    persistent: int | None = None  # seconds
    servers: tuple[RealServer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsTable:
    """All virtual servers of a node."""

    services: tuple[VirtualServer, ...] = ()
    source: str = ""
