"""What one node's kube-proxy is: version, mode, configuration, and the node's addresses as it sees them.

Everything that the intended outcome depends on beside the Service itself. What is not known stays open here, and
`ktp.kubeproxy.intent` computes every possibility.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from ktp.kubeproxy.names import KUBE_NODEPORTS, KUBE_SERVICES, NFT_TABLE
from ktp.kubeproxy.version import ANY_VERSION, VersionRange, proxy_version
from ktp.model.cluster import Cluster, ip_of, networks_of
from ktp.model.host import IPAddress, KubeProxyConfig, NodeState
from ktp.model.ipvs import IPVS_INTERFACE, links_ipvs
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot

IPNetwork = IPv4Network | IPv6Network


class ProxyMode(str, Enum):
    """How kube-proxy programs the kernel: its `--proxy-mode`."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"
    IPVS = "ipvs"


ALL_MODES = (ProxyMode.IPTABLES, ProxyMode.NFTABLES, ProxyMode.IPVS)


class DetectLocal(str, Enum):
    """How kube-proxy tells that a source is a pod (`detectLocalMode`); NONE where it cannot."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"
    NONE = "none"


ALL_DETECTORS = (DetectLocal.CLUSTER_CIDR, DetectLocal.NODE_CIDR, DetectLocal.NONE)
"""The detectors to try where the mode is not known: the interface modes answer as NodeCIDR does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyNode:
    """One node with its kube-proxy. An empty tuple or None of a fact that kube-proxy must have is "not known"."""

    name: str
    proxy_name: str = ""  # the node's name as kube-proxy knows it; "" is `name`
    zone: str | None = None
    addresses: frozenset[IPAddress] = frozenset()  # of every interface, or what the API lists
    primary_ips: tuple[IPAddress, ...] = ()  # one a family: what kube-proxy takes for "primary"
    pod_cidrs: tuple[IPNetwork, ...] = ()
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    versions: VersionRange = ANY_VERSION
    modes: tuple[ProxyMode, ...] = ALL_MODES
    detectors: tuple[DetectLocal, ...] = ALL_DETECTORS
    node_port_addresses: tuple[str, ...] = ()
    masquerade_all: bool = False
    localhost_node_ports: bool = True  # --iptables-localhost-nodeports
    route_localnet: bool | None = None  # net.ipv4.conf.all.route_localnet; None: as kube-proxy sets it
    feature_gates: Mapping[str, bool] = field(default_factory=dict)

    @property
    def known_as(self) -> str:
        """The node name that kube-proxy compares `endpoint.nodeName` with."""
        return self.proxy_name or self.name

    def owns(self, address: IPAddress) -> bool:
        """Whether `address` is one of the node's own, as far as they are known."""
        return address.is_loopback or address in self.addresses

    def gate(self, name: str, *, default: bool) -> bool:
        """Whether a feature gate is on."""
        return self.feature_gates.get(name, default)


def default_mode(versions: VersionRange) -> ProxyMode:
    """What an empty `mode` means on Linux: iptables, from 1.40 on nftables (KEP-5343; 1.37 warns of it)."""
    return ProxyMode.NFTABLES if versions.low >= (1, 40) else ProxyMode.IPTABLES


def detect_modes(state: NodeState | None, default: ProxyMode = ProxyMode.IPTABLES) -> tuple[ProxyMode, ...]:
    """The mode that the node's configuration or its kernel state shows; all of them where nothing shows it.

    An empty `mode` means `default`. Without a configuration, the interface kube-ipvs0 or a linked KUBE-NODE-PORT shows
    ipvs, an nf_tables table of kube-proxy's shows nftables, and a linked KUBE-NODEPORTS shows iptables; leftovers of a
    former mode leave several.
    """
    if state is None:
        return ALL_MODES
    if state.kube_proxy is not None:
        try:
            return (ProxyMode(state.kube_proxy.mode or default.value),)
        except ValueError:
            return ALL_MODES
    found = []
    for ruleset in state.rulesets:
        services = ruleset.chain("nat", KUBE_SERVICES)
        last = services.rule(len(services) - 1).target if services is not None and len(services) else None
        if last is not None and last.name == KUBE_NODEPORTS:
            found.append(ProxyMode.IPTABLES)
            break
    nft = state.nft
    if nft is not None and any(nft.table(family, NFT_TABLE) is not None for family in ("ip", "ip6")):
        found.append(ProxyMode.NFTABLES)
    if any(interface.name == IPVS_INTERFACE for interface in state.interfaces or ()) or any(
        map(links_ipvs, state.rulesets)
    ):
        found.append(ProxyMode.IPVS)
    return tuple(found) or ALL_MODES


