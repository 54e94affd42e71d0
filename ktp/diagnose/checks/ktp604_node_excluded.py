"""Nodes that hold endpoints carry the label that keeps them out of load balancers.

# What it means
The label node.kubernetes.io/exclude-from-external-load-balancers, with any value, tells the cloud's load balancer
controller (and MetalLB) to leave the node out.

# Why traffic fails
Under policy Local the pods on such a node get no traffic of the load balancer: the others carry their share, and if all
pods are on such nodes, nobody answers. Under policy Cluster other nodes pass traffic on to them.

# Evidence
The nodes' label and the endpoints on them.

# Confirm by hand
    kubectl get nodes -l node.kubernetes.io/exclude-from-external-load-balancers

# Fix
    kubectl label node NODE node.kubernetes.io/exclude-from-external-load-balancers-

# Example
kubeadm labels control-plane nodes so; a single-node cluster, or a DaemonSet that also runs there, is caught by it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import holders
from ktp.model.diagnosis import Finding, Fix, Severity

_LABELS = (
    "node.kubernetes.io/exclude-from-external-load-balancers",
    "alpha.service-controller.kubernetes.io/exclude-balancer",
)


def run(case: Case) -> Iterable[Finding]:
    """Fires where a node with usable endpoints of a Local load-balancer Service is labelled."""
    service = case.service
    known = case.snapshot.cluster.nodes or {}
    if service.type != "LoadBalancer":
        return
    held = sorted(holders(case))
    excluded = {
        n: next(k for k in _LABELS if k in known[n].labels)
        for n in held
        if n in known and any(k in known[n].labels for k in _LABELS)
    }
    everywhere = (
        case.snapshot.cluster.has_all("nodes")
        and bool(known)
        and all(any(k in n.labels for k in _LABELS) for n in known.values())
    )
    if not excluded or (service.external_traffic_policy != "Local" and not everywhere):
        return
    every = len(excluded) == len(held)
    yield CHECK.finding(
        f"{listed(excluded)} hold{'s' * (len(excluded) == 1)} endpoints of {service.key} and "
        f"{'is' if len(excluded) == 1 else 'are'} "
        "kept out of load balancers by a label: "
        + (
            "no node that a load balancer may use holds an endpoint"
            if every
            else "under policy Local the pods there get no traffic of the load balancer"
        ),
        nodes=list(excluded),
        evidence=[
            field(f"Node {n}", f"metadata.labels: {key}={known[n].labels[key]}")
            for n, key in list(excluded.items())[:6]
        ],
        fixes=[
            Fix(
                "remove the label",
                cost="the load balancer then sends traffic to these nodes for every Service",
                command=f"kubectl label node {next(iter(excluded))} {next(iter(excluded.values()))}-",
            ),
            Fix("keep the pods off these nodes (a node affinity)", cost="the pods move"),
        ],
        severity=Severity.ERROR if every else Severity.WARNING,
    )


CHECK = Check("KTP604", "NodeExcluded", Severity.WARNING, run)
