"""Kubernetes objects, as far as they decide where a Service's traffic goes. Field names follow the API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from enum import Enum
from functools import lru_cache

from ktp.model.announcing import Announcing
from ktp.model.host import IPAddress, IPNetwork
from ktp.model.policy import NetworkPolicy
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """A port of a Service. `name` is "" where the API has none; `target_port` keeps int or name."""

    name: str = ""
    protocol: str = "TCP"
    port: int
    target_port: int | str | None = None
    node_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerIngress:
    """One entry of status.loadBalancer.ingress."""

    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None  # "VIP" or "Proxy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of a Pod, Node or Service."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A v1 Service."""

    namespace: str
    name: str
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()  # "None" where headless
    external_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    external_traffic_policy: str = "Cluster"
    internal_traffic_policy: str = "Cluster"
    session_affinity: str = "None"
    session_affinity_timeout: int = 10800
    health_check_node_port: int = 0
    load_balancer_source_ranges: tuple[str, ...] = ()
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = None
    allocate_load_balancer_node_ports: bool = True
    publish_not_ready_addresses: bool = False
    ingress: tuple[LoadBalancerIngress, ...] = ()
    ip_families: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPort:
    """A port of an EndpointSlice (or of an Endpoints subset)."""

    name: str = ""
    protocol: str = "TCP"
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of a slice. Conditions keep the API's three values: None is "not said".

    Defaults of the API: ready nil = true, serving nil = ready, terminating nil = false.
    """

    addresses: tuple[str, ...]
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    node_name: str | None = None
    zone: str | None = None
    hints_for_zones: tuple[str, ...] = ()
    hints_for_nodes: tuple[str, ...] = ()
    target_kind: str | None = None
    target_namespace: str | None = None
    target_name: str | None = None
    hostname: str | None = None

    @property
    def is_ready(self) -> bool:
        """`ready`, nil taken as true (EndpointSlice API)."""
        return self.ready is not False

    @property
    def is_serving(self) -> bool:
        """`serving`, nil taken as `ready`."""
        return self.is_ready if self.serving is None else self.serving

    @property
    def is_terminating(self) -> bool:
        """`terminating`, nil taken as false."""
        return bool(self.terminating)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """A discovery.k8s.io EndpointSlice, or one subset of an Endpoints object in the same shape.

    `origin` is "EndpointSlice" or "Endpoints".
    """

    namespace: str
    name: str
    service_name: str
    address_type: str = "IPv4"
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: str = "EndpointSlice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    """A port that a container declares."""

    container: str
    name: str = ""
    protocol: str = "TCP"
    container_port: int
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """State of a container: whether ready, and why not where the kubelet says so."""

    name: str
    ready: bool
    started: bool | None = None
    state: str = ""  # running waiting terminated
    reason: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A v1 Pod."""

    namespace: str
    name: str
    node_name: str | None = None
    host_network: bool = False
    phase: str = ""
    pod_ips: tuple[str, ...] = ()
    host_ip: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[ContainerPort, ...] = ()
    containers: tuple[ContainerStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    readiness_probes: tuple[tuple[str, str], ...] = ()  # (container, probe in words)
    deletion_timestamp: str | None = None
    owner_kind: str | None = None
    owner_name: str | None = None
    images: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_ready(self) -> bool:
        """Condition Ready is True."""
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    """A taint of a Node."""

    key: str
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A v1 Node."""

    name: str
    addresses: tuple[tuple[str, str], ...] = ()  # (type, address)
    pod_cidrs: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    provider_id: str | None = None
    kubelet_version: str = ""
    kube_proxy_version: str = ""
    kernel_version: str = ""  # status.nodeInfo: what `uname -r` prints

    def addresses_of(self, kind: str) -> tuple[str, ...]:
        """Addresses of type `kind`: "InternalIP", "ExternalIP", "Hostname"."""
        return tuple(a for k, a in self.addresses if k == kind)

    @property
    def zone(self) -> str | None:
        """Label topology.kubernetes.io/zone."""
        return self.labels.get("topology.kubernetes.io/zone")

    @property
    def is_ready(self) -> bool:
        """Condition Ready is True."""
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)


class Scope(str, Enum):
    """Whose objects a list has that does not have all of the cluster's."""

    SERVICE = "service"  # those that belong to the Services read
    NAMESPACE = "namespace"  # those of the Services' namespace
    SOME = "some"  # a choice that nobody explained


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The API objects of a snapshot. A list that is None was not read, one in `partial` in part: neither is empty."""

    services: Mapping[str, Service] = field(default_factory=dict)  # by "namespace/name"
    slices: tuple[EndpointSlice, ...] | None = None
    endpoints: tuple[EndpointSlice, ...] | None = None  # Endpoints objects, in slice shape
    pods: tuple[Pod, ...] | None = None
    nodes: Mapping[str, Node] | None = None
    version: str | None = None  # gitVersion of the API server
    policies: tuple[NetworkPolicy, ...] | None = None
    announcing: Announcing | None = None  # None: nothing of it was read, or is there
    partial: Mapping[str, Scope] = field(
        default_factory=dict
    )  # lists that are not whole, by the field's name

    def known_pods(self) -> Iterator[Pod]:
        """The pods as they were read; where not all were, those too that Endpoints and EndpointSlices name."""
        yield from self.pods or ()
        if self.has_all("pods"):
            return
        known = {ip for pod in self.pods or () for ip in pod.pod_ips}
        known |= {address for node in (self.nodes or {}).values() for _, address in node.addresses}
        for part in (*(self.slices or ()), *(self.endpoints or ())):
            for endpoint in part.endpoints:
                for address in endpoint.addresses:
                    if endpoint.node_name is not None and address not in known:
                        known.add(address)
                        yield Pod(
                            namespace=endpoint.target_namespace or part.namespace,
                            name=endpoint.target_name or part.service_name,
                            node_name=endpoint.node_name,
                            phase="Running",
                            pod_ips=(address,),
                        )

    def has_all(self, name: str) -> bool:
        """Whether the list of that field was read, and whole."""
        return getattr(self, name) is not None and name not in self.partial


@lru_cache(maxsize=4096)
def ip_of(text: str) -> IPAddress | None:
    """The address that `text` spells, or None."""
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError:
        return None


def is_address(text: str) -> bool:
    """Whether `text` is an IP address, without a zone."""
    return "%" not in text and ip_of(text) is not None


def networks_of(cidrs: Iterable[str], ip_version: int | None = None) -> tuple[IPNetwork, ...]:
    """The networks, of one family or of both; what is none is left out, as kube-proxy does."""
    from ipaddress import ip_network

    found = []
    for text in cidrs:
        try:
            network = ip_network(text.strip(), strict=False)
        except ValueError:
            continue
        if ip_version in (None, network.version):
            found.append(network)
    return tuple(found)
