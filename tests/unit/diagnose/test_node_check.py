"""A node judged by its own evidence says what the whole diagnosis says, and keeps only what is still true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose import node_check
from ktp.diagnose.node_check import NodeChecker
from ktp.diagnose.service import diagnose_service
from ktp.model.cluster import Scope
from ktp.model.node_check import FrontEndState, NodeCheck
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Symptom
from ktp.parse.snapshot import parse_snapshot

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
NAMES = sorted(path.name for path in CASES.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], Snapshot]:
    kept: dict[str, Snapshot] = {}

    def load(name: str) -> Snapshot:
        if name not in kept:
            kept[name] = parse_snapshot(open_snapshot(CASES / name))
        return kept[name]

    return load


def changed(snapshot: Snapshot, key: str, **fields: Any) -> Snapshot:
    services = {**snapshot.cluster.services, key: replace(snapshot.cluster.services[key], **fields)}
    return replace(snapshot, cluster=replace(snapshot.cluster, services=services))


def told(check: NodeCheck) -> object:
    return check.counts, check.not_well, check.findings, check.undiagnosed


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_whole_diagnosis_says(name: str, loaded: Callable[[str], Snapshot]) -> None:
    snapshot = loaded(name)
    for node in list(snapshot.nodes)[:2]:
        check = NodeChecker(node, most=1000).check(snapshot)
        bad = {(e.key, e.title): e for e in check.not_well}
        total = 0
        for key, service in list(snapshot.cluster.services.items())[:: 1 if name.startswith("ipvs") else 4]:
            if not node_check.may_be_external(service):
                continue
            report = diagnose_service(snapshot, service, nodes=(node,))
            for matrix in report.frontends:
                cell = matrix.nodes[0].cells.get("external") if matrix.nodes else None
                if matrix.kind == "clusterIP" or cell is None:
                    continue
                total += 1
                found = bad.get((key, matrix.title))
                fails = cell.symptom not in (Symptom.CONNECTS, Symptom.UNKNOWN) or (
                    cell.disposition is Disposition.HOST_PROCESS
                )
                if found is None:
                    assert not fails or cell.cause in ("KTP501", "KTP207", "KTP601"), (key, matrix.title)
                    continue
                assert found.symptom is cell.symptom
                if found.state is FrontEndState.FAILS:
                    assert fails
                    assert found.cause == cell.cause is not None
        assert check.total >= total


def test_a_local_node_port_without_a_pod_here_is_silent_and_no_fault(
    loaded: Callable[[str], Snapshot],
) -> None:
    snapshot = loaded("core-1.36-iptables-nft")
    check = NodeChecker("node-b").check(snapshot)
    assert "test/nginx-externaltrafficpolicy" not in {e.key for e in check.not_well}
    assert check.count(FrontEndState.SILENT) == 11
    assert "KTP501" not in {f.code for found in check.findings.values() for f in found}
    # Where no node holds a pod any more, nobody wants it so.
    key = "test/nginx-externaltrafficpolicy"
    slices = tuple(
        replace(s, endpoints=()) if s.service_name == key.partition("/")[2] else s
        for s in snapshot.cluster.slices or ()
    )
    gone = NodeChecker("node-b").check(replace(snapshot, cluster=replace(snapshot.cluster, slices=slices)))
    assert {e.cause for e in gone.not_well if e.key == key} <= {"KTP101", "KTP102", "KTP401"}
    assert key in {e.key for e in gone.not_well}


def test_what_is_kept_is_what_would_be_found_anew(loaded: Callable[[str], Snapshot]) -> None:
    first = loaded("core-1.36-iptables-nft")
    key = "edge/cluster-all"
    if key not in first.cluster.services:
        key = next(k for k, s in first.cluster.services.items() if s.type == "NodePort")
    second = changed(first, key, external_traffic_policy="Local")
    again_and_again = NodeChecker("node-b")
    for snapshot in (first, second, first, second, second):
        found = again_and_again.check(snapshot, same_node=True)
        assert told(found) == told(NodeChecker("node-b").check(snapshot))
    other = NodeChecker("node-b")
    assert told(other.check(second)) == told(again_and_again.check(second, same_node=True))
    assert told(other.check(first, same_node=True)) == told(NodeChecker("node-b").check(first))


def test_another_node_state_is_asked_anew(loaded: Callable[[str], Snapshot]) -> None:
    snapshot = loaded("core-1.36-iptables-nft")
    checker = NodeChecker("node-a")
    assert checker.check(snapshot).count(FrontEndState.FAILS) == 3
    sysctls = {**(snapshot.nodes["node-a"].sysctls or {}), "net.ipv4.ip_forward": "0"}
    nodes = {**snapshot.nodes, "node-a": replace(snapshot.nodes["node-a"], sysctls=sysctls)}
    broken = checker.check(replace(snapshot, nodes=nodes))
    assert broken.count(FrontEndState.FAILS) > 10
    causes = {e.cause for e in broken.not_well}
    assert "KTP201" in causes
    # Not each of so many is diagnosed, and that is told.
    assert broken.undiagnosed
    assert None in causes
    assert len(broken.findings) <= node_check.MOST_DIAGNOSED


def test_only_this_node_known_is_enough(loaded: Callable[[str], Snapshot]) -> None:
    """As a node asks: its own Node, no pods, and of the endpoints those of external Services."""
    whole = loaded("core-1.36-iptables-nft")
    external = {key: s for key, s in whole.cluster.services.items() if node_check.may_be_external(s)}
    names = {(s.namespace, s.name) for s in external.values()}
    for node in whole.nodes:
        cluster = replace(
            whole.cluster,
            pods=None,
            nodes={node: (whole.cluster.nodes or {})[node]},
            services=external,
            slices=tuple(s for s in whole.cluster.slices or () if (s.namespace, s.service_name) in names),
            partial={"nodes": Scope.SOME, "services": Scope.SOME, "slices": Scope.SOME},
        )
        alone = replace(whole, cluster=cluster, nodes={node: whole.nodes[node]})
        found, expected = NodeChecker(node).check(alone), NodeChecker(node).check(whole)
        assert found.counts == expected.counts
        assert [(e.key, e.title, e.state) for e in found.not_well] == [
            (e.key, e.title, e.state) for e in expected.not_well
        ]
