"""Clusters read as tests want them: nothing of them may be garbled."""

from __future__ import annotations

from ktp.errors import EvidenceError
from ktp.model.capture import Capture
from ktp.model.cluster import Cluster
from ktp.parse.kubernetes import parse_cluster_with_gaps


def parse_cluster(capture: Capture) -> Cluster:
    """The API objects of `capture`. Raises EvidenceError where any of its cluster files is garbled."""
    cluster, gaps = parse_cluster_with_gaps(capture)
    for gap in gaps:
        raise EvidenceError(gap.message, hint=gap.remedy)
    return cluster
