"""What a node is taken to be where it was not read: the same facts from lesser sources, and what Kubernetes promises.

A node's network follows from what else is known: its addresses from its routes or from Node.status, routes from
addresses, from podCIDRs and from where the API says that pods run, sysctls from what kubelet and kube-proxy set. Each
kind that was filled in so is named in `NodeState.supposed`, and whoever walks over it says that it was assumed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha1
from ipaddress import ip_interface, ip_network

from ktp.kubeproxy.node import ProxyMode, proxy_node
from ktp.kubeproxy.synthesis_ipvs import ADDRESS_SETS, SupposedSets
from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Cluster, Node, Pod, ip_of
from ktp.model.host import (
    PODS,
    UPLINK,
    Interface,
    InterfaceAddress,
    IPAddress,
    IPNetwork,
    NextHop,
    NodeState,
    Route,
)
from ktp.model.ipvs import IPVS_INTERFACE
from ktp.model.record import dataclass
from ktp.model.ruleset import has_chain
from ktp.model.snapshot import Snapshot

_USUAL = {4: 24, 6: 64}
"""The prefix length of a network of nodes of which nothing tells."""

_LOOPBACK = Interface(
    name="lo",
    index=1,
    flags=frozenset(("UP", "LOOPBACK")),
    link_type="loopback",
    addresses=tuple(
        InterfaceAddress(
            ip=ip_interface(text).ip, prefixlen=ip_interface(text).network.prefixlen, scope="host"
        )
        for text in ("127.0.0.1/8", "::1/128")
    ),
)


def with_supposed_networks(
    snapshot: Snapshot, done: Mapping[str, tuple[NodeState, NodeState]] | None = None
) -> Snapshot:
    """The snapshot with the network of every node whose rules were read filled in where it was not read.

    `done` has nodes as they were before and after, for the same cluster: one that is the same object is not done again.
    """
    ways = _Ways(snapshot.cluster)

    def filled(state: NodeState) -> NodeState:
        before, after = (done or {}).get(state.name, (None, state))
        if before is state:
            return after
        return _filled(snapshot, state, ways) if state.has_rules else state

    states = {name: filled(state) for name, state in snapshot.nodes.items()}
    return replace(snapshot, nodes=states) if states != snapshot.nodes else snapshot


def _filled(snapshot: Snapshot, state: NodeState, ways: _Ways) -> NodeState:
    filled = state
    supposed: set[EvidenceKind] = set()
    node = (snapshot.cluster.nodes or {}).get(state.name)
    listed: list[IPAddress] = []
    tells = True
    if state.interfaces is None:
        listed = _node_addresses(node) or _told_by_pods(snapshot.cluster, state.name)
        tells = state.routes is not None or bool(listed)
    # Without a single address or route nothing is filled in: where a packet goes there is not known.
    if state.interfaces is None and tells:
        supposed.add(EvidenceKind.ADDRESSES)
        interfaces = (*_interfaces(state.routes, node, listed), *_ipvs_devices(snapshot, state, listed))
        if state.routes is None:
            interfaces += tuple(_flannel_devices(node, bridges=not _has_calico(state)))
        filled = replace(filled, interfaces=interfaces)
    if state.routes is None and tells:
        supposed.add(EvidenceKind.ROUTES)
        filled = replace(filled, routes=tuple(_routes(ways, filled)))
    if state.rules4 is None:
        supposed.add(EvidenceKind.ROUTING_RULES)
    if state.sysctls is None:
        supposed.add(EvidenceKind.SYSCTLS)
        filled = replace(filled, sysctls=_sysctls(snapshot, state.name))
    else:
        filled = _with_sysctls(snapshot, filled)
    if state.ipsets is None and (sets := _sets(snapshot, state)) is not None:
        supposed.add(EvidenceKind.SETS)
        filled = replace(filled, ipsets=sets)
    if state.sockets is None:
        supposed.add(EvidenceKind.SOCKETS)
    return replace(filled, supposed=frozenset(supposed)) if supposed else filled


def _sets(snapshot: Snapshot, state: NodeState) -> SupposedSets | None:
    """kube-proxy's ipsets, where it runs in IPVS mode, its virtual servers were read, and all Services of the API."""
    cluster = snapshot.cluster
    if state.ipvs is None or not state.ipvs.services or not cluster.services:
        return None
    if not cluster.has_all("services") or not (cluster.has_all("slices") or cluster.has_all("endpoints")):
        return None
    node = proxy_node(snapshot, state.name)
    return SupposedSets(state, node, cluster) if ProxyMode.IPVS in node.modes else None


