"""MetalLB's objects, `kubectl get ipaddresspools -A -o json` and so on, a file a kind → model.

Field meanings: metallb's api/v1beta1 (ipaddresspool_types.go, l2advertisement_types.go, bgpadvertisement_types.go,
servicel2status_types.go). Which kinds were read is told by the files: of one that was not, nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from ktp.errors import EvidenceError
from ktp.model.host import IPAddress
from ktp.model.metallb import AddressPool, Advertisement, MetalLB
from ktp.parse.selector import parse_selector
from ktp.parse.text import SHAPE_ERRORS, list_of, load_json, object_of, string_map, string_of, strings_of

POOLS = "cluster/ipaddresspools.json"
L2 = "cluster/l2advertisements.json"
BGP = "cluster/bgpadvertisements.json"
L2_STATUSES = "cluster/servicel2statuses.json"

T = TypeVar("T")


def parse_pools(data: bytes | str, *, source: str = POOLS) -> tuple[AddressPool, ...]:
    """IPAddressPools. Raises EvidenceError, naming `source` and the object, for what is not of the API's shape."""
    return _objects(
        data, "IPAddressPool", source, lambda item: _pool(item["metadata"], object_of(item.get("spec")))
    )


def parse_l2(data: bytes | str, *, source: str = L2) -> tuple[Advertisement, ...]:
    """L2Advertisements; errors as in `parse_pools`."""
    return _objects(data, "L2Advertisement", source, _advertisement)


def parse_bgp(data: bytes | str, *, source: str = BGP) -> tuple[Advertisement, ...]:
    """BGPAdvertisements; errors as in `parse_pools`."""
    return _objects(data, "BGPAdvertisement", source, _advertisement)


def parse_l2_statuses(data: bytes | str, *, source: str = L2_STATUSES) -> tuple[tuple[str, str], ...]:
    """(Service, node) of each ServiceL2Status; errors as in `parse_pools`."""
    return tuple(sorted(_objects(data, "ServiceL2Status", source, _announcer)))


def metallb_of(
    pools: tuple[AddressPool, ...] | None,
    l2: tuple[Advertisement, ...] | None,
    bgp: tuple[Advertisement, ...] | None,
    announcers: tuple[tuple[str, str], ...] | None,
    partial: Collection[str],
) -> MetalLB | None:
    """What is known of MetalLB; None where nothing was read. `partial` names the files that do not hold all."""
    if all(each is None for each in (pools, l2, bgp, announcers)):
        return None
    return MetalLB(
        pools=pools or (),
        advertisements=(*(l2 or ()), *(bgp or ())),
        announcers=announcers or (),
        pools_known=pools is not None and POOLS not in partial,
        advertisements_known=None not in (l2, bgp) and not {L2, BGP} & set(partial),
    )


def _objects(
    data: bytes | str, kind: str, source: str, parse: Callable[[dict[str, Any]], T]
) -> tuple[T, ...]:
    found = []
    document = load_json(data, source)
    for entry in list_of(document if isinstance(document, list) else object_of(document).get("items")):
        item = object_of(entry)
        if item.get("kind", kind) != kind:
            continue
        item = {**item, "kind": kind, "metadata": object_of(item.get("metadata"))}
        try:
            found.append(parse(item))
        except (*SHAPE_ERRORS, ValueError) as error:
            raise EvidenceError(
                f"{kind} {item['metadata'].get('name')} of {source} is not usable: {error}",
                hint="collect it again, or leave the file out",
            ) from error
    return tuple(found)


def _announcer(item: dict[str, Any]) -> tuple[str, str]:
    status = object_of(item.get("status"))
    service = f"{string_of(status.get('serviceNamespace'))}/{string_of(status.get('serviceName'))}"
    return service, string_of(status.get("node"))


def _pool(metadata: dict[str, Any], spec: dict[str, Any]) -> AddressPool:
    allocation = object_of(spec.get("serviceAllocation"))
    automatic = spec.get("autoAssign")
    return AddressPool(
        name=string_of(metadata.get("name")),
        ranges=tuple(_range(text) for text in strings_of(spec.get("addresses"))),
        auto_assign=automatic if isinstance(automatic, bool) else True,
        labels=string_map(metadata.get("labels")),
        namespaces=tuple(strings_of(allocation.get("namespaces"))),
        is_selective=bool(allocation.get("namespaceSelectors") or allocation.get("serviceSelectors")),
    )


def _range(text: str) -> tuple[IPAddress, IPAddress]:
    """`192.0.2.0/24` or `192.0.2.10-192.0.2.20`."""
    first, dash, last = text.partition("-")
    if dash:
        return ip_address(first.strip()), ip_address(last.strip())
    network = ip_network(text.strip(), strict=False)
    return network[0], network[-1]


def _advertisement(item: dict[str, Any]) -> Advertisement:
    spec = object_of(item.get("spec"))
    return Advertisement(
        kind=item["kind"],
        name=string_of(item["metadata"].get("name")),
        pools=tuple(strings_of(spec.get("ipAddressPools"))),
        pool_selectors=tuple(map(parse_selector, list_of(spec.get("ipAddressPoolSelectors")))),
        node_selectors=tuple(map(parse_selector, list_of(spec.get("nodeSelectors")))),
    )
