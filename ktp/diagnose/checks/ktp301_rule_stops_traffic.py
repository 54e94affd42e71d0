"""A rule that is not kube-proxy's drops or rejects the Service's traffic.

# What it means
In raw, mangle, filter or security a rule of the host's firewall, of the CNI or of somebody ends the packet, before or
after kube-proxy translated it.

# Why traffic fails
A drop is seen as a timeout; a reject as "refused" or "unreachable", depending on its type. After the translation the
packet carries the pod's address and port: rules on the node port do not see it in FORWARD, and rules in INPUT do not
see it at all.

# Evidence
The rule with its table, chain, line and counters, who likely wrote it, and that the packet passes without it.

# Confirm by hand
    iptables-save -c | grep -n 'DROP\\|REJECT'       # on the node: whose counter grows while a client tries?
    nft -a list ruleset | grep -n 'drop\\|reject'     # native nftables rules are not in iptables-save

# Fix
Allow the traffic before the rule, in the tool that owns it (ufw, firewalld, the CNI's policies): a rule deleted by
hand comes back.

# Example
ufw is enabled with its default of "deny (routed)"; node ports were allowed in INPUT only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ktp.dataplane.answer import answer_flow
from ktp.diagnose.case import Case, Entry, Mended, goes_astray
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.policy_common import Enforced, enforced_by
from ktp.diagnose.checks.rule_common import RuleInPlace, command_of, deciding_rule, merged, stopped
from ktp.diagnose.witnesses import witnesses
from ktp.kubeproxy.outcome import Vantage
from ktp.kubeproxy.owners import FIREWALLD
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.trace import Path, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each foreign rule whose removal mends a failing cell, or lets other clients in."""
    by_rule: dict[RuleInPlace, tuple[Path, list[Entry]]] = {}
    for entry in case.failing():
        for path, rule in stopped(entry):
            if rule is not None and not rule.is_kube and not goes_astray(entry, path):
                by_rule.setdefault(rule, (path, []))[1].append(entry)
    named: set[RuleInPlace] = set()
    for rule, (path, entries) in by_rule.items():
        without = partial(rule.removed, case.snapshot)
        unique = list(dict.fromkeys(entries))
        mended = case.mended(unique, rule.label, without)
        further = [] if mended else [e for e in unique if case.gets_further(e, rule.label, without)]
        if mended or further:
            named.add(rule)
            yield _finding(case, rule, path, mended, merged(mended or further, entries))
    yield from _some_clients(case, named)


def _finding(case: Case, rule: RuleInPlace, path: Path, mended: Mended, cells: list[Entry]) -> Finding:
    what = "the answers" if path.hops and path.hops[-1].direction == "reply" else "the traffic"
    first = (mended or cells)[0]
    if mended:
        proof = f"without this rule, {first.title} on {first.node} connects more often"
    else:
        after = case.ask_again(first, rule.label, lambda: case.snapshot)  # asked before, under this label
        proof = f"without this rule the packet gets further, and then: {after.reason}"
    enforced = enforced_by(case.state(rule.node), rule)
    if enforced is not None and enforced.policies:
        return _by_policy(rule, enforced, mended, cells, proof)
    return CHECK.finding(
        f"a rule in {rule.place} on {rule.node} {rule.verb} {what} of "
        f"{listed(dict.fromkeys(e.title for e in mended or cells))} (written by {rule.author})"
        + ("" if mended else "; it is not the only thing in the way"),
        node=rule.node,
        evidence=[rule.evidence(), counterfactual(proof)],
        fix=Fix(
            "put the pod network into firewalld's trusted zone"
            if rule.owner is FIREWALLD
            else f"let the traffic pass before this rule, where it is configured ({rule.author})",
            cost="opens what the rule closes: check what else it protects",
            command=command_of(rule.owner, case) if rule.owner is FIREWALLD else None,
            cures=mended.cures() if mended else None,
        ),
        cells=cells,
    )