# ------------------------------------------------------------------------------------------------------ addresses


def _interfaces(
    routes: tuple[Route, ...] | None, node: Node | None, listed: list[IPAddress]
) -> Iterator[Interface]:
    """The devices as the routes tell them; without routes lo and one that holds what the API lists."""
    own = [r for r in routes or () if r.type == "local" and r.dst.prefixlen == r.dst.max_prefixlen and r.dev]
    if not any(not ip.dst.network_address.is_loopback for ip in own):
        yield _LOOPBACK
        device = _uplink_of(routes or (), listed)
        yield Interface(
            name=device,
            index=2,
            flags=frozenset(("UP",)),
            addresses=tuple(
                _address(ip, _connected(routes, device, ip) if routes else _USUAL[ip.version])
                for ip in listed
            ),
        )
        return
    devices: dict[str, list[InterfaceAddress]] = {}
    for route in routes or ():
        for hop in route.nexthops:
            if hop.dev is not None:
                devices.setdefault(hop.dev, [])
    for route in own:
        ip = route.dst.network_address
        device = route.dev or UPLINK
        # ip-route(8): the local route of a secondary address has the primary one as its preferred source.
        second = route.prefsrc is not None and route.prefsrc != ip
        devices.setdefault(device, []).append(
            _address(ip, _connected(routes or (), device, ip), secondary=second)
        )
    pods = _pod_networks(node)
    for number, (name, addresses) in enumerate(devices.items(), start=1):
        if name == "lo":
            yield replace(_LOOPBACK, addresses=tuple(addresses) or _LOOPBACK.addresses)
            continue
        # A device with a whole network of this node's pods behind it is their bridge.
        bridge = any(
            a.prefixlen < a.ip.max_prefixlen
            and any(a.ip in net for net in pods if net.version == a.ip.version)
            for a in addresses
        )
        yield Interface(
            name=name,
            index=number,
            flags=frozenset(("UP",)),
            kind="bridge" if bridge else None,
            addresses=tuple(addresses),
        )


def _address(ip: IPAddress, prefixlen: int, *, secondary: bool = False) -> InterfaceAddress:
    scope = "host" if ip.is_loopback else "link" if ip.is_link_local else "global"
    return InterfaceAddress(ip=ip, prefixlen=prefixlen, scope=scope, secondary=secondary)


def _connected(routes: Iterable[Route], device: str, ip: IPAddress) -> int:
    """The prefix length of the network that the kernel connected by an address of the device."""
    return max(
        (
            r.dst.prefixlen
            for r in routes
            if r.type == "unicast" and r.dev == device and r.nexthops[0].gateway is None and ip in r.dst
        ),
        default=ip.max_prefixlen,
    )


def _uplink_of(routes: Iterable[Route], listed: Iterable[IPAddress]) -> str:
    """The device that holds the node's addresses: of a preferred source, of a connected network, of the default."""
    mine = set(listed)
    for route in routes:
        if route.dev and (route.prefsrc in mine or (route.dst.prefixlen == 0 and route.type == "unicast")):
            return route.dev
    return UPLINK


def _node_addresses(node: Node | None) -> list[IPAddress]:
    """The addresses that Node.status lists and that the node itself holds; clouds translate ExternalIPs before it."""
    if node is None:
        return []
    internal = [ip for text in node.addresses_of("InternalIP") if (ip := ip_of(text)) is not None]
    return internal or [ip for text in node.addresses_of("ExternalIP") if (ip := ip_of(text)) is not None]


