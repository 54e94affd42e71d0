"""API objects, and where need be a node's routes, with one thing changed: what counterfactuals and what-if ask about.

Every function returns a new value and leaves its argument as it is. The rules that kube-proxy makes of the change are
`ktp.kubeproxy.synthesis.reprogram`'s business.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import cast

from ktp.kubeproxy.frontends import ip_versions_of
from ktp.kubeproxy.node import IPNetwork
from ktp.model.cluster import (
    Cluster,
    Condition,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Pod,
    Service,
    ServicePort,
    ip_of,
    networks_of,
)
from ktp.model.host import Interface, IPAddress, NextHop, NodeState, Route
from ktp.model.snapshot import Snapshot

_ADDRESS_TYPE = {4: "IPv4", 6: "IPv6"}
_SUPPOSED_DEVICE = "ktp-supposed"
_READY = (Condition(type="Ready", status="True"), Condition(type="ContainersReady", status="True"))


# ----------------------------------------------------------------------------------------------------- Services


def with_service(cluster: Cluster, service: Service) -> Cluster:
    """`service` in place of the one of its name, or added."""
    return replace(cluster, services={**cluster.services, service.key: service})


def with_policy(cluster: Cluster, service_key: str, policy: str) -> Cluster:
    """The Service with `externalTrafficPolicy: policy` ("Cluster" or "Local").

    The API server frees the healthCheckNodePort with Cluster and allocates one with Local; which, nobody knows yet.
    """
    service = cluster.services[service_key]
    keeps = policy == "Local" and service.type == "LoadBalancer"
    check = service.health_check_node_port if keeps else 0
    return with_service(
        cluster, replace(service, external_traffic_policy=policy, health_check_node_port=check)
    )


def with_target_port(cluster: Cluster, service_key: str, port: ServicePort, number: int) -> Cluster:
    """The Service port with another targetPort, and its endpoints as the endpoints controller would then list them."""
    service = cluster.services[service_key]
    mine = (port.name, port.protocol.upper())
    ports = tuple(
        replace(p, target_port=number) if (p.name, p.protocol.upper()) == mine else p for p in service.ports
    )

    def renumbered(one: EndpointSlice) -> EndpointSlice:
        if (one.namespace, one.service_name) != (service.namespace, service.name):
            return one
        listed = tuple(
            replace(p, port=number) if (p.name, p.protocol.upper()) == mine else p for p in one.ports
        )
        return replace(one, ports=listed)

    return _map_slices(with_service(cluster, replace(service, ports=ports)), renumbered)


# ----------------------------------------------------------------------------------------------------- endpoints


def _map_slices(cluster: Cluster, change: Callable[[EndpointSlice], EndpointSlice | None]) -> Cluster:
    def mapped(slices: tuple[EndpointSlice, ...] | None) -> tuple[EndpointSlice, ...] | None:
        if slices is None:
            return None
        return tuple(new for new in map(change, slices) if new is not None)

    return replace(cluster, slices=mapped(cluster.slices), endpoints=mapped(cluster.endpoints))


def _map_endpoints(cluster: Cluster, change: Callable[[EndpointSlice, Endpoint], Endpoint | None]) -> Cluster:
    """Every endpoint changed, or left out where `change` gives None."""

    def change_slice(one: EndpointSlice) -> EndpointSlice:
        kept = tuple(new for e in one.endpoints if (new := change(one, e)) is not None)
        return one if kept == one.endpoints else replace(one, endpoints=kept)

    return _map_slices(cluster, change_slice)


def without_pod(cluster: Cluster, pod_key: str) -> Cluster:
    """The cluster without a Pod ("namespace/name") and without the endpoints that are that Pod."""
    return without_pods(cluster, {pod_key})


def without_pods(cluster: Cluster, pod_keys: Iterable[str]) -> Cluster:
    """The cluster without these Pods and their endpoints."""
    keys = frozenset(pod_keys)
    gone = [pod for pod in cluster.pods or () if pod.key in keys]
    addresses = {address for pod in gone if not pod.host_network for address in pod.pod_ips}

    def keep(one: EndpointSlice, endpoint: Endpoint) -> Endpoint | None:
        if endpoint.target_kind == "Pod" and endpoint.target_name:
            key = f"{endpoint.target_namespace or one.namespace}/{endpoint.target_name}"
            return None if key in keys else endpoint
        return None if any(a in addresses for a in endpoint.addresses) else endpoint

    cluster = _map_endpoints(cluster, keep)
    if cluster.pods is not None:
        cluster = replace(cluster, pods=tuple(pod for pod in cluster.pods if pod.key not in keys))
    return cluster


# ----------------------------------------------------------------------------------------------------- new pods


def with_ready_pod_on(
    snapshot: Snapshot, service_key: str, node: str, *, name: str | None = None, ip: str | None = None
) -> Snapshot:
    """The snapshot with one more ready Pod of the Service on `node`, and a way to it.

    The Pod has a free address of the node's podCIDR in each family of the Service (or `ip`), listens on the ports
    that the Service's other endpoints have, and is reached as the node's other pods are: through the network that a
    bridge holds, or by a route of its own. ValueError where no address can be had.
    """
    cluster = snapshot.cluster
    service = cluster.services[service_key]
    taken = _taken(snapshot)
    addresses: list[IPAddress] = []
    for version in ip_versions_of(service):
        wanted = ip_of(ip) if ip is not None else None
        if wanted is not None and wanted.version == version:
            addresses.append(wanted)
            continue
        network = _pod_network(snapshot, node, version)
        free = (
            next((a for a in _candidates(network) if str(a) not in taken), None)
            if network is not None
            else None
        )
        if free is None:
            raise ValueError(f"no free IPv{version} address of {node}'s podCIDR is known for one more Pod")
        addresses.append(free)
    pod = Pod(
        namespace=service.namespace,
        name=name or _free_name(cluster, service),
        node_name=node,
        phase="Running",
        pod_ips=tuple(map(str, addresses)),
        labels=dict(service.selector),
        conditions=_READY,
    )
    changed = _with_pod(cluster, service, pod)
    nodes = dict(snapshot.nodes)
    if node in nodes:
        for address in addresses:
            nodes[node] = _with_way_to(nodes[node], cluster, address)
    nodes = with_pods_of_cilium(nodes, dict.fromkeys(addresses, node))
    twin = _namespace_of_one(snapshot, service_key)
    if node in nodes and twin is not None:
        nodes[node] = with_namespace(nodes[node], replace(twin, name=pod.key))
    return replace(snapshot, cluster=changed, nodes=nodes)


def with_namespace(state: NodeState, pod: NodeState) -> NodeState:
    """The node with the network namespace of a pod (`pod.name`); the others' are not read for it."""
    others = cast("MutableMapping[str, NodeState]", state.pods)
    return replace(state, pods=ChainMap({pod.name: pod}, others))


