"""Objects of MetalLB's and Cilium's that tell of load-balancer addresses, a file a kind → model.

Field meanings: metallb's api/v1beta1 (ipaddresspool_types.go, l2advertisement_types.go, bgpadvertisement_types.go,
servicel2status_types.go); Cilium's documentation (LB IPAM, L2 announcements, BGP control plane) and its CRDs. Which
kinds were read is told by the files: of one that was not, nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from ktp.errors import EvidenceError
from ktp.model.announcing import (
    BGP,
    CILIUM_BGP,
    CILIUM_CLASSES,
    CILIUM_L2,
    CILIUM_PEERING,
    CILIUM_POOLS,
    L2,
    L2_STATUSES,
    LEASE_PREFIX,
    LEASES,
    POOLS,
    RESOURCES,
    AddressPool,
    Advertisement,
    Announcing,
    Provider,
    Resource,
)
from ktp.model.host import IPAddress
from ktp.model.selector import LabelSelector
from ktp.parse.selector import parse_selector
from ktp.parse.text import SHAPE_ERRORS, list_of, load_json, object_of, string_map, string_of, strings_of


class _Lease(NamedTuple):
    name: str
    holder: str


class _Speaker(NamedTuple):
    service: str
    node: str


Announced = AddressPool | Advertisement | _Lease | _Speaker

FILES: Mapping[str, Resource] = {each.file: each for each in (*RESOURCES, LEASES)}


def parse_announced(data: bytes | str, resource: Resource) -> tuple[Announced, ...]:
    """The objects of one list. Raises EvidenceError, naming file and object, for what is not of the API's shape."""
    found: list[Announced] = []
    document = load_json(data, resource.file)
    for entry in list_of(document if isinstance(document, list) else object_of(document).get("items")):
        item = object_of(entry)
        if item.get("kind", resource.kind) != resource.kind:
            continue
        item = {**item, "kind": resource.kind, "metadata": object_of(item.get("metadata"))}
        try:
            found += _READERS[resource.kind](item)
        except (*SHAPE_ERRORS, ValueError) as error:
            raise EvidenceError(
                f"{resource.kind} {item['metadata'].get('name')} of {resource.file} is not usable: {error}",
                hint="collect it again, or leave the file out",
            ) from error
    return tuple(found)


_POOLS = {POOLS, CILIUM_POOLS}
_ADVERTISEMENTS = {L2, BGP, CILIUM_L2, CILIUM_BGP, CILIUM_PEERING}


def announcing_of(
    lists: Mapping[Resource, tuple[Announced, ...]], partial: Collection[str] = ()
) -> Announcing | None:
    """What is known, of the lists that were read; None where none was. `partial` names files that do not hold all.

    A kind that was not read may be there, or the cluster may not have it: who collects tells by an empty list.
    """
    if not lists:
        return None
    objects = [each for found in lists.values() for each in found]
    whole = {resource for resource in lists if resource.file not in partial}

    def known(wanted: Iterable[Resource]) -> frozenset[Provider]:
        return frozenset(
            provider
            for provider in (Provider.METALLB, Provider.CILIUM)
            if {resource for resource in wanted if resource.provider is provider} <= whole
        )

    return Announcing(
        pools=tuple(each for each in objects if isinstance(each, AddressPool)),
        advertisements=tuple(each for each in objects if isinstance(each, Advertisement)),
        speakers=tuple((each.service, each.node) for each in objects if isinstance(each, _Speaker)),
        leases={each.name: each.holder for each in objects if isinstance(each, _Lease)},
        pools_known=known(_POOLS),
        advertisements_known=known(_ADVERTISEMENTS),
    )


def _speaker(item: dict[str, Any]) -> list[Announced]:
    status = object_of(item.get("status"))
    service = f"{string_of(status.get('serviceNamespace'))}/{string_of(status.get('serviceName'))}"
    return [_Speaker(service, string_of(status.get("node")))]


def _lease(item: dict[str, Any]) -> list[Announced]:
    name = string_of(item["metadata"].get("name"))
    holder = string_of(object_of(item.get("spec")).get("holderIdentity"))
    return [_Lease(name, holder)] if name.startswith(LEASE_PREFIX) and holder else []


def _pool(item: dict[str, Any]) -> list[Announced]:
    metadata, spec = item["metadata"], object_of(item.get("spec"))
    allocation = object_of(spec.get("serviceAllocation"))
    automatic = spec.get("autoAssign")
    return [
        AddressPool(
            name=string_of(metadata.get("name")),
            ranges=tuple(_range(text) for text in strings_of(spec.get("addresses"))),
            auto_assign=automatic if isinstance(automatic, bool) else True,
            labels=string_map(metadata.get("labels")),
            namespaces=tuple(strings_of(allocation.get("namespaces"))),
            is_selective=bool(allocation.get("namespaceSelectors") or allocation.get("serviceSelectors")),
        )
    ]