def _ipvs_devices(snapshot: Snapshot, state: NodeState, listed: list[IPAddress]) -> Iterator[Interface]:
    """kube-ipvs0, to which kube-proxy binds the virtual servers' addresses (ipvs/proxier.go, EnsureAddressBind).

    Addresses that serve node ports alone are the node's own, on devices that nothing tells.
    """
    if state.routes is not None:
        return
    servers = state.ipvs.services if state.ipvs is not None else ()
    services = snapshot.cluster.services.values()
    ports = {(p.protocol.lower(), p.node_port) for s in services for p in s.ports if p.node_port}
    bound = {s.ip for s in servers if (s.protocol, s.port) not in ports}
    of_node = [s.ip for s in servers if s.ip not in bound]
    of_services = [s.ip for s in servers if s.ip in bound] or _of_services(snapshot, state)
    for number, (name, kind, found) in enumerate(
        ((IPVS_INTERFACE, "dummy", of_services), ("an-own", None, of_node)), start=3
    ):
        own = dict.fromkeys(ip for ip in found if ip is not None and not ip.is_loopback and ip not in listed)
        if own:
            addresses = tuple(_address(ip, ip.max_prefixlen) for ip in own)
            flags = frozenset(("NOARP",) if kind else ("UP",))
            yield Interface(name=name, index=number, flags=flags, kind=kind, addresses=addresses)


def _of_services(snapshot: Snapshot, state: NodeState) -> Iterator[IPAddress | None]:
    """What the API has kube-proxy bind, where the virtual servers were not read."""
    if state.ipvs_unread:
        sets = SupposedSets(state, proxy_node(snapshot, state.name), snapshot.cluster)
        for name in ADDRESS_SETS:
            yield from (ip_of(text) for text, _ in sets[name].entries)


_FLANNEL = "flannel.alpha.coreos.com/"
_FLANNEL_DEVICES = {
    "vxlan": ("flannel.1", "vxlan"),
    "ipip": ("flannel.ipip", "ipip"),
    "wireguard": ("flannel-wg", "wireguard"),
}


def _flannel_devices(node: Node | None, *, bridges: bool) -> Iterator[Interface]:
    """What flannel makes on a Node that it has annotated: a tunnel's device with the first address of the podCIDR, and
    the pods' bridge with the second one (flannel: pkg/subnet/kube, pkg/backend; the CNI plugin's delegate, bridge).
    """
    backend = node.annotations.get(f"{_FLANNEL}backend-type") if node is not None else None
    networks = [net for net in _pod_networks(node) if net.num_addresses > 2]
    if backend is None or not networks:
        return
    if backend in _FLANNEL_DEVICES:
        name, kind = _FLANNEL_DEVICES[backend]
        ends = tuple(_address(net.network_address, net.max_prefixlen) for net in networks)
        yield Interface(name=name, index=4, flags=frozenset(("UP",)), kind=kind, addresses=ends)
    if bridges:  # where Calico wires the pods (Canal) there is no bridge
        gateways = tuple(_address(net.network_address + 1, net.prefixlen) for net in networks)
        yield Interface(name="cni0", index=5, flags=frozenset(("UP",)), kind="bridge", addresses=gateways)


def _told_by_pods(cluster: Cluster, name: str) -> list[IPAddress]:
    """The addresses of a node that its pods name (status.hostIP)."""
    found = dict.fromkeys(pod.host_ip for pod in cluster.pods or () if pod.node_name == name and pod.host_ip)
    return [ip for text in found if text is not None and (ip := ip_of(text)) is not None]


# --------------------------------------------------------------------------------------------------------- routes


def _has_calico(state: NodeState) -> bool:
    return any(has_chain(ruleset, "filter", "cali-FORWARD") for ruleset in state.rulesets)


def pod_device(state: NodeState) -> Callable[[Pod], str]:
    """What names the device of a pod on this node; PODS where the plugin is not known to derive it from the pod.

    Calico and those that took its scheme (Azure, GKE) name it by a hash (libcalico-go, VethNameForWorkload).
    """
    known = {interface.name for interface in state.interfaces or ()}
    calico = _has_calico(state)

    def device(pod: Pod) -> str:
        end = sha1(pod.key.replace("/", ".", 1).encode(), usedforsecurity=False).hexdigest()[:11]
        found = next((prefix + end for prefix in ("cali", "azv", "gke") if prefix + end in known), None)
        return found or (f"cali{end}" if calico else PODS)

    return device


@dataclass(frozen=True, slots=True)
class _OtherNode:
    """Where a node is, as the others see it: its address of a family, and its pods' networks."""

    name: str
    address: IPAddress
    pods: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class _PodWay:
    """An address of a pod; `gateway` is its node's where that has a route to it of its own, outside of the podCIDRs."""

    place: int  # in the cluster's order, which decides between two pods of one address
    pod: Pod
    ip: IPAddress
    net: IPNetwork
    gateway: IPAddress | None


