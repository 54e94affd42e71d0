"""Under externalTrafficPolicy Local the pods get very different shares of the traffic.

# What it means
Nodes hold different numbers of the Service's pods, and each node hands what it gets to its own pods only.

# Why traffic fails
Nothing fails, but a balancer that spreads equally over nodes gives a pod that is alone on its node several times the
load of one that shares its node.

# Evidence
The number of usable endpoints on each node, and each pod's expected share.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o jsonpath='{..nodeName} {..ready}'
    kubectl top pods -n NAMESPACE -l SELECTOR

# Fix
Spread the pods evenly over the nodes (topologySpreadConstraints with maxSkew 1 over kubernetes.io/hostname, or a
DaemonSet), or let the load balancer weigh nodes by their pods, where the provider can.

# Example
Three pods on node-b, one on node-c: the one on node-c gets three times as much as each of the others.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.diagnose.share import load_shares, moves_to_even
from ktp.model.diagnosis import Finding, Fix, Severity

_WORTH_SAYING = 1.5


def run(case: Case) -> Iterable[Finding]:
    """Fires where the busiest pod gets at least half as much again as the idlest."""
    if case.service.external_traffic_policy != "Local":
        return
    seen: set[tuple[str, int]] = set()
    for port in case.service.ports:
        entries = case.outside.get((port.protocol, port.port, port.name), [])
        counts = {e.node: len(selection_of(case, e).local) for e in entries}
        worst = max(
            (
                s
                for s in load_shares(entries, "Local", counts)
                if s.balancer == "nodes-with-pods" and s.ratio is not None
            ),
            key=lambda s: s.ratio or 0,
            default=None,
        )
        if worst is None or worst.ratio is None or not _WORTH_SAYING <= worst.ratio < float("inf"):
            continue
        if (port.protocol, port.port) in seen:
            continue
        seen.add((port.protocol, port.port))
        moves = moves_to_even(counts)
        busy, idle = worst.pods[0], worst.pods[-1]
        holding = {n: c for n, c in counts.items() if c}
        text = ", ".join(f"{n}: {c}" for n, c in sorted(holding.items()))
        moved = "; ".join(f"one pod from {a} to {b}" for a, b in moves[:4])
        yield CHECK.finding(
            f"the pods share outside traffic unevenly: {busy.endpoint} on {busy.node} gets {busy.share:.0%}, "
            f"{idle.endpoint} on {idle.node} {idle.share:.0%} ({worst.ratio:.1f} times less), where the "
            f"balancer spreads "
            "equally over the nodes with pods",
            evidence=[field(f"usable endpoints of {worst.frontend} by node", text)],
            fixes=[
                Fix(
                    "spread the pods evenly with topologySpreadConstraints (maxSkew: 1, kubernetes.io/hostname)"
                    + (f": {moved}" if moved else ""),
                    cost=f"{len(moves)} pod{'s' * (len(moves) != 1)} must move"
                    if moves
                    else "pods must be added",
                ),
                Fix("let the load balancer weigh nodes by their pods", cost="only some providers can"),
            ],
        )


CHECK = Check("KTP503", "UnevenLoad", Severity.INFO, run)