def _namespace_of_one(snapshot: Snapshot, service_key: str) -> NodeState | None:
    """What one more pod of the Service has in its network namespace: as one of the others, which runs the same program.

    None where none of theirs was read. Its addresses and routes are its own.
    """
    for key in endpoints_by_pod(snapshot.cluster, service_key):
        for state in snapshot.nodes.values():
            found = state.pods.get(key)
            if found is None:
                continue
            own = {a.ip for i in found.interfaces or () if not i.is_loopback for a in i.addresses}
            sockets = found.sockets
            if sockets is not None:
                sockets = tuple(
                    replace(s, ip=None, family=s.ip.version) if s.ip is not None and s.ip in own else s
                    for s in sockets
                )
            return replace(found, interfaces=None, routes=None, rules4=None, rules6=None, sockets=sockets)
    return None


def with_pods_of_cilium(nodes: dict[str, NodeState], pods: Mapping[IPAddress, str]) -> dict[str, NodeState]:
    """The nodes whose Cilium knows pods (address → node) that it was not read with."""
    changed = dict(nodes)
    for name, state in nodes.items():
        cilium = state.cilium
        if cilium is None or not cilium.is_readable:
            continue
        for ip, home in pods.items():
            cilium = cilium.with_pod(ip, here=home == name)
        changed[name] = replace(state, cilium=cilium)
    return changed


