"""The answer to "where does this packet go": flows, steps, hops, fates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from ktp.model.assumption import Assumption
from ktp.model.effect import (
    Effect,
    Forbid,
    Goto,
    Jump,
    Note,
    PortsTaken,
    Refuse,
    Setting,
    TooLong,
    Translate,
    Untunnelled,
)
from ktp.model.record import dataclass
from ktp.model.ruleset import Rule

if TYPE_CHECKING:  # some ninety dataclasses, which most runs do not need
    from ktp.model.nftables import NftRule


class StepKind(str, Enum):
    """What a step is of."""

    RULE = "rule"
    POLICY = "policy"
    ROUTE = "route"
    CONNTRACK = "conntrack"
    NAT = "nat"
    SOCKET = "socket"
    SYSCTL = "sysctl"


class Disposition(str, Enum):
    """A packet's fate (design §3)."""

    DELIVERED = "delivered"
    HOST_PROCESS = "host_process"
    NO_LISTENER = "no_listener"
    DROPPED = "dropped"
    REJECTED = "rejected"
    LOST = "lost"
    UNDETERMINED = "undetermined"


class Symptom(str, Enum):
    """What the client sees (design §3)."""

    CONNECTS = "connects"
    TIMES_OUT = "times_out"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    INTERMITTENT = "intermittent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A question: who sends what where.

    `src` None means the address that the kernel of `from_node` would choose. `from_node` is the node that the
    sender runs on (a pod, or a process of the node where `src` is an address of the node or None). `via` is the
    node at which the packet first reaches the cluster. `source_port` is that of a client who has sent before: what the
    nodes track of it then decides; None is an ephemeral port, and a new connection. `mark` is that of the sender's
    socket (SO_MARK).
    """

    dst: str
    port: int
    protocol: str = "tcp"
    src: str | None = None
    from_node: str | None = None
    via: str | None = None
    source_port: int | None = None
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened to the packet on a node.

    `rule` is set for xtables rules, `nft_rule` for those of native nftables; `text` is the raw line (or nft rule, or
    route) that was met. `effects` are what it did, in order: one, or several of an nft rule.
    """

    kind: StepKind
    hook: str = ""
    table: str = ""
    chain: str = ""
    text: str = ""
    effects: tuple[Effect, ...] = ()
    backend: str = ""
    line: int = 0
    position: int = 0
    rule: Rule | None = None
    nft_rule: NftRule | None = None

    @property
    def translations(self) -> Iterator[Translate]:
        """The translations that it made, without those of answers back."""
        return (e for e in self.effects if isinstance(e, Translate) and not e.kind.is_undoing)

    @property
    def leads_to(self) -> tuple[str, ...]:
        """The chains that it jumped or went to."""
        return tuple(e.chain for e in self.effects if isinstance(e, Jump | Goto))

    @property
    def said(self) -> str:
        """What it is to be shown as: its text, or the note that it is."""
        return self.text or next(
            (
                e.words
                for e in self.effects
                if isinstance(e, Note | Forbid | Untunnelled | TooLong | PortsTaken)
            ),
            "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The packet at one moment: addresses, ports (0 where the protocol has none, -1 an ephemeral one), mark."""

    src: str
    sport: int
    dst: str
    dport: int
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What one node did to the packet, or a pod's network namespace on it. `direction`: "request", "reply", "error"."""

    node: str
    pod: str = ""  # "namespace/name", "" for the node itself
    direction: str
    arrived: Header
    left: Header
    in_interface: str | None = None
    out_interface: str | None = None
    steps: tuple[Step, ...] = ()

    @property
    def place(self) -> str:
        """Whose network namespace it is: the node's name, or the pod's with its node."""
        return f"{self.pod} (pod on {self.node})" if self.pod else self.node

    def is_of(self, node: str, pod: str = "") -> bool:
        """Whether it is in the node's own network namespace, or in that of a pod there."""
        return self.node == node and self.pod == pod


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedBy:
    """The one thing that decided a fate: a step of the node's, or what has no step (`kind`, and `words` for people)."""

    node: str
    kind: StepKind
    step: Step | None = None
    words: str = ""
    pod: str = ""  # in whose network namespace on the node, "" for the node itself

    @property
    def place(self) -> str:
        """As of a hop."""
        return f"{self.pod} (pod on {self.node})" if self.pod else self.node

    @property
    def rule(self) -> str:
        """What decided, to be shown: the rule, the policy, the route, or words where there is no step."""
        return self.step.said if self.step is not None else self.words

    @property
    def table(self) -> str:
        """The step's table."""
        return self.step.table if self.step is not None else ""

    @property
    def chain(self) -> str:
        """The step's chain."""
        return self.step.chain if self.step is not None else ""

    @property
    def hook(self) -> str:
        """The step's hook."""
        return self.step.hook if self.step is not None else ""

    @property
    def backend(self) -> str:
        """The step's back end."""
        return self.step.backend if self.step is not None else ""

    @property
    def line(self) -> int:
        """The rule's line in the dump, 0 where there is none."""
        return self.step.line if self.step is not None else 0

    @property
    def setting(self) -> Setting | None:
        """The sysctl that ended the packet, None where it was something else."""
        found = (
            e.setting for e in (self.step.effects if self.step is not None else ()) if isinstance(e, Forbid)
        )
        return next(found, None)

    @property
    def refuses(self) -> bool:
        """Whether its step told the sender, instead of staying silent."""
        return self.step is not None and any(isinstance(e, Refuse) for e in self.step.effects)


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way that the flow may take, with its probability and its fate."""

    probability: float
    disposition: Disposition
    symptom: Symptom
    reason: str
    hops: tuple[Hop, ...] = ()
    endpoint_ip: str | None = None  # where the request was delivered, also when its reply is lost
    endpoint_port: int | None = None
    endpoint_name: str | None = None
    endpoint_node: str | None = None
    source_seen: str | None = None
    decided_by: DecidedBy | None = None
    assumptions: tuple[Assumption, ...] = ()


class PlacedRule(Protocol):
    """A rule of any back end, as far as it is to be shown."""

    @property
    def table(self) -> str:
        """`filter`, `inet site`."""

    @property
    def chain(self) -> str:
        """The chain's name."""

    @property
    def text(self) -> str:
        """As it is listed."""

    @property
    def line(self) -> int:
        """Its line in the listing, 0 where that has none."""

    @property
    def position(self) -> int:
        """Its place in the chain, from 1 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """What was not known and made the answer differ: the rule or fact, and why it could not be decided.

    `forks` tells that the ways part there; otherwise a way ends there, and is certain up to it.
    """

    node: str
    what: str
    why: str
    rule: PlacedRule | None = None
    forks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowAnswer:
    """The answer to a Flow: its fate, the ways it may take, and what it was decided by."""

    flow: Flow
    disposition: Disposition
    symptom: Symptom
    reason: str
    paths: tuple[Path, ...] = ()
    decided_by: DecidedBy | None = None
    unknowns: tuple[Unknown, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    sources_seen: tuple[str, ...] = field(default=())
    source_preserved: bool | None = None
