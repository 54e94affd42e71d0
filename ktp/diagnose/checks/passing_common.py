"""What the counters of a node's kernel say, where they were read twice."""

from __future__ import annotations

from collections.abc import Iterable

from ktp.model.diagnosis import Evidence
from ktp.model.host import NodeState


def growth(state: NodeState | None, names: Iterable[str]) -> dict[str, int]:
    """By how much each counter grew between the readings; what stood still or was not read is left out."""
    counters = state.counters if state is not None else None
    if counters is None:
        return {}
    return {name: by for name in names if (by := counters.moved(name))}


def growing(state: NodeState | None, *names: str) -> list[Evidence]:
    """A line of evidence for each counter that grew: of the whole node, so no proof for one connection."""
    if state is None or state.counters is None:
        return []
    seconds = state.counters.seconds
    within = f" in {seconds:.0f} s" if seconds is not None and seconds >= 1 else " between two readings"
    return [
        Evidence(kind="counter", source=state.name, text=f"{name} grew by {by}{within}, of the whole node")
        for name, by in growth(state, names).items()
    ]
