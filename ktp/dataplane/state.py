"""The state of one walk and the verdicts of a chain.

A walk forks where a match draws lots or is unknown. Each state keeps the decisions that led to it; when all walks have
ended, the tree of decisions is folded into an answer (`ktp.dataplane.answer`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from ktp.dataplane.cilium import Balanced
from ktp.dataplane.packet import Conn, Packet, Port
from ktp.model.assumption import Assumption
from ktp.model.effect import Effect
from ktp.model.host import NextHop
from ktp.model.record import dataclass
from ktp.model.ruleset import Rule
from ktp.model.trace import Disposition, Step, StepKind

if TYPE_CHECKING:  # some ninety dataclasses, which most runs do not need
    from ktp.model.nftables import NftRule

ACCEPT, DROP, REJECT, UNKNOWN, IPVS = 1, 2, 3, 4, 5

RANDOM, ASKED = "random", "unknown"

MOST_WAYS = 20_000  # of one flow, and through one base chain
MOST_ASKED = (
    600  # sides of what is not known, in one flow: endpoints are drawn by thousands, but none is unknown
)


class LimitExceededError(Exception):
    """The flow forks into more ways than can be followed; `decision` is what was not known first, None without."""

    def __init__(self, decision: Decision | None = None) -> None:
        super().__init__()
        self.decision = decision


class Decision(NamedTuple):
    """A fork: `kind` RANDOM or ASKED; `choice` which way; `chance` its probability; `what`/`why`/`rule` for people.

    `key` tells forks apart; one that is ASKED is a tuple that begins with the node's name.
    """

    kind: str
    key: Hashable
    choice: int
    chance: float
    what: str
    why: str
    rule: Rule | RuleOfNft | None


@dataclass(frozen=True, slots=True)
class RuleOfNft:
    """An nft rule in its place, as steps and findings name it."""

    table: str
    chain: str
    source: NftRule

    @property
    def text(self) -> str:
        """As `nft list ruleset` prints it."""
        return self.source.text

    @property
    def line(self) -> int:
        """Its line in a listing, 0 where it was read from JSON."""
        return self.source.line

    @property
    def position(self) -> int:
        """Its place in the chain, from 1 on."""
        return self.source.index + 1


class StepRecord:
    """A step as the walk notes it; turned into model.trace.Step (`shown`) when first shown.

    One that says nothing of the packet is the same object for all packets that meet its rule at that hook.
    """

    __slots__ = ("backend", "chain", "effects", "hook", "kind", "rule", "shown", "table", "text")

    def __init__(
        self,
        kind: StepKind,
        hook: str,
        table: str,
        chain: str,
        rule: Rule | RuleOfNft | None,
        effects: tuple[Effect, ...],
        backend: str,
        text: str = "",
    ) -> None:
        self.kind = kind
        self.hook = hook
        self.table = table
        self.chain = chain
        self.rule = rule
        self.effects = effects
        self.backend = backend
        self.text = text
        self.shown: Step | None = None


# Linked lists, newest first: the way so far is shared by all that fork from it.
Steps = tuple["Steps", StepRecord] | None
Decisions = tuple["Decisions", Decision] | None


class HopRecord(NamedTuple):
    """One node's part of a walk, or that of a pod on it."""

    node: str
    direction: str
    arrived: Packet
    left: Packet
    steps: Steps
    pod: str = ""


class Verdict(NamedTuple):
    """How a base chain (or a whole hook) ended for one state. `detail` is the reject type or why unknown."""

    code: int
    state: State
    detail: str = ""
    step: StepRecord | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A connection of IPVS on a node: the virtual server that was dialled, and the real server that was drawn.

    `tracked` with an entry of conntrack beside it (net.ipv4.vs.conntrack), which IPVS made fit and translates nothing.
    """

    node: str
    virtual: tuple[int, Port]
    real: tuple[int, Port]
    tracked: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a request arrived."""

    ip: int
    port: Port
    name: str | None
    node: str | None
    source: int
    family: int
    process: bool = False
    silent: bool = False
    known: bool = True


