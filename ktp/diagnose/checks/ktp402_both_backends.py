"""Both iptables back ends hold kube-proxy's rules.

# What it means
The node has kube-proxy's chains in the legacy tables and in the nf_tables ones. kube-proxy keeps only one of them up
to date.

# Why traffic fails
The kernel runs both. The first to translate a connection wins, a drop of either drops: rules that nobody maintains
send traffic to pods that are gone, or drop it.

# Evidence
Which chains are in which back end, and what happens without each of them. Which one runs first `nft list hooks` tells
on Linux 7 or newer, or `--counters SECONDS` while connections to ports in both come.

# Confirm by hand
    iptables-legacy-save | grep -c KUBE-        # only where /proc/net/ip_tables_names lists tables
    iptables-nft-save | grep -c KUBE-
    update-alternatives --display iptables

# Fix
Remove the rules of the back end that kube-proxy does not use (drain the node and restart it), and make kubelet,
kube-proxy and CNI use the same one.

# Example
The distribution's default changed from legacy to nft with an upgrade, without a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case
from ktp.diagnose.changes import backend_dropped
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.ruleset import Ruleset
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node with kube-proxy's chains in both back ends."""
    for node, state in case.by_kube_proxy():
        both = [r for r in state.rulesets if r.family == "ip" and _has_kube(r)]
        if len({r.backend for r in both}) < 2:
            continue
        entries = [e for e in case.on(node) if (e.fails or e.cell.symptom is Symptom.UNKNOWN)]
        evidence: list[Evidence] = []
        concerned = []
        for ruleset in both:
            backend = ruleset.backend.value
            count = sum(1 for c in ruleset.chain_names("nat") if c.startswith("KUBE-"))
            evidence.append(Evidence("rule", f"{node} {backend} nat", f"{count} KUBE- chains"))
            label = f"{node} without {backend}"
            for entry in entries:
                after = case.ask_again(entry, label, partial(backend_dropped, case.snapshot, node, backend))
                if after.symptom is Symptom.CONNECTS and entry not in concerned:
                    concerned.append(entry)
                    evidence.append(
                        counterfactual(
                            f"without the {backend} rules, {entry.title} on {node} ({entry.vantage.value}) connects"
                        )
                    )
        yield CHECK.finding(
            f"{node} holds kube-proxy's rules in both iptables back ends; the kernel runs both, and the first to "
            "translate a connection wins",
            node=node,
            evidence=evidence[:6],
            fix=Fix(
                "remove the rules of the back end that kube-proxy does not use: drain and restart the node",
                cost="a restart of the node",
            ),
            cells=concerned,
            severity=Severity.ERROR if concerned else Severity.WARNING,
        )


def _has_kube(ruleset: Ruleset) -> bool:
    return ruleset.chain("nat", "KUBE-SERVICES") is not None


CHECK = Check("KTP402", "BothBackends", Severity.WARNING, run, of_cells=True)
