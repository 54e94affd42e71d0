"""The state of one node that decides a packet's way: interfaces, routes, sockets, sysctls, sets, rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from ktp.model.assumption import EvidenceKind
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.model.cilium import CiliumState
    from ktp.model.ipvs import IpvsTable
    from ktp.model.nftables import NftRuleset
    from ktp.model.tunnel import ForwardingEntry, Neighbour, TunnelDevice
    from ktp.model.xfrm import Xfrm
from ktp.model.nft_hooks import HookListing
from ktp.model.passing import Counters, TrackedConnection
from ktp.model.rules_twice import RulesTwice
from ktp.model.ruleset import Ruleset

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


UPLINK, PODS = "?", "? (pods)"
UNNAMED_DEVICES = frozenset((UPLINK, PODS))
"""Devices of which the name was not read: the one that leads out of a node, and those of its pods."""
POD_DEVICES = ("cali", "azv", "gke", "lxc", "veth")
"""How the names of pods' own devices begin: Calico's, Azure's, GKE's, Cilium's, those of CNI's ptp and bridge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address of an interface (`ip -j addr`, `addr_info`). `scope` is "global", "link", "host" or a number."""

    ip: IPAddress
    prefixlen: int
    scope: str = "global"
    secondary: bool = False
    peer: IPAddress | None = None
    deprecated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network device (`ip -j addr`)."""

    name: str
    index: int
    flags: frozenset[str] = frozenset()
    link_type: str = "ether"
    master: str | None = None
    kind: str | None = None  # linkinfo info_kind, where `ip -d` was used
    mtu: int | None = None
    addresses: tuple[InterfaceAddress, ...] = ()

    @property
    def is_up(self) -> bool:
        """Administratively up."""
        return "UP" in self.flags

    @property
    def is_loopback(self) -> bool:
        """`lo`."""
        return "LOOPBACK" in self.flags or self.link_type == "loopback"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextHop:
    """One way out of a route."""

    dev: str | None = None
    gateway: IPAddress | None = None
    weight: int = 1
    dead: bool = False
    linkdown: bool = False  # no carrier: skipped where sysctl ignore_routes_with_linkdown is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route (`ip -j route show table all`). `dst` is a network of prefix length 0 for "default"."""

    dst: IPNetwork
    type: str = (
        "unicast"  # unicast local broadcast multicast blackhole unreachable prohibit throw anycast nat
    )
    table: str = "main"
    nexthops: tuple[NextHop, ...] = ()
    prefsrc: IPAddress | None = None
    metric: int = 0
    scope: str = "global"
    protocol: str = "boot"
    tos: int = 0
    src: IPNetwork | None = None  # IPv6 source-specific routes ("from")
    mtu: int | None = None  # where the route has one of its own
    # Whether it stays so whatever the path takes (`mtu lock`); None where that was not told: `ip -j` leaves it out.
    mtu_locked: bool | None = field(default=None, compare=False)

    @property
    def dev(self) -> str | None:
        """Device of the first next hop."""
        return self.nexthops[0].dev if self.nexthops else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """A policy routing rule (`ip -j rule`), in words of ip-rule(8)."""

    priority: int
    table: str | None = None
    action: str = "lookup"  # lookup blackhole unreachable prohibit goto nop
    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: int | None = None
    fwmask: int = 0xFFFFFFFF
    tos: int | None = None
    ipproto: str | None = None
    sport: tuple[int, int] | None = None
    dport: tuple[int, int] | None = None
    uidrange: tuple[int, int] | None = None
    suppress_prefixlength: int | None = None
    goto: int | None = None
    inverted: bool = False
    l3mdev: bool = False
    unsupported: tuple[str, ...] = ()  # conditions or actions that ktp does not model, e.g. "tun_id 5"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSocket:
    """A listening TCP or bound UDP/SCTP socket (`ss -lntuH`). `ip` None means every address of `family`.

    `family` is 4, 6 or 0: 0 is a wildcard socket that takes both (`*:port`). Of TCP `waiting` connections were
    established and not accepted by the program, of `backlog` that may (ss: Recv-Q and Send-Q; None where that was not
    told): where it `is_full` the kernel drops SYNs (sk_acceptq_is_full, tcp_conn_request).
    """

    protocol: str
    ip: IPAddress | None
    port: int
    family: int
    interface: str | None = None
    process: str | None = None
    waiting: int = field(default=0, compare=False)  # another at each look though nothing has changed
    backlog: int | None = field(default=None, compare=False)
    is_full: bool = False

    @property
    def place(self) -> tuple[str, IPAddress | None, int, int, str | None]:
        """What it listens on; several may share it (SO_REUSEPORT)."""
        return self.protocol, self.ip, self.port, self.family, self.interface


