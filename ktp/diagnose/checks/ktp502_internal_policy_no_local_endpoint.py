"""internalTrafficPolicy is Local and no usable endpoint runs on this node.

# What it means
The Service asks nodes to hand traffic to its cluster IP to their own pods only, and this node has none.

# Why traffic fails
kube-proxy drops (up to 1.23: rejects) the packet of clients on this node.

# Evidence
spec.internalTrafficPolicy, the EndpointSlices' nodeName, and the rule that drops.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.internalTrafficPolicy}'

# Fix
Run a pod of the Service on each node that has clients (a DaemonSet), or set internalTrafficPolicy: Cluster.

# Example
A node-local cache with a Service of internalTrafficPolicy Local, and a node whose cache pod was evicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case, decided_evidence
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a ready pod on the node mends its cluster IP."""
    if case.service.internal_traffic_policy != "Local":
        return
    for node in case.nodes:
        entries = [
            e
            for e in case.failing(node)
            if selection_of(case, e).has_endpoints and not selection_of(case, e).local
        ]
        if not entries:
            continue
        mended = case.mended(entries, f"pod on {node}", partial(pod_added, case, node), node)
        if not mended:
            continue
        first = mended[0]
        there = sorted({e.node_name or "no node" for e in selection_of(case, first).usable})
        yield CHECK.finding(
            f"internalTrafficPolicy is Local and no usable endpoint of {case.service.key} runs on {node}: "
            f"clients on {node} do not reach {first.title}",
            node=node,
            evidence=[
                field(f"Service {case.service.key}", "spec.internalTrafficPolicy: Local"),
                field(f"EndpointSlices of {case.service.key}", f"usable endpoints only on {listed(there)}"),
                *decided_evidence(first.cell),
                counterfactual(f"with a ready pod on {node}, {first.title} connects from there"),
            ],
            fixes=[
                Fix(
                    f"run a ready pod on {node} (a DaemonSet)",
                    cost="a pod on every node that has clients",
                    cures=mended.cures(),
                ),
                Fix(
                    "set internalTrafficPolicy: Cluster",
                    cost="traffic may leave the node",
                    patch={"spec": {"internalTrafficPolicy": "Cluster"}},
                ),
            ],
            cells=mended,
        )


CHECK = Check("KTP502", "InternalPolicyNoLocalEndpoint", Severity.ERROR, run)
