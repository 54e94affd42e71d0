"""Which clients stand for the kinds of client, and what each of them asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

from ktp.kubeproxy.changes import with_pods_of_cilium
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.model.cluster import Cluster, Pod, Scope, Service, ip_of, networks_of
from ktp.model.host import Interface, IPAddress, NextHop, NodeState, Route
from ktp.model.ipvs import IPVS_INTERFACE
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow

# A client far away (RFC 5737, RFC 3849): no cluster has these addresses, and only a default route leads there.
FAR_CLIENTS = {4: ip_address("203.0.113.77"), 6: ip_address("2001:db8:77::77")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One cell's question: who asks which front end on which node, and the same as a Flow for the dataplane."""

    front_end: FrontEnd
    node: str
    vantage: Vantage
    client: Client
    flow: Flow
    client_name: str = ""


def node_addresses(snapshot: Snapshot, name: str) -> tuple[IPAddress, ...]:
    """The node's addresses that a client would dial: InternalIPs of the API, else global ones of its interfaces."""
    node = (snapshot.cluster.nodes or {}).get(name)
    found: list[IPAddress] = []
    if node is not None:
        found = [ip for a in node.addresses_of("InternalIP") if (ip := ip_of(a)) is not None]
        found += [
            ip for a in node.addresses_of("ExternalIP") if (ip := ip_of(a)) is not None and ip not in found
        ]
    if found:
        return tuple(found)
    state = snapshot.nodes.get(name)
    for interface in (state.interfaces or ()) if state is not None else ():
        if interface.is_loopback or interface.name == IPVS_INTERFACE:
            continue
        found += [a.ip for a in interface.addresses if a.scope == "global" and not a.secondary]
    return tuple(found)


def further_addresses(snapshot: Snapshot, name: str) -> tuple[IPAddress, ...]:
    """Addresses of the node that the API does not list and outside clients may dial too: second networks, virtual ones.

    Those of devices that are up and in a network of their own, and the single ones on lo or a device without ARP, such
    as a dummy device (drivers/net/dummy.c): routers, or ARP of another device, lead to those. Left out are tunnels,
    bridges with their ports, other devices with single addresses alone, kube-ipvs0, the pods' network, link-local
    addresses, and Services' own (a local DNS cache takes its Service's).
    """
    state, node = snapshot.nodes.get(name), (snapshot.cluster.nodes or {}).get(name)
    interfaces = (state.interfaces if state is not None else None) or ()
    bridges = {i.master for i in interfaces}
    known = set(node_addresses(snapshot, name))
    pods = [ip_network(cidr, strict=False) for cidr in (node.pod_cidrs if node is not None else ())]
    found = []
    for i in interfaces:
        if i.link_type not in ("ether", "loopback") or not {"UP", "LOWER_UP"} <= i.flags or i.name in bridges:
            continue
        tunnels = (state.tunnels if state is not None else None) or {}
        if i.name in tunnels or i.name == IPVS_INTERFACE:
            continue
        mine = [
            a.ip
            for a in i.addresses
            if a.scope == "global" and a.ip not in known and not any(a.ip in net for net in pods)
        ]
        if i.is_loopback or "NOARP" in i.flags:
            theirs = _service_addresses(snapshot.cluster) if mine else set()
            found += [
                ip for ip in mine if not ip.is_loopback and not ip.is_link_local and str(ip) not in theirs
            ]
        elif any(a.prefixlen < a.ip.max_prefixlen for a in i.addresses):
            found += mine
    return tuple(dict.fromkeys(found))


def _service_addresses(cluster: Cluster) -> set[str]:
    return {
        ip
        for s in cluster.services.values()
        for ip in (*s.cluster_ips, *s.external_ips, *(i.ip for i in s.ingress))
        if ip
    }


def near_client(snapshot: Snapshot, name: str, family: int, taken: Collection[IPAddress]) -> IPAddress | None:
    """A client on the node's own network: an address of its subnet that is not taken."""
    state = snapshot.nodes.get(name)
    for address in node_addresses(snapshot, name):
        if address.version != family:
            continue
        length = 24 if family == 4 else 64
        for interface in (state.interfaces or ()) if state is not None else ():
            for a in interface.addresses:
                if a.ip == address:
                    length = a.prefixlen
        if length >= address.max_prefixlen - 1:
            return None
        net = ip_network((address, length), strict=False)
        start = int(net.network_address)
        size = min(net.num_addresses, 1 << 16)
        for number in range(min(199, size - 2), 0, -1):
            candidate = ip_address(start + number)
            if candidate not in taken:
                return candidate
    return None