@dataclass(frozen=True, slots=True, kw_only=True)
class IpSet:
    """A set of `ipset save`. `type` e.g. "hash:ip,port"; `entries` keep the elements' text and options in order."""

    name: str
    type: str
    family: str = "inet"
    options: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[tuple[str, Mapping[str, str]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeProxyConfig:
    """What a node's KubeProxyConfiguration says, of what changes its rules. None is "not said"."""

    mode: str | None = None
    hostname_override: str | None = None
    cluster_cidr: str | None = None
    node_port_addresses: tuple[str, ...] | None = None
    masquerade_all: bool = False
    masquerade_bit: int = 14
    localhost_node_ports: bool | None = None
    detect_local_mode: str | None = None
    bridge_interface: str | None = None
    interface_name_prefix: str | None = None
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    healthz_bind_address: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """Everything that was read on one node. A field that is None was not read: not the same as empty."""

    name: str
    interfaces: tuple[Interface, ...] | None = None
    routes: tuple[Route, ...] | None = None  # both families
    rules4: tuple[RoutingRule, ...] | None = None
    rules6: tuple[RoutingRule, ...] | None = None
    sockets: tuple[ListeningSocket, ...] | None = None
    sysctls: Mapping[str, str] | None = None
    ipsets: Mapping[str, IpSet] | None = None
    rulesets: tuple[Ruleset, ...] = ()
    nft: NftRuleset | None = None
    place_unread: bool = False  # kube-proxy's rules are not in what was read, and not every back end was
    data_plane: str = ""  # what serves Services here in kube-proxy's place
    cilium: CiliumState | None = None
    ipvs_unread: bool = False  # kube-proxy runs in IPVS mode, and its virtual servers were not read
    nft_hooks: HookListing | None = None
    ipvs: IpvsTable | None = None
    kube_proxy: KubeProxyConfig | None = None
    supposed: frozenset[EvidenceKind] = frozenset()  # what is here without having been read
    supposed_sysctls: tuple[str, ...] = ()  # keys that are here without having been read, where others were
    files: frozenset[str] = frozenset()  # names of the files that were read, without the node's folder
    tunnels: Mapping[str, TunnelDevice] | None = None
    neighbours: tuple[Neighbour, ...] | None = None
    forwarding: tuple[ForwardingEntry, ...] | None = None  # bridge -j fdb: of tunnels
    xfrm: Xfrm | None = None  # None where IPsec's policies were not read
    offloads: Mapping[str, Mapping[str, bool]] | None = None  # ethtool -k: by device and feature
    tracked: tuple[TrackedConnection, ...] | None = None  # of the asked flows
    counters: Counters | None = None  # two readings of them
    rules_twice: RulesTwice | None = None  # two readings of the rules, for what their counters tell
    # Network namespaces of pods ("namespace/name"); their `rulesets` are empty where no rules of theirs were read.
    pods: Mapping[str, NodeState] = field(default_factory=dict)

    @property
    def has_rules(self) -> bool:
        """Whether what decides on packets to Services is known of this node: its packet filter rules."""
        return (bool(self.rulesets) or self.nft is not None) and not (
            self.place_unread or self.data_plane_unread
        )

    @property
    def data_plane_unread(self) -> bool:
        """Whether something else than kube-proxy serves Services here, and its tables were not read."""
        return bool(self.data_plane) and (self.cilium is None or not self.cilium.is_readable)

    def takes(self, device: str | None) -> int | None:
        """How many bytes a packet may have that comes in by a device: its MTU; None where that is not known."""
        return next((i.mtu for i in self.interfaces or () if i.name == device), None)

    def knows_rules_of(self, version: int) -> bool:
        """Whether the packet filter rules of IPv4 (or 6) are known; a dump of one family tells nothing of the other."""
        if self.data_plane_unread or self.place_unread:
            return False
        if self.nft is not None or not self.files.isdisjoint(("nft-ruleset.json", "nft-ruleset.txt")):
            return self.has_rules
        return any(r.family == ("ip" if version == 4 else "ip6") for r in self.rulesets)

    def rulesets_of(self, family: str) -> tuple[Ruleset, ...]:
        """The xtables rulesets of `family` ("ip" or "ip6"), legacy before nft."""
        return tuple(r for r in self.rulesets if r.family == family)
