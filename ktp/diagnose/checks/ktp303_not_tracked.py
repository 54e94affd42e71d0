"""A rule takes the Service's traffic out of connection tracking.

# What it means
A rule of the raw table (or an nft chain at its priority) says NOTRACK for packets of the Service.

# Why traffic fails
Address translation is a matter of tracked connections: a packet that is not tracked passes no nat chain, and so
kube-proxy's rules never see it. It arrives at the node's own stack, where nobody listens, or the answer comes back
without being translated.

# Evidence
The rule, with its counter where the dump has counters.

# Confirm by hand
    iptables -t raw -S | grep -e NOTRACK -e notrack
    nft list ruleset | grep notrack
    conntrack -L -p tcp --dport NODEPORT        # nothing, while a client tries

# Fix
Leave out the node ports, the cluster's addresses and the pods in what wrote the rule.

# Example
A tuning guide for busy web servers: `-t raw -A PREROUTING -p tcp --dport 30000:32767 -j NOTRACK`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.rule_common import RuleInPlace, rule_of_step
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.effect import NoTrack


def run(case: Case) -> Iterable[Finding]:
    """Fires for each such rule whose removal mends a failing cell."""
    by_rule: dict[RuleInPlace, list[Entry]] = {}
    for entry in case.failing():
        for rule in _untracking(entry):
            by_rule.setdefault(rule, []).append(entry)
    for rule, entries in by_rule.items():
        mended = case.mended(entries, rule.label, partial(rule.removed, case.snapshot))
        if not mended:
            continue
        yield CHECK.finding(
            f"a rule in {rule.place} on {rule.node} takes {listed(e.title for e in mended)} out of connection "
            f"tracking, and what is not tracked is not translated (written by {rule.author})",
            node=rule.node,
            evidence=[
                rule.evidence(),
                *mending("without this rule", mended, "connects more often"),
            ],
            fix=Fix(
                f"leave the Service's ports out of this rule, where it is configured ({rule.author})",
                cost="the connections take room in the conntrack table",
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _untracking(entry: Entry) -> Iterable[RuleInPlace]:
    """The rules that said NOTRACK to a packet of this cell, each once."""
    found: dict[RuleInPlace, None] = {}
    for path in entry.paths:
        for hop in path.hops:
            for step in hop.steps:
                untracks = any(isinstance(effect, NoTrack) for effect in step.effects)
                if untracks and (rule := rule_of_step(hop.node, step)) is not None:
                    found[rule] = None
    return found


CHECK = Check("KTP303", "NotTracked", Severity.ERROR, run)
