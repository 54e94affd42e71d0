"""what-if beside reality: rules before and after a change loaded into two nodes, and real packets for every cell.

The rules before are recorded ones, as kube-proxy 1.20 and 1.36 wrote them, in nftables mode too; those after are what ktp says that
kube-proxy would write. Both matrices must be what the packets do: who connects, to which endpoints, with which source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktp.diagnose.whatif import changed_by, what_if
from ktp.model.capture import MemoryCapture
from ktp.model.change import Change
from ktp.model.cluster import Pod
from ktp.model.diagnosis import Cell, ServiceDiagnosis
from ktp.model.host import NodeState
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from ktp.parse.nft import parse_nft_json
from ktp.parse.snapshot import parse_snapshot
from tests.kernel.lab import ADDRESSES, Lab
from tests.support.nft_writer import render_nft

pytestmark = pytest.mark.kernel

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
RECORDED = {
    "1.20": ("core-1.20-iptables-legacy", "legacy"),
    "1.36": ("core-1.36-iptables-nft", "nft"),
    "1.36 nftables": ("core-1.36-nftables", "nftables"),
}
NODES = {"node-a": "a", "node-b": "b"}
LOCAL = "test/nginx-externaltrafficpolicy"  # Local, a pod on node-a
CLUSTER = "test/nginx-log"  # Cluster, a pod on each of the two nodes
# The recorded pods' addresses, and the namespaces that have them here.
HOMES = {"10.244.1.10": "pa1", "10.244.1.12": "pa2", "10.244.2.11": "pb1"}
CLIENT_PODS = {"node-a": "qa1", "node-b": "qb1"}
SPARE = {"node-a": "pa2", "node-b": "pb1"}  # where the address of a pod that is added goes
OUTSIDE = "c1"
# So many tries that an endpoint of three that is drawn is missed once in 10,000 runs.
TRIES = 24

CHANGES = {
    "Local to Cluster": (LOCAL, [("policy", "Cluster")]),
    "Cluster to Local": (CLUSTER, [("policy", "Local")]),
    "a pod more, Local": (LOCAL, [("pod-on", "node-b")]),
    "a pod more here, Local": (LOCAL, [("pod-on", "node-a")]),
    "a pod more, Cluster": (CLUSTER, [("pod-on", "node-b")]),
    "a pod less, Cluster": (CLUSTER, [("delete-pod", "nginx-log-0")]),
    "the last pod less, Local": (LOCAL, [("scale", "0")]),
    "Local, then a pod less": (CLUSTER, [("policy", "Local"), ("delete-pod", "nginx-log-1")]),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        for address, home in HOMES.items():
            if address not in ADDRESSES[home]:
                add_pod(lab, address, home)
        yield lab
    finally:
        lab.close()


def add_pod(lab: Lab, address: str, home: str) -> None:
    """One more address in a pod's namespace, and the node's way to it: to the node it is a pod like others."""
    lab.agents[home].run("ip", "addr", "replace", f"{address}/32", "dev", "eth0")
    lab.agents[home[1]].run("ip", "route", "replace", f"{address}/32", "dev", f"vp-{home}")


# -------------------------------------------------------------------------------------------------- the two worlds


def cluster_files(case: Path) -> dict[str, bytes]:
    """The recorded objects, with the laboratory's two nodes and the pods that are there."""
    files = {f"cluster/{f.name}": f.read_bytes() for f in (case / "cluster").iterdir()}
    nodes = json.loads(files["cluster/nodes.json"])
    nodes["items"] = [n for n in nodes["items"] if n["metadata"]["name"] in NODES]
    for node in nodes["items"]:
        name = NODES[node["metadata"]["name"]]
        node["status"]["addresses"] = [{"type": "InternalIP", "address": ADDRESSES[name][0]}]
    pods = json.loads(files["cluster/pods.json"])
    kept = [p for p in pods["items"] if p.get("status", {}).get("podIP") in HOMES]
    assert len(kept) == len(HOMES)
    for node, home in CLIENT_PODS.items():
        address = ADDRESSES[home][0]
        kept.append(
            {
                "metadata": {"namespace": "lab", "name": home},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            }
        )
    pods["items"] = kept
    files["cluster/nodes.json"] = json.dumps(nodes).encode()
    files["cluster/pods.json"] = json.dumps(pods).encode()
    return files


