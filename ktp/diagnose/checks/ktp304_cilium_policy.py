"""A policy that Cilium enforces does not let the client in (or the pod out).

# What it means
Cilium holds a policy map for each pod: which identities may reach which port. For this client's identity there is no
entry, or one that denies.

# Why traffic fails
The packet is dropped at the pod's device, behind all translation: nothing answers, and the client times out. The
identity is that of the source as it arrives at the pod's node: the client's own (world, or the CIDR that a policy
names), remote-node where another node's address replaced it, host for the pod's own node, which is always let in.

# Evidence
The pod's policy map, the policies that the agent says select the pod, and the same question without any policy.

# Confirm by hand
    kubectl get networkpolicies,ciliumnetworkpolicies -n NAMESPACE
    cilium-dbg bpf policy get ENDPOINT-ID          # in the agent's pod on the pod's node
    cilium-dbg monitor --type drop                 # while a client tries

# Fix
Allow these clients in the policy. Behind externalTrafficPolicy Cluster clients that come by another node have a node's
address there: `ipBlock` does not match nodes in Cilium; allow them by `fromEntities: [remote-node]` in a
CiliumNetworkPolicy, or set externalTrafficPolicy: Local and allow the clients' own networks.

# Example
A NetworkPolicy lets 10.0.0.100/32 in alone: 10.0.0.200 times out on every node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, field, listed, mending
from ktp.model.cilium import CiliumState
from ktp.model.cluster import Pod
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import DecidedBy, Symptom

_SHOWN = 4


def run(case: Case) -> Iterable[Finding]:
    """Fires once a pod that Cilium's policy map closes to a client who would get through without."""
    stopped: dict[tuple[str, str], tuple[DecidedBy, list[Entry]]] = {}
    for entry in case.failing():
        for path in entry.paths:
            by = path.decided_by
            if path.symptom is not Symptom.CONNECTS and by is not None and is_policy(by):
                entries = stopped.setdefault((by.node, path.endpoint_ip or ""), (by, []))[1]
                if entry not in entries:
                    entries.append(entry)
    open_to_all = lambda: _without_policies(case.snapshot)  # noqa: E731
    for (node, address), (by, entries) in stopped.items():
        mended = case.mended(entries, "without Cilium's policies", open_to_all)
        if not mended:
            continue
        pod = next((p for p in case.snapshot.cluster.pods or () if address in p.pod_ips), None)
        state = case.state(node)
        cilium = state.cilium if state is not None else None
        names = _names(cilium, pod)
        whose = f"pod {pod.key}" if pod is not None else address
        where = listed(names) if names else "a policy"
        yield CHECK.finding(
            f"{where} closes {whose} on {node} to these clients (Cilium): "
            f"{listed(dict.fromkeys(e.title for e in entries))}",
            node=node,
            evidence=[
                Evidence("rule", f"{node} cilium", by.rule),
                *_allowed(cilium, address),
                *mending("without policies", mended, "connects more often"),
            ],
            fix=Fix(
                f"if these clients should get in, allow them in {where}; by another node they come "
                "as remote-node, which ipBlock does not match",
                cost="these clients get in",
                cures=mended.cures(entries),
            ),
            cells=entries,
        )


def is_policy(by: DecidedBy) -> bool:
    """Whether a policy map decided."""
    return by.backend == "cilium" and bool(by.chain)


def is_front_end(by: DecidedBy) -> bool:
    """Whether a front end of the load-balancing maps decided."""
    return by.backend == "cilium" and not by.chain


def _without_policies(snapshot: Snapshot) -> Snapshot:
    nodes = dict(snapshot.nodes)
    for name, state in snapshot.nodes.items():
        cilium = state.cilium
        if cilium is not None:
            config = replace(cilium.config, enforces_policy=False)
            nodes[name] = replace(state, cilium=replace(cilium, config=config))
    return replace(snapshot, nodes=nodes)


def _names(cilium: CiliumState | None, pod: Pod | None) -> list[str]:
    if cilium is None or pod is None:
        return []
    return [
        f"{p.kind or 'policy'} {p.namespace}/{p.name}"
        for p in cilium.named_policies
        if p.selects(pod.namespace, pod.labels)
    ]


def _allowed(cilium: CiliumState | None, address: str) -> Iterable[Evidence]:
    """Who is let in, by the labels of the identities in the map."""
    if cilium is None:
        return
    for ip, endpoint in (cilium.endpoints or {}).items():
        if str(ip) != address or endpoint.identifier is None:
            continue
        who = []
        for entry in (cilium.policies or {}).get(endpoint.identifier, ()):
            if not entry.egress and not entry.deny:
                labels = cilium.identities.get(entry.identity, ())
                who.append(f"{entry.identity}" + (f" ({labels[0]})" if labels else ""))
        more = f" and {len(who) - _SHOWN} more" if len(who) > _SHOWN else ""
        yield field(
            f"policy map of endpoint {endpoint.identifier}",
            f"lets in identities {listed(who[:_SHOWN])}{more}",
        )


CHECK = Check("KTP304", "CiliumPolicy", Severity.ERROR, run)
