"""Which endpoints kube-proxy uses for a Service port on a node (`pkg/proxy/topology.go`, `endpointslicecache.go`).

Reads API objects only. What a mode then does with the sets is `ktp.kubeproxy.intent`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from ktp.kubeproxy.node import ProxyNode
from ktp.model.cluster import Cluster, Endpoint, EndpointSlice, Scope, Service, ServicePort, ip_of
from ktp.model.host import IPAddress
from ktp.model.record import dataclass

HEADLESS_LABEL = "service.kubernetes.io/headless"
HINTS_ANNOTATION = "service.kubernetes.io/topology-aware-hints"
TOPOLOGY_MODE_ANNOTATION = "service.kubernetes.io/topology-mode"  # 1.27 and later


@dataclass(frozen=True, slots=True)
class SliceIndex:
    """The slices and Endpoints of each Service, so that no question reads them all."""

    slices: Mapping[tuple[str, str], Sequence[EndpointSlice]] | None
    endpoints: Mapping[tuple[str, str], Sequence[EndpointSlice]] | None

    some_slices: bool = False
    some_endpoints: bool = False

    def knows(self, service: Service) -> bool:
        """Whether the Service's endpoints were read: all of them, or at least some where only some were given."""
        key = (service.namespace, service.name)
        return any(
            found is not None and (not some or key in found)
            for found, some in ((self.slices, self.some_slices), (self.endpoints, self.some_endpoints))
        )


