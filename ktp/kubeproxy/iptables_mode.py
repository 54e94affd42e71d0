"""What the rules of iptables mode do with a client, kube-proxy since 1.18 (`pkg/proxy/iptables/proxier.go`).

Generations: up to 1.23 KUBE-XLB chains; 1.24 KUBE-EXT chains and KUBE-MARK-DROP; since 1.25 DROP rules in filter.
"""

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
    passes,
    rejected,
    served_under_local,
)


def iptables_outcome(q: Question) -> Outcome:
    """The fate of a client's packets under kube-proxy's iptables rules."""
    kind = q.front_end.kind
    if kind is FrontEndKind.CLUSTER_IP:
        return _cluster_ip(q)
    if kind is FrontEndKind.NODE_PORT and not q.served().yes:
        return _unserved(q)
    if not q.selection.has_endpoints:
        return _no_endpoints(q)
    if kind is FrontEndKind.LOAD_BALANCER and not q.world.in_ranges:
        why = "spec.loadBalancerSourceRanges does not hold the client's address"
        return dropped(why) if q.world.minor >= 25 else _mark_drop(q, why)
    if kind is FrontEndKind.EXTERNAL_IP and q.world.minor <= 20 and q.source_is_local:
        if not q.destination_is_local:
            return passes(
                q, "kube-proxy up to 1.20 does not catch what the node itself sends to an externalIP"
            )
    return _local(q) if q.external_local else _cluster(q)


def _cluster(q: Question) -> Outcome:
    """externalTrafficPolicy Cluster: any endpoint, masqueraded.

    1.21 to 1.23 spare pods that dial an externalIP, where they can tell them; before and after, all are masqueraded.
    """
    chosen = q.selection.cluster
    if not chosen:  # 1.22 with unready endpoints only: a chain without rules
        return passes(q, "kube-proxy 1.22 takes unready endpoints for endpoints and then has none to choose")
    rewritten = True
    if q.front_end.kind is FrontEndKind.EXTERNAL_IP and 21 <= q.world.minor <= 23:
        rewritten = not q.source_is_pod
    why = f"spec.externalTrafficPolicy=Cluster: {endpoint_words(q, chosen, local=False)}"
    return delivered(q, chosen, rewritten=rewritten, why=why)


def _local(q: Question) -> Outcome:
    if (served := served_under_local(q)) is not None:
        return served
    why = no_local_words(q)
    return dropped(why) if q.world.minor >= 25 else _mark_drop(q, why)


def _mark_drop(q: Question, why: str) -> Outcome:
    """Up to 1.24: KUBE-MARK-DROP, which KUBE-FIREWALL enforces in INPUT and OUTPUT, but not in FORWARD."""
    if q.destination_is_local or q.source_is_local:
        return dropped(why)
    return passes(q, f"{why}, but kube-proxy up to 1.24 does not enforce that for forwarded packets")


def _no_endpoints(q: Question) -> Outcome:
    """No endpoint at all: REJECT in filter, where a hook leads there.

    KUBE-EXTERNAL-SERVICES hangs off INPUT and FORWARD (1.18.2: INPUT alone), never off OUTPUT; in 1.18.2
    load-balancer IPs are rejected in KUBE-SERVICES, which OUTPUT and FORWARD have.
    """
    why = no_endpoint_words(q)
    if q.destination_is_local:
        return rejected(why)
    if q.world.early_1_18:
        if q.front_end.kind is FrontEndKind.LOAD_BALANCER:
            return rejected(why)
        return passes(q, f"{why}, but kube-proxy 1.18.2 does not reject forwarded packets to externalIPs")
    if q.source_is_local:
        return passes(q, f"{why}, but kube-proxy does not reject what the node itself sends to that address")
    return rejected(why)


def _unserved(q: Question) -> Outcome:
    """A node port on an address that nodePortAddresses leaves out: filter still rejects and (since 1.25) drops.

    Those filter rules match any local address (`--dst-type LOCAL`), loopback ones too.
    """
    why = q.served().why
    if not q.selection.has_endpoints:
        return rejected(no_endpoint_words(q))
    if q.world.minor >= 25 and q.external_local and not q.selection.local:
        return dropped(f"{no_local_words(q)} ({why}, but the rule that drops holds for all local addresses)")
    return no_listener(why)


def _cluster_ip(q: Question) -> Outcome:
    """A cluster IP: masqueraded for clients that are no pods, where kube-proxy can tell pods.

    internalTrafficPolicy Local: up to 1.23 it filters before (none left: REJECT); 1.24 KUBE-MARK-DROP; since
    1.25 DROP in KUBE-SERVICES.
    """
    if not q.selection.has_endpoints:
        return rejected(no_endpoint_words(q))
    rewritten = q.node.masquerade_all or (q.has_detector and not q.source_is_pod)
    local = q.internal_local and q.world.minor >= 24
    chosen = q.selection.local if local else q.selection.cluster
    if chosen:
        policy = "Local" if local else "Cluster"
        why = f"spec.internalTrafficPolicy={policy}: {endpoint_words(q, chosen, local=local)}"
        return delivered(q, chosen, rewritten=rewritten, why=why)
    if not local:
        return passes(q, "kube-proxy 1.22 takes unready endpoints for endpoints and then has none to choose")
    why = no_local_words(q, policy="internalTrafficPolicy")
    return dropped(why) if q.world.minor >= 25 else _mark_drop(q, why)
