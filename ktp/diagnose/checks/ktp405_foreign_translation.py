"""A translation that is not kube-proxy's takes the Service's port.

# What it means
A DNAT or REDIRECT rule in nat stands before kube-proxy's and matches the same address and port: a hostPort of a pod,
docker's published port, a hand-written rule.

# Why traffic fails
The first rule to translate a connection wins; kube-proxy's is never asked.

# Evidence
The rule, and that the Service answers without it.

# Confirm by hand
    iptables -t nat -S | grep -n 'DNAT\\|REDIRECT' | grep -v KUBE-

# Fix
Remove the rule in what owns it, or give the Service another node port.

# Example
An older port forwarding to a machine that no longer exists took port 31465.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import rule_removed
from ktp.diagnose.checks.base import Check, counterfactual, listed
from ktp.diagnose.checks.rule_common import author_of, is_kube_rule
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.ruleset import Rule

_TRANSLATING = frozenset(("DNAT", "REDIRECT", "NETMAP"))


def run(case: Case) -> Iterable[Finding]:
    """Fires for each foreign translation on a failing cell's way whose removal mends it."""
    found: dict[tuple[str, str, str, int], tuple[Rule, list[Entry]]] = {}
    for entry in case.failing():
        fact = entry.asked.fact
        for path in fact.paths if fact is not None else ():
            for hop in path.hops:
                for step in hop.steps:
                    rule = step.rule
                    if rule is None or rule.table != "nat" or rule.target is None or rule.target.name not in _TRANSLATING:
                        continue
                    if is_kube_rule(rule.chain, rule.comment):
                        continue
                    key = (hop.node, step.backend, rule.chain, rule.position)
                    found.setdefault(key, (rule, []))[1].append(entry)
    for (node, backend, _, _), (rule, entries) in found.items():
        changed = rule_removed(case.snapshot, node, rule, backend)
        if changed is None:
            continue
        label = f"without {backend} nat {rule.chain} {rule.position} on {node}"
        mended = case.mended(list(dict.fromkeys(entries)), label, lambda changed=changed: changed)  # type: ignore[misc]
        if not mended:
            continue
        author = author_of(rule.chain, rule.text, rule.comment)
        where = f"{node} {backend} nat" + (f" line {rule.line}" if rule.line else "")
        yield CHECK.finding(
            f"on {node} a rule of {rule.chain} translates {listed(dict.fromkeys(e.title for e in mended))} before "
            f"kube-proxy's rules do (written by {author})",
            node=node,
            evidence=[
                Evidence(kind="rule", source=where, text=rule.text),
                counterfactual(f"without this rule, {mended[0].title} on {mended[0].node} connects"),
            ],
            fixes=[
                Fix(
                    summary=f"remove the rule in what owns it ({author}), or give the Service another node port",
                    cost="whatever used the rule loses it",
                    verified=True,
                    outcome=f"{len(mended)} failing cells then connect",
                )
            ],
            cells=mended,
        )


CHECK = Check(code="KTP405", name="ForeignTranslation", severity=Severity.ERROR, page=__doc__ or "", run=run)
