"""What Cilium's agent of a node holds of Services: the load-balancing maps, identities, endpoints, policies.

Facts: bpf/lib/lb.h, bpf/bpf_sock.c, pkg/maps/lbmap of Cilium 1.12 to 1.19, and recordings of real agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum
from ipaddress import ip_network

from ktp.model.host import IPAddress, IPNetwork
from ktp.model.record import dataclass

HOST_DEVICE = "cilium_host"
"""The device by which a node's own packets enter Cilium's programs (pkg/defaults, HostDevice)."""
OWN_DEVICES = (
    HOST_DEVICE,
    "cilium_net",
    "cilium_vxlan",
    "cilium_geneve",
    "cilium_wg0",
    "cilium_ipip4",
    "cilium_ipip6",
)

HOST_IDENTITY, REMOTE_NODE_IDENTITY, API_SERVER_IDENTITY = 1, 6, 7
"""Reserved identities (pkg/identity/numericidentity.go)."""
LOCAL_IDENTITIES = 1 << 24
"""From here on an identity is a node's own, for a network that a policy names (identity.IdentityScopeLocal)."""


class LbKind(str, Enum):
    """What a front end is of its Service, in the words of `cilium-dbg bpf lb list`."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IPS = "ExternalIPs"
    HOST_PORT = "HostPort"
    LOCAL_REDIRECT = "LocalRedirect"
    UNKNOWN = ""


class LbFlag(str, Enum):
    """A flag of a front end, in the words of `cilium-dbg bpf lb list` (pkg/loadbalancer, ServiceFlags)."""

    EXTERNAL_LOCAL = "Local"
    INTERNAL_LOCAL = "InternalLocal"
    TWO_SCOPES = "two-scopes"
    AFFINITY = "sessionAffinity"
    NON_ROUTABLE = "non-routable"
    SOURCE_RANGE = "check source-range"
    SOURCE_RANGE_DENY = "deny"
    DSR = "dsr"
    L7 = "l7-load-balancer"
    LOOPBACK = "loopback"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class LbBackend:
    """A backend in a slot of a front end."""

    ip: IPAddress
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LbFrontend:
    """An address and port that the maps serve. `ip` unspecified (0.0.0.0, ::) stands for every address of a node.

    `protocol` is "tcp", "udp", "sctp", or None where the key has none (up to 1.16, and the entry of port 0, "any").
    `internal` tells the scope of clients in the cluster. `backends` are those that are drawn; `spare` the slots past
    the count (terminating, quarantined). `counted` False: the count was not read, and all slots are in `backends`.
    `flags_known` False: a flag that ktp does not know is there. `text` is key and value as printed.
    """

    ip: IPAddress
    port: int
    protocol: str | None = None
    internal: bool = False
    kind: LbKind = LbKind.UNKNOWN
    flags: frozenset[LbFlag] = frozenset()
    flags_known: bool = True
    revnat: int = 0
    backends: tuple[LbBackend, ...] = ()
    spare: tuple[LbBackend, ...] = ()
    counted: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CiliumEndpoint:
    """Where Cilium's programs of a node deliver an address: to a pod (by the index of its device), or to the node."""

    identifier: int | None = None
    ifindex: int = 0
    is_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEntry:
    """An entry of an endpoint's policy map, for what comes in or (`egress`) what goes out.

    0 stands for any identity, protocol or port.
    `port_bits` is how much of the port counts (16, or less for a range).
    """

    identity: int = 0
    protocol: int = 0
    port: int = 0
    port_bits: int = 16
    deny: bool = False
    egress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CiliumPolicy:
    """A policy that the agent enforces (`policy get`), and the labels of the pods that it selects."""

    name: str
    namespace: str
    kind: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether it is about a pod of `namespace` with `labels`."""
        return (self.namespace or namespace) == namespace and all(
            labels.get(key) == value for key, value in self.labels.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IpcacheEntry:
    """Whose a network is: the identity, and whether packets for it go through a tunnel. None is "not known"."""

    network: IPNetwork
    identity: int | None
    tunnelled: bool | None = None


class NodePortMode(str, Enum):
    """How a packet for a backend on another node is sent on (--bpf-lb-mode)."""

    SNAT = "snat"
    DSR = "dsr"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, kw_only=True)
class CiliumConfig:
    """What the agent says of itself (`status -o json`, `config -a`). None is "not said".

    `replaces` is kube-proxy-replacement; `socket_lb` whether connect() in the cluster is translated at all, and
    `socket_lb_host_only` whether only that of the nodes' own processes is.
    """

    version: tuple[int, int] | None = None
    replaces: bool | None = None
    mode: NodePortMode | None = None
    socket_lb: bool | None = None
    socket_lb_host_only: bool | None = None
    tunnel: bool | None = None
    legacy_routing: bool | None = None
    rejects: bool | None = None
    enforces_policy: bool | None = None
    external_ip_mitigated: bool = True
    devices: tuple[str, ...] = ()
    direct_device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CiliumState:
    """All that was read of Cilium on one node. A field that is None was not read."""

    source: str = ""
    config: CiliumConfig = field(default_factory=CiliumConfig)
    frontends: tuple[LbFrontend, ...] | None = None
    source_ranges: Mapping[int, tuple[IPNetwork, ...]] | None = None
    ipcache: tuple[IpcacheEntry, ...] | None = None
    endpoints: Mapping[IPAddress, CiliumEndpoint] | None = None
    policies: Mapping[int, tuple[PolicyEntry, ...]] | None = None
    named_policies: tuple[CiliumPolicy, ...] = ()
    identities: Mapping[int, tuple[str, ...]] = field(
        default_factory=dict
    )  # labels of each, as the agent lists them

    def with_pod(self, ip: IPAddress, *, here: bool) -> CiliumState:
        """The maps with a pod of this node, or of another, of which no identity and no policy is known."""
        network = ip_network((ip, ip.max_prefixlen))
        ipcache = self.ipcache
        if ipcache is not None:
            ipcache = (*ipcache, IpcacheEntry(network=network, identity=None, tunnelled=not here))
        endpoints = self.endpoints
        if endpoints is not None and here:
            endpoints = {**endpoints, ip: CiliumEndpoint()}
        return replace(self, ipcache=ipcache, endpoints=endpoints)

    @property
    def is_readable(self) -> bool:
        """Whether enough was read to say what the programs do with a packet: front ends, pods, whether they serve."""
        return self.frontends is not None and self.endpoints is not None and self.config.replaces is not None
