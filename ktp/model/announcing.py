"""Who gives out load-balancer addresses in a cluster, and from which nodes they are announced on the network.

MetalLB's objects (metallb.io/v1beta1) and those of Cilium's LB IPAM, L2 announcements and BGP control plane
(cilium.io).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import NamedTuple

from ktp.model.host import IPAddress
from ktp.model.record import dataclass
from ktp.model.selector import LabelSelector


class Provider(str, Enum):
    """Whose objects they are."""

    METALLB = "MetalLB"
    CILIUM = "Cilium"
    KUBE_VIP = "kube-vip"


class Resource(NamedTuple):
    """A kind of object that tells of addresses or their announcement: `cluster/PLURAL.json` in a snapshot."""

    plural: str
    kind: str
    provider: Provider
    group: str
    versions: tuple[str, ...]  # the newest first

    @property
    def file(self) -> str:
        """Its list in a snapshot."""
        return f"cluster/{self.plural}.json"


_METALLB = (Provider.METALLB, "metallb.io", ("v1beta1",))
_CILIUM = (Provider.CILIUM, "cilium.io", ("v2", "v2alpha1"))
POOLS = Resource("ipaddresspools", "IPAddressPool", *_METALLB)
L2 = Resource("l2advertisements", "L2Advertisement", *_METALLB)
BGP = Resource("bgpadvertisements", "BGPAdvertisement", *_METALLB)
L2_STATUSES = Resource("servicel2statuses", "ServiceL2Status", *_METALLB)
CILIUM_POOLS = Resource("ciliumloadbalancerippools", "CiliumLoadBalancerIPPool", *_CILIUM)
CILIUM_L2 = Resource("ciliuml2announcementpolicies", "CiliumL2AnnouncementPolicy", *_CILIUM)
CILIUM_BGP = Resource("ciliumbgpadvertisements", "CiliumBGPAdvertisement", *_CILIUM)
CILIUM_PEERING = Resource("ciliumbgppeeringpolicies", "CiliumBGPPeeringPolicy", *_CILIUM)
RESOURCES = (POOLS, L2, BGP, L2_STATUSES, CILIUM_POOLS, CILIUM_L2, CILIUM_BGP, CILIUM_PEERING)

LEASES = Resource("leases", "Lease", Provider.CILIUM, "coordination.k8s.io", ("v1",))
"""Of Cilium's L2 announcements: one a Service, `holderIdentity` is the node that answers ARP for its addresses."""
LEASE_PREFIX = "cilium-l2announce-"

CILIUM_CLASSES = ("io.cilium/l2-announcer", "io.cilium/bgp-control-plane")
"""The loadBalancerClasses whose Services LB IPAM gives addresses, beside those without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """An IPAddressPool or CiliumLoadBalancerIPPool. `ranges` are its first and last addresses.

    `namespaces` are those whose Services it serves, where it names any; `is_selective` tells that it chooses by other
    means too. `services` selects Services by their `selectable_labels`. `is_closed` is `disabled: true`, and `conflict`
    why Cilium gives nothing out of it otherwise.
    """

    name: str
    provider: Provider = Provider.METALLB
    ranges: tuple[tuple[IPAddress, IPAddress], ...] = ()
    auto_assign: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    is_selective: bool = False
    services: LabelSelector = field(default_factory=LabelSelector)
    is_closed: bool = False
    conflict: str = ""

    def holds(self, ip: IPAddress) -> bool:
        """Whether the address is one of the pool's."""
        return any(
            first.version == ip.version and int(first) <= int(ip) <= int(last) for first, last in self.ranges
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """An object by which load-balancer addresses are announced; `kind` is that of the API.

    Of MetalLB it is of pools, without pools and selectors of every pool. Of Cilium it is of Services: those that one of
    `services` selects, by their `selectable_labels`; `of_load_balancers` tells that it is of their load-balancer
    addresses at all. `classes` are the loadBalancerClasses that it takes, () for any.
    """

    kind: str
    name: str
    provider: Provider = Provider.METALLB
    pools: tuple[str, ...] = ()
    pool_selectors: tuple[LabelSelector, ...] = ()
    node_selectors: tuple[LabelSelector, ...] = ()
    services: tuple[LabelSelector, ...] = (LabelSelector(),)
    of_load_balancers: bool = True
    classes: tuple[str, ...] = ()

    def is_of(self, pool: AddressPool) -> bool:
        """Whether it announces the pool's addresses."""
        if pool.provider is not self.provider:
            return False
        if not self.pools and not self.pool_selectors:
            return True
        return pool.name in self.pools or any(s.selects(pool.labels) for s in self.pool_selectors)

    def is_from(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may announce by it."""
        return not self.node_selectors or any(s.selects(labels) for s in self.node_selectors)

    def takes(self, labels: Mapping[str, str], load_balancer_class: str | None) -> bool:
        """Whether it is of a Service with these `selectable_labels` and that class."""
        if self.classes and load_balancer_class and load_balancer_class not in self.classes:
            return False
        return any(selector.selects(labels) for selector in self.services)

    @property
    def elects(self) -> bool:
        """Whether one node is elected to announce, without a look at endpoints.

        Cilium's L2 announcements: "may cause service IPs to be announced on nodes without pods" (its documentation).
        """
        return self.kind == CILIUM_L2.kind


class Announcer(NamedTuple):
    """A node that announces a Service's addresses, and the object or field that says so."""

    provider: Provider
    node: str
    source: str


def selectable_labels(namespace: str, name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """What Cilium's selectors of Services see: the labels, and two fields as if they were labels."""
    return {
        **labels,
        "io.kubernetes.service.namespace": namespace,
        "io.kubernetes.service.name": name,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcing:
    """What was read of addresses and announcements.

    `speakers` are the (Service, node) of ServiceL2Status, `leases` the nodes that hold Cilium's leases, by their names.
    `pools_known` and `advertisements_known` name the providers of which all of them were read.
    """

    pools: tuple[AddressPool, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    speakers: tuple[tuple[str, str], ...] = ()
    leases: Mapping[str, str] = field(default_factory=dict)
    pools_known: frozenset[Provider] = frozenset()
    advertisements_known: frozenset[Provider] = frozenset()

    def pool_of(self, ip: IPAddress) -> AddressPool | None:
        """The pool that an address is from."""
        return next((pool for pool in self.pools if pool.holds(ip)), None)

    def announcers_of(self, namespace: str, name: str) -> tuple[Announcer, ...]:
        """The nodes that announce a Service's addresses now, as far as objects tell."""
        found = [
            Announcer(Provider.METALLB, node, L2_STATUSES.kind)
            for key, node in sorted(self.speakers)
            if key == f"{namespace}/{name}"
        ]
        lease = f"{LEASE_PREFIX}{namespace}-{name}"
        if node := self.leases.get(lease):
            found.append(Announcer(Provider.CILIUM, node, f"{LEASES.kind} {lease}"))
        return tuple(found)
