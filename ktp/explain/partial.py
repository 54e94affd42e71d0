"""What can be said of a front end where not all rules were read: what is known, what lacks, and the rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ktp.explain.front_end import NodePortRules
from ktp.explain.kube import endpoint_behind, explain_rule
from ktp.explain.xt_tree import chain_tree, rule_node
from ktp.kubeproxy.names import KUBE_EXTERNAL_SERVICES
from ktp.model.explanation import ChainNode, EndpointShare, RuleNode, StageNode, Verdict
from ktp.model.reading import Lack, Reading, unread_words
from ktp.model.ruleset import Chain, Rule, Ruleset
from ktp.model.trace import FlowAnswer

_MOST = 4  # endpoints named


def with_what_is_known(
    verdict: Verdict,
    answer: FlowAnswer,
    rulesets: Sequence[Ruleset],
    rules: NodePortRules | None,
    stages: Sequence[StageNode],
) -> tuple[Verdict, tuple[ChainNode, ...]]:
    """The verdict on a flow that is undetermined for want of rules, and the chains of the port that no stage shows."""
    rules_asked = [u.rule for u in answer.unknowns if isinstance(u.rule, Rule)]
    blocking = [rule for rule in rules_asked if rule.unread or rule.lost]
    if not blocking:
        return verdict, ()
    known: list[str] = []
    chains: tuple[ChainNode, ...] = ()
    ruleset = next((r for r in rulesets if rules is not None and _has(r, rules)), None)
    if verdict.endpoints:
        known.append(f"the rules that were read send the packet to {_endpoints(verdict.endpoints)}")
    elif rules is not None and ruleset is not None:
        shown = {rule.line for stage in stages for rule in _rules(stage.chain)}
        if not any(r.line in shown for r in (*rules.nat, *rules.refusing)):
            chains = _naming(ruleset, rules)
        known += [f"by what was read: {words}" for words in _ends(ruleset, rules)]
    lacking: list[str] = []
    for rule in blocking:
        if rule.lost is Lack.TARGETS_LOST:
            found = next((e for r in rulesets if (e := endpoint_behind(r, rule)) is not None), None)
            known += [f"the endpoint is {found}, as another rule of its chain says"] if found else []
            lacking.append(explain_rule(rule))
        elif rule.unread is not None:
            lacking.append(unread_words(rule.unread))
        else:
            lacking.append(explain_rule(rule))
    if any(_may_be_kube_proxys(rule, rulesets) for rule in blocking):
        # Since 1.24 of node ports without a local endpoint, too; the older mark the packet in nat for KUBE-FIREWALL.
        lacking.append(
            "a rule of the filter table may stop the packet, and kube-proxy's own are there for Services without "
            f"endpoints, or with externalTrafficPolicy Local and none on this node ({KUBE_EXTERNAL_SERVICES})"
        )
    why = "; ".join(dict.fromkeys((*known, *lacking)))
    unread = blocking[0].unread is not None
    if not unread:
        return replace(verdict, why=why), chains
    return replace(verdict, why=why, table="", chain="", rule="", position=0, line=0), chains


def _has(ruleset: Ruleset, rules: NodePortRules) -> bool:
    one = (*rules.nat, *rules.refusing)[0]
    chain = ruleset.chain(one.table, one.chain)
    return chain is not None and bool(chain.containing(one.text))


def _endpoints(endpoints: Sequence[EndpointShare]) -> str:
    addresses = list(dict.fromkeys(e.address for e in endpoints))
    more = f" and {len(addresses) - _MOST} more" if len(addresses) > _MOST else ""
    return ("one of " if len(addresses) > 1 else "") + ", ".join(addresses[:_MOST]) + more


def _may_be_kube_proxys(rule: Rule, rulesets: Iterable[Ruleset]) -> bool:
    unread = rule.unread
    return (
        unread is not None
        and unread.table == "filter"
        and all(r.reading("filter").reading is not Reading.WHOLE for r in rulesets)
    )


def _ends(ruleset: Ruleset, rules: NodePortRules) -> list[str]:
    """What the rules that name the port come to: those that refuse, else the last of the chain that they lead to."""
    if rules.refusing:
        return [explain_rule(r, ruleset) for r in rules.refusing]
    words: list[str] = []
    for rule in rules.nat:
        chain = ruleset.chain(rule.table, rule.target.name) if rule.target is not None else None
        real = [r for r in chain or () if r.unread is None]
        if real and rule.target is not None and rule.target.name.startswith("KUBE-"):
            words.append(f"{real[-1].chain}: {explain_rule(real[-1], ruleset)}")
    return words[-1:]


def _naming(ruleset: Ruleset, rules: NodePortRules) -> tuple[ChainNode, ...]:
    """The chains of the rules that name the port, with no rules but these, and what lies behind them."""
    nodes: list[ChainNode] = []
    for own in (rules.nat, rules.refusing):
        if not own:
            continue
        chain = ruleset.chain(own[0].table, own[0].chain)
        assert chain is not None
        tree = chain_tree(ruleset, chain.table, Chain(chain.table, chain.name, (), chain.parser))
        under = []
        for rule in own:
            node = rule_node(rule, explain_rule(rule, ruleset))
            target = ruleset.chain(rule.table, rule.target.name) if rule.target is not None else None
            under.append(
                replace(node, chain=chain_tree(ruleset, rule.table, target)) if target is not None else node
            )
        left = sum(1 for r in chain if r.unread is None) - len(own)
        nodes.append(
            replace(
                tree, rules=tuple(under), left_out=left, left_out_words="rules of other ports" if left else ""
            )
        )
    return tuple(nodes)


def _rules(chain: ChainNode) -> Iterable[RuleNode]:
    for rule in chain.rules:
        yield rule
        if rule.chain is not None:
            yield from _rules(rule.chain)
