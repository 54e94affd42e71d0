"""kube-proxy runs under a name that is not this Node's.

# What it means
kube-proxy takes its node name from --hostname-override, or else from the host name. Here it is another name than that
of the Node object that the kubelet registered.

# Why traffic fails
kube-proxy compares the name with each endpoint's nodeName to tell which endpoints are local. Under a wrong name none
is: with externalTrafficPolicy or internalTrafficPolicy Local it drops everything on this node, although pods run
there, and its health check tells load balancers to stay away. Newer versions do not even start to sync without their
Node, and the node keeps whatever rules it had. Policy Cluster still works.

# Evidence
hostnameOverride, the Nodes of the cluster, and how the cells change with the right name.

# Confirm by hand
    kubectl get nodes
    kubectl get configmap -n kube-system kube-proxy -o yaml | grep hostnameOverride
    kubectl logs -n kube-system KUBE-PROXY-POD | grep -i 'node'

# Fix
Start kube-proxy with the Node's name (in a DaemonSet: --hostname-override=$(NODE_NAME) from spec.nodeName).

# Example
The cloud renamed the host to its long DNS name; the kubelet was registered under the short one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, Entry, is_better
from ktp.diagnose.changes import reprogrammed, rules_renewed, with_state
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.kube_common import kube_proxy_evidence
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.snapshot import Snapshot


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose kube-proxy has a hostnameOverride that is not the Node's name."""
    known = case.snapshot.cluster.nodes
    for node in case.nodes:
        state = case.state(node)
        name = (
            state.kube_proxy.hostname_override if state is not None and state.kube_proxy is not None else None
        )
        if not name or known is None or name == node or (name in known and node not in known):
            continue
        yield _finding(case, node, name)


def _finding(case: Case, node: str, name: str) -> Finding:
    service = case.service
    known = case.snapshot.cluster.nodes or {}
    local = [p for p in ("externalTrafficPolicy", "internalTrafficPolicy") if _policy(case, p) == "Local"]
    mine = list(case.on(node))
    mended = case.mended(
        [e for e in mine if e.fails], f"kube-proxy named {node}", lambda: _renamed(case, node)
    )
    lost = [e for e in mine if _goes_dark(case, e, node)]
    evidence: list[Evidence] = [
        field(f"kube-proxy's configuration on {node}", f"hostnameOverride: {name}"),
        field("Nodes", listed(known, 8)),
        *kube_proxy_evidence(case, node),
    ]
    if mended:
        evidence.append(counterfactual(f"with the name {node}, {mended[0].title} on {node} connects"))
    if lost:
        evidence.append(
            counterfactual(
                f"the rules there are older: once kube-proxy {name} writes its own, {lost[0].title} on {node} fails"
            )
        )
    effect = (
        f"it takes every endpoint for a remote one, so {' and '.join(local)} Local "
        f"{'have' if len(local) > 1 else 'has'} "
        "no endpoint there"
        if local
        else "Services with a Local policy have no endpoint there; this one has policy Cluster"
    )
    if lost and not mended:
        effect = (
            f"the rules there are older and still serve {lost[0].title}; those that it writes next take every endpoint "
            "for a remote one, and policy Local has none there"
        )
    whose = "another Node's name" if name in known else "no Node's name"
    return CHECK.finding(
        f"kube-proxy on {node} runs as {name}, which is {whose}: {effect}",
        node=node,
        evidence=evidence,
        fix=Fix(
            f"give kube-proxy on {node} the Node's name (--hostname-override={node}, or hostnameOverride "
            "in its configuration), and restart it",
            verified=bool(lost),
            outcome=f"{service.key} stays reachable on {node}" if lost else "",
            cures=mended.cures() if mended else None,
        ),
        cells=mended,
        severity=Severity.ERROR if mended or lost else Severity.INFO,
    )


def _policy(case: Case, field_name: str) -> str:
    service = case.service
    return (
        service.external_traffic_policy
        if field_name == "externalTrafficPolicy"
        else service.internal_traffic_policy
    )


def _goes_dark(case: Case, entry: Entry, node: str) -> bool:
    after = case.ask_again(entry, f"rules of {node} renewed", lambda: rules_renewed(case, node))
    return entry.asked.fact is not None and is_better(after, entry.cell)


def _renamed(case: Case, node: str) -> Snapshot:
    state = case.snapshot.nodes[node]
    assert state.kube_proxy is not None
    named = replace(state, kube_proxy=replace(state.kube_proxy, hostname_override=node))
    return reprogrammed(with_state(case.snapshot, named), case.snapshot.cluster, case.service.key, {node})


CHECK = Check("KTP406", "WrongNodeName", Severity.ERROR, run)
