"""The snapshot with one thing changed: what counterfactuals and what-if ask."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.diagnose.case import Case
from ktp.kubeproxy.changes import with_namespace, with_policy, with_ready_pod_on, with_target_port
from ktp.kubeproxy.synthesis import reprogram
from ktp.model.cluster import Cluster, EndpointPort, EndpointSlice, ServicePort
from ktp.model.host import ListeningSocket, NodeState
from ktp.model.ruleset import Chain, EditedRuleset, Ruleset, like
from ktp.model.snapshot import Snapshot

if TYPE_CHECKING:
    from ktp.model.nftables import NftChain, NftTable


def reprogrammed(
    snapshot: Snapshot, cluster: Cluster, service: str, nodes: Collection[str] | None = None
) -> Snapshot:
    """The snapshot with `cluster` in place of its objects and the Service's rules written anew on the nodes."""
    return reprogram(snapshot, cluster, services={service}, nodes=nodes)


def policy_changed(case: Case, policy: str) -> Snapshot:
    """The Service with another externalTrafficPolicy, and its rules accordingly."""
    snapshot = case.snapshot
    return reprogrammed(snapshot, with_policy(snapshot.cluster, case.service.key, policy), case.service.key)


def pod_added(case: Case, node: str) -> Snapshot:
    """The Service with one more ready pod, on `node`."""
    changed = with_ready_pod_on(case.snapshot, case.service.key, node)
    return reprogrammed(changed, changed.cluster, case.service.key)


def target_port_changed(case: Case, port: ServicePort, number: int) -> Snapshot:
    """The Service port with another targetPort, and its rules accordingly."""
    changed = with_target_port(case.snapshot.cluster, case.service.key, port, number)
    return reprogrammed(case.snapshot, changed, case.service.key)


def untouched(snapshot: Snapshot, node: str, pod: str) -> Snapshot:
    """A pod's network namespace as Kubernetes makes it: without rules, and with one way out."""
    state = snapshot.nodes[node]
    inside = replace(
        state.pods[pod],
        rulesets=(),
        nft=None,
        nft_hooks=None,
        routes=None,
        rules4=None,
        rules6=None,
        sysctls=None,
    )
    return with_state(snapshot, with_namespace(state, inside))


def listening(
    snapshot: Snapshot, programs: Collection[tuple[str, str, bool]], port: int, protocol: str
) -> Snapshot:
    """Pods (node, "namespace/name", whether in the node's network) whose program listens on a port of all addresses."""
    socket = ListeningSocket(protocol=protocol.lower(), ip=None, port=port, family=0)
    for node, pod, is_of_node in programs:
        state = snapshot.nodes[node]
        inside = state if is_of_node else state.pods[pod]
        inside = replace(inside, sockets=(*(inside.sockets or ()), socket))
        snapshot = with_state(snapshot, inside if is_of_node else with_namespace(state, inside))
    return snapshot


def queues_empty(snapshot: Snapshot, programs: Collection[tuple[str, str]], port: int) -> Snapshot:
    """Pods (node, "namespace/name"; "" for the node's own network) whose sockets on a port have nothing waiting."""
    for node, pod in programs:
        state = snapshot.nodes[node]
        inside = state.pods[pod] if pod else state
        sockets = tuple(
            replace(s, waiting=0, is_full=False) if s.port == port else s for s in inside.sockets or ()
        )
        inside = replace(inside, sockets=sockets)
        snapshot = with_state(snapshot, with_namespace(state, inside) if pod else inside)
    return snapshot


def connections_ended(snapshot: Snapshot, nodes: Collection[str]) -> Snapshot:
    """Nodes that track none of their connections any more."""
    for node in nodes:
        snapshot = with_state(snapshot, replace(snapshot.nodes[node], tracked=()))
    return snapshot


def rules_renewed(case: Case, node: str) -> Snapshot:
    """The Service's rules on `node` as kube-proxy would write them from the API objects of the snapshot."""
    return reprogrammed(case.snapshot, case.snapshot.cluster, case.service.key, {node})


def sysctls_set(snapshot: Snapshot, node: str, values: dict[str, str]) -> Snapshot:
    """The node with other sysctls."""
    state = snapshot.nodes[node]
    return with_state(snapshot, replace(state, sysctls={**(state.sysctls or {}), **values}))


def with_state(snapshot: Snapshot, state: NodeState) -> Snapshot:
    """The snapshot with another state of one node."""
    return replace(snapshot, nodes={**snapshot.nodes, state.name: state})


