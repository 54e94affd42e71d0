"""Where recordings of whole clusters are, beside the packaged parts of some: the folder KTP_CASES (`make test-cases`)."""

from __future__ import annotations

import os
from pathlib import Path

from ktp.model.cluster import ip_of
from ktp.model.snapshot import Snapshot

# A folder that is not there where none is named: globs of it are empty, and its tests say why they are skipped.
RECORDINGS = Path(os.environ.get("KTP_CASES") or "/nonexistent/recordings")


def services_put_out_by_hand(snapshot: Snapshot) -> frozenset[str]:
    """Services of which a recording's author set a real server's weight to 0: a fault made for the recording."""
    weightless = {
        each.ip
        for state in snapshot.nodes.values()
        for each in (state.ipvs.services if state.ipvs is not None else ())
        if any(server.weight == 0 for server in each.servers)
    }
    return frozenset(
        key
        for key, service in snapshot.cluster.services.items()
        if any(ip_of(text) in weightless for text in service.cluster_ips)
    )
