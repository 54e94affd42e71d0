"""An endpoint names a node that does not exist.

# What it means
An EndpointSlice lists an endpoint whose nodeName is no Node of the cluster: the node was deleted and the endpoint has
stayed, or the name is wrong.

# Why traffic fails
Under policy Cluster a share of the connections is sent to an address where nobody lives any more. Under Local no node
takes the endpoint for its own.

# Evidence
The endpoint, the Nodes of the cluster, and that the cells connect more often without the endpoint.

# Confirm by hand
    kubectl get nodes
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o yaml | grep nodeName

# Fix
Delete the pod that is bound to the node (`kubectl delete pod --force`), or correct the hand-made slice.

# Example
A node was removed from the cloud and from the API while its pods were stuck in Terminating.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case
from ktp.diagnose.changes import slices_changed
from ktp.diagnose.checks.base import Check, field, listed, mending
from ktp.model.cluster import EndpointSlice
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a usable endpoint's nodeName is no Node's."""
    nodes = case.snapshot.cluster.nodes
    if not nodes or not case.snapshot.cluster.has_all("nodes"):
        return
    ghosts = [
        e
        for s in case.examiner.slices_of(case.service)
        for e in s.endpoints
        if e.node_name is not None and e.node_name not in nodes and (e.is_ready or e.is_serving)
    ]
    if not ghosts:
        return

    def without(one: EndpointSlice) -> EndpointSlice:
        return replace(one, endpoints=tuple(e for e in one.endpoints if e not in ghosts))

    mended = case.mended(
        case.failing(), "endpoints of unknown nodes gone", lambda: slices_changed(case, without)
    )
    names = listed(dict.fromkeys(e.node_name or "" for e in ghosts))
    evidence = [
        *(
            field(f"EndpointSlices of {case.service.key}", f"{e.addresses[0]}: nodeName {e.node_name}")
            for e in ghosts[:4]
        ),
        field("Nodes", listed(nodes, 8)),
    ]
    evidence += mending(f"without {ghosts[0].addresses[0]}", mended, "connects more often")
    yield CHECK.finding(
        f"{len(ghosts)} endpoint{'s' * (len(ghosts) != 1)} of {case.service.key} "
        f"({listed(e.addresses[0] for e in ghosts)}) "
        f"name{'s' * (len(ghosts) == 1)} {names}, which "
        f"{'is' if len({e.node_name for e in ghosts}) == 1 else 'are'} no Node of the cluster",
        evidence=evidence,
        fix=Fix(
            "delete the pods that are bound to the missing node, or correct the EndpointSlice",
            cost="none: nothing can answer there"
            if mended
            else "what still runs there is lost to the Service",
            cures=mended.cures() if mended else None,
        ),
        cells=mended,
        severity=Severity.ERROR if mended else Severity.WARNING,
    )


CHECK = Check("KTP107", "EndpointOnUnknownNode", Severity.WARNING, run)