def recorded_rules(case: Path, node: str, backend: str) -> str:
    if backend == "nftables":
        file = case / "nodes" / node / "nft-ruleset.json"
        text = render_nft(parse_nft_json(file.read_bytes(), file.name))
        # The rules name the addresses at which the node serves node ports: here it has others.
        items = json.loads((case / "cluster" / "nodes.json").read_text())["items"]
        (own,) = (i["status"]["addresses"] for i in items if i["metadata"]["name"] == node)
        recorded = {a["address"] for a in own if a["type"] == "InternalIP" and ":" not in a["address"]}
        return re.sub(rf"\b({'|'.join(map(re.escape, recorded))})\b", ADDRESSES[NODES[node]][0], text)
    text = (case / "nodes" / node / f"iptables-{backend}-save.txt").read_text()
    # Counts what it matches, and needs an object that iptables-restore does not make.
    return re.sub(r" -m nfacct --nfacct-name +\S+", "", text)


def dumped(state: NodeState, backend: str) -> str:
    """The node's rules of one back end, as nft -f or (those of IPv4) iptables-restore takes them."""
    if backend == "nftables":
        assert state.nft is not None
        return render_nft(state.nft)
    out = []
    (ruleset,) = (r for r in state.rulesets_of("ip") if r.backend.value == f"iptables-{backend}")
    for table in ruleset.tables():
        out.append(f"*{table}")
        chains = [c for name in ruleset.chain_names(table) if (c := ruleset.chain(table, name)) is not None]
        out += [f":{c.name} {c.policy or '-'} [0:0]" for c in chains]
        out += [re.sub(r"^\[\d+:\d+\] ", "", line) for c in chains for line in c.raw_lines()]
        out.append("COMMIT")
    return "\n".join(out) + "\n"


def load(lab: Lab, backend: str, rules: dict[str, str]) -> None:
    for node, text in rules.items():
        lab.clear(NODES[node])
        lab.sysctl(NODES[node], {"net/ipv4/conf/all/route_localnet": "1"})
        if backend == "nftables":
            lab.agents[NODES[node]].run("nft", "-f", "-", text=text)
        else:
            lab.restore(NODES[node], 4, backend, text)


def read(lab: Lab, case: Path) -> Snapshot:
    """What ktp's own collector reads of the two nodes, with the objects."""
    by_lab = {v: k for k, v in NODES.items()}
    files = cluster_files(case)
    for name, content in lab.capture().files.items():
        if name.startswith("nodes/"):
            _, node, file = name.split("/")
            files[f"nodes/{by_lab[node]}/{file}"] = content
    for node in NODES:
        files[f"nodes/{node}/kube-proxy-config.json"] = (
            case / "nodes" / node / "kube-proxy-config.json"
        ).read_bytes()
    return parse_snapshot(MemoryCapture(files=files))


# ------------------------------------------------------------------------------------------------------ the matrix


# (front end, node, vantage, cell, the probe that is such a client)
Asked = tuple[str, str, str, Cell, dict[str, Any]]


def probes_of(d: ServiceDiagnosis) -> list[Asked]:
    """A probe for every cell of a node port or cluster IP."""
    out = []
    other = {"node-a": "node-b", "node-b": "node-a"}
    for m in d.frontends:
        if m.kind not in ("nodePort", "clusterIP"):
            continue
        for row in m.nodes:
            for vantage, cell in row.cells.items():
                own = ADDRESSES[NODES[row.node]][0]
                host = {
                    "external": OUTSIDE,
                    "node": NODES[row.node],
                    "localhost": NODES[row.node],
                    "podSameNode": CLIENT_PODS[row.node],
                    "podOtherNode": CLIENT_PODS[other[row.node]],
                    "otherNode": NODES[other[row.node]],
                }[vantage]
                dst = "127.0.0.1" if vantage == "localhost" else m.address or own
                probe = {"host": host, "dst": dst, "port": m.dialled, "proto": m.protocol.lower()}
                out.append((m.title, row.node, vantage, cell, probe))
    return out


def disagreements(lab: Lab, d: ServiceDiagnosis) -> list[str]:
    """Where the packets do something else than the matrix says.

    What differs is tried once more and with more patience: on a busy machine an answer may come late.
    """
    wanted = probes_of(d)
    assert len(wanted) >= 12
    wrong = _differing(lab, wanted, 0.25)
    return [said for _, said in _differing(lab, [asked for asked, _ in wrong], 2.0)]


