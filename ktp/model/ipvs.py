"""IPVS virtual servers as `ipvsadm -Sn` prints them, and what shows that kube-proxy keeps some."""

from __future__ import annotations

from ktp.model.host import IPAddress
from ktp.model.record import dataclass
from ktp.model.ruleset import Ruleset

IPVS_INTERFACE = "kube-ipvs0"
"""The device to which kube-proxy binds the addresses of all virtual servers, on every node."""

_RULES_OF_IPVS = 16


def links_ipvs(ruleset: Ruleset) -> bool:
    """Whether kube-proxy's KUBE-SERVICES is IPVS mode's, since 1.18: few rules, one a jump to KUBE-NODE-PORT."""
    chain = ruleset.chain("nat", "KUBE-SERVICES")
    if chain is None or len(chain) > _RULES_OF_IPVS:
        return False
    return chain.has_target("KUBE-NODE-PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealServer:
    """A destination of a virtual server. `method` is "masq" (-m), "route" (-g) or "tunnel" (-i)."""

    ip: IPAddress
    port: int
    weight: int
    method: str = "masq"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """A virtual server; `protocol` tcp, udp, sctp, or "fwmark" with the mark in `port` and without an address.

    Port 0 is every port that has no server of its own. `marks_ipv6`: the firewall mark is asked of IPv6 packets.
    """

    protocol: str
    ip: IPAddress | None
    port: int
    scheduler: str = "rr"
    persistent: int | None = None  # seconds
    servers: tuple[RealServer, ...] = ()
    marks_ipv6: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.ip.version if self.ip is not None else 6 if self.marks_ipv6 else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsTable:
    """All virtual servers of a node."""

    services: tuple[VirtualServer, ...] = ()
    source: str = ""
