"""A changed world shares what the change leaves as it was: the answers are those of one that shares nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose import case
from ktp.diagnose.examine import Examiner
from ktp.diagnose.service import diagnose_service
from ktp.diagnose.supposed import with_supposed_networks
from ktp.diagnose.topology import topology_of
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot
from ktp.render.diagnosis_json import diagnosis_object

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"


class Alone(Examiner):
    """An examiner that shares with none."""

    def __init__(self, snapshot: Snapshot, **options: Any) -> None:
        super().__init__(snapshot, **{**options, "beside": None})


def read(name: str) -> Snapshot:
    return parse_snapshot(open_snapshot(CASES / name))


def unread(snapshot: Snapshot) -> Snapshot:
    """The same with nothing of the nodes but their rules."""
    nodes = {
        name: replace(state, interfaces=None, routes=None, sysctls=None)
        for name, state in snapshot.nodes.items()
    }
    return replace(snapshot, nodes=nodes)


def all_diagnoses(snapshot: Snapshot) -> str:
    found = [diagnosis_object(diagnose_service(snapshot, s)) for s in snapshot.cluster.services.values()]
    return json.dumps(found, default=str)


@pytest.mark.parametrize("change", [lambda s: s, unread], ids=["whole", "rules-alone"])
@pytest.mark.parametrize(
    "name",
    [
        "core-1.20-iptables-legacy",
        pytest.param("core-1.36-nftables", marks=pytest.mark.slow),
        "ipvs-1.36-legacy",
        pytest.param("cilium-1.19.4-policy", marks=pytest.mark.slow),
    ],
)
def test_all_services_are_diagnosed_as_without_sharing(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Any
) -> None:
    snapshot = change(read(name))
    shared = all_diagnoses(snapshot)
    monkeypatch.setattr(case, "Examiner", Alone)
    assert shared == all_diagnoses(snapshot)


@pytest.mark.parametrize("change", [lambda s: s, unread], ids=["whole", "rules-alone"])
def test_a_topology_is_shared_only_where_nobody_has_another_place(
    change: Callable[[Snapshot], Snapshot],
) -> None:
    snapshot = change(read("core-1.36-iptables-nft"))
    first = topology_of(snapshot)
    name, state = next((n, s) for n, s in snapshot.nodes.items() if s.has_rules)

    def changed(**values: Any) -> Snapshot:
        return replace(snapshot, nodes={**snapshot.nodes, name: replace(state, **values)})

    cut = changed(rulesets=state.rulesets[:1])
    like = topology_of(cut, like=(snapshot, first))
    assert like == topology_of(cut)
    assert like.attached is first.attached
    assert all(like.nodes[n] is first.nodes[n] for n in snapshot.nodes if n != name)
    deaf = changed(sockets=())
    assert topology_of(deaf, like=(snapshot, first)) == topology_of(deaf)
    moved = changed(interfaces=(), routes=())
    assert topology_of(moved, like=(snapshot, first)) == topology_of(moved)
    elsewhere = replace(snapshot, cluster=replace(snapshot.cluster, pods=()))
    assert topology_of(elsewhere, like=(snapshot, first)) == topology_of(elsewhere)


def test_examiners_of_other_objects_share_nothing() -> None:
    snapshot = read("core-1.36-iptables-nft")
    first = Examiner(snapshot)
    other = Examiner(replace(snapshot, cluster=replace(snapshot.cluster, pods=())), beside=first)
    assert other.pods is not first.pods
    assert other.index is not first.index
    assert Examiner(replace(snapshot), beside=first).pods is first.pods


def test_nodes_share_the_routes_that_are_alike() -> None:
    snapshot = unread(read("core-1.36-iptables-nft"))
    nodes = {name: replace(node, pod_cidrs=()) for name, node in (snapshot.cluster.nodes or {}).items()}
    filled = with_supposed_networks(replace(snapshot, cluster=replace(snapshot.cluster, nodes=nodes))).nodes
    with_routes = [state.routes for state in filled.values() if state.routes]
    pod = next(p for p in snapshot.cluster.pods or () if p.pod_ips and not p.host_network and p.node_name)
    to_pod = partial(filter, lambda r: str(r.dst.network_address) == pod.pod_ips[0])
    remote = {id(r) for routes in with_routes for r in to_pod(routes) if r.nexthops[0].gateway is not None}
    assert len(with_routes) >= 2
    assert len(remote) == 1


@pytest.mark.parametrize(
    "name", ["core-1.36-iptables-nft", "core-1.36-nftables", "ipvs-1.36-legacy", "cilium-1.19.4-policy"]
)
def test_one_examiner_for_all_services_says_what_one_for_each_says_in_either_order(name: str) -> None:
    snapshot = read(name)
    services = list(snapshot.cluster.services.values())[:8]
    alone = {s.key: diagnosis_object(diagnose_service(snapshot, s)) for s in services}
    for order in (services, services[::-1]):
        examiner = Examiner(snapshot)
        found = {s.key: diagnosis_object(diagnose_service(snapshot, s, examiner=examiner)) for s in order}
        assert json.dumps([found[key] for key in alone], default=str) == json.dumps(
            list(alone.values()), default=str
        )