def _differing(lab: Lab, wanted: list[Asked], timeout: float) -> list[tuple[Asked, str]]:
    probes = [{**probe, "timeout": timeout} for *_, probe in wanted for _ in range(TRIES)]
    answers = lab.probe(probes)
    wrong = []
    for number, asked in enumerate(wanted):
        title, node, vantage, cell, probe = asked
        said = _compare(cell, answers[number * TRIES : (number + 1) * TRIES], probe)
        if said:
            wrong.append((asked, f"{title} on {node}, {vantage}: {said}"))
    return wrong


def _compare(cell: Cell, seen: list[dict[str, Any]], probe: dict[str, Any]) -> str:
    outcomes = {a["outcome"] for a in seen}
    if cell.symptom is Symptom.INTERMITTENT:
        wanted = {e.symptom.value for e in cell.endpoints}
    else:
        wanted = {cell.symptom.value}
    if outcomes != wanted:
        return f"ktp says {sorted(wanted)}, the packets {sorted(outcomes)}"
    answered = {a["ip"] for a in seen if "ip" in a}
    endpoints = {e.ip for e in cell.endpoints if e.symptom is Symptom.CONNECTS}
    if Symptom.CONNECTS.value in wanted and answered != endpoints:
        return f"ktp says {sorted(endpoints)} answer, and {sorted(answered)} did"
    if cell.symptom is Symptom.CONNECTS and cell.source_kept is not None:
        client = probe["dst"] if probe["dst"] == "127.0.0.1" else ADDRESSES[probe["host"]][0]
        sources = {a["source"] for a in seen if "source" in a}
        if cell.source_kept != (sources == {client}):
            return f"ktp says source kept {cell.source_kept}, the endpoints saw {sorted(sources)}"
    return ""


@pytest.mark.parametrize(
    "change", [c if n % 2 == 0 else pytest.param(c, marks=pytest.mark.slow) for n, c in enumerate(CHANGES)]
)
@pytest.mark.parametrize(
    "version",
    # The quick suite asks one of them; `make test-kernel` asks all.
    [
        version if n == 0 else pytest.param(version, marks=pytest.mark.slow)
        for n, version in enumerate(RECORDED)
    ],
)
def test_predicted_is_what_the_packets_do(version: str, change: str, lab: Lab) -> None:
    name, backend = RECORDED[version]
    case = CASES / name
    key, changes = CHANGES[change]
    load(lab, backend, {node: recorded_rules(case, node, backend) for node in NODES})
    snapshot = read(lab, case)
    service = snapshot.cluster.services[key]
    made = [Change(kind=kind, value=value) for kind, value in changes]
    answer = what_if(snapshot, service, made)
    assert disagreements(lab, answer.before) == []

    after, _ = changed_by(snapshot, service, made)
    assert answer.after.external_traffic_policy == after.cluster.services[key].external_traffic_policy
    for pod in new_pods(snapshot, after):
        assert pod.node_name is not None
        add_pod(lab, pod.pod_ips[0], SPARE[pod.node_name])
    load(lab, backend, {node: dumped(after.nodes[node], backend) for node in NODES})
    assert answer.altered, "each of these changes alters something"
    assert disagreements(lab, answer.after) == []
    assert disagreements(lab, answer.before), "and the packets show that something has changed"


def new_pods(before: Snapshot, after: Snapshot) -> list[Pod]:
    known = {p.key for p in before.cluster.pods or ()}
    return [p for p in after.cluster.pods or () if p.key not in known]


def test_the_rules_after_are_read_back_as_they_were_written(lab: Lab) -> None:
    """What is loaded is what was asked about: nothing is lost between the walker's rules and the kernel's."""
    name, backend = RECORDED["1.36"]
    case = CASES / name
    load(lab, backend, {node: recorded_rules(case, node, backend) for node in NODES})
    snapshot = read(lab, case)
    service = snapshot.cluster.services[CLUSTER]
    after, _ = changed_by(snapshot, service, [Change(kind="policy", value="Local")])
    load(lab, backend, {node: dumped(after.nodes[node], backend) for node in NODES})
    again = read(lab, case)
    again = replace(again, cluster=after.cluster)
    first = what_if(snapshot, service, [Change(kind="policy", value="Local")]).after
    second = what_if(again, after.cluster.services[CLUSTER], [Change(kind="policy", value="Local")]).before
    assert [
        (m.title, r.node, v, c.symptom, c.source_kept, {e.ip for e in c.endpoints})
        for m in first.frontends for r in m.nodes for v, c in r.cells.items()
    ] == [
        (m.title, r.node, v, c.symptom, c.source_kept, {e.ip for e in c.endpoints})
        for m in second.frontends for r in m.nodes for v, c in r.cells.items()
    ]  # fmt: skip
