"""Small clusters for the checks: the packaged snapshot and a recorded one, each with one thing changed.

Changes of API objects are made on the parsed objects; `programmed` lets kube-proxy's rules follow them, so that rules
and API agree. Changes on a node are made in the text of its files, as a person would make them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ktp.app.settings import demo_path
from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.changes import reprogrammed
from ktp.diagnose.service import diagnose_service
from ktp.kubeproxy.changes import with_service
from ktp.model.capture import MemoryCapture
from ktp.model.cluster import Cluster, Service, ip_of
from ktp.model.diagnosis import Cell, Finding, ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot
from tests.support.changes import with_endpoint_ready

REPOSITORY = Path(__file__).resolve().parents[3]
RECORDED = REPOSITORY / "tests" / "data" / "cases" / "core-1.36-iptables-nft"

LOCAL = "test/nginx-externaltrafficpolicy"  # one pod, on node-a; node port 31015
CLUSTER = "test/nginx-log"  # a pod on node-a and one on node-b; node port 31465, load balancer 10.99.0.12
LOCAL_POD = "test/nginx-externaltrafficpolicy-6654865c87-25cnq"
LEGACY, NFT = "iptables-legacy-save.txt", "iptables-nft-save.txt"

Edit = Callable[[str], str]
Objects = Callable[[Cluster], Cluster]


@dataclass(frozen=True)
class Asked:
    """A question: a Service of a snapshot, and a client where the default one will not do."""

    snapshot: Snapshot
    service: str
    client: str | None = None

    def diagnosis(self) -> ServiceDiagnosis:
        found = self.snapshot.cluster.services[self.service]
        return diagnose_service(
            self.snapshot, found, client=ip_of(self.client) if self.client is not None else None
        )


# ----------------------------------------------------------------------------------------------------- snapshots


@functools.cache
def _files(folder: Path) -> Mapping[str, bytes]:
    capture = open_snapshot(folder)
    return {name: capture.read(name) for name in capture.names()}


@functools.cache
def _parsed(folder: Path) -> Snapshot:
    return parse_snapshot(open_snapshot(folder))


def demo(edits: Mapping[tuple[str, str], Edit] | None = None, *, folder: Path | None = None) -> Snapshot:
    """The packaged snapshot (or another); `edits` change the text of (node, file)."""
    folder = folder or demo_path()
    if not edits:
        return _parsed(folder)
    files = dict(_files(folder))
    for (node, file), edit in edits.items():
        name = f"nodes/{node}/{file}"
        before = files.get(name, b"").decode()
        after = edit(before)
        assert after != before, f"nothing to change in {name}"
        files[name] = after.encode()
    return parse_snapshot(MemoryCapture(files=files))


def recorded(edits: Mapping[tuple[str, str], Edit] | None = None) -> Snapshot:
    """A recorded cluster of kube-proxy 1.36, with a Service for each corner in namespace edge."""
    return demo(edits, folder=RECORDED)


def only_nodes(snapshot: Snapshot, *names: str) -> Snapshot:
    """What was read of the other nodes left out."""
    return replace(snapshot, nodes={n: s for n, s in snapshot.nodes.items() if n in names})


def with_objects(snapshot: Snapshot, change: Objects) -> Snapshot:
    """Other API objects; the rules stay as they are."""
    return replace(snapshot, cluster=change(snapshot.cluster))


def programmed(snapshot: Snapshot, service: str, change: Objects) -> Snapshot:
    """Other API objects, and kube-proxy has synced the Service's rules."""
    return reprogrammed(snapshot, change(snapshot.cluster), service)


# --------------------------------------------------------------------------------------------------- API objects


def service_with(key: str, **fields: object) -> Objects:
    """The Service with other fields."""
    return lambda c: with_service(c, replace(c.services[key], **fields))  # type: ignore[arg-type]


