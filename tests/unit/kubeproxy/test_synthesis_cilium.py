"""The front ends that Cilium's agent wrote on recorded clusters are those made of the API objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.kubeproxy.changes import with_policy
from ktp.kubeproxy.endpoints import index_slices
from ktp.kubeproxy.node import proxy_node
from ktp.kubeproxy.synthesis import has_same_rules, reprogram
from ktp.kubeproxy.synthesis_cilium import has_same_front_ends, synthesize
from ktp.model.cilium import LbFlag, LbKind
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import RECORDINGS

PACKAGED = Path(__file__).resolve().parents[2] / "data" / "cases"
LOCAL = "test/nginx-externaltrafficpolicy"


def folders() -> list[Path]:
    found = sorted(PACKAGED.glob("cilium-*/"))
    return found + (sorted(RECORDINGS.glob("cilium-*/")) if RECORDINGS.is_dir() else [])


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.name)
def test_the_maps_made_anew_are_those_that_were_read(folder: Path) -> None:
    snapshot = parse_snapshot(open_snapshot(folder))
    made = reprogram(snapshot, snapshot.cluster)
    assert snapshot.nodes
    for name, state in snapshot.nodes.items():
        assert state.cilium is not None
        assert state.cilium.frontends
        assert has_same_front_ends(state.cilium, made.nodes[name].cilium), name
        assert made.nodes[name].cilium is not state.cilium


def test_another_policy_is_another_front_end() -> None:
    snapshot = parse_snapshot(open_snapshot(PACKAGED / "cilium-1.19.4-policy"))
    cluster = with_policy(snapshot.cluster, LOCAL, "Cluster")
    made = reprogram(snapshot, cluster, services={LOCAL})
    service = cluster.services[LOCAL]
    for name, state in made.nodes.items():
        assert not has_same_rules(snapshot.nodes[name], state)
        assert state.cilium is not None
        found = [
            f
            for f in state.cilium.frontends or ()
            if (f.kind, f.port) == (LbKind.NODE_PORT, service.ports[0].node_port)
        ]
        assert found
        assert all(len(f.backends) == 1 and LbFlag.TWO_SCOPES not in f.flags for f in found)


def test_source_ranges_get_an_index_of_their_own() -> None:
    snapshot = parse_snapshot(open_snapshot(PACKAGED / "cilium-1.19.4-policy"))
    key = "test/nginx-log"
    service = replace(snapshot.cluster.services[key], load_balancer_source_ranges=("192.0.2.0/24",))
    cluster = replace(snapshot.cluster, services={**snapshot.cluster.services, key: service})
    state = snapshot.nodes["node-a"].cilium
    assert state is not None
    node = proxy_node(snapshot, "node-a")
    made = [(f, n) for f, n in synthesize(service, service.ports[0], node, index_slices(cluster), state)]
    checked = [n for f, n in made if LbFlag.SOURCE_RANGE in f.flags]
    assert {f.kind for f, n in made if n} == {LbKind.LOAD_BALANCER}
    assert [str(net) for nets in checked for net in nets] == ["192.0.2.0/24"]
    after = reprogram(snapshot, cluster, services={key}).nodes["node-a"].cilium
    assert after is not None
    assert after.source_ranges is not None
    (front_end,) = [
        f for f in after.frontends or () if LbFlag.SOURCE_RANGE in f.flags and f.ip == made[-1][0].ip
    ]
    assert [str(net) for net in after.source_ranges[front_end.revnat]] == ["192.0.2.0/24"]