def ruleset_edited(state: NodeState, ruleset: Ruleset, chains: dict[tuple[str, str], Chain]) -> NodeState:
    """The node with chains of one of its rulesets replaced."""
    edited = EditedRuleset(ruleset, chains)
    return replace(state, rulesets=tuple(edited if r is ruleset else r for r in state.rulesets))


def rule_removed(
    snapshot: Snapshot, node: str, backend: str, table: str, chain: str, position: int, text: str
) -> Snapshot:
    """The node without one rule (`position` counts from 1), xtables or nft. Raises ValueError where it is not found."""
    state = snapshot.nodes[node]
    for ruleset in state.rulesets:
        found = ruleset.chain(table, chain) if ruleset.backend.value == backend else None
        if found is None or not 1 <= position <= len(found) or found.rule(position - 1).text != text:
            continue
        lines = list(found.raw_lines())
        del lines[position - 1]
        return with_state(snapshot, ruleset_edited(state, ruleset, {(table, chain): like(found, lines)}))
    for nft_table in state.nft.tables if state.nft is not None else ():
        nft_chain = nft_table.chains.get(chain) if f"{nft_table.family} {nft_table.name}" == table else None
        if nft_chain is None or not 1 <= position <= len(nft_chain.rules):
            continue
        if nft_chain.rules[position - 1].text != text:
            continue
        rules = (*nft_chain.rules[: position - 1], *nft_chain.rules[position:])
        # The rules keep their index: it names their place in the recorded listing.
        return with_state(snapshot, _nft_edited(state, nft_table, replace(nft_chain, rules=rules)))
    raise ValueError(f"{node} has no such rule: {text}")


def _nft_edited(state: NodeState, table: NftTable, chain: NftChain) -> NodeState:
    assert state.nft is not None
    changed = replace(table, chains={**table.chains, chain.name: chain})
    return replace(
        state, nft=replace(state.nft, tables=tuple(changed if t is table else t for t in state.nft.tables))
    )


def policy_accepts(snapshot: Snapshot, node: str, table: str, name: str) -> Snapshot:
    """The node with policy ACCEPT on a base chain, in every ruleset; and on native nft chains of the same hook."""
    state = snapshot.nodes[node]
    for ruleset in state.rulesets:
        chain = ruleset.chain(table, name)
        if chain is not None and chain.policy == "DROP":
            state = ruleset_edited(
                state, ruleset, {(table, name): like(chain, list(chain.raw_lines()), "ACCEPT")}
            )
    for nft_table, nft_chain in dropping_nft_chains(state, name.lower()):
        # Tables are compared by identity, so the edited one is looked up anew.
        now = state.nft.table(nft_table.family, nft_table.name) if state.nft is not None else None
        if now is not None:
            state = _nft_edited(state, now, replace(nft_chain, policy="accept"))
    return with_state(snapshot, state)


def dropping_nft_chains(state: NodeState, hook: str) -> list[tuple[NftTable, NftChain]]:
    """Native nft base chains of a hook whose policy is drop; those that iptables-save shows too are left out."""
    if state.nft is None:
        return []
    return [
        (table, chain)
        for table, chain in state.nft.base_chains()
        if chain.hook == hook
        and chain.policy == "drop"
        and not table.is_dormant
        and not (
            table.is_of_xtables(chain) and any(r.backend.value == "iptables-nft" for r in state.rulesets)
        )
        and table.family in ("ip", "ip6", "inet")
    ]


def backend_dropped(snapshot: Snapshot, node: str, backend: str) -> Snapshot:
    """The node without the tables of one iptables back end."""
    state = snapshot.nodes[node]
    return with_state(
        snapshot, replace(state, rulesets=tuple(r for r in state.rulesets if r.backend.value != backend))
    )


# -- objects


def slices_changed(
    case: Case, change: Callable[[EndpointSlice], EndpointSlice], nodes: Collection[str] | None = None
) -> Snapshot:
    """The Service's EndpointSlices (and Endpoints) in another form, and its rules accordingly."""
    cluster = case.snapshot.cluster

    def edit(parts: tuple[EndpointSlice, ...] | None) -> tuple[EndpointSlice, ...] | None:
        if parts is None:
            return None
        mine = (case.service.namespace, case.service.name)
        return tuple(change(p) if (p.namespace, p.service_name) == mine else p for p in parts)

    changed = replace(cluster, slices=edit(cluster.slices), endpoints=edit(cluster.endpoints))
    return reprogrammed(case.snapshot, changed, case.service.key, nodes)


def port_listed(case: Case, port: EndpointPort) -> Snapshot:
    """Every slice of the Service that has endpoints lists one more port."""
    return slices_changed(case, lambda s: replace(s, ports=(*s.ports, port)) if s.endpoints else s)
