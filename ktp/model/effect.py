"""What happened to a packet at one step: a closed union of small facts. Words are made of them in `ktp.explain`."""

from __future__ import annotations

from enum import Enum

from ktp.model.record import dataclass
from ktp.model.tunnel import TunnelFault


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port; `port` None where it is one of several, or the protocol has none."""

    ip: str
    port: int | None = None


class Nat(str, Enum):
    """What translated: a target of xtables, a statement of nft, or a load balancer."""

    DNAT = "dnat"
    SNAT = "snat"
    MASQUERADE = "masquerade"
    REDIRECT = "redirect"
    NETMAP = "netmap"
    IPVS = "ipvs"
    CILIUM = "cilium"
    HEADER = "header"  # nft rewrites the header of a packet that has no connection
    DESTINATION_UNDONE = "destination translation undone"  # of an answer: its source
    SOURCE_UNDONE = "source translation undone"  # of an answer: its destination

    @property
    def is_undoing(self) -> bool:
        """Whether conntrack translates an answer back."""
        return self in (Nat.DESTINATION_UNDONE, Nat.SOURCE_UNDONE)

    @property
    def of_destination(self) -> bool:
        """Whether it gives new destinations, and never sources."""
        return self in (Nat.DNAT, Nat.REDIRECT, Nat.IPVS, Nat.CILIUM)

    @property
    def of_source(self) -> bool:
        """Whether it gives new sources, and never destinations."""
        return self in (Nat.SNAT, Nat.MASQUERADE)


@dataclass(frozen=True, slots=True)
class Jump:
    """To a chain, and back from its end."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """To a chain, and from its end to where the last jump came from."""

    chain: str


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the chain before; in a base chain to its policy."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The base chain lets the packet pass."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet ends here, and nobody is told."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The packet ends here, and its sender is told by `kind`: "tcp-reset", "icmp-port-unreachable" …"""

    kind: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The packet's mark (of `connection`: its connection's) is computed anew: (mark & keep) ^ flip.

    `before` and `after` may be equal: a bit may be set twice.
    """

    before: int
    after: int
    keep: int
    flip: int
    connection: bool = False


@dataclass(frozen=True, slots=True)
class Translate:
    """An address or port was given: `before` and `after` are what was the packet's destination (or source)."""

    kind: Nat
    before: Endpoint
    after: Endpoint

    def __post_init__(self) -> None:
        if self.before == self.after:
            raise ValueError(f"{self.kind.value} changes nothing: {self.before}")


@dataclass(frozen=True, slots=True)
class Keep:
    """A rule that translates gave the packet what it had: the node's own address, say."""

    kind: Nat
    at: Endpoint


@dataclass(frozen=True, slots=True)
class NoTrack:
    """Connection tracking passes the packet over."""


@dataclass(frozen=True, slots=True)
class Steal:
    """Somebody else takes the packet: a program behind a queue, a proxy. `by` is the target's or statement's name."""

    by: str


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """What ktp does not know how to do; `what` is the target's name."""

    what: str


@dataclass(frozen=True, slots=True)
class Change:
    """A field of the packet that decides little: `what` is "TOS", "DSCP", "TTL", "mark from the connection's" …"""

    what: str


@dataclass(frozen=True, slots=True)
class Count:
    """The rule matched and did nothing that concerns the packet's way. `by` is what it did, "" where only counting."""

    by: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """The rule did not match to its end; what it had changed by then stays."""


class Setting(str, Enum):
    """A setting of the kernel that ends packets."""

    FORWARDING = "forwarding"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Forbid:
    """A sysctl ends the packet. `words` is for people alone."""

    setting: Setting
    words: str


@dataclass(frozen=True, slots=True)
class Untunnelled:
    """A tunnel does not carry the packet; `far` is the node where that is, "" for this one. `words` is for people."""

    fault: TunnelFault
    far: str
    words: str


@dataclass(frozen=True, slots=True)
class TooLong:
    """A packet of `length` bytes is more than a device (or its route) of this node sends on. `words` is for people."""

    length: int
    limit: int
    device: str
    words: str


@dataclass(frozen=True, slots=True)
class PortsTaken:
    """Of `of` source ports that a new connection from `source` to `to` may have, the node tracks `taken` already.

    One `may_be_left` unless all are, by connections that go on: of those that TCP has ended a newer kernel takes one
    where the new one's sequence number allows it (nf_nat_used_tuple_harder). `words` is for people.
    """

    protocol: str
    source: str
    to: Endpoint
    taken: int
    of: int
    may_be_left: bool
    words: str


@dataclass(frozen=True, slots=True)
class Note:
    """Not a rule's doing: routing, a socket, conntrack. `words` is for people alone."""

    words: str


Effect = (
    Jump
    | Goto
    | Return
    | Accept
    | Drop
    | Refuse
    | Mark
    | Translate
    | Keep
    | NoTrack
    | Steal
    | Change
    | Count
    | Leave
    | Unmodelled
    | Forbid
    | Untunnelled
    | TooLong
    | PortsTaken
    | Note
)
"""Everything that a step can be."""
