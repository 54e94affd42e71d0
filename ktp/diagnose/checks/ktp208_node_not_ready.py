"""A node that matters to the Service is not Ready.

# What it means
The Node's condition Ready is False or Unknown.

# Why traffic fails
Kubernetes marks the pods of such a node as not ready, so its endpoints drop out, and load balancers of most providers
take the node out of their pool. The rules on the node stay as they are: kube-proxy there may be cut off from the API
server as well, and serve what was true when the contact broke.

# Evidence
The condition with the kubelet's or the node controller's reason and since when.

# Confirm by hand
    kubectl describe node NODE | grep -A12 Conditions

# Fix
Bring the kubelet back: look at the machine, its network and the kubelet's log.

# Example
A node's disk is full, the kubelet has stopped reporting, and its pods have been out of service for ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for the dialled nodes, and those of endpoints, whose condition Ready is not True."""
    known = case.snapshot.cluster.nodes or {}
    holders = {e.node_name for s in case.examiner.slices_of(case.service) for e in s.endpoints if e.node_name}
    bad = {}
    for name in dict.fromkeys((*case.every_node, *sorted(holders))):
        node = known.get(name)
        ready = next((c for c in node.conditions if c.type == "Ready"), None) if node is not None else None
        if ready is not None and ready.status != "True":
            bad[name] = ready
    if not bad:
        return
    on_them = [n for n in bad if n in holders]
    yield CHECK.finding(
        f"{listed(bad)} {'is' if len(bad) == 1 else 'are'} not Ready"
        + (
            f"; {listed(on_them)} hold{'s' * (len(on_them) == 1)} endpoints of {case.service.key}"
            if on_them
            else ""
        ),
        nodes=list(bad),
        evidence=[
            field(
                f"Node {name}",
                f"Ready {c.status} since {c.last_transition_time or 'unknown'}: {c.reason} {c.message}".strip(),
            )
            for name, c in list(bad.items())[:6]
        ],
        fix=Fix("bring the kubelet of the node back", command=f"kubectl describe node {next(iter(bad))}"),
    )


CHECK = Check("KTP208", "NodeNotReady", Severity.WARNING, run)
