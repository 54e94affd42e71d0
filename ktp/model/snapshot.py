"""A snapshot: what the API server said and what each node said, with what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ktp.model.capture import EvidenceGap
from ktp.model.cluster import Cluster
from ktp.model.host import NodeState
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that an answer is computed from."""

    cluster: Cluster = field(default_factory=Cluster)
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    gaps: tuple[EvidenceGap, ...] = ()
    source: str = ""
