"""The virtual servers and sets that kube-proxy wrote on recorded clusters are those made of the API objects."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.kubeproxy.changes import with_policy
from ktp.kubeproxy.synthesis import has_same_rules, reprogram
from ktp.model.cluster import Service
from ktp.model.host import NodeState
from ktp.model.ipvs import VirtualServer
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import RECORDINGS

PACKAGED = Path(__file__).resolve().parents[2] / "data" / "cases" / "ipvs-1.36-legacy"
ONE = "edge/local-one"


def folders() -> list[Path]:
    real = RECORDINGS / "ipvs-1.36-legacy"
    return [PACKAGED, *([real] if real.is_dir() else [])]


def opened(folder: Path = PACKAGED) -> Snapshot:
    return parse_snapshot(open_snapshot(folder))


def by_place(state: NodeState) -> dict[tuple[str, object, int], VirtualServer]:
    assert state.ipvs is not None
    return {(s.protocol, s.ip, s.port): s for s in state.ipvs.services}


def entries(state: NodeState, name: str) -> set[str]:
    assert state.ipsets is not None
    return {text for text, _ in state.ipsets[name].entries}


def out_filters(state: NodeState) -> list[set[str]]:
    """The rules of KUBE-IPVS-OUT-FILTER in each ruleset."""
    chains = [r.chain("filter", "KUBE-IPVS-OUT-FILTER") for r in state.rulesets]
    return [{chain.rule(i).text for i in range(len(chain))} for chain in chains if chain is not None]


@pytest.mark.parametrize("folder", folders(), ids=lambda p: p.parent.parent.name)
def test_what_is_made_anew_is_what_was_read(folder: Path) -> None:
    snapshot = opened(folder)
    made = reprogram(snapshot, snapshot.cluster)
    for name, state in snapshot.nodes.items():
        old, new = by_place(state), by_place(made.nodes[name])
        assert old.keys() == new.keys()
        for place, server in old.items():
            if any(s.weight == 0 for s in server.servers):
                continue  # set by hand for the recording
            assert (server.scheduler, server.persistent) == (new[place].scheduler, new[place].persistent)
            assert set(server.servers) == set(new[place].servers), place
        assert state.ipsets is not None
        for kept in state.ipsets:
            assert entries(state, kept) == entries(made.nodes[name], kept), kept
        assert out_filters(state) == out_filters(made.nodes[name])


def test_another_policy_moves_a_port_between_the_sets() -> None:
    snapshot = opened()
    made = reprogram(snapshot, with_policy(snapshot.cluster, ONE, "Cluster"), services={ONE})
    for name, state in made.nodes.items():
        assert not has_same_rules(snapshot.nodes[name], state)
        assert "30001" in entries(snapshot.nodes[name], "KUBE-NODE-PORT-LOCAL-TCP")
        assert "30001" not in entries(state, "KUBE-NODE-PORT-LOCAL-TCP")
        assert "30001" in entries(state, "KUBE-NODE-PORT-TCP")
        # What other Services have stays.
        assert "30003" in entries(state, "KUBE-NODE-PORT-LOCAL-TCP")


def test_source_ranges_are_entries_of_a_service_only() -> None:
    snapshot = opened()
    key = "edge/lb-ranges"

    def ranged(*networks: str) -> dict[str, set[str]]:
        service = replace(snapshot.cluster.services[key], load_balancer_source_ranges=networks)
        services: dict[str, Service] = {**snapshot.cluster.services, key: service}
        state = reprogram(snapshot, replace(snapshot.cluster, services=services), services={key}).nodes[
            "node-a"
        ]
        return {n: entries(state, f"KUBE-LOAD-BALANCER-{n}") for n in ("FW", "SOURCE-CIDR", "SOURCE-IP")}

    where = "10.99.0.11,tcp:80"
    some = ranged("10.0.0.0/24", "192.0.2.7/32")
    assert where in some["FW"]
    mine = {e for e in some["SOURCE-CIDR"] if e.startswith(f"{where},")}
    assert mine == {f"{where},10.0.0.0/24", f"{where},192.0.2.7"}
    assert some["SOURCE-IP"] == {f"{where},10.99.0.11"}, "the node itself is in 10.0.0.0/24"
    none = ranged()
    assert where not in none["FW"]
    assert not any(e.startswith(where) for e in none["SOURCE-CIDR"])


@pytest.mark.parametrize(
    ("networks", "stops"), [(("192.0.2.7/32",), True), (("10.0.0.0/24",), False), ((), False)]
)
def test_a_nodes_own_packets_from_the_load_balancer_ip_are_stopped_outside_the_ranges(
    networks: tuple[str, ...], stops: bool
) -> None:
    snapshot, key = opened(), "edge/lb-ranges"
    rule = "-A KUBE-IPVS-OUT-FILTER -s 10.99.0.11/32 -m ipvs --vproto 6 --vaddr 10.99.0.11 --vport 80 -j DROP"
    (recorded,) = [rules for rules in out_filters(snapshot.nodes["node-a"]) if rules]
    assert rule in recorded
    service = replace(snapshot.cluster.services[key], load_balancer_source_ranges=networks)
    services: dict[str, Service] = {**snapshot.cluster.services, key: service}
    made = reprogram(snapshot, replace(snapshot.cluster, services=services), services={key})
    (rules,) = [rules for rules in out_filters(made.nodes["node-a"]) if rules]
    assert rules == (recorded if stops else recorded - {rule})


def test_sets_that_were_not_read_stay_unread() -> None:
    snapshot = opened()
    nodes = {name: replace(state, ipsets=None) for name, state in snapshot.nodes.items()}
    made = reprogram(replace(snapshot, nodes=nodes), with_policy(snapshot.cluster, ONE, "Cluster"))
    assert all(state.ipsets is None for state in made.nodes.values())


@pytest.mark.parametrize("minor", [23, 24])
def test_local_without_a_local_endpoint_by_version(minor: int) -> None:
    """`syncEndpoint`: nothing behind the virtual server up to 1.23, every endpoint from 1.24 on."""
    snapshot = opened()
    nodes = snapshot.cluster.nodes or {}
    version = replace(nodes["node-b"], kube_proxy_version=f"v1.{minor}.0")
    cluster = replace(snapshot.cluster, nodes={**nodes, "node-b": version})
    snapshot = replace(snapshot, cluster=cluster)
    made = reprogram(snapshot, cluster, services={ONE}).nodes["node-b"]
    server = by_place(made)["tcp", ip_address("10.0.0.10"), 30001]
    assert len(server.servers) == (1 if minor == 24 else 0)
