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
from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rule_removed
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.rule_common import author_of, deciding_rule, is_kube_rule, stopped
from ktp.diagnose.witnesses import witnesses
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.ruleset import Rule
from ktp.model.trace import Path, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each foreign rule whose removal mends a failing cell."""
    by_rule: dict[tuple[str, str, str, str, int], tuple[Rule, Path, list[Entry]]] = {}
    for entry in case.failing():
        for path, rule in stopped(entry):
            decided = path.decided_by
            if rule is None or decided is None or is_kube_rule(rule.chain, rule.comment):
                continue
            key = (decided.node, decided.backend, rule.table, rule.chain, rule.position)
            by_rule.setdefault(key, (rule, path, []))[2].append(entry)
    yield from _some_clients(case)
    for (node, backend, _, _, _), (rule, path, entries) in by_rule.items():
        unique = list(dict.fromkeys(entries))
        changed = rule_removed(case.snapshot, node, rule, backend)
        if changed is None:
            continue
        label = f"without {backend} {rule.table} {rule.chain} {rule.position} on {node}"
        mended = case.mended(unique, label, lambda changed=changed: changed)  # type: ignore[misc]
        if not mended:
            continue
        yield _finding(node, backend, rule, path, mended)


def _finding(node: str, backend: str, rule: Rule, path: Path, mended: list[Entry]) -> Finding:
    author = author_of(rule.chain, rule.text, rule.comment)
    verb = "rejects" if rule.target is not None and rule.target.name == "REJECT" else "drops"
    counters = f" [{rule.counters.packets} packets so far]" if rule.counters is not None else ""
    where = f"{node} {backend} {rule.table}" + (f" line {rule.line}" if rule.line else "")
    what = "the answers" if path.hops and path.hops[-1].direction == "reply" else "the traffic"
    return CHECK.finding(
        f"a rule in {rule.table} {rule.chain} on {node} {verb} {what} of {listed(dict.fromkeys(e.title for e in mended))} "
        f"(written by {author})",
        node=node,
        evidence=[
            Evidence(kind="rule", source=where, text=rule.text + counters),
            counterfactual(f"without this rule, {mended[0].title} on {mended[0].node} connects more often"),
        ],
        fixes=[
            Fix(
                summary=f"let the traffic pass before this rule, in what owns it ({author})",
                cost="opens what the rule closes: check what else it protects",
                verified=True,
                outcome=f"without the rule {len(mended)} failing cells connect",
            )
        ],
        cells=mended,
    )


def _some_clients(case: Case) -> Iterable[Finding]:
    """Rules that keep out some clients only: those whose addresses the rules of the node name."""
    found: dict[tuple[str, str, str, str, int], tuple[Rule, Path, list[str], Entry]] = {}
    for node in case.nodes:
        entries = [
            e
            for e in case.entries
            if e.node == node and e.vantage is Vantage.EXTERNAL and not e.fails and e.asked.fact is not None
        ]
        for entry in entries:
            for address, words in witnesses(case.examiner, node, entry.front_end.ip_version):
                answer = answer_flow(case.examiner.walker, replace(entry.asked.question.flow, src=str(address)))
                for path in answer.paths:
                    rule = deciding_rule(path)
                    decided = path.decided_by
                    if path.symptom is Symptom.CONNECTS or rule is None or decided is None:
                        continue
                    if is_kube_rule(rule.chain, rule.comment):
                        continue
                    key = (decided.node, decided.backend, rule.table, rule.chain, rule.position)
                    who = found.setdefault(key, (rule, path, [], entry))[2]
                    if words not in who:
                        who.append(words)
    for (node, backend, _, _, _), (rule, path, who, entry) in found.items():
        changed = rule_removed(case.snapshot, node, rule, backend)
        if changed is None:
            continue
        author = author_of(rule.chain, rule.text, rule.comment)
        where = f"{node} {backend} {rule.table}" + (f" line {rule.line}" if rule.line else "")
        verb = "rejects" if rule.target is not None and rule.target.name == "REJECT" else "drops"
        yield CHECK.finding(
            f"a rule in {rule.table} {rule.chain} on {node} {verb} the traffic of some clients outside ({listed(who)}) "
            f"to {entry.title}; others get through (written by {author})",
            node=node,
            evidence=[Evidence(kind="rule", source=where, text=rule.text), field("such a client", path.reason)],
            fixes=[
                Fix(
                    summary=f"if these clients should get through, allow them before this rule, in what owns it ({author})",
                    cost="opens what the rule closes",
                )
            ],
            severity=Severity.WARNING,
        )


CHECK = Check(code="KTP301", name="RuleStopsTraffic", severity=Severity.ERROR, page=__doc__ or "", run=run)
