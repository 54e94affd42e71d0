"""The node holds none of kube-proxy's rules.

# What it means
Neither iptables back end has KUBE-SERVICES, there is no nftables table kube-proxy, no virtual server, and nothing that
would serve Services in its place.

# Why traffic fails
Packets to node ports, load-balancer and cluster IPs are not translated: they end at the node itself, where nothing
listens ("refused"), or go astray. kube-proxy has never run on the node, or somebody flushed and deleted its chains.

# Evidence
What was read of the node's rules, kube-proxy's pod where there is one, and what the API objects call for.

# Confirm by hand
    iptables-save | grep -c KUBE- ; nft list tables ; ipvsadm -Ln
    kubectl get pods -n kube-system -l k8s-app=kube-proxy -o wide

# Fix
Start kube-proxy on the node and look at its log.

# Example
A taint on the new node pool keeps the kube-proxy DaemonSet away.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.diagnose.checks.kube_common import kube_proxy_evidence, restart_command
from ktp.kubeproxy.data_planes import has_kube_proxy
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose rules hold nothing of kube-proxy's, where cells fail that should connect."""
    for node, state in case.by_kube_proxy():
        if not state.has_rules or has_kube_proxy(state):
            continue
        cells = [e for e in case.failing(node) if e.asked.fact is not None]
        wanted = [e for e in cells if e.cell.intended is Symptom.CONNECTS]
        if not wanted:
            continue
        chains = sum(
            1 for r in state.rulesets for t in r.tables() for n in r.chain_names(t) if n.startswith("KUBE-")
        )
        yield CHECK.finding(
            f"{node} holds none of kube-proxy's rules: {wanted[0].title} is not translated there "
            f"({wanted[0].cell.reason})",
            node=node,
            evidence=[
                Evidence(
                    "rule",
                    f"rules of {node}",
                    f"no chain KUBE-SERVICES in nat, no nftables table kube-proxy, no virtual server; "
                    f"{chains} other KUBE- chains",
                ),
                field(
                    f"API objects of {case.service.key}",
                    f"with kube-proxy's rules it connects: {wanted[0].cell.intended_by}",
                ),
                *kube_proxy_evidence(case, node),
            ],
            fix=Fix(
                f"start kube-proxy on {node} and look at its log",
                command=restart_command(node),
                outcome=f"by the API objects {len(wanted)} of {len(cells)} failing ways in on {node} then connect",
            ),
            cells=cells,
        )


CHECK = Check("KTP407", "NoKubeProxyRules", Severity.ERROR, run)
