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

from ktp.dataplane.answer import answer_flow
from ktp.diagnose.case import Case, Entry, Mended, given
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.rule_common import BANNING, RuleInPlace, deciding_rule, merged, stopped
from ktp.diagnose.witnesses import witnesses
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Path, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each foreign rule whose removal mends a failing cell, or lets other clients in."""
    by_rule: dict[RuleInPlace, tuple[Path, list[Entry]]] = {}
    for entry in case.failing():
        for path, rule in stopped(entry):
            if rule is not None and not rule.is_kube:
                by_rule.setdefault(rule, (path, []))[1].append(entry)
    named: set[RuleInPlace] = set()
    for rule, (path, entries) in by_rule.items():
        changed = rule.removed(case.snapshot)
        if changed is None:
            continue
        unique = list(dict.fromkeys(entries))
        mended = case.mended(unique, rule.label, given(changed))
        further = [] if mended else [e for e in unique if _gets_further(case, e, rule, changed)]
        if mended or further:
            named.add(rule)
            yield _finding(case, rule, path, mended, merged(mended or further, entries))
    yield from _some_clients(case, named)


def _gets_further(case: Case, entry: Entry, rule: RuleInPlace, changed: Snapshot) -> bool:
    """Whether without the rule something else stops the packet: this rule stops it now, and is not all there is."""
    before, after = entry.cell.decided_by, case.ask_again(entry, rule.label, given(changed)).decided_by
    return (
        before is not None and after is not None and (before.rule, before.chain) != (after.rule, after.chain)
    )


def _finding(case: Case, rule: RuleInPlace, path: Path, mended: Mended, cells: list[Entry]) -> Finding:
    what = "the answers" if path.hops and path.hops[-1].direction == "reply" else "the traffic"
    first = (mended or cells)[0]
    if mended:
        proof = f"without this rule, {first.title} on {first.node} connects more often"
    else:
        after = case.ask_again(first, rule.label, lambda: case.snapshot)  # asked before, under this label
        proof = f"without this rule the packet gets further, and then: {after.reason}"
    return CHECK.finding(
        f"a rule in {rule.place} on {rule.node} {rule.verb} {what} of "
        f"{listed(dict.fromkeys(e.title for e in mended or cells))} (written by {rule.author})"
        + ("" if mended else "; it is not the only thing in the way"),
        node=rule.node,
        evidence=[rule.evidence(), counterfactual(proof)],
        fixes=[
            Fix(
                summary=f"let the traffic pass before this rule, in what owns it ({rule.author})",
                cost="opens what the rule closes: check what else it protects",
                cures=mended.cures() if mended else None,
            )
        ],
        cells=cells,
    )


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
        changed = rule.removed(case.snapshot)
        world = case.world(rule.label, given(changed)) if changed is not None else None
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
            fixes=[
                Fix(
                    summary=f"if these clients should get through, allow them before this rule, in what "
                    f"owns it ({rule.author})",
                    cost="opens what the rule closes",
                    verified=True,
                    outcome=f"without the rule {flow.src} connects",
                )
            ],
            severity=Severity.INFO if rule.author in BANNING else Severity.ERROR,
        )


CHECK = Check(code="KTP301", name="RuleStopsTraffic", severity=Severity.ERROR, page=__doc__ or "", run=run)
