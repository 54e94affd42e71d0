"""MetalLB's objects: which addresses it gives out, and from which nodes it announces them (metallb.io/v1beta1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktp.model.host import IPAddress
from ktp.model.selector import LabelSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """An IPAddressPool. `ranges` are its first and last addresses.

    `namespaces` are those whose Services it serves, where it names any; `is_selective` tells that it chooses by other
    means too.
    """

    name: str
    ranges: tuple[tuple[IPAddress, IPAddress], ...] = ()
    auto_assign: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    is_selective: bool = False

    def holds(self, ip: IPAddress) -> bool:
        """Whether the address is one of the pool's."""
        return any(
            first.version == ip.version and int(first) <= int(ip) <= int(last) for first, last in self.ranges
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """An L2Advertisement or BGPAdvertisement (`kind`); without pools and selectors it is of every pool."""

    kind: str
    name: str
    pools: tuple[str, ...] = ()
    pool_selectors: tuple[LabelSelector, ...] = ()
    node_selectors: tuple[LabelSelector, ...] = ()

    def is_of(self, pool: AddressPool) -> bool:
        """Whether it announces the pool's addresses."""
        if not self.pools and not self.pool_selectors:
            return True
        return pool.name in self.pools or any(s.selects(pool.labels) for s in self.pool_selectors)

    def is_from(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may announce by it."""
        return not self.node_selectors or any(s.selects(labels) for s in self.node_selectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalLB:
    """What was read of MetalLB. `announcers` are the (Service, node) of ServiceL2Status: who answers for it now.

    `pools_known` and `advertisements_known` tell that all pools were read, and all advertisements of both kinds.
    """

    pools: tuple[AddressPool, ...] = ()
    advertisements: tuple[Advertisement, ...] = ()
    announcers: tuple[tuple[str, str], ...] = ()
    pools_known: bool = False
    advertisements_known: bool = False

    def pool_of(self, ip: IPAddress) -> AddressPool | None:
        """The pool that an address is from."""
        return next((pool for pool in self.pools if pool.holds(ip)), None)
