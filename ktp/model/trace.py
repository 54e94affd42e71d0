"""The answer to "where does this packet go": flows, steps, hops, fates."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ktp.model.ruleset import Rule


class Ternary(Enum):
    """A match's answer. UNKNOWN is neither YES nor NO: both ways are followed."""

    NO = 0
    YES = 1
    UNKNOWN = 2


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
    node at which the packet first reaches the cluster.
    """

    dst: str
    port: int
    protocol: str = "tcp"
    src: str | None = None
    from_node: str | None = None
    via: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened to the packet on a node.

    `kind` is "rule", "policy", "route", "conntrack", "nat", "socket", "note". `rule` is set for xtables rules;
    `text` is the raw line (or nft rule, or route) that was met; `effect` what it did, in words of netfilter:
    "jump KUBE-SERVICES", "mark 0x4000", "dnat to 10.244.1.10:80".
    """

    kind: str
    hook: str = ""
    table: str = ""
    chain: str = ""
    text: str = ""
    effect: str = ""
    backend: str = ""
    line: int = 0
    position: int = 0
    rule: Rule | None = None
    assumption: str | None = None


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
    """What one node did to the packet. `direction` is "request", "reply" or "error"."""

    node: str
    direction: str
    arrived: Header
    left: Header
    in_interface: str | None = None
    out_interface: str | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedBy:
    """The one thing that decided a fate: a rule, a policy, a route, a sysctl, a socket."""

    node: str
    kind: str  # rule policy route sysctl socket
    table: str = ""
    chain: str = ""
    rule: str = ""
    line: int = 0
    hook: str = ""
    backend: str = ""


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
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """What was not known and made the answer differ: the rule or fact, and why it could not be decided."""

    node: str
    what: str
    why: str
    rule: Rule | None = None


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
    assumptions: tuple[str, ...] = ()
    sources_seen: tuple[str, ...] = field(default=())
    source_preserved: bool | None = None
