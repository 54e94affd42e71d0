"""The FORWARD chain's policy is DROP and nothing lets the Service's traffic through.

# What it means
What no rule of FORWARD accepts is dropped. kube-proxy accepts only what it marked for masquerading.

# Why traffic fails
Under externalTrafficPolicy Local packets are not marked, so nothing accepts them: "Cluster works, Local does not".
The same holds for pods that dial a Service. Docker sets this policy when it starts.

# Evidence
The chain's policy, and that the packet passes with policy ACCEPT.

# Confirm by hand
    iptables -S FORWARD | head -1

# Fix
    iptables -P FORWARD ACCEPT          # or let the CNI add its accept rules for the pod network

# Example
Docker was installed on the node; its policy DROP stays although Kubernetes uses containerd.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.changes import policy_accepts
from ktp.diagnose.checks.base import Check, counterfactual
from ktp.diagnose.checks.ktp201_forwarding_off import involved_nodes
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which policy ACCEPT mends a failing cell."""
    for node in involved_nodes(case):
        state = case.state(node)
        dropping = [
            (ruleset, chain)
            for ruleset in (state.rulesets if state is not None else ())
            if (chain := ruleset.chain("filter", "FORWARD")) is not None and chain.policy == "DROP"
        ]
        if not dropping:
            continue
        failing = [e for e in case.failing() if e.asked.fact is not None]
        mended = case.mended(failing, f"FORWARD accepts on {node}", lambda node=node: policy_accepts(case.snapshot, node, "filter", "FORWARD"))  # type: ignore[misc]
        if not mended:
            continue
        command = "iptables -P FORWARD ACCEPT" if dropping[0][0].family == "ip" else "ip6tables -P FORWARD ACCEPT"
        ruleset, chain = dropping[0]
        count = f" [{chain.counters.packets}:{chain.counters.bytes}]" if chain.counters is not None else ""
        note = (
            "; masqueraded traffic (policy Cluster) is accepted by KUBE-FORWARD and passes"
            if case.service.external_traffic_policy == "Local"
            else ""
        )
        yield CHECK.finding(
            f"policy DROP of FORWARD on {node} drops the Service's traffic: no rule accepts it{note}",
            node=node,
            evidence=[
                Evidence(
                    kind="policy",
                    source=f"{node} {ruleset.backend.value} filter",
                    text=f":FORWARD DROP{count}",
                ),
                counterfactual(f"with policy ACCEPT, {mended[0].title} on {mended[0].node} connects"),
            ],
            fixes=[
                Fix(
                    summary=f"set the policy of FORWARD to ACCEPT on {node}, or accept the pod network there",
                    cost="the node forwards what no rule forbids",
                    command=command,
                    verified=True,
                    outcome=f"{len(mended)} of {len(failing)} failing cells then connect",
                )
            ],
            cells=mended,
        )


CHECK = Check(code="KTP302", name="ForwardPolicyDrop", severity=Severity.ERROR, page=__doc__ or "", run=run)
