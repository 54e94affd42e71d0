"""Who is where, as the dataplane needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ktp.model.host import IPNetwork, NodeState
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A host behind a node that is no node itself (a pod), or a process of the node that is known by its port.

    `host_network` True: it shares the node's addresses and `port` tells it apart.
    """

    name: str
    node: str | None
    host_network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Who is where, as the dataplane needs it. Addresses are (family, number).

    `attached` maps addresses of pods and of other known endpoints; `processes` (node, protocol number, port) of
    known host-network endpoints to their names; `silent` the sockets that take a connection and never answer
    (kube-proxy up to 1.23 holds node ports so); `node_addresses` addresses of nodes, also of those without state;
    `pod_networks` each node's podCIDRs. `pods_known`, `endpoints_known` and `nodes_known` tell whether who has a
    pod's address, all endpoints and all nodes were read; `unread` names the nodes whose own addresses were not.
    """

    nodes: Mapping[str, NodeState]
    attached: Mapping[tuple[int, int], Attached] = field(default_factory=dict)
    processes: Mapping[tuple[str, int, int], str] = field(default_factory=dict)
    silent: frozenset[tuple[str, int, int]] = frozenset()
    node_addresses: Mapping[tuple[int, int], str] = field(default_factory=dict)
    assumed_local: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    pod_networks: tuple[tuple[IPNetwork, str], ...] = ()
    pods_known: bool = True
    endpoints_known: bool = True
    nodes_known: bool = True
    unread: frozenset[str] = frozenset()
