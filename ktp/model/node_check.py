"""What a node says of itself: each front end for outside clients, as it is meant and as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum

from ktp.model.capture import EvidenceGap
from ktp.model.diagnosis import Finding
from ktp.model.record import dataclass
from ktp.model.trace import Symptom


class FrontEndState(str, Enum):
    """How an outside client fares at a front end of this node.

    `silent` is one that does not answer because the Service's owner or kube-proxy's configuration wants it so, while
    the Service has endpoints (KTP501 is the usual case); `deviates` sends clients to other endpoints than the API has,
    or hides a source address that the policy keeps (or keeps one that it hides).
    """

    FAILS = "fails"
    DEVIATES = "deviates"
    UNKNOWN = "unknown"
    SILENT = "silent"
    ANSWERS = "answers"

    @property
    def is_well(self) -> bool:
        """Whether the node does what it is meant to do."""
        return self in (FrontEndState.SILENT, FrontEndState.ANSWERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFrontEnd:
    """One front end. `symptom` is what the client sees, `intended` what the API objects call for.

    `cause` is the code that explains it where the Service was diagnosed, None where it was not.
    """

    namespace: str
    name: str
    policy: str
    title: str
    state: FrontEndState
    symptom: Symptom
    intended: Symptom
    reason: str
    cause: str | None = None

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCheck:
    """One look at one node. `counts` has every state; `not_well` the front ends that are not as they should be.

    `findings` are those of the diagnosed Services, by key; `undiagnosed` counts the Services that are not well and of
    which, being many, no cause was sought. `at` is when the evidence was complete and `objects_at` when the API server
    was last heard of (Unix time, seconds), `seconds` how long reading and thinking took.
    """

    node: str
    counts: Mapping[FrontEndState, int]
    not_well: tuple[CheckedFrontEnd, ...] = ()
    findings: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    undiagnosed: int = 0
    evidence: tuple[str, ...] = ()
    gaps: tuple[EvidenceGap, ...] = ()
    source: str = ""
    at: float = 0.0
    objects_at: float = 0.0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """How many front ends there are."""
        return sum(self.counts.values())

    def count(self, state: FrontEndState) -> int:
        """How many front ends are in a state."""
        return self.counts.get(state, 0)