def _by_policy(
    rule: RuleInPlace, enforced: Enforced, mended: Mended, cells: list[Entry], proof: str
) -> Finding:
    """The rule enforces NetworkPolicies, which say who may."""
    name = listed(enforced.policies)
    what = f"NetworkPolicy {name}" if len(enforced.policies) == 1 else f"NetworkPolicies {name}"
    lets = (
        f"lets in {listed(enforced.allowed, 3)} alone"
        if enforced.allowed
        else "lets none of these clients in"
    )
    where = listed(dict.fromkeys(e.title for e in mended or cells))
    words = f"{what} {lets}: {rule.node} {rule.verb} others at {where}"
    namespace, _, policy = enforced.policies[0].rpartition("/")
    own, others = _sources_met(rule, cells)
    summary = f"allow the clients' networks in {what} (ingress, from, ipBlock): the pod's node sees their own addresses"
    cost = "these clients get in"
    if others:
        summary = (
            f"allow the nodes' addresses in {what} (ingress, from, ipBlock), by which clients of other nodes come "
            f"({listed(sorted(others), 3)}); or set externalTrafficPolicy: Local and allow the clients' own"
        )
        cost = "with the nodes' addresses every client outside gets in"
    elif not own:
        summary = f"allow these clients in {what}"
    return CHECK.finding(
        words + ("" if mended else "; it is not the only thing in the way"),
        node=rule.node,
        evidence=[rule.evidence(), counterfactual(proof)],
        fix=Fix(
            summary,
            cost=cost,
            command=f"kubectl edit networkpolicy -n {namespace} {policy}" if namespace else None,
            cures=mended.cures() if mended else None,
        ),
        cells=cells,
    )


def _sources_met(rule: RuleInPlace, cells: Iterable[Entry]) -> tuple[bool, set[str]]:
    """Whether outside clients come to the rule with their own address, and the other addresses they come with."""
    own, others = False, set()
    for entry in cells:
        if entry.vantage is not Vantage.EXTERNAL:
            continue
        for path, its in stopped(entry):
            if its == rule:
                source = next(h for h in reversed(path.hops) if h.direction == "request").arrived.src
                own = own or source == str(entry.asked.question.client.ip)
                others |= {source} - {str(entry.asked.question.client.ip)}
    return own, others


def _some_clients(case: Case, named: set[RuleInPlace]) -> Iterable[Finding]:
    """Rules that keep out some clients only: those whose addresses the rules of the node name."""
    found: dict[RuleInPlace, tuple[Path, list[str], list[Entry]]] = {}
    for node in case.nodes:
        entries = [
            e
            for e in case.on(node)
            if e.vantage is Vantage.EXTERNAL and not e.fails and e.asked.fact is not None
        ]
        single_out = {v: witnesses(case.examiner, node, v) for v in {e.front_end.ip_version for e in entries}}
        for entry in entries:
            for address, words in single_out[entry.front_end.ip_version]:
                answer = answer_flow(
                    case.examiner.walker, replace(entry.asked.question.flow, src=str(address))
                )
                for path in answer.paths:
                    rule = None if path.symptom is Symptom.CONNECTS else deciding_rule(path)
                    if rule is None or rule.is_kube or rule in named:
                        continue
                    _, who, where = found.setdefault(rule, (path, [], []))
                    if words not in who:
                        who.append(words)
                    if entry not in where:
                        where.append(entry)
    for rule, (path, who, where) in found.items():
        world = case.world(rule.label, partial(rule.removed, case.snapshot))
        if world is None:
            continue
        flow = replace(where[0].asked.question.flow, src=path.hops[0].arrived.src)
        after = answer_flow(world.walker, flow)
        if after.symptom is not Symptom.CONNECTS and not any(
            p.symptom is Symptom.CONNECTS for p in after.paths
        ):
            continue
        yield CHECK.finding(
            f"a rule in {rule.place} on {rule.node} {rule.verb} the traffic of some clients outside ({listed(who)}) "
            f"to {listed(dict.fromkeys(e.title for e in where))}; others get through (written by {rule.author})",
            node=rule.node,
            evidence=[
                rule.evidence(),
                field("such a client", path.reason),
                counterfactual(
                    f"without this rule, {flow.src} connects to {where[0].title} on {where[0].node}"
                ),
            ],
            fix=Fix(
                f"if these clients should get through, allow them before this rule, where it is "
                f"configured ({rule.author})",
                cost="opens what the rule closes",
                verified=True,
                outcome=f"without the rule {flow.src} connects",
            ),
            severity=Severity.INFO if rule.owner is not None and rule.owner.bans else Severity.ERROR,
        )


CHECK = Check("KTP301", "RuleStopsTraffic", Severity.ERROR, run)
