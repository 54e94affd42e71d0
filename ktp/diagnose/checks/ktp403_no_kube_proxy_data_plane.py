"""The node's Services are served by an eBPF or OVN data plane, not by kube-proxy's rules.

# What it means
The node shows another implementation that serves Services itself: Cilium, whose programs meet packets before any rule
does, Calico's eBPF data plane, or, where kube-proxy's rules are not there, OVN-Kubernetes, Antrea's proxyAll or
kube-router's service proxy.

# Why traffic fails
It need not fail. What decides is in BPF maps or OVN flows. Cilium's maps are read where the agent is asked (in a
snapshot: nodes/NODE/cilium/), and then answer for it; the others' are not, so what clients get there is not known.
Rules of kube-proxy that are left over decide only what those tables do not hold. What the API objects call for,
endpoints, policies and load-balancer fields, holds all the same.

# Evidence
The devices, chains and agent's pods that show the implementation.

# Confirm by hand
    iptables-save | grep -c KUBE-SERVICES             # 0
    cilium-dbg service list; cilium-dbg bpf lb list   # Cilium
    calico-node -bpf nat dump                         # Calico eBPF
    ovn-nbctl lb-list                                 # OVN-Kubernetes
    antctl get ovsflows -S NAME -n NAMESPACE          # Antrea
    ipvsadm -Ln                                       # kube-router

# Fix
None is needed. Where its tables were not read, use the implementation's own tools, or give ktp what Cilium's print;
ktp still tells endpoints, Local policies, node labels and annotations.

# Example
A cluster installed with `cilium install --set kubeProxyReplacement=true`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, listed
from ktp.kubeproxy.data_planes import (
    DATA_PLANES,
    has_kube_proxy,
    is_readable_plane,
    signs_of,
    way_to_look,
)
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState


def run(case: Case) -> Iterable[Finding]:
    """Fires once for all nodes on which the same other implementation serves Services."""
    found: dict[str, list[str]] = {}
    for node in case.every_node:
        name = case.examiner.data_plane(node)
        if name:
            found.setdefault(name, []).append(node)
    for plane in DATA_PLANES:
        nodes = found.get(plane.name)
        if not nodes:
            continue
        state = case.state(nodes[0])
        signs: list[Evidence] = []
        if state is not None:
            signs = list(signs_of(plane, state, case.snapshot.cluster.pods or ()))
        if state is not None and not state.data_plane_unread:
            left = " (rules of kube-proxy that are left over decide only what they do not hold)"
            yield CHECK.finding(
                f"{plane.name} serves Services on {listed(nodes)}, by its maps"
                + (left if any(has_kube_proxy(s) for n in nodes if (s := case.state(n))) else ""),
                nodes=nodes,
                evidence=signs,
            )
            continue
        yield CHECK.finding(
            f"{plane.name} serves Services on {listed(nodes)}, and ktp did not read its tables: what happens there is "
            "not known; what the API objects call for holds",
            nodes=nodes,
            evidence=signs,
            fixes=_ways_to_look(case, state),
        )


def _ways_to_look(case: Case, state: NodeState | None) -> list[Fix]:
    if state is None:
        return []
    pods = case.snapshot.cluster.pods or ()
    command = way_to_look(state, pods, case.service.namespace, case.service.name)
    look = Fix("see its table of Services by its own tool", command=command)
    if not is_readable_plane(state):
        return [look]
    words = "let ktp read its tables through the agents' pods: --node-access agent"
    return [Fix(words), look]


CHECK = Check("KTP403", "NoKubeProxyDataPlane", Severity.INFO, run)