def taken_addresses(snapshot: Snapshot) -> set[IPAddress]:
    """Addresses that nodes, gateways and endpoints of the snapshot have."""
    out: set[IPAddress] = set()
    for node in (snapshot.cluster.nodes or {}).values():
        out.update(ip for _, a in node.addresses if (ip := ip_of(a)) is not None)
    for state in snapshot.nodes.values():
        for interface in state.interfaces or ():
            out.update(a.ip for a in interface.addresses)
        for route in state.routes or ():
            out.update(h.gateway for h in route.nexthops if h.gateway is not None)
    for part in (*(snapshot.cluster.slices or ()), *(snapshot.cluster.endpoints or ())):
        out.update(ip for e in part.endpoints for a in e.addresses if (ip := ip_of(a)) is not None)
    return out


def external_client(
    snapshot: Snapshot,
    service: Service,
    front_end: FrontEnd,
    node: str,
    wanted: IPAddress | None = None,
    taken: Callable[[], Collection[IPAddress]] | None = None,
) -> IPAddress:
    """The client outside that stands for all: the one asked for; one that the Service's source ranges let in; else
    one far away, or a neighbour where the node has no default route. `taken` says which addresses others have."""
    family = front_end.ip_version
    taken = taken or partial(taken_addresses, snapshot)
    if wanted is not None and wanted.version == family:
        return wanted
    if front_end.kind is FrontEndKind.LOAD_BALANCER and service.load_balancer_source_ranges:
        inside = client_within(service.load_balancer_source_ranges, family, taken())
        if inside is not None:
            return inside
    if has_default_route(snapshot.nodes.get(node), family):
        return FAR_CLIENTS[family]
    return near_client(snapshot, node, family, taken()) or FAR_CLIENTS[family]


def client_within(ranges: Iterable[str], family: int, taken: Collection[IPAddress]) -> IPAddress | None:
    """An address inside one of the CIDRs, free if possible; None where none is of the family."""
    for net in networks_of(ranges, family):
        if net.prefixlen == 0:
            return FAR_CLIENTS[family]
        start = int(net.network_address)
        for number in range(min(net.num_addresses, 512)):
            candidate = ip_address(start + number)
            if candidate not in taken and (number or net.num_addresses == 1):
                return candidate
        return ip_address(start)
    return None


def has_default_route(state: NodeState | None, family: int) -> bool:
    """Whether the node has a default route; True where its routes were not read."""
    if state is None or state.routes is None:
        return True
    return any(r.dst.version == family and r.dst.prefixlen == 0 and r.type == "unicast" for r in state.routes)


# -- pods that ask


class PodsByNode:
    """The running pods with a network of their own, by node."""

    def __init__(self, cluster: Cluster) -> None:
        self._pods: dict[str, list[Pod]] = {}
        self._by_namespace: dict[str, list[Pod]] = {}
        self._proxies: dict[str, list[Pod]] = {}
        self.addresses: set[str] = set()
        # Where no pod was read, those that Endpoints name can ask; without Nodes they may be processes of hosts.
        known = cluster.known_pods() if cluster.pods is None and cluster.nodes is not None else cluster.pods
        for pod in known or ():
            self.addresses.update(pod.pod_ips)
            self._by_namespace.setdefault(pod.namespace, []).append(pod)
            if pod.node_name is not None and "kube-proxy" in pod.name:
                self._proxies.setdefault(pod.node_name, []).append(pod)
            if pod.node_name is None or pod.host_network or pod.phase != "Running" or pod.deletion_timestamp:
                continue
            self._pods.setdefault(pod.node_name, []).append(pod)

    def in_namespace(self, namespace: str) -> list[Pod]:
        """All pods of a namespace."""
        return self._by_namespace.get(namespace, [])

    def kube_proxies(self, node: str) -> tuple[Pod, ...]:
        """The kube-proxy pods of a node."""
        return tuple(self._proxies.get(node, ()))

    def client(self, node: str, family: int, avoid: Iterable[str] = ()) -> tuple[str, IPAddress] | None:
        """A pod of the node that can ask, rather none of the addresses to avoid: (namespace/name, address)."""
        avoided = avoid if isinstance(avoid, frozenset) else frozenset(avoid)
        ranked = sorted(
            (text in avoided, pod.key, n, text)
            for pod in self._pods.get(node, ())
            for n, text in enumerate(pod.pod_ips)
            if (":" in text) == (family == 6)
        )
        return next(((key, ip) for _, key, _, text in ranked if (ip := ip_of(text)) is not None), None)


