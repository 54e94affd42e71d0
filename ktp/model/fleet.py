"""What many nodes say of themselves, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ktp.model.capture import EvidenceGap
from ktp.model.node_check import CheckedFrontEnd, FrontEndState
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """The report of one node: how its front ends do, and those that are not as they should be.

    `age` is that of the older of what it stands on, the node's evidence and the API's word, in seconds.
    """

    node: str
    age: float
    counts: Mapping[FrontEndState, int]
    not_well: tuple[CheckedFrontEnd, ...]
    messages: Mapping[tuple[str, str], str] = field(
        default_factory=dict
    )  # (Service, code) → the finding's message


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRow:
    """One front end that is not well on some nodes: those nodes by its state there, and why, where it is known."""

    namespace: str
    name: str
    title: str
    nodes: Mapping[FrontEndState, tuple[str, ...]]
    causes: Mapping[str, int] = field(default_factory=dict)  # code → nodes
    message: str = ""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def count(self, state: FrontEndState) -> int:
        """On how many nodes it is in that state."""
        return len(self.nodes.get(state, ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What the nodes told of `services`, or of all (of a `namespace`); `oldest` is an age in seconds.

    A node without an answer, or with one that is too old to say anything of now, is a gap.
    """

    told: tuple[str, ...]
    counts: Mapping[FrontEndState, int]
    rows: tuple[FleetRow, ...] = ()
    gaps: tuple[EvidenceGap, ...] = ()
    oldest: float = 0.0
    services: tuple[str, ...] = ()
    namespace: str | None = None
    source: str = ""

    @property
    def silent(self) -> tuple[str, ...]:
        """The nodes that told nothing."""
        return tuple(gap.subject for gap in self.gaps)
