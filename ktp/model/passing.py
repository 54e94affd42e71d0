"""What passes on a node while it is looked at: connections that it tracks, and counters of its kernel."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from ktp.model.record import dataclass

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuple:
    """One direction of a connection (nf_conntrack_tuple): addresses and ports of its packets."""

    src: IPAddress
    dst: IPAddress
    sport: int
    dport: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedConnection:
    """An entry of the connection table. `reply` is what its answers look like: their source is who was chosen.

    `is_answered` tells that an answer has been seen (no [UNREPLIED]: IPS_SEEN_REPLY), `is_closing` that TCP has ended
    it (TIME_WAIT, CLOSE). `text` is the line that it was read from.
    """

    protocol: str  # tcp udp sctp
    original: Tuple
    reply: Tuple
    is_answered: bool = True
    is_closing: bool = False
    text: str = ""

    @property
    def is_destination_translated(self) -> bool:
        """Whether packets go elsewhere than they were sent to."""
        return (self.original.dst, self.original.dport) != (self.reply.src, self.reply.sport)


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReading:
    """Counters of one moment: "TcpExt.ListenOverflows", "nf_conntrack.insert_failed" … to how many since boot.

    `uptime` is in seconds; None where it was not read beside them.
    """

    values: Mapping[str, int]
    uptime: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Two readings of a node's counters: the first and the last that were taken."""

    first: CounterReading
    last: CounterReading

    @property
    def seconds(self) -> float | None:
        """How long lies between the readings."""
        if self.first.uptime is None or self.last.uptime is None:
            return None
        return self.last.uptime - self.first.uptime

    def moved(self, name: str) -> int:
        """By how many a counter grew; 0 where it was not in both readings (that it stood still is not said by it)."""
        before, after = self.first.values.get(name), self.last.values.get(name)
        return max(0, after - before) if before is not None and after is not None else 0
