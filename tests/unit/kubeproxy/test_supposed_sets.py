"""kube-proxy's ipsets as the API tells them, against those that kube-proxy 1.36 wrote, and what rests on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.topology import topology_of
from ktp.kubeproxy.node import proxy_node
from ktp.kubeproxy.synthesis_ipvs import SupposedSets
from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Scope
from ktp.model.host import NodeState
from ktp.model.ipvs import links_ipvs
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow, Symptom
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import RECORDINGS

CASE = Path(__file__).parents[2] / "data" / "cases" / "ipvs-1.36-legacy"
CLIENT = "10.0.0.100"


@cache
def recorded() -> Snapshot:
    return parse_snapshot(open_snapshot(CASE))


def without_sets(snapshot: Snapshot) -> Snapshot:
    nodes = {name: replace(state, ipsets=None) for name, state in snapshot.nodes.items()}
    return replace(snapshot, nodes=nodes)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", recorded().nodes)
def test_they_are_those_that_kube_proxy_wrote(name: str, *, whole: bool) -> None:
    """The packaged recording holds some of the Services alone, and all sets."""
    if whole and not (RECORDINGS / CASE.name).exists():
        pytest.skip("needs the recorded clusters (KTP_CASES)")
    snapshot = parse_snapshot(open_snapshot(RECORDINGS / CASE.name)) if whole else recorded()
    state = snapshot.nodes[name]
    made = SupposedSets(replace(state, ipsets=None), proxy_node(snapshot, name), snapshot.cluster)
    assert state.ipsets is not None
    assert set(made) == set(state.ipsets)
    for each, found in state.ipsets.items():
        assert made[each].type == found.type, each
        assert made[each].family == found.family or found.type == "bitmap:port", each
        entries, wrote = ({text for text, _ in some.entries} for some in (made[each], found))
        assert entries == wrote if whole else entries <= wrote, each


def flows(snapshot: Snapshot) -> list[Flow]:
    services = snapshot.cluster.services.values()
    node = "10.0.0.3"
    ports = [(node, p.node_port, p.protocol) for s in services for p in s.ports if p.node_port]
    ports += [(s.cluster_ips[0], p.port, p.protocol) for s in services for p in s.ports if s.cluster_ips]
    plain = [
        Flow(dst=dst, port=port, protocol=protocol.lower())
        for dst, port, protocol in ports
        if ":" not in dst and dst != "None"
    ]
    outside = [replace(flow, src=CLIENT, via="node-a") for flow in plain]
    return outside + [replace(flow, from_node="node-a") for flow in plain]


def test_answers_rest_on_them_and_say_so() -> None:
    snapshot = recorded()
    read, supposed = (Walker(topology_of(s)) for s in (snapshot, without_sets(snapshot)))
    asked = flows(snapshot)
    assert len(asked) > 20
    for flow in asked:
        was, now = answer_flow(read, flow), answer_flow(supposed, flow)
        assert (was.symptom, was.sources_seen) == (now.symptom, now.sources_seen), flow
        assert not any(a.evidence is EvidenceKind.SETS for a in was.assumptions)
        assert any(a.evidence is EvidenceKind.SETS for a in now.assumptions), flow


def test_virtual_servers_that_were_not_read_are_not_none() -> None:
    """iptables-save and the API alone: its rules show IPVS mode, and Services' addresses are the node's own there."""
    snapshot = recorded()
    nodes = {
        name: NodeState(name=name, rulesets=state.rulesets, ipvs_unread=True)
        for name, state in snapshot.nodes.items()
    }
    walker = Walker(topology_of(replace(snapshot, nodes=nodes)))
    answers = {answer_flow(walker, flow).symptom for flow in flows(snapshot)}
    assert answers == {Symptom.UNKNOWN}
    assert all(links_ipvs(ruleset) for ruleset in snapshot.nodes["node-a"].rulesets)
    iptables = parse_snapshot(open_snapshot(CASE.parent / "core-1.36-iptables-nft"))
    assert not any(links_ipvs(r) for state in iptables.nodes.values() for r in state.rulesets)


def test_an_address_of_every_node_tells_no_node() -> None:
    """A pod of a node that was not read dials a cluster IP: not by way of the one node whose kube-ipvs0 was read."""
    snapshot = recorded()
    walker = Walker(topology_of(replace(snapshot, nodes={"node-b": snapshot.nodes["node-b"]})))
    pod = next(p for p in snapshot.cluster.pods or () if p.node_name == "node-a" and not p.host_network)
    service = next(s for s in snapshot.cluster.services.values() if s.cluster_ips and s.ports)
    flow = Flow(
        dst=service.cluster_ips[0], port=service.ports[0].port, src=pod.pod_ips[0], from_node="node-a"
    )
    assert answer_flow(walker, flow).symptom is Symptom.UNKNOWN


def test_without_the_whole_api_or_the_virtual_servers_nothing_is_supposed() -> None:
    bare = without_sets(recorded())
    some = replace(bare, cluster=replace(bare.cluster, partial={"services": Scope.SOME}))
    none = replace(bare, cluster=replace(bare.cluster, slices=None, endpoints=None))
    deaf = replace(bare, nodes={n: replace(s, ipvs=None) for n, s in bare.nodes.items()})
    for snapshot in (some, none, deaf):
        assert all(state.ipsets is None for state in topology_of(snapshot).nodes.values())
    walker = Walker(topology_of(some))
    symptoms = {answer_flow(walker, flow).symptom for flow in flows(some)}
    assert Symptom.UNKNOWN in symptoms
