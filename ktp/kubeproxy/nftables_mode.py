"""What the rules of nftables mode do with a client, kube-proxy since 1.29 (`pkg/proxy/nftables/proxier.go`)."""

from __future__ import annotations

from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.outcome import (
    Outcome,
    Question,
    delivered,
    dropped,
    endpoint_words,
    no_endpoint_words,
    no_listener,
    no_local_words,
    rejected,
    served_under_local,
)


def nftables_outcome(q: Question) -> Outcome:
    """The fate of a client's packets under kube-proxy's nftables rules."""
    kind, minor = q.front_end.kind, q.world.minor
    if kind is FrontEndKind.NODE_PORT and not (served := q.served()).yes:
        return no_listener(served.why)
    if kind is FrontEndKind.LOAD_BALANCER and not q.world.in_ranges:
        # 1.29 checks after DNAT, so forwarded packets no longer show the address (derived, not run); since 1.30
        # before DNAT, also where the Service has no endpoints.
        if minor >= 30 or q.source_is_local:
            return dropped("spec.loadBalancerSourceRanges does not hold the client's address")
    if not q.selection.has_endpoints:
        return rejected(no_endpoint_words(q))
    if kind is FrontEndKind.CLUSTER_IP:
        return _cluster_ip(q)
    if not q.external_local:
        chosen = q.selection.cluster
        why = f"spec.externalTrafficPolicy=Cluster: {endpoint_words(q, chosen, local=False)}"
        return delivered(q, chosen, rewritten=True, why=why)
    return _local(q)


def _local(q: Question) -> Outcome:
    """externalTrafficPolicy Local: `external-…` lets pods and the node itself through to any endpoint.

    Up to 1.32 the check for local endpoints comes before DNAT in the output hook, and so drops what the node itself
    sends to load-balancer and external IPs (1.29: to node ports too; derived, not run).
    """
    if q.source_is_local and not q.selection.local:
        last_dropping = 29 if q.is_node_port else 32
        if q.world.minor <= last_dropping:
            return dropped(f"{no_local_words(q)}, checked before DNAT by kube-proxy up to 1.{last_dropping}")
    return served_under_local(q) or dropped(no_local_words(q))


def _cluster_ip(q: Question) -> Outcome:
    """A cluster IP: masqueraded for clients that are no pods; none local under Local: drop."""
    chosen = q.selection.local if q.internal_local else q.selection.cluster
    if not chosen:
        return dropped(no_local_words(q, policy="internalTrafficPolicy"))
    policy = "Local" if q.internal_local else "Cluster"
    rewritten = q.node.masquerade_all or (q.has_detector and not q.source_is_pod)
    why = f"spec.internalTrafficPolicy={policy}: {endpoint_words(q, chosen, local=q.internal_local)}"
    return delivered(q, chosen, rewritten=rewritten, why=why)
