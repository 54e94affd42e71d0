"""kube-proxy writes this cluster's rules in large-cluster mode.

# What it means
The cluster has more than 1,000 endpoints. kube-proxy then leaves the comments out of its per-endpoint rules, and from
1.25 on clears chains that nothing uses any more only once in a sync period.

# Why traffic fails
It does not: the rules do the same. But a search for the Service's name in iptables-save no longer finds its endpoints,
and KUBE-SVC and KUBE-SEP chains of deleted Services that nothing jumps to are no sign of a fault.

# Evidence
The number of endpoints of the API, and a chain of the Service without comments.

# Confirm by hand
    kubectl get endpointslices -A -o jsonpath='{range .items[*].endpoints[*]}x{end}' | wc -c
    ktp explain-rules NAMESPACE/NAME          # finds the chains by their hash instead

# Fix
None needed. Where syncs are slow, nftables mode (kube-proxy 1.31 and later) scales better.

# Example
`iptables-save | grep NAMESPACE/NAME` shows the node port and no endpoint, and all is well.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.kubeproxy.synthesis_iptables import is_large_cluster
from ktp.model.diagnosis import Evidence, Finding, Severity
from ktp.model.host import NodeState


def run(case: Case) -> Iterable[Finding]:
    """Fires where the rules of a node were read, are iptables', and the cluster is that large."""
    shown = next((e for n in case.nodes if (s := case.state(n)) is not None for e in _uncommented(s)), None)
    if shown is None or not is_large_cluster(case.snapshot.cluster, "ip"):
        return
    slices = case.snapshot.cluster.slices or case.snapshot.cluster.endpoints or ()
    total = sum(len(s.endpoints) * len(s.ports) for s in slices if s.address_type == "IPv4")
    yield CHECK.finding(
        f"the cluster has {total} endpoints: kube-proxy's endpoint rules carry no comments, and chains "
        f"that nothing uses may stay for a while",
        evidence=[field("EndpointSlices", f"{total} endpoints in all"), shown],
    )


def _uncommented(state: NodeState) -> Iterable[Evidence]:
    for ruleset in state.rulesets_of("ip"):
        for name in ruleset.chain_names("nat"):
            if not name.startswith("KUBE-SEP-"):
                continue
            chain = ruleset.chain("nat", name)
            line = chain.raw(len(chain) - 1) if chain is not None and len(chain) else ""
            if line and "--comment" not in line:
                yield Evidence("rule", f"{state.name} {ruleset.backend.value} nat", line)
            return


CHECK = Check("KTP411", "LargeCluster", Severity.INFO, run)
