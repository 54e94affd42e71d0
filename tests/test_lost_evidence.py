"""Losing evidence never changes an answer into another one (design §1: what was not read is not empty).

Parts of a recorded snapshot are taken away at random: files of nodes and of the API, tables of a dump, whole nodes. Each
answer must be that of the whole snapshot, or unknown, or name what was lost among its assumptions.
KTP_LOST_EVIDENCE=N asks for N draws of each case instead of a few.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ktp.app.trace import FlowBatch
from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.errors import KtpError
from ktp.model.assumption import EvidenceKind as Kind
from ktp.model.capture import Capture, EvidenceGap
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import snapshot_of

PACKAGED = Path(__file__).resolve().parent / "data" / "cases"
CASES = sorted(p.name for p in PACKAGED.glob("*/") if (p / "probes.json").is_file())
DRAWS = int(os.environ.get("KTP_LOST_EVIDENCE", "3"))
FLOWS = 60

TABLES = ("nat", "filter", "mangle", "raw")
NODE_FILES = {
    "ip-addr.json": {Kind.ADDRESSES},
    "ip-route.json": {Kind.ROUTES},
    "ip-rule.json": {Kind.ROUTING_RULES},
    "ss.txt": {Kind.SOCKETS},
    "sysctl.txt": {Kind.SYSCTLS},
    "ipset-save.txt": {Kind.SETS},
    "nft-ruleset.json": {Kind.NFT, Kind.RULES},
    "kube-proxy-config.json": {Kind.PROXY_CONFIG},
}
API_FILES = {
    "endpointslices.json": {Kind.ENDPOINTS},
    "endpoints.json": {Kind.ENDPOINTS},
    "pods.json": {Kind.PODS},
    "nodes.json": {Kind.NODES, Kind.ADDRESSES},
    "version.json": {Kind.VERSION},
}


class Part:
    """A capture without some of its files, and with some tables cut out of its dumps."""

    def __init__(self, whole: Capture, lost: Iterable[str], tables: dict[str, set[str]]) -> None:
        self._whole = whole
        self._lost = set(lost)
        self._tables = tables
        self.source = whole.source
        self.gaps: tuple[EvidenceGap, ...] = ()

    def names(self) -> list[str]:
        return [n for n in self._whole.names() if self.has(n)]

    def has(self, name: str) -> bool:
        lost = name in self._lost or any(name.startswith(f"{each}/") for each in self._lost)
        return not lost and self._whole.has(name)

    def read(self, name: str) -> bytes:
        data = self._whole.read(name)
        for table in self._tables.get(name, ()):
            data = re.sub(rb"^\*" + table.encode() + rb"\n.*?^COMMIT\n", b"", data, flags=re.S | re.M)
        return data

    def path(self, name: str) -> Path | None:
        return None if name in self._tables else self._whole.path(name)

    def node_names(self) -> tuple[str, ...]:
        return tuple(sorted({n.split("/")[1] for n in self.names() if n.startswith("nodes/")}))


def draw(whole: Capture, r: random.Random) -> tuple[Part, set[Kind]]:
    """A part of the snapshot, and the kinds of evidence that it lost."""
    lost: list[str] = []
    tables: dict[str, set[str]] = {}
    kinds: set[Kind] = set()
    for file, of in (*NODE_FILES.items(), *API_FILES.items()):
        if r.random() < 0.25:
            kinds |= of
            lost += [
                n for n in whole.names() if n.endswith(f"/{file}") and (file in API_FILES or r.random() < 0.8)
            ]
    for name in whole.names():
        if name.endswith("-save.txt") and "ipset" not in name and r.random() < 0.3:
            gone = set(r.sample(TABLES, r.randint(1, 2)))
            tables[name] = gone
            kinds |= {Kind.RULES, *(Kind(table) for table in gone)}
    for node in whole.node_names():
        if r.random() < 0.12:
            lost.append(f"nodes/{node}")
            kinds |= {
                Kind.RULES,
                Kind.ADDRESSES,
                Kind.ROUTES,
                Kind.SYSCTLS,
                Kind.SOCKETS,
                Kind.NAT,
                Kind.FILTER,
            }
    return Part(whole, lost, tables), kinds


def ask(capture: Any, flows: list[bytes]) -> list[dict[str, Any]]:
    batch = FlowBatch(parse_snapshot(capture))
    return [json.loads(batch.answer(line)) for line in flows]


def fate(answer: dict[str, Any]) -> tuple[Any, ...]:
    """What is compared: what the client sees, who may answer, and what source is seen."""
    return (
        answer["symptom"],
        sorted({(b["ip"], b["port"]) for b in answer["backends"]}),
        sorted(answer["client_source"]["seen"]),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(DRAWS))
def test_no_answer_becomes_another(case: str, seed: int) -> None:
    from tests.test_recorded_clusters import line_of

    whole = open_snapshot(PACKAGED / case)
    r = random.Random(f"{case} {seed}")
    probes = json.loads((PACKAGED / case / "probes.json").read_text())
    flows = [line_of(n, p) for n, p in enumerate(r.sample(probes, min(FLOWS, len(probes))))]
    part, kinds = draw(whole, r)
    try:
        answers = ask(part, flows)
    except KtpError:
        return  # says that the evidence is not enough
    for line, before, after in zip(flows, ask(whole, flows), answers, strict=True):
        if "error" in after or after["disposition"] == "undetermined" or fate(after) == fate(before):
            continue
        given = {a.get("evidence") for a in after.get("assumptions", ())}
        assert given & {k.value for k in kinds}, (
            line.decode(),
            before,
            after,
            sorted(k.value for k in kinds),
        )


LOST_TOGETHER = (
    ("pods.json", "ip-route.json", "ip-addr.json"),
    ("pods.json", "nodes.json", "ss.txt"),
    ("pods.json", "ip-route.json", "sysctl.txt", "kube-proxy-config.json"),
    ("pods.json", "nodes.json", "ip-route.json", "ip6-route.json", "ip-addr.json"),
    ("ip-addr.json", "ip-route.json", "sysctl.txt"),
)


@pytest.mark.parametrize("lost", LOST_TOGETHER, ids="+".join)
@pytest.mark.parametrize("case", [c for c in CASES if c.startswith(("core-", "ipvs-", "cilium-"))])
def test_a_diagnosis_of_less_says_nothing_else(case: str, lost: tuple[str, ...]) -> None:
    """`diagnose` invents clients, and so has more of the API than was read: that must not count as read."""
    whole = open_snapshot(PACKAGED / case)
    gone = {n for n in whole.names() if n.rpartition("/")[2] in lost}
    less = parse_snapshot(Part(whole, gone, {}))
    for key, wanted in said_of_the_whole(case).items():
        for place, symptom in cells(less, key).items():
            assert symptom in (wanted.get(place, symptom), Symptom.UNKNOWN), (key, place)


Cells = dict[tuple[str, str, str], Symptom]


def cells(snapshot: Snapshot, key: str) -> Cells:
    return {
        (m.title, row.node, vantage): row.cells[vantage].symptom
        for m in diagnose_service(snapshot, snapshot.cluster.services[key]).frontends
        for row in m.nodes
        for vantage in ("external", "node")  # of other clients another may be chosen
        if vantage in row.cells
    }


@functools.cache
def said_of_the_whole(case: str) -> dict[str, Cells]:
    """Some Services, one on the host's network among them, with what is said where nothing is lost."""
    snapshot = snapshot_of(PACKAGED / case)
    dialled = sorted(key for key, s in snapshot.cluster.services.items() if s.type != "ClusterIP")
    return {key: cells(snapshot, key) for key in (dialled[::3] if len(dialled) < 12 else dialled[1::4])}
