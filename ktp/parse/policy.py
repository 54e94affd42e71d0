"""`kubectl get networkpolicies -A -o json` → model. Field meanings: networking.k8s.io/v1 in the API reference."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.policy import Block, IngressRule, NetworkPolicy, PolicyPort
from ktp.parse.selector import parse_selector
from ktp.parse.text import SHAPE_ERRORS, list_of, load_json, object_of, string_of, strings_of

POLICIES = "cluster/networkpolicies.json"


def parse_policies(data: bytes | str, *, source: str = POLICIES) -> tuple[NetworkPolicy, ...]:
    """Raises EvidenceError, naming `source` and the object, for what is not of the API's shape."""
    found = []
    document = load_json(data, source)
    for item in list_of(document if isinstance(document, list) else object_of(document).get("items")):
        metadata = object_of(object_of(item).get("metadata"))
        if item.get("kind", "NetworkPolicy") != "NetworkPolicy":
            continue
        try:
            found.append(_policy(metadata, object_of(item.get("spec"))))
        except (*SHAPE_ERRORS, ValueError) as error:
            raise EvidenceError(
                f"NetworkPolicy {metadata.get('name')} of {source} is not usable: {error}",
                hint="collect it again, or leave the file out",
            ) from error
    return tuple(found)


def _policy(metadata: dict[str, Any], spec: dict[str, Any]) -> NetworkPolicy:
    types = strings_of(spec.get("policyTypes"))
    return NetworkPolicy(
        namespace=string_of(metadata.get("namespace"), "default"),
        name=string_of(metadata.get("name")),
        pods=parse_selector(spec.get("podSelector")),
        isolates=not types or "Ingress" in types,
        rules=tuple(_rule(object_of(rule)) for rule in list_of(spec.get("ingress"))),
    )


def _rule(rule: dict[str, Any]) -> IngressRule:
    peers = [object_of(peer) for peer in list_of(rule.get("from"))]
    return IngressRule(
        ports=tuple(_port(object_of(port)) for port in list_of(rule.get("ports"))),
        blocks=tuple(_block(object_of(peer["ipBlock"])) for peer in peers if peer.get("ipBlock")),
        has_pods=any(not peer.get("ipBlock") for peer in peers),
    )


def _block(block: dict[str, Any]) -> Block:
    return Block(
        cidr=ip_network(string_of(block.get("cidr")), strict=False),
        excepts=tuple(ip_network(text, strict=False) for text in strings_of(block.get("except"))),
    )


def _port(port: dict[str, Any]) -> PolicyPort:
    number, end = port.get("port"), port.get("endPort")
    if not isinstance(number, int | str | None) or not isinstance(end, int | None):
        raise TypeError(f"a port was expected, not {number!r:.60}")
    return PolicyPort(protocol=string_of(port.get("protocol"), "TCP"), port=number, end=end)