def detect_detectors(
    config: KubeProxyConfig | None, pod_cidrs: tuple[IPNetwork, ...]
) -> tuple[DetectLocal, ...]:
    """How kube-proxy tells pods on this node, as its configuration says; every way where there is none to read.

    A mode without what it needs (no clusterCIDR, no podCIDR) detects nothing (`getLocalDetector`, since 1.18).
    """
    if config is None:
        return ALL_DETECTORS
    mode = config.detect_local_mode or DetectLocal.CLUSTER_CIDR.value
    if mode == DetectLocal.CLUSTER_CIDR.value:
        return (DetectLocal.CLUSTER_CIDR if config.cluster_cidr else DetectLocal.NONE,)
    if mode == DetectLocal.NODE_CIDR.value:
        return (DetectLocal.NODE_CIDR if pod_cidrs else DetectLocal.NONE,)
    try:
        return (DetectLocal(mode),)
    except ValueError:
        return ALL_DETECTORS


def proxy_node(
    snapshot: Snapshot, name: str, *, versions: VersionRange | None = None, modes: tuple[ProxyMode, ...] = ()
) -> ProxyNode:
    """Everything that the snapshot tells of the kube-proxy on node `name`; `versions`, `modes` overrule it."""
    cluster, state = snapshot.cluster, snapshot.nodes.get(name)
    node = (cluster.nodes or {}).get(name)
    config = state.kube_proxy if state is not None else None
    pod_cidrs = networks_of(node.pod_cidrs) if node is not None else ()
    route_localnet = (
        (state.sysctls or {}).get("net.ipv4.conf.all.route_localnet") if state is not None else None
    )
    localhost = config.localhost_node_ports if config is not None else None
    versions = versions or proxy_version(cluster, name, state)
    return ProxyNode(
        name=name,
        proxy_name=(config.hostname_override if config is not None else None) or "",
        zone=node.zone if node is not None else None,
        addresses=_addresses(cluster, name, state),
        primary_ips=_primary_ips(cluster, name),
        pod_cidrs=pod_cidrs,
        cluster_cidrs=networks_of((config.cluster_cidr or "").split(",")) if config is not None else (),
        versions=versions,
        modes=modes or detect_modes(state, default_mode(versions)),
        detectors=detect_detectors(config, pod_cidrs),
        node_port_addresses=(config.node_port_addresses if config is not None else None) or (),
        masquerade_all=config.masquerade_all if config is not None else False,
        localhost_node_ports=True if localhost is None else localhost,
        route_localnet=None if route_localnet is None else route_localnet.strip() not in {"0", ""},
        feature_gates=config.feature_gates if config is not None else {},
    )


def _addresses(cluster: Cluster, name: str, state: NodeState | None) -> frozenset[IPAddress]:
    """The node's addresses: its interfaces' where they were read (less kube-ipvs0's), else the API's."""
    if state is not None and state.interfaces is not None:
        return frozenset(
            address.ip
            for interface in state.interfaces
            if interface.name != IPVS_INTERFACE
            for address in interface.addresses
        )
    return frozenset(_api_addresses(cluster, name))


def _api_addresses(cluster: Cluster, name: str) -> tuple[IPAddress, ...]:
    node = (cluster.nodes or {}).get(name)
    if node is None:
        return ()
    listed = (*node.addresses_of("InternalIP"), *node.addresses_of("ExternalIP"))
    return tuple(ip for ip in map(ip_of, listed) if ip is not None)


def _primary_ips(cluster: Cluster, name: str) -> tuple[IPAddress, ...]:
    """The first address of each family in Node.status.addresses, InternalIP before ExternalIP."""
    first: dict[int, IPAddress] = {}
    for ip in _api_addresses(cluster, name):
        first.setdefault(ip.version, ip)
    return tuple(first.values())
