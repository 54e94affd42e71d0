"""Snapshot → Topology: who has which address, in the dataplane's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network

from ktp.dataplane.packet import PROTOCOLS, to_int
from ktp.dataplane.walk import Attached, Topology
from ktp.diagnose.supposed import with_supposed_networks
from ktp.kubeproxy.data_planes import with_data_planes
from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Cluster, Service
from ktp.model.host import NodeState
from ktp.model.ipvs import IPVS_INTERFACE
from ktp.model.snapshot import Snapshot


def topology_of(
    snapshot: Snapshot, read: Cluster | None = None, *, like: tuple[Snapshot, Topology] | None = None
) -> Topology:
    """The topology of a snapshot: pods, host-network endpoints, nodes, and the sockets kube-proxy holds.

    `read` is what was read of the API where the snapshot has more in it than that. `like` is a snapshot of the very
    same objects of the API with its topology: what the nodes that differ do not change is taken from there.
    """
    done = {}
    if like is not None and like[0].cluster is snapshot.cluster:
        done = {name: (state, like[1].nodes[name]) for name, state in like[0].nodes.items()}
    snapshot = with_supposed_networks(with_data_planes(snapshot), done)
    if like is not None and done and _are_in_the_same_places(snapshot.nodes, like[1].nodes):
        return replace(like[1], nodes=snapshot.nodes)
    cluster = snapshot.cluster
    read = read or cluster
    attached: dict[tuple[int, int], Attached] = {}
    processes: dict[tuple[str, int, int], str] = {}
    node_addresses: dict[tuple[int, int], str] = {}
    for node in (cluster.nodes or {}).values():
        for kind, address in node.addresses:
            if kind in ("InternalIP", "ExternalIP"):
                key = _key(address)
                if key is not None:
                    node_addresses[key] = node.name
    # Whose address it is, the node itself says where the API does not.
    owners = {
        (address.ip.version, int(address.ip)): state.name
        for state in snapshot.nodes.values()
        if EvidenceKind.ADDRESSES not in state.supposed
        for interface in state.interfaces or ()
        if not interface.is_loopback and interface.name != IPVS_INTERFACE
        for address in interface.addresses
        if address.scope == "global"
    } | node_addresses
    for pod in cluster.pods or ():
        if pod.node_name is None or pod.phase in ("Succeeded", "Failed"):
            continue
        if pod.host_network:
            for port in pod.ports:
                number = PROTOCOLS.get(port.protocol.lower())
                if number is not None:
                    processes.setdefault((pod.node_name, number, port.container_port), pod.key)
            continue
        for address in pod.pod_ips:
            key = _key(address)
            if key is not None:
                attached.setdefault(key, Attached(name=pod.key, node=pod.node_name))
    for part in (*(cluster.slices or ()), *(cluster.endpoints or ())):
        for endpoint in part.endpoints:
            for address in endpoint.addresses:
                key = _key(address)
                if key is None or key in attached:
                    continue
                name = (
                    f"{endpoint.target_namespace or part.namespace}/{endpoint.target_name}"
                    if endpoint.target_name
                    else f"{part.namespace}/{part.service_name}"
                )
                owner = owners.get(key)
                if owner is not None:
                    for ep_port in part.ports:
                        number = PROTOCOLS.get(ep_port.protocol.lower())
                        if number is not None and ep_port.port is not None:
                            processes.setdefault((owner, number, ep_port.port), name)
                elif (
                    endpoint.target_kind == "Pod" and read.pods is not None and endpoint.node_name is not None
                ):
                    # A slice still lists a pod that is gone: nothing answers at its address.
                    continue
                else:
                    attached[key] = Attached(name=name, node=endpoint.node_name)
    return Topology(
        nodes=snapshot.nodes,
        attached=attached,
        processes=processes,
        silent=_held_by_kube_proxy(cluster, snapshot),
        node_addresses=node_addresses,
        pod_networks=tuple(
            (ip_network(text, strict=False), node.name)
            for node in (cluster.nodes or {}).values()
            for text in node.pod_cidrs
        ),
        # Endpoints name neither pods that are terminating nor, with a thousand addresses, all that are ready.
        pods_known=read.has_all("pods") or read.has_all("slices"),
        endpoints_known=read.has_all("slices") or (read.has_all("pods") and read.has_all("endpoints")),
        nodes_known=read.has_all("nodes"),
        unread=frozenset(
            name
            for name in {*snapshot.nodes, *(cluster.nodes or ())}
            if (state := snapshot.nodes.get(name)) is None or EvidenceKind.ADDRESSES in state.supposed
        ),
    )


def _are_in_the_same_places(nodes: Mapping[str, NodeState], others: Mapping[str, NodeState]) -> bool:
    """Whether nothing differs that tells who has an address or a port."""
    return nodes.keys() == others.keys() and all(
        state is other
        or (
            state.interfaces == other.interfaces
            and state.sockets == other.sockets
            and state.supposed == other.supposed
        )
        for name, state in nodes.items()
        for other in (others[name],)
    )


def _key(address: str) -> tuple[int, int] | None:
    try:
        return to_int(address)
    except (ValueError, OSError):
        return None


def _held_by_kube_proxy(cluster: Cluster, snapshot: Snapshot) -> frozenset[tuple[str, int, int]]:
    """Sockets that kube-proxy up to 1.23 opens on node ports to keep others from them; it never answers.

    Told by the rules: a listener on a Service's node port of a node whose rules are of the family with KUBE-XLB,
    or that hold none at all.
    """
    ports = {
        (PROTOCOLS[p.protocol.lower()], p.node_port)
        for s in cluster.services.values()
        for p in s.ports
        if p.node_port and p.protocol.lower() in PROTOCOLS
    }
    checks = {s.health_check_node_port for s in cluster.services.values() if isinstance(s, Service)}
    held: set[tuple[str, int, int]] = set()
    for name, state in snapshot.nodes.items():
        for socket in state.sockets or ():
            number = PROTOCOLS.get(socket.protocol)
            if number is not None and (number, socket.port) in ports and socket.port not in checks:
                held.add((name, number, socket.port))
    return frozenset(held)