def _with_pod(cluster: Cluster, service: Service, pod: Pod) -> Cluster:
    """A new Pod and, in slices and Endpoints as far as they were read, its endpoints."""
    if cluster.pods is not None:
        cluster = replace(cluster, pods=(*cluster.pods, pod))
    addresses = [ip for ip in map(ip_of, pod.pod_ips) if ip is not None]
    slices, endpoints = cluster.slices, cluster.endpoints
    if slices is not None:
        for address in addresses:
            slices = _with_endpoint(slices, cluster, service, pod, address, "EndpointSlice")
    if endpoints is not None:
        for address in addresses[:1]:  # Endpoints objects hold the Service's first family alone
            endpoints = _with_endpoint(endpoints, cluster, service, pod, address, "Endpoints")
    return replace(cluster, slices=slices, endpoints=endpoints)


def _with_endpoint(
    slices: tuple[EndpointSlice, ...],
    cluster: Cluster,
    service: Service,
    pod: Pod,
    address: IPAddress,
    origin: str,
) -> tuple[EndpointSlice, ...]:
    kind = _ADDRESS_TYPE[address.version]
    theirs = [
        s
        for s in slices
        if (s.namespace, s.service_name) == (service.namespace, service.name) and s.address_type == kind
    ]
    siblings = [e for s in theirs for e in s.endpoints]
    node = (cluster.nodes or {}).get(pod.node_name or "")
    zone = node.zone if node is not None else None
    endpoint = Endpoint(
        addresses=(str(address),),
        ready=True,
        serving=True,
        terminating=False,
        node_name=pod.node_name,
        zone=zone,
        # The controller gives hints to all endpoints or to none; one without would turn them off for all.
        hints_for_zones=(zone,) if zone and siblings and all(e.hints_for_zones for e in siblings) else (),
        hints_for_nodes=(pod.node_name,)
        if pod.node_name and siblings and all(e.hints_for_nodes for e in siblings)
        else (),
        target_kind="Pod",
        target_namespace=pod.namespace,
        target_name=pod.name,
    )
    model = next((s for s in theirs if s.endpoints and s.ports), None)
    new = EndpointSlice(
        namespace=service.namespace,
        name=f"{service.name}-supposed-{pod.name}-{kind.lower()}",
        service_name=service.name,
        address_type=kind,
        ports=model.ports if model is not None else _slice_ports(cluster, service),
        endpoints=(endpoint,),
        labels={"kubernetes.io/service-name": service.name},
        origin=origin,
    )
    return (*slices, new)


def _slice_ports(cluster: Cluster, service: Service) -> tuple[EndpointPort, ...]:
    """The ports that the endpoints controller would list: a name is looked up in the Pods that the Service selects."""

    def number(target: int | str | None, port: int, protocol: str) -> int:
        if isinstance(target, int) and target:
            return target
        if isinstance(target, str) and target.isdecimal():
            return int(target)
        for pod in cluster.pods or ():
            if pod.namespace == service.namespace and _selects(service.selector, pod.labels):
                for p in pod.ports:
                    if p.name == target and p.protocol == protocol:
                        return p.container_port
        return port

    return tuple(
        EndpointPort(name=p.name, protocol=p.protocol, port=number(p.target_port, p.port, p.protocol))
        for p in service.ports
    )


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and all(labels.get(k) == v for k, v in selector.items())


def _free_name(cluster: Cluster, service: Service) -> str:
    names = {pod.name for pod in cluster.pods or () if pod.namespace == service.namespace}
    names |= {e.target_name for s in cluster.slices or () for e in s.endpoints if e.target_name}
    number = 0
    while f"{service.name}-supposed-{number}" in names:
        number += 1
    return f"{service.name}-supposed-{number}"