def without_endpoints(key: str) -> Objects:
    """The Service's slices (and Endpoints) without endpoints."""
    namespace, _, name = key.partition("/")

    def change(cluster: Cluster) -> Cluster:
        def emptied(parts: tuple[object, ...] | None) -> tuple[object, ...] | None:
            return None if parts is None else tuple(
                replace(p, endpoints=()) if (p.namespace, p.service_name) == (namespace, name) else p  # type: ignore[attr-defined,type-var]
                for p in parts
            )  # fmt: skip

        return replace(cluster, slices=emptied(cluster.slices), endpoints=emptied(cluster.endpoints))  # type: ignore[arg-type]

    return change


def not_ready(key: str, *pods: str) -> Objects:
    """Pods whose readiness probe fails."""

    def change(cluster: Cluster) -> Cluster:
        for pod in pods:
            cluster = with_endpoint_ready(cluster, key, pod, ready=False)
        return cluster

    return change


def both(*changes: Objects) -> Objects:
    """One change after the other."""
    return lambda cluster: functools.reduce(lambda c, change: change(c), changes, cluster)


def of_service(snapshot: Snapshot, key: str) -> Service:
    return snapshot.cluster.services[key]


# --------------------------------------------------------------------------------------------------- node files


def sysctl(key: str, value: str) -> Edit:
    """A kernel setting."""
    return lambda text: (
        "".join(line for line in text.splitlines(keepends=True) if not line.startswith(f"{key} ="))
        + f"{key} = {value}\n"
    )


def first_rule(table: str, rule: str) -> Edit:
    """A rule before all others of its chain."""

    def edit(text: str) -> str:
        chain = rule.split()[1]
        out, seen, inside = [], False, False
        for line in text.splitlines():
            if line.startswith("*"):
                inside = line == f"*{table}"
            first = f"-A {chain} " in line or line == "COMMIT"
            if inside and first and not seen:
                out.append(f"[0:0] {rule}" if "] -A" in text else rule)
                seen = True
            out.append(line)
        assert seen, f"there is no table {table}"
        return "\n".join(out) + "\n"

    return edit


def without_rules(*words: str) -> Edit:
    """Without the rules that have all of the words."""
    return lambda text: "".join(
        line
        for line in text.splitlines(keepends=True)
        if not ("-A " in line and all(w in line for w in words))
    )


def policy(table: str, chain: str, verdict: str) -> Edit:
    """Another policy of a base chain."""

    def edit(text: str) -> str:
        head, mark, tail = text.partition(f"*{table}\n")
        return head + mark + tail.replace(f":{chain} ACCEPT", f":{chain} {verdict}", 1)

    return edit


def routes(*more: dict[str, object], without: str | None = None) -> Edit:
    """More routes, and none to `without`."""

    def edit(text: str) -> str:
        kept = [r for r in json.loads(text) if r["dst"] != without]
        return json.dumps([*kept, *more])

    return edit


def in_order(*edits: Edit) -> Edit:
    """One edit after the other, in the same file."""
    return lambda text: functools.reduce(lambda t, edit: edit(t), edits, text)


# ------------------------------------------------------------------------------------------------------- reports


def codes(d: ServiceDiagnosis) -> set[str]:
    return {f.code for f in d.findings}


def findings(d: ServiceDiagnosis, code: str) -> list[Finding]:
    return [f for f in d.findings if f.code == code]


def cell(d: ServiceDiagnosis, node: str, vantage: str = "external", kind: str = "nodePort") -> Cell:
    """A cell of the first front end of a kind."""
    matrix = next(m for m in d.frontends if m.kind == kind)
    return next(r for r in matrix.nodes if r.node == node).cells[vantage]


def causes(d: ServiceDiagnosis, vantage: str = "external", kind: str = "nodePort") -> dict[str, str | None]:
    """node → cause of its cell."""
    matrix = next(m for m in d.frontends if m.kind == kind)
    return {r.node: r.cells[vantage].cause for r in matrix.nodes}
