"""What a diagnosis stands on: the API alone, the rules of some nodes, of all; and what it says is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Cluster
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from tests.unit.diagnose.worlds import CLUSTER, LOCAL, Asked, causes, cell, demo, only_nodes

NODES = ("node-a", "node-b", "node-c")


@pytest.mark.parametrize(
    "read", [(), ("node-b",), ("node-a", "node-b"), NODES], ids=["api", "one", "two", "all"]
)
def test_each_row_says_what_it_stands_on(read: tuple[str, ...]) -> None:
    diagnosis = Asked(only_nodes(demo(), *read), LOCAL).diagnosis()
    for node in NODES:
        external = cell(diagnosis, node)
        assert external.basis == ("rules" if node in read else "api")
        assert external.symptom is (Symptom.CONNECTS if node == "node-a" else Symptom.TIMES_OUT)
        assert diagnosis.evidence_nodes[node] == (("iptables-legacy",) if node in read else ())
    assert causes(diagnosis) == {"node-a": None, "node-b": "KTP501", "node-c": "KTP501"}
    assert {g.subject for g in diagnosis.gaps if g.kind == "node-rules"} == set(NODES) - set(read)


@pytest.mark.parametrize("read", [(), ("node-b",), ("node-a", "node-c")], ids=str)
def test_a_cell_is_never_called_fact_where_the_dialled_node_was_not_read(read: tuple[str, ...]) -> None:
    for service in (LOCAL, CLUSTER):
        diagnosis = Asked(only_nodes(demo(), *read), service).diagnosis()
        for matrix in diagnosis.frontends:
            for row in matrix.nodes:
                for answer in row.cells.values():
                    assert answer.basis == "rules" or row.node not in read
                    if row.node not in read and answer.symptom is Symptom.UNKNOWN:
                        assert answer.basis == "none"


def test_what_was_assumed_is_said() -> None:
    """Nothing tells kube-proxy's mode: the default is assumed, and what hangs on it is named."""
    external = cell(Asked(only_nodes(demo()), LOCAL).diagnosis(), "node-b")
    assert any("iptables mode, its default" in a.taken for a in external.assumptions)
    assert any("ipvs: refused" in a.detail for a in external.assumptions)
    by_rules = cell(Asked(demo(), LOCAL).diagnosis(), "node-b")
    assert not any("its default" in a.taken for a in by_rules.assumptions)


def test_what_nothing_tells_stays_unknown() -> None:
    """Whether this pod is exempt depends on a clusterCIDR that only the node's configuration has."""
    diagnosis = Asked(only_nodes(demo()), LOCAL).diagnosis()
    pod = cell(diagnosis, "node-b", "podSameNode")
    assert (pod.symptom, pod.basis, pod.cause) == (Symptom.UNKNOWN, "none", None)
    assert "clusterCIDR" in pod.reason
    assert diagnosis.undetermined


def test_rules_and_api_agree_on_every_cell_that_both_answer() -> None:
    for service in (LOCAL, CLUSTER):
        facts = Asked(demo(), service).diagnosis()
        intents = Asked(only_nodes(demo()), service).diagnosis()
        for by_rules, by_api in zip(facts.frontends, intents.frontends, strict=True):
            for row, other in zip(by_rules.nodes, by_api.nodes, strict=True):
                for vantage, answer in other.cells.items():
                    if answer.symptom is not Symptom.UNKNOWN and vantage != "podOtherNode":
                        assert row.cells[vantage].symptom is answer.symptom, (
                            by_rules.title,
                            row.node,
                            vantage,
                        )


def without(**lists: Any) -> Snapshot:
    snapshot = only_nodes(demo())
    return replace(snapshot, cluster=replace(snapshot.cluster, **lists))


def test_without_endpoint_slices_and_endpoints_nothing_is_claimed() -> None:
    diagnosis = Asked(without(slices=None, endpoints=None), LOCAL).diagnosis()
    # annotations stand on the Service alone
    assert not {f.code for f in diagnosis.findings} - {"KTP606"}
    assert diagnosis.undetermined
    assert {row.local_endpoints for m in diagnosis.frontends for row in m.nodes} == {None}
    assert cell(diagnosis, "node-b").symptom is Symptom.UNKNOWN


@pytest.mark.parametrize("missing", ["slices", "endpoints"])
def test_one_of_endpoint_slices_and_endpoints_is_enough(missing: str) -> None:
    diagnosis = Asked(without(**{missing: None}), LOCAL).diagnosis()
    assert causes(diagnosis) == {"node-a": None, "node-b": "KTP501", "node-c": "KTP501"}


def test_without_pods_the_cause_is_still_found() -> None:
    diagnosis = Asked(without(pods=None), LOCAL).diagnosis()
    assert causes(diagnosis) == {"node-a": None, "node-b": "KTP501", "node-c": "KTP501"}


def test_without_any_node_there_is_no_row_and_no_crash() -> None:
    service = demo().cluster.services[LOCAL]
    snapshot = Snapshot(cluster=Cluster(services={LOCAL: service}))
    diagnosis = Asked(snapshot, LOCAL).diagnosis()
    assert "is not known: the nodes were not read" in diagnosis.verdict
    assert diagnosis.undetermined
    none = Asked(Snapshot(cluster=Cluster(services={LOCAL: service}, nodes={})), LOCAL).diagnosis()
    assert "no front end on any node that ktp knows" in none.verdict


def test_another_node_that_was_read_tells_how_kube_proxy_runs() -> None:
    """Of the others is said that they are taken to be alike, and not that nothing tells."""
    diagnosis = Asked(only_nodes(demo(), "node-b"), LOCAL).diagnosis()
    rows = [r for m in diagnosis.frontends for r in m.nodes if r.node != "node-b"]
    taken = [a for r in rows for c in r.cells.values() for a in c.assumptions]
    modes = {a.taken for a in taken if a.evidence is EvidenceKind.PROXY_CONFIG}
    assert modes == {"kube-proxy runs in iptables mode, as on node-b"}


def test_rules_alone_of_a_node_that_the_api_does_not_know() -> None:
    """No Node objects: addresses come from the node itself."""
    snapshot = demo()
    snapshot = replace(snapshot, cluster=replace(snapshot.cluster, nodes=None))
    diagnosis = Asked(only_nodes(snapshot, "node-b"), LOCAL).diagnosis()
    assert cell(diagnosis, "node-b").symptom is Symptom.TIMES_OUT
    assert cell(diagnosis, "node-b").basis == "rules"


def test_only_the_nodes_asked_for_have_rows() -> None:
    from ktp.diagnose.service import diagnose_service

    snapshot = demo()
    diagnosis = diagnose_service(snapshot, snapshot.cluster.services[LOCAL], nodes=["node-b"])
    assert [row.node for row in diagnosis.frontends[0].nodes] == ["node-b"]
    assert {n for f in diagnosis.findings for n in f.nodes} == {"node-b"}