class _Ways:
    """What the supposed routes of all nodes are made of, worked out once for all of them when first needed.

    Routes that are alike are one object: a node has one to each pod outside of the podCIDRs.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._nodes: dict[int, list[_OtherNode]] = {}
        self._made: dict[tuple[IPNetwork, str, IPAddress | None], Route] = {}

    def nodes(self, version: int) -> list[_OtherNode]:
        """All nodes with an address of the family."""
        if version not in self._nodes:
            self._nodes[version] = [
                _OtherNode(name, ip, tuple(net for net in _pod_networks(node) if net.version == version))
                for name, node in (self.cluster.nodes or {}).items()
                if (ip := next((ip for ip in _node_addresses(node) if ip.version == version), None))
                is not None
            ]
        return self._nodes[version]

    @cached_property
    def _pods(self) -> tuple[dict[tuple[str, int], list[_PodWay]], dict[int, list[_PodWay]]]:
        """By node and family all pods' addresses; by family those that other nodes have a route to."""
        nodes = self.cluster.nodes or {}
        networks = {name: _pod_networks(node) for name, node in nodes.items()}
        gateways = {(n.name, version): n.address for version in (4, 6) for n in self.nodes(version)}
        local: dict[tuple[str, int], list[_PodWay]] = {}
        remote: dict[int, list[_PodWay]] = {}
        for place, pod in enumerate(self.cluster.known_pods()):
            if pod.host_network or pod.node_name is None or pod.phase in ("Succeeded", "Failed"):
                continue
            for text in pod.pod_ips:
                ip = ip_of(text)
                if ip is None:
                    continue
                inside = any(
                    ip in net for net in networks.get(pod.node_name, ()) if net.version == ip.version
                )
                gateway = None if inside else gateways.get((pod.node_name, ip.version))
                way = _PodWay(place, pod, ip, ip_network(ip), gateway)
                local.setdefault((pod.node_name, ip.version), []).append(way)
                if gateway is not None:
                    remote.setdefault(ip.version, []).append(way)
        return local, remote

    def to_pods(self, node: str, version: int) -> Iterable[_PodWay]:
        """The pods' addresses that a node has a route to, or a bridge, in the cluster's order."""
        local, remote = self._pods
        own = local.get((node, version), ())
        return heapq.merge(
            own,
            (way for way in remote.get(version, ()) if way.pod.node_name != node),
            key=lambda way: way.place,
        )

    def unicast(self, dst: IPNetwork, device: str, gateway: IPAddress | None) -> Route:
        """A route to `dst`, one object for all nodes."""
        key = (dst, device, gateway)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = Route(
                dst=dst,
                nexthops=(NextHop(dev=device, gateway=gateway),),
                scope="global" if gateway is not None else "link",
            )
        return found


def _routes(ways: _Ways, state: NodeState) -> Iterator[Route]:
    """What the kernel adds for addresses, a default route, the ways to this node's pods and to the other nodes'."""
    name, interfaces, device_of = state.name, state.interfaces or (), pod_device(state)
    connected = list(_kernel_routes(interfaces))
    yield from connected
    node = (ways.cluster.nodes or {}).get(name)
    for version in (4, 6):
        uplink = _uplink(interfaces, node, version)
        if uplink is None:
            continue
        device, address = uplink
        net = ip_network((address.ip, address.prefixlen), strict=False)
        router = net.network_address + (2 if net.network_address + 1 == address.ip else 1)
        yield ways.unicast(ip_network("0.0.0.0/0" if version == 4 else "::/0"), device, router)
        tunnel = next((i.name for i in interfaces if _is_tunnel(i, _pod_networks(node), version)), None)
        if state.cilium is not None and state.cilium.config.tunnel is False:
            tunnel = None  # cilium_host looks like one, and leads to this node's pods alone
        for other in ways.nodes(version):
            if other.name == name:
                continue
            if net.num_addresses == 1 or other.address not in net:
                yield ways.unicast(ip_network(other.address), device, router)
            for pods in other.pods:
                yield ways.unicast(pods, tunnel or device, pods.network_address if tunnel else other.address)
        if not ways.cluster.has_all("pods"):
            for net in _pod_networks(node):
                if net.version == version and not any(r.dst == net for r in connected):
                    yield ways.unicast(net, PODS, None)
        bridges = [r.dst for r in connected if r.type == "unicast" and r.dst.prefixlen > 0]
        for way in ways.to_pods(name, version):
            if way.pod.node_name != name:
                yield ways.unicast(way.net, tunnel or device, way.gateway)
            elif not any(way.ip in bridge for bridge in bridges):
                yield ways.unicast(way.net, device_of(way.pod), None)