def supposed_pod(cluster: Cluster, node: str, family: int, used: set[str]) -> IPAddress | None:
    """An address that a pod of the node might have: free, of its podCIDR. None where no podCIDR is known."""
    found = (cluster.nodes or {}).get(node)
    for text in found.pod_cidrs if found is not None else ():
        net = ip_network(text, strict=False)
        if net.version != family:
            continue
        size = min(net.num_addresses, 1 << 16)
        for number in range(size - 2, 1, -1):
            candidate = ip_address(int(net.network_address) + number)
            if str(candidate) not in used:
                return candidate
    return None


def with_supposed_pods(
    snapshot: Snapshot, known: PodsByNode, family: int
) -> tuple[Snapshot, dict[str, IPAddress]]:
    """The snapshot with a plain pod on every node that has none, so that "a pod of this node" can be asked.

    Returns it with the address of the supposed pod of each such node. A node whose routes do not lead to that
    address gets a /32 (/128) route by a device like those of its other pods.
    """
    cluster = snapshot.cluster
    supposed: dict[str, IPAddress] = {}
    pods: list[Pod] = []
    states = dict(snapshot.nodes)
    for name in cluster.nodes or {}:
        if known.client(name, family) is not None:
            continue
        ip = supposed_pod(cluster, name, family, known.addresses)
        if ip is None:
            continue
        supposed[name] = ip
        pods.append(
            Pod(namespace="ktp", name=f"a-pod-of-{name}", node_name=name, phase="Running", pod_ips=(str(ip),))
        )
        state = states.get(name)
        by_cilium = state is not None and state.cilium is not None and state.cilium.is_readable
        if state is not None and state.routes is not None and not by_cilium and not _is_on_link(state, ip):
            states[name] = _with_pod_route(state, ip)
    if not supposed:
        return snapshot, supposed
    states = with_pods_of_cilium(states, {ip: name for name, ip in supposed.items()})
    return replace(
        snapshot,
        cluster=replace(
            cluster,
            pods=(*(cluster.pods or ()), *pods),
            # Where none was read, these are not all that there are.
            partial=cluster.partial if cluster.pods is not None else {**cluster.partial, "pods": Scope.SOME},
        ),
        nodes=states,
    ), supposed


def _is_on_link(state: NodeState, ip: IPAddress) -> bool:
    best: Route | None = None
    for route in state.routes or ():
        if route.dst.version == ip.version and ip in route.dst and route.table in ("main", "254"):
            if best is None or route.dst.prefixlen > best.dst.prefixlen:
                best = route
    return (
        best is not None
        and bool(best.nexthops)
        and best.nexthops[0].gateway is None
        and best.dst.prefixlen > 8
    )


def _with_pod_route(state: NodeState, ip: IPAddress) -> NodeState:
    device = "a-pod"
    for route in state.routes or ():  # named like its siblings, so that rules on `-i veth+` or `cali+` see it
        if route.dst.prefixlen == route.dst.max_prefixlen and route.type == "unicast" and route.dev:
            device = route.dev
            break
    interfaces = state.interfaces
    if interfaces is not None and all(i.name != device for i in interfaces):
        index = max((i.index for i in interfaces), default=0) + 1
        interfaces = (*interfaces, Interface(name=device, index=index, flags=frozenset(("UP",))))
    host_route = Route(
        dst=ip_network((ip, ip.max_prefixlen)), nexthops=(NextHop(dev=device),), scope="link", table="main"
    )
    return replace(state, routes=(*(state.routes or ()), host_route), interfaces=interfaces)
