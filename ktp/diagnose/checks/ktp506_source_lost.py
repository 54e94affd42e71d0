"""The client's address is replaced although externalTrafficPolicy is Local.

# What it means
Local exists to keep the client's address. kube-proxy does not masquerade here, but another rule on the node does.

# Why traffic fails
It does not fail, but the pods see an address of the node: access lists, rate limits, logs and geo-location are wrong,
and the price of Local (nodes that drop) is paid for nothing.

# Evidence
The rule that replaces the source, who likely wrote it, and that the address stays without it.

# Confirm by hand
    iptables -t nat -S POSTROUTING; nft list ruleset | grep -n 'masquerade\\|snat'
    conntrack -L -p tcp --dport TARGETPORT       # on the node: the reply's dst is what the pod sees

# Fix
Exempt traffic to the pod network from the rule where it is configured (the CNI's ipMasq, firewalld's zone). Where
the load balancer itself replaces the address, the nodes cannot know: use proxy protocol or X-Forwarded-For.

# Example
firewalld's zone has masquerading on, and the nodes' interface is in that zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import honours_local
from ktp.diagnose.checks.rule_common import RuleInPlace, rule_of_step
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each rule without which an outside client's address is kept under Local."""
    if case.service.external_traffic_policy != "Local":
        return
    by_rule: dict[RuleInPlace, list[Entry]] = {}
    for entry in case.entries:
        if entry.vantage is Vantage.EXTERNAL and entry.is_external and entry.cell.symptom is Symptom.CONNECTS:
            if entry.cell.source_kept is False and honours_local(case, entry):
                for rule in _sources(entry):
                    by_rule.setdefault(rule, []).append(entry)
    for rule, entries in by_rule.items():
        without = partial(rule.removed, case.snapshot)
        kept = [e for e in dict.fromkeys(entries) if case.ask_again(e, rule.label, without).source_kept]
        if not kept:
            continue
        first = kept[0]
        seen = listed(first.cell.sources_seen)
        yield CHECK.finding(
            f"externalTrafficPolicy is Local, but on {rule.node} a rule in {rule.place} replaces the "
            f"client's address: the "
            f"pods see {seen} (written by {rule.author})",
            node=rule.node,
            evidence=[
                rule.evidence(),
                field(f"Service {case.service.key}", "spec.externalTrafficPolicy: Local"),
                counterfactual(
                    f"without this rule, the client's address is kept at {first.title} on {first.node}"
                ),
            ],
            fix=Fix(
                f"exempt traffic to the pod network from the rule, where it is configured ({rule.author})",
                cost="where pods have no route back to the clients, answers are lost",
                verified=True,
                outcome=f"without the rule {len(kept)} ways in keep the client's address",
            ),
        )


def _sources(entry: Entry) -> Iterator[RuleInPlace]:
    for path in entry.paths:
        for hop in path.hops:
            for step in hop.steps if hop.direction == "request" else ():
                replaces = any(not t.kind.of_destination for t in step.translations)
                rule = rule_of_step(hop.node, step) if replaces else None
                if rule is not None:
                    yield rule


CHECK = Check("KTP506", "SourceLost", Severity.WARNING, run)