def _pod_networks(node: Node | None) -> list[IPNetwork]:
    return [ip_network(text, strict=False) for text in (node.pod_cidrs if node is not None else ())]


def _is_tunnel(interface: Interface, pods: Iterable[IPNetwork], version: int) -> bool:
    """A device to other nodes: by its kind, or since it holds a single address of this node's pods (flannel.1)."""
    if interface.kind in _TUNNELS or interface.link_type not in ("ether", "loopback"):
        return True
    return any(
        a.prefixlen == a.ip.max_prefixlen and any(a.ip in net for net in pods)
        for a in interface.addresses
        if a.ip.version == version
    )


_TUNNELS = frozenset(("vxlan", "geneve", "ipip", "sit", "gre", "wireguard", "ip6tnl"))


def _uplink(
    interfaces: tuple[Interface, ...], node: Node | None, version: int
) -> tuple[str, InterfaceAddress] | None:
    """The device that leads out of the node, with its first address of the family."""
    listed = set(_node_addresses(node))
    candidates = [
        (i.name, a)
        for i in interfaces
        if not i.is_loopback
        for a in i.addresses
        if a.ip.version == version and a.scope == "global" and not a.secondary
    ]
    return next((c for c in candidates if c[1].ip in listed), candidates[0] if candidates else None)


def _kernel_routes(interfaces: Iterable[Interface]) -> Iterator[Route]:
    """The routes that the kernel makes for addresses (fib_add_ifaddr, addrconf)."""
    for i in interfaces:
        for a in i.addresses:
            hop = (NextHop(dev=i.name),)
            bits = a.ip.max_prefixlen
            local = Route(
                dst=ip_network(a.ip), type="local", table="local", nexthops=hop, prefsrc=a.ip, scope="host"
            )
            yield local
            net = ip_network((a.ip, a.prefixlen), strict=False)
            if i.is_loopback and a.ip.version == 4:
                yield replace(local, dst=net)
            elif a.prefixlen < bits:
                yield Route(dst=net, nexthops=hop, prefsrc=a.ip if a.ip.version == 4 else None, scope="link")


# -------------------------------------------------------------------------------------------------------- sysctls


_SAME = {"net.ipv4.ip_forward": "net.ipv4.conf.all.forwarding"}


def _with_sysctls(snapshot: Snapshot, state: NodeState) -> NodeState:
    """The node with the promised sysctls that are not among those read. Of a bridge's the walk itself says so."""
    read = state.sysctls or {}
    lacking = {
        key: value
        for key, value in _sysctls(snapshot, state.name).items()
        if key not in read and _SAME.get(key) not in read and not key.startswith("net.bridge.")
    }
    if not lacking:
        return state
    return replace(state, sysctls={**read, **lacking}, supposed_sysctls=tuple(lacking))


def _sysctls(snapshot: Snapshot, name: str) -> Mapping[str, str]:
    """What a working node has: kubelet and CNI plugins need forwarding and br_netfilter, kube-proxy route_localnet.

    `setRouteLocalnet` (pkg/proxy/iptables/proxier.go, also in IPVS mode): with localhost node ports, on by default;
    in nftables mode never.
    """
    proxy = proxy_node(snapshot, name)
    localnet = proxy.modes != (ProxyMode.NFTABLES,) and proxy.localhost_node_ports
    return {
        "net.ipv4.ip_forward": "1",
        "net.ipv6.conf.all.forwarding": "1",
        "net.bridge.bridge-nf-call-iptables": "1",
        "net.bridge.bridge-nf-call-ip6tables": "1",
        "net.ipv4.conf.all.route_localnet": "1" if localnet else "0",
    }