def _cilium_pool(item: dict[str, Any]) -> list[Announced]:
    spec = object_of(item.get("spec"))
    # `cidrs` is what `blocks` was called before 1.15
    blocks = [object_of(each) for each in (*list_of(spec.get("blocks")), *list_of(spec.get("cidrs")))]
    conditions = [object_of(each) for each in list_of(object_of(item.get("status")).get("conditions"))]
    conflict = next(
        (
            string_of(each.get("message")) or string_of(each.get("reason"))
            for each in conditions
            if each.get("type") in ("cilium.io/PoolConflict", "io.cilium/conflict")
            and each.get("status") == "True"
        ),
        "",
    )
    return [
        AddressPool(
            name=string_of(item["metadata"].get("name")),
            provider=Provider.CILIUM,
            ranges=tuple(_block(block) for block in blocks),
            labels=string_map(item["metadata"].get("labels")),
            services=parse_selector(spec.get("serviceSelector")),
            is_closed=spec.get("disabled") is True,
            conflict=conflict,
        )
    ]


def _block(block: dict[str, Any]) -> tuple[IPAddress, IPAddress]:
    """`cidr`, or `start` and `stop`; `start` alone is one address."""
    if block.get("cidr"):
        return _range(string_of(block["cidr"]))
    start = string_of(block.get("start"))
    return ip_address(start), ip_address(string_of(block.get("stop")) or start)


def _range(text: str) -> tuple[IPAddress, IPAddress]:
    """`192.0.2.0/24` or `192.0.2.10-192.0.2.20`."""
    first, dash, last = text.partition("-")
    if dash:
        return ip_address(first.strip()), ip_address(last.strip())
    network = ip_network(text.strip(), strict=False)
    return network[0], network[-1]


def _advertisement(item: dict[str, Any]) -> list[Announced]:
    spec = object_of(item.get("spec"))
    return [
        Advertisement(
            kind=item["kind"],
            name=string_of(item["metadata"].get("name")),
            pools=tuple(strings_of(spec.get("ipAddressPools"))),
            pool_selectors=tuple(map(parse_selector, list_of(spec.get("ipAddressPoolSelectors")))),
            node_selectors=tuple(map(parse_selector, list_of(spec.get("nodeSelectors")))),
        )
    ]


def _cilium_l2(item: dict[str, Any]) -> list[Announced]:
    """Without a selector of Services it is of all; of load-balancer addresses only where it says so."""
    spec = object_of(item.get("spec"))
    return [
        Advertisement(
            kind=item["kind"],
            name=string_of(item["metadata"].get("name")),
            provider=Provider.CILIUM,
            node_selectors=(parse_selector(spec.get("nodeSelector")),),
            services=(parse_selector(spec.get("serviceSelector")),),
            of_load_balancers=spec.get("loadBalancerIPs") is True,
            classes=CILIUM_CLASSES[:1],
        )
    ]


def _cilium_bgp(item: dict[str, Any]) -> list[Announced]:
    """Without a selector an advertisement is of no Service."""
    own = [object_of(each) for each in list_of(object_of(item.get("spec")).get("advertisements"))]
    services = [each for each in own if each.get("advertisementType") == "Service"]
    addresses = [a for each in services for a in strings_of(object_of(each.get("service")).get("addresses"))]
    return [
        Advertisement(
            kind=item["kind"],
            name=string_of(item["metadata"].get("name")),
            provider=Provider.CILIUM,
            services=_selectors(each.get("selector") for each in services),
            of_load_balancers="LoadBalancerIP" in addresses,
            classes=CILIUM_CLASSES[1:],
        )
    ]


def _cilium_peering(item: dict[str, Any]) -> list[Announced]:
    spec = object_of(item.get("spec"))
    routers = [object_of(each) for each in list_of(spec.get("virtualRouters"))]
    return [
        Advertisement(
            kind=item["kind"],
            name=string_of(item["metadata"].get("name")),
            provider=Provider.CILIUM,
            node_selectors=(parse_selector(spec.get("nodeSelector")),),
            services=_selectors(each.get("serviceSelector") for each in routers),
            classes=CILIUM_CLASSES[1:],
        )
    ]


def _selectors(found: Iterable[Any]) -> tuple[LabelSelector, ...]:
    return tuple(parse_selector(each) for each in found if each is not None)


_READERS: Mapping[str, Callable[[dict[str, Any]], list[Announced]]] = {
    POOLS.kind: _pool,
    L2.kind: _advertisement,
    BGP.kind: _advertisement,
    L2_STATUSES.kind: _speaker,
    CILIUM_POOLS.kind: _cilium_pool,
    CILIUM_L2.kind: _cilium_l2,
    CILIUM_BGP.kind: _cilium_bgp,
    CILIUM_PEERING.kind: _cilium_peering,
    LEASES.kind: _lease,
}
