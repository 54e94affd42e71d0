"""Whose an address and a port are: a Service's, a node's, a pod's, a health check's, a process's.

Everything is a question to the snapshot; names are resolved by whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ktp.diagnose.questions import FAR_CLIENTS
from ktp.model.cluster import Cluster, Node, Pod, Service, ServicePort, ip_of
from ktp.model.host import IPAddress
from ktp.model.ipvs import IPVS_INTERFACE
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow

_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """One thing that may be meant. `words` say what it is; a Service is then diagnosed on `nodes` (all where empty).

    `flow` is a packet from outside to it, where it is no Service's.
    """

    words: str
    service: str | None = None
    nodes: tuple[str, ...] = ()
    flow: Flow | None = None


def node_of_address(snapshot: Snapshot, ip: IPAddress) -> str | None:
    """The node that has the address, by the API or by its own interfaces."""
    for node in (snapshot.cluster.nodes or {}).values():
        if any(ip_of(address) == ip for _, address in node.addresses):
            return node.name
    for name, state in snapshot.nodes.items():
        for interface in state.interfaces or ():
            if not interface.is_loopback and interface.name != IPVS_INTERFACE:
                if any(a.ip == ip for a in interface.addresses):
                    return name
    return None


def services_named(cluster: Cluster, name: str, namespace: str | None) -> list[Service]:
    """The Services of that name, in that namespace or in any."""
    return [s for s in cluster.services.values() if s.name == name and namespace in (None, s.namespace)]


def at_address(snapshot: Snapshot, ip: IPAddress, port: int | None, protocol: str | None) -> list[Dialled]:
    """What `ip` is, and what is behind `port` of it; empty where nothing of the cluster has the address."""
    owner = node_of_address(snapshot, ip)
    if owner is not None:
        return at_node(snapshot, owner, ip, port, protocol)
    found = list(_at_service(snapshot.cluster, ip, port, protocol))
    return found or list(_at_pod(snapshot.cluster, ip, port, protocol))


def at_node(
    snapshot: Snapshot, node: str, ip: IPAddress | None, port: int | None, protocol: str | None
) -> list[Dialled]:
    """What answers on a node's own address."""
    where = f"{ip} is {node}" if ip is not None else f"{node} is a node"
    note = local_cluster_words((snapshot.cluster.nodes or {}).get(node))
    where += f" ({note})" if note else ""
    if port is None:
        return [Dialled(words=f"{where}; say which port: {node}:PORT", nodes=(node,))]
    found = [
        Dialled(words=f"{where}, and {port} is {words}", service=service, nodes=(node,))
        for words, service in at_node_port(snapshot.cluster, port, protocol)
    ]
    if found:
        return found
    flow = _from_outside(snapshot, node, ip, port, protocol)
    others = list(_of_node(snapshot, node, port, protocol))
    others = others or list(_socket_of_node(snapshot, node, port, protocol))
    if others:
        return [
            Dialled(words=f"{where}, and {port} is {words}", nodes=(node,), flow=flow) for words in others
        ]
    return [
        Dialled(
            words=f"{where}, and {port} is no node port{near_ports(snapshot.cluster, port)}",
            nodes=(node,),
            flow=flow,
        )
    ]


def at_node_port(cluster: Cluster, port: int, protocol: str | None) -> list[tuple[str, str]]:
    """(what it is, the Service) of each node port of that number; else of Services that have it as their own port."""
    found = [
        (f"the node port of {s.key}{_named(p)}", s.key)
        for s, p in _ports(cluster, protocol)
        if p.node_port == port
    ]
    if found:
        return found
    return [
        (f"the Service's own port of {s.key}; its node port is {p.node_port}", s.key)
        for s, p in _ports(cluster, protocol)
        if p.port == port and p.node_port
    ][:_NEAR]


def _ports(cluster: Cluster, protocol: str | None) -> Iterator[tuple[Service, ServicePort]]:
    for service in cluster.services.values():
        for port in service.ports:
            if protocol in (None, port.protocol.lower()):
                yield service, port


def _named(port: ServicePort) -> str:
    return f", port {port.port}/{port.protocol}" + (f" ({port.name})" if port.name else "")


def _of_node(snapshot: Snapshot, node: str, port: int, protocol: str | None) -> Iterator[str]:
    """What of a node itself answers on a port that is no Service's."""
    for service in snapshot.cluster.services.values():
        if service.health_check_node_port == port and protocol in (None, "tcp"):
            yield f"the health check of {service.key} (healthCheckNodePort), which answers load balancers"
    for pod in snapshot.cluster.pods or ():
        if pod.node_name != node or pod.phase in ("Succeeded", "Failed"):
            continue
        for each in pod.ports:
            if protocol not in (None, each.protocol.lower()):
                continue
            if each.host_port == port:
                yield f"a host port of pod {pod.key}"
            elif pod.host_network and each.container_port == port:
                yield f"a port of pod {pod.key}, which has the host's network"


def _socket_of_node(snapshot: Snapshot, node: str, port: int, protocol: str | None) -> Iterator[str]:
    state = snapshot.nodes.get(node)
    for socket in (state.sockets or ()) if state is not None else ():
        if socket.port == port and protocol in (None, socket.protocol):
            yield f"a socket of the node itself ({socket.protocol}), of no pod or Service that is known"
            return


