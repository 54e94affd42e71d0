"""IPVS virtual servers on a packet's way (net/netfilter/ipvs/ip_vs_core.c, ip_vs_xmit.c).

IPVS sits in LOCAL_IN behind the filter table (NF_IP_PRI_NAT_SRC - 1) and in LOCAL_OUT behind nat
(NF_IP_PRI_NAT_DST + 2). A scheduled packet gets the real server's address and leaves by LOCAL_OUT and POSTROUTING: it
never sees FORWARD. Written after the source of the kernel, and compared with what packets did in one (Linux 6.1).
"""

from __future__ import annotations

from ktp.dataplane.packet import PROTOCOLS, Packet
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.ipvs import IpvsTable, RealServer, VirtualServer
from ktp.model.record import dataclass

INPUT_PRIORITY = 99
OUTPUT_PRIORITY = -98
FORWARD_PRIORITY = 100  # ip_vs_reply4: behind filter and security

# Schedulers that draw in proportion to weights; the others, as far as a first connection goes, draw alike.
_WEIGHTED = frozenset(("wrr", "wlc", "mh", "sh"))
# Those whose table of hashes holds servers of weight 0 too, which then refuse (ip_vs_sh_reassign, ip_vs_dh_reassign).
_WITH_QUIESCED = frozenset(("sh", "dh"))
# The server of the highest weight takes all, with `ovf` as long as it has fewer connections than its weight.
_HIGHEST = frozenset(("fo", "ovf"))


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A virtual server that takes a packet, and the real servers it may draw with their probabilities.

    Without a choice, or where None is drawn, the packet is refused.
    """

    server: VirtualServer
    choices: tuple[tuple[RealServer | None, float], ...]
    assumptions: tuple[Assumption, ...] = ()

    @property
    def text(self) -> str:
        """The virtual server as `ipvsadm -Sn` prints it."""
        s = self.server
        if s.protocol == "fwmark":
            return f"-A -f {s.port}{' -6' if s.family == 6 else ''} -s {s.scheduler}"
        flag = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}[s.protocol]
        where = f"[{s.ip}]" if s.ip is not None and s.ip.version == 6 else s.ip
        return f"-A {flag} {where}:{s.port} -s {s.scheduler}"


class VirtualServers:
    """The virtual servers of one node, by what they are looked up with."""

    def __init__(self, table: IpvsTable) -> None:
        """Index `table`."""
        self._by_address: dict[tuple[int, int, int], VirtualServer] = {}
        self._by_mark: dict[tuple[int, int], VirtualServer] = {}  # family, mark
        for service in table.services:
            if service.protocol == "fwmark":
                self._by_mark[service.family, service.port] = service
            elif service.ip is not None:
                self._by_address[PROTOCOLS[service.protocol], int(service.ip), service.port] = service

    def schedule(self, p: Packet) -> Scheduled | None:
        """The virtual server of a packet that opens a connection.

        ip_vs_service_find looks for the firewall mark first, then for address and port, then for every port.
        """
        found = self._by_mark.get((p.family, p.mark)) if p.mark else None
        if found is None and isinstance(p.dport, int):
            found = self._by_address.get((p.proto, p.dst, p.dport)) or self._by_address.get(
                (p.proto, p.dst, 0)
            )
        return draw(found) if found is not None else None


def draw(found: VirtualServer) -> Scheduled:
    """Which real server a new connection gets (ip_vs_*_schedule of its scheduler)."""
    usable = [s for s in found.servers if s.weight > 0]
    assumptions: list[Assumption] = []
    if found.persistent is not None and usable:
        words = "no earlier connection of this client is remembered (IPVS persistence)"
        assumptions.append(Assumption(words, EvidenceKind.CONNTRACK))
    if found.scheduler in ("sh", "dh", "mh") and len(found.servers) > 1:
        assumptions.append(Assumption(f"IPVS scheduler {found.scheduler} draws by a hash, taken as a lot"))
    if found.scheduler in _HIGHEST and len(usable) > 1:
        # Which of several comes first in the kernel's list is not told: ipvsadm sorts what it prints.
        highest = max(server.weight for server in usable)
        usable = [s for s in usable if s.weight == highest]
        if found.scheduler == "ovf":
            words = (
                "the real server of the highest weight has fewer connections than that (IPVS scheduler ovf)"
            )
            assumptions.append(Assumption(words, EvidenceKind.CONNTRACK))
    drawn = found.servers if found.scheduler in _WITH_QUIESCED and usable else usable
    shares = [max(s.weight, 1) if found.scheduler in _WEIGHTED else 1 for s in drawn]
    chances = ((s if s.weight > 0 else None, n) for s, n in zip(drawn, shares, strict=True))
    return Scheduled(found, tuple((s, n / sum(shares)) for s, n in chances), tuple(assumptions))