def _taken(snapshot: Snapshot) -> frozenset[str]:
    """Every address that somebody is known to have, as `str` spells it."""
    cluster = snapshot.cluster
    found = {ip for pod in cluster.pods or () for ip in pod.pod_ips}
    found.update(
        a
        for s in (*(cluster.slices or ()), *(cluster.endpoints or ()))
        for e in s.endpoints
        for a in e.addresses
    )
    # IPv4 has one spelling; to read a hundred thousand of them takes a second.
    found |= {str(ip) for text in found if ":" in text and (ip := ip_of(text)) is not None}
    for state in snapshot.nodes.values():
        found.update(str(a.ip) for i in state.interfaces or () for a in i.addresses)
        for route in state.routes or ():
            if route.dst.prefixlen == route.dst.max_prefixlen:
                found.add(str(route.dst.network_address))
    return frozenset(found)


def _pod_network(snapshot: Snapshot, name: str, version: int) -> IPNetwork | None:
    """The node's podCIDR, or else the /24 (/112) around the address of one of its pods."""
    node = (snapshot.cluster.nodes or {}).get(name)
    for network in networks_of(node.pod_cidrs, version) if node is not None else ():
        return network
    for pod in snapshot.cluster.pods or ():
        if pod.node_name != name or pod.host_network:
            continue
        for ip in map(ip_of, pod.pod_ips):
            if ip is not None and ip.version == version:
                return ip_network(f"{ip}/{24 if version == 4 else 112}", strict=False)
    return None


def _candidates(network: IPNetwork) -> Iterator[IPAddress]:
    """Addresses of a network, from its upper end: CNIs hand out low ones first."""
    size = min(network.num_addresses, 1 << 16)
    for offset in range(size - 2, 1, -1):
        yield network[offset]


# ----------------------------------------------------------------------------------------------------- routes


def _with_way_to(state: NodeState, cluster: Cluster, address: IPAddress) -> NodeState:
    """The node with a route to a new pod of its own, unless a network of its own holds the address (a bridge)."""
    if state.routes is None or (state.cilium is not None and state.cilium.is_readable):
        return state
    pods = [
        ip
        for pod in cluster.pods or ()
        if pod.node_name == state.name and not pod.host_network
        for ip in map(ip_of, pod.pod_ips)
        if ip is not None and ip.version == address.version
    ]
    if any(_is_direct(route) and address in route.dst for route in state.routes):
        return state
    host = ip_network(f"{address}/{address.max_prefixlen}")
    model = next(
        (
            r
            for ip in pods
            for r in state.routes
            if r.type == "unicast" and r.table == "main" and r.dst == ip_network(f"{ip}/{ip.max_prefixlen}")
        ),
        None,
    )
    if model is not None:
        return replace(state, routes=(*state.routes, replace(model, dst=host)))
    route = Route(dst=host, nexthops=(NextHop(dev=_SUPPOSED_DEVICE),), scope="link")
    return replace(_with_device(state), routes=(*state.routes, route))


def _is_direct(route: Route) -> bool:
    """Whether the route leads to a network that the node is on, as a bridge for pods is."""
    return (
        route.type == "unicast"
        and route.table == "main"
        and route.dst.prefixlen > 0
        and bool(route.nexthops)
        and all(hop.gateway is None and hop.dev for hop in route.nexthops)
    )


def _with_device(state: NodeState) -> NodeState:
    """A device for a pod on a node that has none: its sysctls are the node's defaults."""
    if state.interfaces is None or any(i.name == _SUPPOSED_DEVICE for i in state.interfaces):
        return state
    index = max((i.index for i in state.interfaces), default=0) + 1
    device = Interface(
        name=_SUPPOSED_DEVICE, index=index, flags=frozenset({"BROADCAST", "UP", "LOWER_UP"}), kind="veth"
    )
    sysctls = state.sysctls
    if sysctls is not None:
        copies = {
            key.replace(".conf.default.", f".conf.{_SUPPOSED_DEVICE}."): value
            for key, value in sysctls.items()
            if ".conf.default." in key
        }
        sysctls = {**sysctls, **copies}
    return replace(state, interfaces=(*state.interfaces, device), sysctls=sysctls)