def _at_service(cluster: Cluster, ip: IPAddress, port: int | None, protocol: str | None) -> Iterator[Dialled]:
    for service in cluster.services.values():
        kinds = {
            "the load-balancer IP": [i.ip for i in service.ingress],
            "an external IP": service.external_ips,
            "the cluster IP": service.cluster_ips,
        }
        for kind, addresses in kinds.items():
            if not any(text and ip_of(text) == ip for text in addresses):
                continue
            words = f"{ip} is {kind} of {service.key}"
            if kind == "the cluster IP":
                words += ", which answers inside the cluster only"
            mine = [p for p in service.ports if protocol in (None, p.protocol.lower())]
            if port is not None and not any(p.port == port for p in mine):
                node_port = next((p for p in mine if p.node_port == port), None)
                has = ", ".join(f"{p.port}/{p.protocol}" for p in service.ports)
                words += (
                    f"; {port} is its node port, which nodes have: here it is {node_port.port}"
                    if node_port is not None
                    else f"; it has no port {port}, but {has}"
                )
            yield Dialled(words=words, service=service.key)


def _at_pod(cluster: Cluster, ip: IPAddress, port: int | None, protocol: str | None) -> Iterator[Dialled]:
    pod = next(
        (p for p in cluster.pods or () if not p.host_network and any(ip_of(t) == ip for t in p.pod_ips)), None
    )
    services = sorted(
        {
            f"{s.namespace}/{s.service_name}"
            for s in (*(cluster.slices or ()), *(cluster.endpoints or ()))
            if any(ip_of(a) == ip for e in s.endpoints for a in e.addresses)
        }
    )
    if pod is None and not services:
        return
    name = f"pod {pod.key} on {pod.node_name}" if pod is not None else "an endpoint"
    words = f"{ip} is {name}"
    if port is not None and pod is not None and not _declares(pod, port, protocol):
        declared = ", ".join(f"{p.container_port}/{p.protocol}" for p in pod.ports)
        words += f"; its containers declare no port {port}" + (f", but {declared}" if declared else "")
    for key in (*services,) or (None,):
        served_by = f"; it serves {key}" if key is not None else "; no Service sends to it"
        yield Dialled(words=words + served_by, service=key)


def _declares(pod: Pod, port: int, protocol: str | None) -> bool:
    return any(p.container_port == port and protocol in (None, p.protocol.lower()) for p in pod.ports)


def near_ports(cluster: Cluster, port: int) -> str:
    """ "; near it there are …": the same number of another protocol, digits swapped or mistyped, the next ones."""
    known = sorted(
        {
            (p.node_port, f"{p.node_port}/{p.protocol} ({s.key})")
            for s, p in _ports(cluster, None)
            if p.node_port
        },
        key=lambda item: (item[0] != port, not _is_alike(item[0], port), abs(item[0] - port)),
    )
    return f"; near it there are {', '.join(words for _, words in known[:_NEAR])}" if known else ""


def _is_alike(number: int, other: int) -> bool:
    a, b = str(number), str(other)
    return sorted(a) == sorted(b) or (
        len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    )


def _from_outside(
    snapshot: Snapshot, node: str, ip: IPAddress | None, port: int, protocol: str | None
) -> Flow | None:
    if ip is None:
        found = (snapshot.cluster.nodes or {}).get(node)
        ip = (
            next((a for k, t in found.addresses if k == "InternalIP" and (a := ip_of(t))), None)
            if found
            else None
        )
    if ip is None:
        return None
    return Flow(
        dst=str(ip), port=port, protocol=protocol or "tcp", src=str(FAR_CLIENTS[ip.version]), via=node
    )


# ------------------------------------------------------------------------------------------- clusters on one machine

_INSIDE_DOCKER = (
    "is inside Docker's network: on macOS and Windows no node address is reached from the machine itself"
)
_LOCAL: tuple[tuple[str, Callable[[Node], bool], str], ...] = (
    ("kind", lambda node: (node.provider_id or "").startswith("kind://"),
     f"a node of kind {_INSIDE_DOCKER}; map the port with extraPortMappings, or use kubectl port-forward"),
    ("k3d", lambda node: "k3d.io/cluster" in node.labels or node.name.startswith("k3d-"),
     f"a node of k3d {_INSIDE_DOCKER}; map the port with `k3d node edit --port-add`, or use kubectl port-forward"),
    ("minikube", lambda node: "minikube.k8s.io/name" in node.labels,
     "a node of minikube is inside its driver's network: `minikube service NAME --url` gives an address that works"),
    ("Docker Desktop", lambda node: node.name == "docker-desktop",
     "Docker Desktop's node address is inside its virtual machine: dial localhost:NODE-PORT"),
)  # fmt: skip


def local_cluster_words(node: Node | None) -> str:
    """What keeps a node's addresses from being reached by design: clusters on somebody's own machine; "" for others."""
    if node is None:
        return ""
    return next((words for _, is_it, words in _LOCAL if is_it(node)), "")
