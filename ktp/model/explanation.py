"""Rules as a tree in words: what `ktp explain-rules` answers with. Standard library only."""

from __future__ import annotations

from ktp.model.assumption import Assumption
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementNode:
    """What a rule finds, or may draw: an element of a set or map, an entry of an ipset, a real server.

    `share`, `goes_to`, `chain` and `shown` as of a rule.
    """

    text: str
    words: str
    share: float | None = None
    goes_to: str | None = None
    chain: ChainNode | None = None
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupNode:
    """A set or map that a rule looks the packet up in. `elements` are those that concern the packet."""

    kind: str  # set, map, ipset, draw
    name: str
    words: str
    elements: tuple[ElementNode, ...] = ()
    left_out: int = 0
    left_out_words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleNode:
    """One rule of the tree.

    `share` is the part of the asked packets that take the rule: None where no packet was asked about, 0 where
    none does, less than 1 where lots are drawn. `goes_to` is the chain that it leads to; `chain` that chain's rules
    where they are shown here, else `shown` tells that the tree has them "above" or "below". `position` is 0 where
    the node is no rule of a chain.
    """

    position: int
    line: int
    text: str
    words: str
    packets: int | None = None
    bytes: int | None = None
    share: float | None = None
    goes_to: str | None = None
    chain: ChainNode | None = None
    shown: str = ""
    handle: int = 0
    lookups: tuple[LookupNode, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainNode:
    """One chain: what it is for, its rules, and how many of them were left out as concerning other packets."""

    table: str
    name: str
    words: str
    policy: str | None = None
    rules: tuple[RuleNode, ...] = ()
    left_out: int = 0
    left_out_words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNode:
    """One table (of nftables: one base chain, of `type`) at one hook, in the kernel's order."""

    hook: str
    words: str
    backend: str
    chain: ChainNode
    priority: int | None = None
    type: str = ""
    pod: str = ""  # "namespace/name" where it is in a pod's network namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointShare:
    """An endpoint and the part of the connections that it gets. `symptom` is what those connections see."""

    address: str
    share: float
    symptom: str
    pod: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Where the asked packet ends, and why. `table`…`line` name the rule that decided, where one did.

    `element` is what that rule found in the map `lookup`, where a map's element decided.
    """

    disposition: str
    symptom: str
    headline: str
    why: str = ""
    node: str = ""
    table: str = ""
    chain: str = ""
    rule: str = ""
    position: int = 0
    line: int = 0
    lookup: str = ""
    element: str = ""
    endpoints: tuple[EndpointShare, ...] = ()
    client_source: str = ""  # "kept", "replaced", "some kept", or "" where nothing is delivered
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer for one front end on one node, or for one chain (`verdict` None)."""

    subject: str
    node: str
    vantage: str
    source: str
    rules_of: str
    verdict: Verdict | None = None
    stages: tuple[StageNode, ...] = ()
    chains: tuple[ChainNode, ...] = ()
    jumps_here: tuple[RuleNode, ...] = ()
    notes: tuple[str, ...] = ()
