"""`kubectl get ipaddresspools,l2advertisements,bgpadvertisements,servicel2statuses -A -o json` → model.

Field meanings: metallb's api/v1beta1 (ipaddresspool_types.go, l2advertisement_types.go, bgpadvertisement_types.go,
servicel2status_types.go). Objects of other kinds are passed over.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.host import IPAddress
from ktp.model.metallb import AddressPool, Advertisement, MetalLB
from ktp.parse.selector import parse_selector
from ktp.parse.text import SHAPE_ERRORS, list_of, load_json, object_of, string_map, string_of, strings_of

METALLB = "cluster/metallb.json"
_ADVERTISEMENTS = ("L2Advertisement", "BGPAdvertisement")


def parse_metallb(data: bytes | str, *, source: str = METALLB) -> MetalLB:
    """Raises EvidenceError, naming `source` and the object, for what is not of the API's shape."""
    pools: list[AddressPool] = []
    advertisements: list[Advertisement] = []
    announcers: list[tuple[str, str]] = []
    document = load_json(data, source)
    for item in list_of(document if isinstance(document, list) else object_of(document).get("items")):
        kind = str(object_of(item).get("kind"))
        metadata = object_of(item.get("metadata"))
        try:
            spec = object_of(item.get("spec"))
            if kind == "IPAddressPool":
                pools.append(_pool(metadata, spec))
            elif kind in _ADVERTISEMENTS:
                advertisements.append(_advertisement(kind, metadata, spec))
            elif kind == "ServiceL2Status":
                status = object_of(item.get("status"))
                service = (
                    f"{string_of(status.get('serviceNamespace'))}/{string_of(status.get('serviceName'))}"
                )
                announcers.append((service, string_of(status.get("node"))))
        except (*SHAPE_ERRORS, ValueError) as error:
            raise EvidenceError(
                f"{kind} {metadata.get('name')} of {source} is not usable: {error}",
                hint="collect it again, or leave the file out",
            ) from error
    return MetalLB(
        pools=tuple(pools), advertisements=tuple(advertisements), announcers=tuple(sorted(announcers))
    )


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


def _advertisement(kind: str, metadata: dict[str, Any], spec: dict[str, Any]) -> Advertisement:
    return Advertisement(
        kind=kind,
        name=string_of(metadata.get("name")),
        pools=tuple(strings_of(spec.get("ipAddressPools"))),
        pool_selectors=tuple(map(parse_selector, list_of(spec.get("ipAddressPoolSelectors")))),
        node_selectors=tuple(map(parse_selector, list_of(spec.get("nodeSelectors")))),
    )