def index_slices(cluster: Cluster) -> SliceIndex:
    """The slices and Endpoints of `cluster` by (namespace, Service name)."""

    def grouped(
        slices: tuple[EndpointSlice, ...] | None,
    ) -> Mapping[tuple[str, str], Sequence[EndpointSlice]] | None:
        if slices is None:
            return None
        found: dict[tuple[str, str], list[EndpointSlice]] = {}
        for one in slices:
            found.setdefault((one.namespace, one.service_name), []).append(one)
        return found

    return SliceIndex(
        grouped(cluster.slices),
        grouped(cluster.endpoints),
        cluster.partial.get("slices") is Scope.SOME,
        cluster.partial.get("endpoints") is Scope.SOME,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyEndpoint:
    """One endpoint of a service port as a node's kube-proxy sees it. `pod` is "namespace/name"."""

    address: IPAddress
    ip: str  # the same, spelled out
    port: int
    node_name: str | None
    is_local: bool
    ready: bool
    serving: bool
    terminating: bool
    pod: str | None = None
    hints_for_zones: tuple[str, ...] = ()
    hints_for_nodes: tuple[str, ...] = ()

    @property
    def is_usable_when_terminating(self) -> bool:
        """Whether the fallback to terminating endpoints may use it (1.26 and later)."""
        return self.serving and self.terminating


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSelection:
    """What `CategorizeEndpoints` makes of a service port's endpoints on one node.

    `cluster` serves traffic under policy Cluster, `local` under Local; `usable` holds every endpoint that either
    may use on some node; `listed` all that the API lists. `has_endpoints` decides between refusing (False) and
    dropping (True, but none local). `filtered_by` names the hints that narrowed `cluster`, "" for none.
    """

    cluster: tuple[ProxyEndpoint, ...] = ()
    local: tuple[ProxyEndpoint, ...] = ()
    usable: tuple[ProxyEndpoint, ...] = ()
    listed: tuple[ProxyEndpoint, ...] = ()
    has_endpoints: bool = False
    cluster_is_terminating: bool = False
    local_is_terminating: bool = False
    filtered_by: str = ""
    source: str = "EndpointSlice"
    notes: tuple[str, ...] = field(default=())


def uses_endpoints_objects(minor: int, node: ProxyNode) -> bool:
    """Whether kube-proxy reads Endpoints instead of EndpointSlices.

    Up to 1.18; 1.19 to 1.21 with the gate EndpointSliceProxying off; never since 1.22.
    """
    return minor <= 18 or (minor <= 21 and not node.gate("EndpointSliceProxying", default=True))


def external_policy_local(
    service: Service, minor: int, node: ProxyNode, *, external_ip: bool = False
) -> bool:
    """Whether kube-proxy honours `externalTrafficPolicy: Local`.

    Up to 1.28 only for types NodePort and LoadBalancer, since 1.29 also for ClusterIP with externalIPs. For
    externalIPs (`external_ip`) only since 1.19; before, with the gate ExternalPolicyForExternalIP.
    """
    if service.external_traffic_policy != "Local":
        return False
    if external_ip and minor <= 18 and not node.gate("ExternalPolicyForExternalIP", default=False):
        return False
    return minor >= 29 or service.type in {"NodePort", "LoadBalancer"}


def internal_policy_local(service: Service, minor: int, node: ProxyNode) -> bool:
    """Whether kube-proxy honours `internalTrafficPolicy: Local`: gate off in 1.21, on since 1.22."""
    if service.internal_traffic_policy != "Local":
        return False
    return minor >= 22 or (minor == 21 and node.gate("ServiceInternalTrafficPolicy", default=False))


def is_externally_reachable(service: Service, port: ServicePort) -> bool:
    """Whether the port has any external front end (`ExternallyAccessible`)."""
    return bool(port.node_port or service.external_ips or any(i.ip for i in service.ingress))


def select_endpoints(
    index: SliceIndex,
    service: Service,
    port: ServicePort,
    node: ProxyNode,
    *,
    minor: int,
    ip_version: int = 4,
    unready_count: bool = True,
) -> EndpointSelection:
    """The endpoints that kube-proxy 1.`minor` on `node` uses for `port` in one address family.

    `unready_count` is about 1.22 alone: there "has endpoints" counts endpoints that are not ready too (fixed in
    some patch release, so both are possible).
    """
    wants_endpoints = uses_endpoints_objects(minor, node)
    source = index.endpoints if wants_endpoints else index.slices
    notes: tuple[str, ...] = ()
    if source is None:
        wanted, other = (
            ("Endpoints", "EndpointSlices") if wants_endpoints else ("EndpointSlices", "Endpoints")
        )
        source = index.slices if wants_endpoints else index.endpoints
        wants_endpoints = not wants_endpoints
        notes = (f"{wanted}, which kube-proxy 1.{minor} reads, were not read; {other} were taken instead",)
    slices = (source or {}).get((service.namespace, service.name), ())
    listed = _listed(slices, port, node, minor=minor, ip_version=ip_version)
    kind = "Endpoints" if wants_endpoints else "EndpointSlice"
    if minor >= 24:
        return _categorize(listed, service, port, node, minor=minor, source=kind, notes=notes)
    return _select_le_1_23(
        listed, service, node, minor=minor, unready_count=unready_count, source=kind, notes=notes
    )


def _listed(
    slices: Iterable[EndpointSlice], port: ServicePort, node: ProxyNode, *, minor: int, ip_version: int
) -> tuple[ProxyEndpoint, ...]:
    """All endpoints that the API lists for the port: right family, first address, each ip:port once.

    Ports match by name and protocol; one without a number is skipped. Of several with the same ip:port the local
    one wins up to 1.35, the one that does not terminate in 1.36.
    """
    found: dict[tuple[str, int], ProxyEndpoint] = {}
    for one in slices:
        if HEADLESS_LABEL in one.labels:
            continue
        numbers = [
            p.port
            for p in one.ports
            if p.name == port.name and p.protocol.upper() == port.protocol.upper() and p.port is not None
        ]
        for endpoint in one.endpoints:
            address = ip_of(endpoint.addresses[0]) if endpoint.addresses else None
            if address is None or address.version != ip_version:
                continue
            for number in numbers:
                new = _endpoint(endpoint, address, number, node)
                old = found.get((new.ip, new.port))
                if old is None or _wins(new, old, minor):
                    found[new.ip, new.port] = new
    return tuple(sorted(found.values(), key=lambda e: (e.ip, e.port)))


def _wins(new: ProxyEndpoint, old: ProxyEndpoint, minor: int) -> bool:
    if minor >= 36:
        return old.terminating and not new.terminating
    return new.is_local and not old.is_local


def _endpoint(endpoint: Endpoint, address: IPAddress, port: int, node: ProxyNode) -> ProxyEndpoint:
    pod = None
    if endpoint.target_kind == "Pod" and endpoint.target_name:
        pod = f"{endpoint.target_namespace}/{endpoint.target_name}"
    return ProxyEndpoint(
        address=address,
        ip=str(address),
        port=port,
        node_name=endpoint.node_name,
        is_local=endpoint.node_name is not None and endpoint.node_name == node.known_as,
        ready=endpoint.is_ready,
        # kube-proxy takes nil serving for true (EndpointSlice API: as ready); only the fallback for
        # terminating endpoints reads it, and who sets terminating also sets serving.
        serving=endpoint.serving is not False,
        terminating=endpoint.is_terminating,
        pod=pod,
        hints_for_zones=endpoint.hints_for_zones,
        hints_for_nodes=endpoint.hints_for_nodes,
    )


def _select_le_1_23(
    listed: tuple[ProxyEndpoint, ...],
    service: Service,
    node: ProxyNode,
    *,
    minor: int,
    unready_count: bool,
    source: str,
    notes: tuple[str, ...],
) -> EndpointSelection:
    """Up to 1.23: ready endpoints only; ITP Local filters the whole port, and ETP Local turns that off.

    1.22 and 1.23 with the alpha gate ProxyTerminatingEndpoints: the Local set falls back to terminating ones.
    """
    external_local = external_policy_local(service, minor, node)
    considered = listed
    if internal_policy_local(service, minor, node) and not external_local:
        considered = tuple(e for e in listed if e.is_local)
    ready = tuple(e for e in considered if e.ready)
    local = tuple(e for e in ready if e.is_local)
    local_is_terminating = False
    if not local and minor >= 22 and node.gate("ProxyTerminatingEndpoints", default=False):
        local = tuple(e for e in considered if e.is_local and e.is_usable_when_terminating)
        local_is_terminating = bool(local)
    return EndpointSelection(
        cluster=ready,
        local=local,
        usable=_union(ready, local),
        listed=listed,
        has_endpoints=bool(considered) if minor == 22 and unready_count else bool(ready or local),
        local_is_terminating=local_is_terminating,
        source=source,
        notes=notes,
    )


def _categorize(
    listed: tuple[ProxyEndpoint, ...],
    service: Service,
    port: ServicePort,
    node: ProxyNode,
    *,
    minor: int,
    source: str,
    notes: tuple[str, ...],
) -> EndpointSelection:
    """1.24 and later: `CategorizeEndpoints`, with the fallback to terminating endpoints since 1.26."""
    fallback = node.gate("ProxyTerminatingEndpoints", default=minor >= 26) or minor >= 28
    ready = tuple(e for e in listed if e.ready)
    terminating = tuple(e for e in listed if not e.ready and e.is_usable_when_terminating) if fallback else ()
    externally = is_externally_reachable(service, port)
    cluster: tuple[ProxyEndpoint, ...] = ()
    filtered_by = ""
    if externally or not internal_policy_local(service, minor, node):
        cluster, filtered_by = _by_hints(ready, service, node, minor=minor)
        cluster = cluster or terminating
    local: tuple[ProxyEndpoint, ...] = ()
    if internal_policy_local(service, minor, node) or (
        externally and external_policy_local(service, minor, node)
    ):
        local = tuple(e for e in ready if e.is_local) or tuple(e for e in terminating if e.is_local)
    return EndpointSelection(
        cluster=cluster,
        local=local,
        usable=_union(ready, terminating),
        listed=listed,
        has_endpoints=bool(ready or terminating),
        cluster_is_terminating=bool(cluster) and not cluster[0].ready,
        local_is_terminating=bool(local) and not local[0].ready,
        filtered_by=filtered_by,
        source=source,
        notes=notes,
    )


def _union(first: tuple[ProxyEndpoint, ...], second: tuple[ProxyEndpoint, ...]) -> tuple[ProxyEndpoint, ...]:
    return (*first, *(e for e in second if e not in first))


def _by_hints(
    ready: tuple[ProxyEndpoint, ...], service: Service, node: ProxyNode, *, minor: int
) -> tuple[tuple[ProxyEndpoint, ...], str]:
    """The ready endpoints that hints leave for this node, and the hints' words; all of them where hints do not hold.

    Hints hold where every ready endpoint has one and at least one names this node (node hints, on since 1.34) or
    its zone (on since 1.24, up to 1.30 with an annotation of the Service).
    """
    node_hints = minor >= 35 or (
        minor >= 33 and node.gate("PreferSameTrafficDistribution", default=minor >= 34)
    )
    if node_hints and ready and all(e.hints_for_nodes for e in ready):
        same = tuple(e for e in ready if node.known_as in e.hints_for_nodes)
        if same:
            return same, f"EndpointSlice hints.forNodes={node.known_as}"
    if (
        _zone_hints_apply(service, node, minor)
        and node.zone
        and ready
        and all(e.hints_for_zones for e in ready)
    ):
        same = tuple(e for e in ready if node.zone in e.hints_for_zones)
        if same:
            return same, f"EndpointSlice hints.forZones={node.zone}"
    return ready, ""


def _zone_hints_apply(service: Service, node: ProxyNode, minor: int) -> bool:
    if minor >= 31 or (minor == 30 and node.gate("ServiceTrafficDistribution", default=False)):
        return True
    if not node.gate("TopologyAwareHints", default=True):
        return False
    value = service.annotations.get(HINTS_ANNOTATION, "")
    if minor >= 27:
        value = value or service.annotations.get(TOPOLOGY_MODE_ANNOTATION, "")
        return value not in {"", "Disabled", "disabled"}
    return value in {"Auto", "auto"}
