"""Where recordings of whole clusters are, beside the packaged parts of some: the folder KTP_CASES (`make test-cases`)."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.model.cluster import ip_of
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot

# A folder that is not there where none is named: globs of it are empty, and its tests say why they are skipped.
RECORDINGS = Path(os.environ.get("KTP_CASES") or "/nonexistent/recordings")


@functools.lru_cache(maxsize=4)
def snapshot_of(folder: Path) -> Snapshot:
    """What a recording holds, read once for all tests that ask it one after another (`by_recording`)."""
    return parse_snapshot(open_snapshot(folder))


@functools.lru_cache(maxsize=512)
def diagnosis_of(folder: Path, key: str) -> ServiceDiagnosis:
    """The diagnosis of one of its Services."""
    snapshot = snapshot_of(folder)
    return diagnose_service(snapshot, snapshot.cluster.services[key])


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
