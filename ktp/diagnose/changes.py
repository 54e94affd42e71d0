"""The snapshot with one thing changed: what counterfactuals and what-if ask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ktp.diagnose.case import Case, parser_of
from ktp.kubeproxy.changes import with_policy, with_ready_pod_on
from ktp.kubeproxy.synthesis import reprogram
from ktp.model.cluster import Cluster
from ktp.model.host import NodeState
from ktp.model.ruleset import Chain, Rule, Ruleset
from ktp.model.snapshot import Snapshot


def reprogrammed(
    snapshot: Snapshot, cluster: Cluster, service: str, nodes: Collection[str] | None = None
) -> Snapshot:
    """The snapshot with `cluster` in place of its objects and the Service's rules written anew on the nodes."""
    parse = parser_of(snapshot)
    if parse is None:
        return replace(snapshot, cluster=cluster)
    return reprogram(snapshot, cluster, services={service}, nodes=nodes, parse_rule=parse)


def policy_changed(case: Case, policy: str) -> Snapshot:
    """The Service with another externalTrafficPolicy, and its rules accordingly."""
    snapshot = case.snapshot
    return reprogrammed(snapshot, with_policy(snapshot.cluster, case.service.key, policy), case.service.key)


def pod_added(case: Case, node: str) -> Snapshot:
    """The Service with one more ready pod, on `node`."""
    changed = with_ready_pod_on(case.snapshot, case.service.key, node)
    return reprogrammed(changed, changed.cluster, case.service.key)


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


class EditedRuleset:
    """A ruleset with some chains in another form; the rest is the recorded one."""

    def __init__(self, base: Ruleset, chains: dict[tuple[str, str], Chain]) -> None:
        self.family = base.family
        self.backend = base.backend
        self.source = base.source
        self._base = base
        self._chains = chains

    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(dict.fromkeys((*self._base.tables(), *(t for t, _ in self._chains))))

    def chain_names(self, table: str) -> tuple[str, ...]:
        """Names of the chains."""
        return tuple(
            dict.fromkeys((*self._base.chain_names(table), *(c for t, c in self._chains if t == table)))
        )

    def chain(self, table: str, name: str) -> Chain | None:
        """The changed chain, else the recorded one."""
        changed = self._chains.get((table, name))
        return self._base.chain(table, name) if changed is None else changed


def ruleset_edited(state: NodeState, ruleset: Ruleset, chains: dict[tuple[str, str], Chain]) -> NodeState:
    """The node with chains of one of its rulesets replaced."""
    edited = EditedRuleset(ruleset, chains)
    return replace(state, rulesets=tuple(edited if r is ruleset else r for r in state.rulesets))


def rule_removed(snapshot: Snapshot, node: str, rule: Rule, backend: str) -> Snapshot | None:
    """The node without one rule. None where the rule is not found."""
    state = snapshot.nodes[node]
    for ruleset in state.rulesets:
        if ruleset.backend.value != backend:
            continue
        chain = ruleset.chain(rule.table, rule.chain)
        if (
            chain is None
            or not 1 <= rule.position <= len(chain)
            or chain.rule(rule.position - 1).text != rule.text
        ):
            continue
        lines = list(chain.raw_lines())
        del lines[rule.position - 1]
        return with_state(
            snapshot, ruleset_edited(state, ruleset, {(rule.table, rule.chain): like(chain, lines)})
        )
    return None


def like(chain: Chain, lines: list[str], policy: str | None = None) -> Chain:
    """A chain of the same name with other rules (and policy)."""
    return Chain(
        chain.table, chain.name, lines, chain.parser, policy=policy or chain.policy, counters=chain.counters
    )


def policy_accepts(snapshot: Snapshot, node: str, table: str, name: str) -> Snapshot:
    """The node with policy ACCEPT on a base chain, in every ruleset."""
    state = snapshot.nodes[node]
    for ruleset in state.rulesets:
        chain = ruleset.chain(table, name)
        if chain is not None and chain.policy == "DROP":
            state = ruleset_edited(
                state, ruleset, {(table, name): like(chain, list(chain.raw_lines()), "ACCEPT")}
            )
    return with_state(snapshot, state)


def backend_dropped(snapshot: Snapshot, node: str, backend: str) -> Snapshot:
    """The node without the tables of one iptables back end."""
    state = snapshot.nodes[node]
    return with_state(
        snapshot, replace(state, rulesets=tuple(r for r in state.rulesets if r.backend.value != backend))
    )
