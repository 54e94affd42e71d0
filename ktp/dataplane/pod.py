"""A pod's network namespace as a host of the walk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from ktp.dataplane.packet import to_text
from ktp.model.assumption import EvidenceKind
from ktp.model.host import UPLINK, Interface, InterfaceAddress, NextHop, NodeState, Route


def completed(state: NodeState, own: Iterable[tuple[int, int]]) -> NodeState:
    """A namespace of which addresses or routes were not read, with those that Kubernetes gives a pod.

    `own` are the pod's addresses by the API, (family, number): one device has them, and leads everywhere.
    """
    lacking = {EvidenceKind.ADDRESSES: state.interfaces, EvidenceKind.ROUTES: state.routes}
    state = replace(state, supposed=frozenset(kind for kind, read in lacking.items() if read is None))
    interfaces = state.interfaces
    if interfaces is None:
        addresses = [ip_address(to_text(*key)) for key in own]
        interfaces = (
            Interface(
                name=UPLINK, index=2, flags=frozenset({"UP"}), link_type="ether",
                addresses=tuple(InterfaceAddress(ip=ip, prefixlen=ip.max_prefixlen) for ip in addresses),
            ),
        )  # fmt: skip
    if state.routes is not None:
        return replace(state, interfaces=interfaces)
    device = next((i for i in interfaces if not i.is_loopback and i.addresses), interfaces[0])
    local = [
        Route(
            dst=ip_network(a.ip), type="local", table="local", nexthops=(NextHop(dev=i.name),), scope="host"
        )
        for i in interfaces
        for a in i.addresses
    ]
    every = [
        Route(dst=ip_network(dst), nexthops=(NextHop(dev=device.name),)) for dst in ("0.0.0.0/0", "::/0")
    ]
    return replace(state, interfaces=interfaces, routes=(*local, *every))