@dataclass(frozen=True, slots=True)
class Refusal:
    """Where a request was refused; `error` is the ICMP type or "tcp-reset", `cause` what kind of thing refused it."""

    disposition: Disposition
    error: str
    reason: str
    step: StepRecord | None
    cause: str
    node: str
    pod: str
    protocol: int


class Client(NamedTuple):
    """Who waits for the answer, and whom it asked; `pod` where it is no process of `node`, None outside the nodes."""

    ip: int
    node: str | None
    pod: bool
    dst: int
    dport: Port


_NOBODY = Client(0, None, False, 0, 0)


class State:
    """Everything that belongs to one way the packet may take."""

    __slots__ = (
        "answer_length",
        "arrived",
        "asked",
        "asked_all",
        "assumptions",
        "balanced",
        "client",
        "conns",
        "decisions",
        "delivery",
        "direction",
        "hop",
        "hops",
        "later",
        "nat_step",
        "packet",
        "recent",
        "seen_nodes",
        "served",
        "steps",
    )

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.arrived = packet
        self.client = _NOBODY  # before the sender is known
        self.steps: Steps = None
        self.decisions: Decisions = None
        self.assumptions: tuple[Assumption, ...] = ()
        self.asked: dict[Hashable, bool] | None = None
        self.recent: frozenset[tuple[Hashable, ...]] = (
            frozenset()
        )  # what the packet has put into sets and lists: (where, key, …)
        self.conns: tuple[Conn, ...] = ()  # confirmed entries, in the order of the nodes passed
        self.hop: NextHop | None = None  # by which the packet will leave this node
        self.hops: tuple[HopRecord, ...] = ()
        self.direction = "request"
        self.answer_length: int | None = None  # of the answer's packets, where full ones are walked
        self.delivery: Delivery | Refusal | None = None  # set when the request arrived, or an error went out
        self.nat_step: StepRecord | None = None  # the step that translated the destination last
        self.balanced: Balanced | None = None  # what a program of Cilium's has translated
        self.served: Served | None = None  # IPVS's own connection: what undoes its translation
        # The answer as it came to a node whose IPVS keeps the connection and whose conntrack does not: packets behind
        # it may be another thing to conntrack than a SYN-ACK is.
        self.later: Packet | None = None
        self.seen_nodes = 0
        self.asked_all: list[Decision] = []  # of all ways of the flow: one list for them all

    def fork(self) -> State:
        """A copy that goes its own way from here."""
        new = object.__new__(State)
        new.packet = self.packet.copy()
        new.arrived = self.arrived
        new.client = self.client
        new.steps = self.steps
        new.decisions = self.decisions
        new.assumptions = self.assumptions
        new.asked = dict(self.asked) if self.asked else None
        new.recent = self.recent
        new.conns = self.conns
        new.hop = self.hop
        new.hops = self.hops
        new.direction = self.direction
        new.answer_length = self.answer_length
        new.delivery = self.delivery
        new.nat_step = self.nat_step
        new.seen_nodes = self.seen_nodes
        new.served = self.served
        new.later = self.later
        new.balanced = self.balanced
        new.asked_all = self.asked_all
        return new

    def note(
        self,
        kind: StepKind,
        *effects: Effect,
        hook: str = "",
        table: str = "",
        chain: str = "",
        rule: Rule | RuleOfNft | None = None,
        backend: str = "",
        text: str = "",
    ) -> StepRecord:
        """Record a step."""
        step = StepRecord(kind, hook, table, chain, rule, effects, backend, text)
        self.steps = (self.steps, step)
        return step

    def assume(self, assumption: Assumption) -> None:
        """Record an assumption once."""
        if assumption not in self.assumptions:
            self.assumptions = (*self.assumptions, assumption)

    def decide(self, decision: Decision) -> None:
        """Record the way taken at a fork. Raises LimitExceededError where too much is unknown."""
        self.decisions = (self.decisions, decision)
        if decision.kind == ASKED:
            self.asked_all.append(decision)
            if len(self.asked_all) > MOST_ASKED:
                raise LimitExceededError(self.asked_all[0])