# ------------------------------------------------------------------------------------------------ scaling, nodes


def endpoints_by_pod(cluster: Cluster, service_key: str) -> Mapping[str, Endpoint]:
    """The endpoints of a Service that are Pods, by "namespace/name" of the Pod."""
    namespace, _, name = service_key.partition("/")
    slices = cluster.slices if cluster.slices is not None else cluster.endpoints
    found: dict[str, Endpoint] = {}
    for one in slices or ():
        if (one.namespace, one.service_name) != (namespace, name):
            continue
        for endpoint in one.endpoints:
            if endpoint.target_kind == "Pod" and endpoint.target_name:
                found.setdefault(f"{endpoint.target_namespace or namespace}/{endpoint.target_name}", endpoint)
    return found


def with_scaled(snapshot: Snapshot, service_key: str, count: int, *, nodes: Sequence[str] = ()) -> Snapshot:
    """The snapshot with `count` Pods behind the Service.

    Down: first those that are not ready, then those of the nodes with the most, as the ReplicaSet controller chooses.
    Up: on `nodes` in turn, or else on the schedulable node that has the fewest; where the scheduler would put them
    is not known, so an answer holds for that placement alone.
    """
    existing = dict(endpoints_by_pod(snapshot.cluster, service_key))
    per_node: dict[str, int] = {}
    for endpoint in existing.values():
        per_node[endpoint.node_name or ""] = per_node.get(endpoint.node_name or "", 0) + 1
    gone: list[str] = []
    while len(existing) > count:
        worst = max(
            existing, key=lambda k: (not existing[k].is_ready, per_node[existing[k].node_name or ""], k)
        )
        per_node[existing.pop(worst).node_name or ""] -= 1
        gone.append(worst)
    if gone:
        return replace(snapshot, cluster=without_pods(snapshot.cluster, gone))
    hosts = list(nodes) or schedulable_nodes(snapshot.cluster)
    if not hosts and count > len(existing):
        raise ValueError("no node is known that takes new Pods")
    for i in range(count - len(existing)):
        host = hosts[i % len(hosts)] if nodes else min(hosts, key=lambda n: per_node.get(n, 0))
        per_node[host] = per_node.get(host, 0) + 1
        snapshot = with_ready_pod_on(snapshot, service_key, host)
    return snapshot


def schedulable_nodes(cluster: Cluster) -> list[str]:
    """The nodes that take new Pods: ready, not cordoned, no taint that keeps Pods away."""
    return [
        node.name
        for node in (cluster.nodes or {}).values()
        if not node.unschedulable
        and (node.is_ready or not node.conditions)
        and not any(t.effect in {"NoSchedule", "NoExecute"} for t in node.taints)
    ]


def cordoned(cluster: Cluster, node: str) -> Cluster:
    """The cluster with a node that takes no new Pods. kube-proxy's rules do not depend on it (all versions)."""
    if cluster.nodes is None or node not in cluster.nodes:
        return cluster
    return replace(cluster, nodes={**cluster.nodes, node: replace(cluster.nodes[node], unschedulable=True)})


def drained(cluster: Cluster, node: str) -> Cluster:
    """The cluster after `kubectl drain NODE --ignore-daemonsets`, before evicted Pods run elsewhere.

    Pods of DaemonSets and static Pods (owned by the Node) stay.
    """
    evicted = [
        pod.key
        for pod in cluster.pods or ()
        if pod.node_name == node and pod.owner_kind not in {"DaemonSet", "Node"}
    ]
    if cluster.pods is None:
        return cordoned(_without_endpoints_on(cluster, node), node)
    return cordoned(without_pods(cluster, evicted), node)


def _without_endpoints_on(cluster: Cluster, node: str) -> Cluster:
    """Without Pods that were read, every endpoint that is a Pod on the node goes."""
    return _map_endpoints(cluster, lambda _, e: None if e.node_name == node and e.target_kind == "Pod" else e)
