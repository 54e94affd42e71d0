"""The matrix against recorded clusters: every cell says what real connections of such a client met.

All Services with front ends for the outside, all nodes. Recordings: tests/data/cases, and those of issue 2's proof in
the folder KTP_CASES (`make test-cases`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Service
from ktp.model.diagnosis import Cell, CellEndpoint, ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Symptom
from tests.support.recordings import RECORDINGS, diagnosis_of, services_put_out_by_hand, snapshot_of

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGED = REPOSITORY / "tests" / "data" / "cases"
MORE = RECORDINGS
PROOF = ("core-1.20-iptables-legacy", "core-1.30-iptables-legacy", "core-1.36-iptables-nft")

SYMPTOMS = {"ok": "connects", "timeout": "times_out", "refused": "refused", "unreachable": "unreachable"}
KINDS = {
    "nodeport": "nodePort",
    "loadbalancer": "loadBalancer",
    "externalip": "externalIP",
    "clusterip": "clusterIP",
}
# A fate this unlikely never to be met in all tries must have been met.
CERTAIN = 1e-4


def cases() -> Iterator[Any]:
    whole = [MORE / name for name in PROOF if (MORE / name / "probes.json").is_file()]
    sizes = {folder.name: count(folder) for folder in whole}
    for folder in sorted(PACKAGED.glob("*/")):
        if (folder / "probes.json").is_file() and count(folder) != sizes.get(folder.name):
            yield pytest.param(folder, id=folder.name)
    for folder in whole:
        yield pytest.param(folder, id=f"whole {folder.name}")


def count(folder: Path) -> int:
    return len(json.loads((folder / "probes.json").read_text()))


@dataclass
class Case:
    """A recording: its snapshot, its probes, and the diagnosis of each Service."""

    folder: Path
    snapshot: Snapshot = field(init=False)
    probes: list[dict[str, Any]] = field(init=False)
    pods: Mapping[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.snapshot = snapshot_of(self.folder)
        self.probes = json.loads((self.folder / "probes.json").read_text())
        self.pods = {ip: p.node_name for p in self.snapshot.cluster.pods or () for ip in p.pod_ips}

    def service(self, probe: dict[str, Any]) -> tuple[Service, str]:
        key, _, port = probe["service"].partition(":")
        return self.snapshot.cluster.services[key], port

    def diagnosis(self, service: Service) -> ServiceDiagnosis:
        return diagnosis_of(self.folder, service.key)

    def cell(self, probe: dict[str, Any]) -> tuple[str, Cell] | None:
        """The cell that is about such a connection; None where the matrix has none like it."""
        service, port = self.service(probe)
        vantage, node = vantage_of(probe)
        if vantage is None or is_shut_out(probe, service):
            return None
        for matrix in self.diagnosis(service).frontends:
            kind = "nodePort" if vantage == "localhost" else KINDS.get(probe["frontend"])
            if matrix.kind != kind or matrix.port_name not in ("", port):
                continue
            if (matrix.dialled, matrix.protocol.lower()) != (probe["port"], probe["proto"]):
                continue
            if matrix.kind != "nodePort" and matrix.address != probe["dst"]:
                continue
            for row in matrix.nodes:
                if row.node != node or (cell := row.cells.get(vantage)) is None:
                    continue
                return (vantage, cell) if self.is_like(probe, vantage, cell, service) else None
        return None

    def is_like(self, probe: dict[str, Any], vantage: str, cell: Cell, service: Service) -> bool:
        """Whether the probe's client stands where the cell's does: on the same node, a pod serving as much."""
        client = cell.client or ""
        if any(other.client == probe["src_ip"] for other in cell.others):
            return False  # of a class of its own, and said so
        if vantage == "otherNode":
            return client == f"a process on {probe['vantage_node']}"
        if vantage in ("podSameNode", "podOtherNode"):
            name = client.removeprefix("pod ")
            asked = next(p for p in self.snapshot.cluster.pods or () if p.key == name)
            return asked.node_name == probe["vantage_node"] and (
                probe["src_ip"] in asked.pod_ips
                or self.serves(probe["src_ip"], service) == self.serves(asked.pod_ips[0], service)
            )
        return True

    def serves(self, ip: str, service: Service) -> bool:
        return any(
            ip in endpoint.addresses
            for part in self.snapshot.cluster.slices or ()
            if (part.namespace, part.service_name) == (service.namespace, service.name)
            for endpoint in part.endpoints
        )


def vantage_of(probe: dict[str, Any]) -> tuple[str | None, str | None]:
    """(key of the matrix, node of its row); no key where the matrix does not ask this."""
    kind, front_end, home = probe["kind"], probe["frontend"], probe["vantage_node"]
    if front_end == "nodeport-loopback":
        return "localhost", home
    if front_end == "nodeport-second-ip":
        return None, None
    if kind == "external":
        return "external", probe.get("via") or probe["dst_node"]
    if front_end != "nodeport":  # a virtual address is translated on the client's own node
        return ("node" if kind == "node" else "podSameNode"), home
    here = home == probe["dst_node"]
    if kind == "node":
        return ("node" if here else "otherNode"), probe["dst_node"]
    return ("podSameNode" if here else "podOtherNode"), probe["dst_node"]


def is_shut_out(probe: dict[str, Any], service: Service) -> bool:
    """Whether a load balancer's source ranges keep this client out: the matrix asks for one that they let in."""
    ranges = service.load_balancer_source_ranges if probe["frontend"] == "loadbalancer" else ()
    source = ip_address(probe["src_ip"])
    return bool(ranges) and probe["kind"] == "external" and not any(source in ip_network(r) for r in ranges)


