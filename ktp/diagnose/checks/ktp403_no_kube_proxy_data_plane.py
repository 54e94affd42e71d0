"""The node's Services are served by an eBPF or OVN data plane, not by kube-proxy's rules.

# What it means
The node holds none of kube-proxy's chains, tables or virtual servers, and shows another implementation that serves
Services itself: Cilium (kubeProxyReplacement), Calico's eBPF data plane, OVN-Kubernetes, or Antrea's proxyAll.

# Why traffic fails
It need not fail. What decides is in BPF maps or OVN flows, which ktp does not read: cells that ktp computes from the
node's rules and sockets say what would happen without that data plane. What the API objects call for, endpoints,
policies and load-balancer fields, holds all the same.

# Evidence
The devices, pods and chains that show the implementation, and the absence of kube-proxy's.

# Confirm by hand
    iptables-save | grep -c KUBE-SERVICES             # 0
    cilium-dbg service list; cilium-dbg bpf lb list   # Cilium
    calico-node -bpf nat dump                         # Calico eBPF
    ovn-nbctl lb-list                                 # OVN-Kubernetes

# Fix
Use the implementation's own tools. ktp still tells endpoints, Local policies, node labels and annotations.

# Example
A cluster installed with `cilium install --set kubeProxyReplacement=true`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, listed
from ktp.diagnose.checks.kube_common import has_kube_proxy
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState

# (name, devices that only it makes, beginnings of its chains, beginnings of its agent's pod names)
_IMPLEMENTATIONS = (
    ("Cilium", ("cilium_host", "cilium_net"), ("CILIUM_",), ("cilium-",)),
    ("Calico's eBPF data plane", ("bpfin.cali", "bpfout.cali"), (), ()),
    ("OVN-Kubernetes", ("ovn-k8s-mp0", "ovn-k8s-gw0"), ("OVN-KUBE-",), ("ovnkube-node", "ovnkube-")),
    ("Antrea", ("antrea-gw0",), ("ANTREA-",), ("antrea-agent",)),
)


def run(case: Case) -> Iterable[Finding]:
    """Fires once for all nodes without kube-proxy's rules on which another implementation shows."""
    found: dict[str, dict[str, list[Evidence]]] = {}
    for node in case.nodes:
        state = case.state(node)
        if state is None or not state.has_rules or has_kube_proxy(state):
            continue
        for name, devices, chains, pods in _IMPLEMENTATIONS:
            evidence = _signs(case, state, devices, chains, pods)
            if evidence:
                found.setdefault(name, {})[node] = evidence
                break
    for name, nodes in found.items():
        cells = [e for e in case.failing() if e.node in nodes and e.asked.fact is not None]
        first = next(iter(nodes))
        yield CHECK.finding(
            f"{name} serves Services on {listed(nodes)}, not kube-proxy: ktp does not read its maps, so "
            f"what it computes from "
            "the rules there is not what happens; what it says of the API objects holds",
            nodes=list(nodes),
            evidence=[
                *nodes[first],
                Evidence(kind="rule", source=first, text="no chain, table or virtual server of kube-proxy's"),
            ],
            fixes=[Fix(summary=f"ask {name}'s own tools for its Service table", cost="none")],
            cells=cells,
            severity=Severity.WARNING if cells else Severity.INFO,
        )


def is_replaced(case: Case, state: NodeState) -> bool:
    """Whether the node has no kube-proxy rules because another implementation serves Services there."""
    return not has_kube_proxy(state) and any(_signs(case, state, d, c, p) for _, d, c, p in _IMPLEMENTATIONS)


def _signs(
    case: Case, state: NodeState, devices: tuple[str, ...], chains: tuple[str, ...], pods: tuple[str, ...]
) -> list[Evidence]:
    out = [
        Evidence(kind="route", source=f"{state.name} ip addr", text=f"device {i.name}")
        for i in state.interfaces or ()
        if i.name.startswith(devices)
    ][:1]
    for ruleset in state.rulesets:
        names = [
            n for t in ruleset.tables() for n in ruleset.chain_names(t) if chains and n.startswith(chains)
        ]
        if names:
            out.append(
                Evidence(
                    kind="rule", source=f"{state.name} {ruleset.backend.value}", text=f"chain {names[0]}"
                )
            )
            break
    if out:
        out += [
            Evidence(kind="field", source=f"Pod {p.key}", text=f"runs on {state.name}")
            for p in case.snapshot.cluster.pods or ()
            if pods and p.node_name == state.name and p.host_network and p.name.startswith(pods)
        ][:1]
    return out


CHECK = Check(
    code="KTP403", name="NoKubeProxyDataPlane", severity=Severity.WARNING, page=__doc__ or "", run=run
)
