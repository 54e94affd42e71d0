"""A node has no working route to the pods of another node.

# What it means
The node's routing table sends packets for another node's pod network somewhere else (mostly out by the default route)
or nowhere. Writing these routes is the network plugin's work.

# Why traffic fails
The node translates the connection to a pod's address as it should, and then the packet leaves by the wrong way. Or the
pod's answer does. Endpoints on the node itself are reached all the same, so that a port often fails on some tries only.

# Evidence
The route that the packet takes, and the route that other nodes have to the same pods.

# Confirm by hand
    ip route get POD-IP                # on the node: names the way that the packet takes
    ip route show table all | grep POD-NETWORK

# Fix
Restart the network plugin's agent on the node and read its log: it writes the route from the Node objects
(spec.podCIDR), or from its own.

# Example
A node came back from a network restart, which flushed the routes of flannel's host-gw back end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

from ktp.diagnose.case import Case, Entry, Mended, decided_evidence
from ktp.diagnose.changes import with_state
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.passing_common import growing
from ktp.diagnose.checks.rule_common import merged
from ktp.model.cluster import Cluster
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import IPAddress, NextHop, NodeState, Route
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Path, StepKind


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which routes to the pods that packets were on their way to mend a failing cell."""
    lost: dict[str, dict[IPAddress, str]] = {}
    concerned: dict[str, list[Entry]] = {}
    for entry in case.failing():
        for path in entry.paths:
            found = _lost_on_the_way(case.snapshot, path)
            if found is not None:
                node, pod, owner = found
                lost.setdefault(node, {})[pod] = owner
                concerned.setdefault(node, []).append(entry)
    for node, pods in lost.items():
        entries = list(dict.fromkeys(concerned[node]))
        mended = case.mended(
            entries, f"routes to pods on {node}", partial(_routed, case.snapshot, node, pods)
        )
        if mended:
            yield _finding(case, node, pods, mended, entries)


def _finding(
    case: Case, node: str, pods: Mapping[IPAddress, str], mended: Mended, entries: list[Entry]
) -> Finding:
    first = mended[0]
    owners = listed(dict.fromkeys(pods.values()))
    return CHECK.finding(
        f"{node} has no working route to the pods of {owners}: packets for {listed(map(str, pods))} are lost",
        node=node,
        evidence=[
            *decided_evidence(first.cell),
            *growing(case.state(node), "IpExt.InNoRoutes"),
            *_routes_of_others(case.snapshot, node, next(iter(pods))),
            *mending("with a route to them", mended, "connects more often"),
        ],
        fix=Fix(
            f"restart the network plugin's agent on {node}, which writes the routes to other nodes' pods",
            cures=mended.cures(),
        ),
        cells=merged(mended, entries),
    )


def _lost_on_the_way(snapshot: Snapshot, path: Path) -> tuple[str, IPAddress, str] | None:
    """(node, pod, the pod's node) where a route of `node` led a packet for a pod of another node astray."""
    decided = path.decided_by
    if (
        path.disposition is not Disposition.LOST
        or decided is None
        or decided.kind is not StepKind.ROUTE
        or not path.hops
    ):
        return None
    hop = path.hops[-1]
    address = ip_address(hop.left.dst)
    owner = _node_of_pod(snapshot.cluster, address)
    state = snapshot.nodes.get(hop.node)
    if (
        owner is None
        or owner == hop.node
        or state is None
        or _way_to(snapshot, state, owner, address) is None
    ):
        return None
    return hop.node, address, owner


def _node_of_pod(cluster: Cluster, address: IPAddress) -> str | None:
    for pod in cluster.pods or ():
        if str(address) in pod.pod_ips and not pod.host_network:
            return pod.node_name
    for node in (cluster.nodes or {}).values():
        if any(address in ip_network(cidr, strict=False) for cidr in node.pod_cidrs):
            return node.name
    return None


def _way_to(snapshot: Snapshot, state: NodeState, owner: str, pod: IPAddress) -> NextHop | None:
    """The other node as a gateway, where it is a neighbour."""
    node = (snapshot.cluster.nodes or {}).get(owner)
    for text in node.addresses_of("InternalIP") if node is not None else ():
        gateway = ip_address(text)
        for interface in state.interfaces or ():
            if gateway.version == pod.version and any(
                gateway in ip_network(f"{a.ip}/{a.prefixlen}", strict=False) for a in interface.addresses
            ):
                return NextHop(dev=interface.name, gateway=gateway)
    return None


def _routed(snapshot: Snapshot, node: str, pods: Mapping[IPAddress, str]) -> Snapshot:
    """The node with a route of its own to each of the pods."""
    state = snapshot.nodes[node]
    ways = {pod: _way_to(snapshot, state, owner, pod) for pod, owner in pods.items()}
    added = tuple(Route(dst=ip_network(pod), nexthops=(way,)) for pod, way in ways.items() if way is not None)
    # Ahead of another route to the very same address (a blackhole, say), as with a lower metric.
    others = tuple(r for r in state.routes or () if r.dst not in {route.dst for route in added})
    return with_state(snapshot, replace(state, routes=(*added, *others)))


def _routes_of_others(snapshot: Snapshot, node: str, pod: IPAddress) -> Iterable[Evidence]:
    """How another node gets there, of which routes are known."""
    for other in snapshot.nodes.values():
        fitting = [
            route
            for route in other.routes or ()
            if other.name != node and pod in route.dst and route.dst.prefixlen > 0 and route.type == "unicast"
        ]
        best = max(fitting, key=lambda route: route.dst.prefixlen, default=None)
        if best is not None and best.nexthops and best.nexthops[0].gateway is not None:
            hop = best.nexthops[0]
            yield Evidence("route", other.name, f"{best.dst} via {hop.gateway} dev {hop.dev}")
            return


CHECK = Check("KTP209", "PodRouteMissing", Severity.ERROR, run)
