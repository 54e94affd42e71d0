"""What ipvs mode does with a client, kube-proxy since 1.18 (`pkg/proxy/ipvs/proxier.go`).

A virtual server has one list of destinations for every client: there is no short cut for pods or the node itself.
Derived from source, and compared with packets through real IPVS under the rules of kube-proxy 1.36.
"""

from __future__ import annotations

from ktp.kubeproxy.endpoints import EndpointSelection, ProxyEndpoint
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
)


def ipvs_outcome(q: Question) -> Outcome:
    """The fate of a client's packets under IPVS and kube-proxy's rules beside it."""
    kind = q.front_end.kind
    if kind is FrontEndKind.NODE_PORT and not (served := q.served()).yes:
        # Up to 1.23 kube-proxy holds node ports with a socket, on all addresses where none are chosen.
        held_here = q.address.is_loopback and not q.node.node_port_addresses
        return passes(q, served.why) if held_here or q.world.minor >= 24 else no_listener(served.why)
    if kind is FrontEndKind.LOAD_BALANCER and not q.world.in_ranges:
        return dropped("spec.loadBalancerSourceRanges does not hold the client's address")
    local = q.internal_local if kind is FrontEndKind.CLUSTER_IP else q.external_local
    chosen, is_local = destinations(q.selection, kind, local=local, minor=q.world.minor)
    if not chosen:
        policy = "internalTrafficPolicy" if kind is FrontEndKind.CLUSTER_IP else "externalTrafficPolicy"
        why = no_local_words(q, policy=policy) if q.selection.has_endpoints else no_endpoint_words(q)
        return rejected(f"{why}: a virtual server without real servers")
    if kind is FrontEndKind.CLUSTER_IP:
        # Without a detector `src,dst` masquerades what comes from a Service address: the node's own packets, whose
        # source the kernel takes from kube-ipvs0.
        is_no_pod = not q.source_is_pod if q.has_detector else q.source_is_local
        rewritten = q.node.masquerade_all or is_no_pod
    else:
        # SCTP up to 1.22: the masquerading rule stood before the one that spares Local.
        sctp = q.is_node_port and q.front_end.protocol.upper() == "SCTP" and q.world.minor <= 22
        rewritten = not local or sctp
    policy = "internalTrafficPolicy" if kind is FrontEndKind.CLUSTER_IP else "externalTrafficPolicy"
    why = f"spec.{policy}={'Local' if local else 'Cluster'}: {endpoint_words(q, chosen, local=is_local)}"
    if local and not is_local:
        why += ", none of them on this node: kube-proxy since 1.24 then takes all"
    return delivered(q, chosen, rewritten=rewritten, why=why)


def destinations(
    selection: EndpointSelection, kind: FrontEndKind, *, local: bool, minor: int
) -> tuple[tuple[ProxyEndpoint, ...], bool]:
    """The real servers of a virtual server, and whether they are the local ones.

    Under Local without local endpoints: none up to 1.23, the cluster set since 1.24 (`syncEndpoint`).
    """
    if not local or (minor <= 23 and kind is FrontEndKind.CLUSTER_IP):
        return selection.cluster, False
    if selection.local or minor <= 23:
        return selection.local, True
    return selection.cluster, False