def complaint(probe: dict[str, Any], cell: Cell) -> str | None:
    outcomes = probe["outcomes"]
    if "connected-silent" in outcomes:  # a process of the node holds the port
        return None if cell.disposition is Disposition.HOST_PROCESS else f"said {cell.disposition.value}"
    unread = any(a.evidence is EvidenceKind.POD_NAMESPACE for a in cell.assumptions)
    if "deadport" in probe["service"] and set(outcomes) == {"refused"} and unread:
        return None  # nothing listens in that pod, which was not read: the answer says so
    said: dict[str, float] = defaultdict(float)
    if cell.symptom is Symptom.INTERMITTENT:
        for endpoint in cell.endpoints:
            said[endpoint.symptom.value] += endpoint.probability or 0
    else:
        said[cell.symptom.value] += 1
    seen = {SYMPTOMS[o] for o in outcomes}
    tries = sum(outcomes.values())
    unmet = [s for s, chance in said.items() if s not in seen and (1 - min(chance, 1)) ** tries < CERTAIN]
    if not seen <= set(said) or unmet:
        return f"said {dict(said)}, was {outcomes}"
    return None


@pytest.mark.parametrize("folder", list(cases()))
def test_every_cell_is_what_was_met(folder: Path) -> None:
    case = Case(folder)
    asked: Counter[str] = Counter()
    rows: set[tuple[str, str | None]] = set()
    wrong = []
    for probe in case.probes:
        found = case.cell(probe)
        if found is None:
            continue
        vantage, cell = found
        asked[vantage] += 1
        if vantage == "external":
            rows.add((case.service(probe)[0].key, probe.get("via") or probe["dst_node"]))
        if (why := complaint(probe, cell)) is not None:
            wrong.append(
                f"{vantage} {probe['vantage']} ({probe['src_ip']}) -> {probe['dst']}:{probe['port']} "
                f"[{probe['service']}, client {cell.client}] {why}: {cell.reason}"
            )
    assert not wrong, f"{len(wrong)} of {sum(asked.values())}:\n" + "\n".join(wrong[:20])
    assert set(asked) == {"external", "node", "localhost", "podSameNode", "podOtherNode", "otherNode"}
    # every Service with front ends for the outside, on every node
    outside = {p["service"].partition(":")[0] for p in case.probes if p["kind"] == "external"}
    assert rows == {(key, node) for key in outside for node in case.snapshot.cluster.nodes or {}}


@pytest.mark.parametrize(
    ("symptom", "shares", "outcomes", "agrees"),
    [
        ("connects", {}, {"ok": 10}, True),
        ("connects", {}, {"timeout": 2}, False),
        ("connects", {}, {"ok": 9, "timeout": 1}, False),
        ("times_out", {}, {"timeout": 2}, True),
        ("times_out", {}, {"refused": 10}, False),
        ("refused", {}, {"refused": 10}, True),
        ("intermittent", {"connects": 0.5, "times_out": 0.5}, {"ok": 6, "timeout": 4}, True),
        ("intermittent", {"connects": 0.9, "times_out": 0.1}, {"ok": 10}, True),
        ("intermittent", {"connects": 0.2, "times_out": 0.8}, {"ok": 10}, False),
        ("unknown", {}, {"ok": 10}, False),
    ],
)
def test_the_judge_hears(
    symptom: str, shares: dict[str, float], outcomes: dict[str, int], agrees: bool
) -> None:
    endpoints = tuple(
        CellEndpoint(ip="10.0.0.1", port=80, name=None, node=None, probability=share, symptom=Symptom(what))
        for what, share in shares.items()
    )
    cell = Cell(
        vantage="external", symptom=Symptom(symptom), disposition=Disposition.DELIVERED, reason="", basis="rules",
        endpoints=endpoints,
    )  # fmt: skip
    assert (complaint({"service": "a/b:c", "outcomes": outcomes}, cell) is None) is agrees


@pytest.mark.parametrize("folder", list(cases()))
def test_what_the_outside_meets_is_met_by_the_intent_too(folder: Path) -> None:
    """With the API alone: where it commits itself, a healthy cluster does as it says."""
    case = Case(folder)
    if any(state.data_plane for state in case.snapshot.nodes.values()) or "cilium" in folder.name:
        pytest.skip(
            "with the API alone nothing tells that kube-proxy does not serve: no agent's pod was recorded"
        )
    full = case.snapshot
    case.snapshot = Snapshot(cluster=full.cluster, source=full.source)
    wrong, asked = [], 0
    put_out = services_put_out_by_hand(full)
    for probe in case.probes:
        if probe["service"].rpartition(":")[0] in put_out:
            continue
        found = case.cell(probe) if probe["kind"] == "external" else None
        if found is None or found[1].symptom is Symptom.UNKNOWN:
            continue
        asked += 1
        if (why := complaint(probe, found[1])) is not None:
            wrong.append(f"{probe['src_ip']} -> {probe['dst']}:{probe['port']} [{probe['service']}] {why}")
    assert not wrong, "\n".join(wrong[:20])
    assert asked
