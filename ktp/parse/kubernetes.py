"""Kubernetes objects as JSON (`kubectl get … -o json`, API lists, files made by hand) → model.

Missing and null fields get the API's defaults; a value of the wrong shape is an EvidenceError that names the file
and the object. Field meanings: https://kubernetes.io/docs/reference/kubernetes-api/.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from ktp.errors import EvidenceError
from ktp.model.capture import PARTIAL, Capture, EvidenceGap
from ktp.model.cluster import (
    Cluster,
    Condition,
    ContainerPort,
    ContainerStatus,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Node,
    Pod,
    Scope,
    Service,
    ServicePort,
    Taint,
)
from ktp.parse.announcing import FILES as ANNOUNCING
from ktp.parse.announcing import announcing_of, parse_announced
from ktp.parse.policy import POLICIES, parse_policies
from ktp.parse.text import (
    SHAPE_ERRORS,
    gc_paused,
    list_of,
    load_json,
    number_of,
    object_of,
    optional_bool,
    optional_string,
    string_map,
    string_of,
    strings_of,
)

SERVICES = "cluster/services.json"
ENDPOINT_SLICES = "cluster/endpointslices.json"
ENDPOINTS = "cluster/endpoints.json"
PODS = "cluster/pods.json"
NODES = "cluster/nodes.json"
VERSION = "cluster/version.json"

_SERVICE_NAME_LABEL = "kubernetes.io/service-name"
_HOSTNAME_LABEL = "kubernetes.io/hostname"
_ZONE_LABEL = "topology.kubernetes.io/zone"

_NO_SPACE = re.compile(r"[^ \t\n\r]|\Z")

T = TypeVar("T")


# --------------------------------------------------------------------------------------------------- the cluster


def parse_cluster_with_gaps(capture: Capture) -> tuple[Cluster, tuple[EvidenceGap, ...]]:
    """The API objects of `capture`. A list whose file is absent stays None; Services are empty then.

    A garbled file stays None, too, and becomes a gap of the kind "cluster-file" with the file's name as its subject;
    of services.json it raises EvidenceError.
    """
    gaps: list[EvidenceGap] = []

    def optional(name: str, parse: Callable[[bytes], T]) -> T | None:
        if not capture.has(name):
            return None
        try:
            return parse(capture.read(name))
        except EvidenceError as error:
            gaps.append(EvidenceGap("cluster-file", name, error.message, remedy=error.hint))
            return None

    with gc_paused():
        services = parse_services(capture.read(SERVICES)) if capture.has(SERVICES) else {}
        partial = optional(PARTIAL, parse_partial) or {}
        announced = {
            resource: found
            for file, resource in ANNOUNCING.items()
            if (found := optional(file, functools.partial(parse_announced, resource=resource))) is not None
        }
        cluster = Cluster(
            services=services,
            slices=optional(ENDPOINT_SLICES, parse_endpoint_slices),
            endpoints=optional(ENDPOINTS, parse_endpoints),
            pods=optional(PODS, parse_pods),
            nodes=optional(NODES, parse_nodes),
            version=optional(VERSION, parse_version),
            policies=optional(POLICIES, parse_policies),
            announcing=announcing_of(announced, [file for file, name in _FIELDS.items() if name in partial]),
            partial=partial,
        )
    return cluster, tuple(gaps)


# ------------------------------------------------------------------------------------------------ lists of objects


def parse_services(data: bytes | str, *, source: str = SERVICES) -> dict[str, Service]:
    """v1 Services by "namespace/name", in the file's order."""
    services = _parse_objects(data, "Service", _service, source)
    return {service.key: service for service in services}


def parse_endpoint_slices(data: bytes | str, *, source: str = ENDPOINT_SLICES) -> tuple[EndpointSlice, ...]:
    """discovery.k8s.io EndpointSlices, v1 or v1beta1 (which names the node in `topology`)."""
    return tuple(_parse_objects(data, "EndpointSlice", _endpoint_slice, source))


def parse_endpoints(data: bytes | str, *, source: str = ENDPOINTS) -> tuple[EndpointSlice, ...]:
    """v1 Endpoints in slice shape: one slice a subset and address family, `name` that of the object.

    `addresses` are ready, `notReadyAddresses` are not; an object without addresses gives one empty slice.
    """
    objects = _parse_objects(data, "Endpoints", _endpoints, source)
    return tuple(piece for pieces in objects for piece in pieces)


def parse_pods(data: bytes | str, *, source: str = PODS) -> tuple[Pod, ...]:
    """v1 Pods, in the file's order."""
    return tuple(_parse_objects(data, "Pod", _PodReader().pod, source))


def parse_nodes(data: bytes | str, *, source: str = NODES) -> dict[str, Node]:
    """v1 Nodes by name, in the file's order."""
    return {node.name: node for node in _parse_objects(data, "Node", _node, source)}


def parse_version(data: bytes | str, *, source: str = VERSION) -> str | None:
    """`gitVersion` of `kubectl get --raw /version` or `kubectl version -o json`, e.g. "v1.30.2"."""
    remedy = _remedy(source)
    try:
        document = object_of(load_json(data, source, remedy=remedy))
        return optional_string((object_of(document.get("serverVersion")) or document).get("gitVersion"))
    except SHAPE_ERRORS as error:
        raise EvidenceError(f"{source} is not an API server's version: {error}", hint=remedy) from error


_FIELDS = {
    SERVICES: "services",
    ENDPOINT_SLICES: "slices",
    ENDPOINTS: "endpoints",
    PODS: "pods",
    NODES: "nodes",
    POLICIES: "policies",
    **{file: resource.plural for file, resource in ANNOUNCING.items()},
}


def parse_partial(data: bytes | str, *, source: str = PARTIAL) -> dict[str, Scope]:
    """Which lists are not whole, by their field in Cluster: `{"cluster/pods.json": "service"}`."""
    try:
        entries = object_of(load_json(data, source))
        return {_FIELDS[file]: Scope(scope) for file, scope in entries.items()}
    except SHAPE_ERRORS as error:
        hint = "remove the file if each list in cluster/ has all of its kind"
        raise EvidenceError(f"{source} does not say which lists are partial: {error}", hint=hint) from error


def _parse_objects(
    data: bytes | str, kind: str, parse: Callable[[dict[str, Any]], T], source: str
) -> list[T]:
    """Every object of `kind` in a List, a typed list, an array, or alone."""
    remedy = _remedy(source)
    with gc_paused():
        try:
            return _stream_objects(data, kind, parse)
        except (*SHAPE_ERRORS, StopIteration, EvidenceError):
            pass  # another shape, or a fault: read whole below, which knows all shapes and says where the fault is
        objects = []
        for item in _items(load_json(data, source, remedy=remedy), kind, source, remedy):
            try:
                objects.append(parse(item))
            except SHAPE_ERRORS as error:
                words = f"{_called(item, len(objects))} of {source} is not a usable {kind}: {error}"
                raise EvidenceError(words, hint=remedy) from error
    return objects


def _stream_objects(data: bytes | str, kind: str, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """The objects of a List, each parsed as soon as it is read: half the time, a fraction of the memory.

    Raises anything of what `_parse_objects` expects where the text is not such a list.
    """
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data), "surrogatepass")
    # `raw_decode` without its own search for a fault, which raises StopIteration instead.
    scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
    objects: list[T] = []
    listed: Any = None
    untyped = False
    at = _skip_space(text, 0)
    if text[at] != "{":
        raise ValueError("not an object")
    at = _skip_space(text, at + 1)
    while text[at] != "}":
        field, at = scan(text, at)
        at = _skip_space(text, at)
        if text[at] != ":" or not isinstance(field, str):
            raise ValueError("not a field of an object")
        at = _skip_space(text, at + 1)
        if field == "items" and text[at] == "[":
            if objects:
                raise ValueError("items come twice")
            at = _skip_space(text, at + 1)
            while text[at] != "]":
                item, at = scan(text, at)
                own_kind = item.get("kind")
                if own_kind == kind or not own_kind:
                    untyped = untyped or not own_kind
                    objects.append(parse(item))
                at = _next_element(text, at, "]")
            at += 1
        else:
            value, at = scan(text, at)
            listed = value if field == "kind" else listed
        at = _next_element(text, at, "}")
    if _skip_space(text, at + 1) != len(text) or not objects:
        raise ValueError("text behind the list, or nothing in it")
    if untyped and listed not in (None, "List", f"{kind}List"):
        raise ValueError("a list of something else")
    return objects


def _skip_space(text: str, at: int) -> int:
    """Where the next character that is no white space stands, or the end."""
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)


def _next_element(text: str, at: int, end: str) -> int:
    """Where the next element begins, or the closing bracket."""
    at = _skip_space(text, at)
    if text[at] == ",":
        at = _skip_space(text, at + 1)
        if text[at] == end:
            raise ValueError("a comma before the end")
    elif text[at] != end:
        raise ValueError("no comma")
    return at


def _items(document: Any, kind: str, source: str, remedy: str) -> list[dict[str, Any]]:
    if isinstance(document, list):
        found, listed = document, None
    elif not isinstance(document, dict):
        raise EvidenceError(f"{source} holds no Kubernetes objects", hint=remedy)
    elif document.get("kind") == "Status":
        words = f"{source} holds an error of the API server: {document.get('message')}"
        raise EvidenceError(words, hint=remedy)
    elif "items" in document:
        found, listed = document["items"] or [], document.get("kind")
    else:
        found, listed = [document], None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise EvidenceError(f"the items of {source} are not Kubernetes objects", hint=remedy)
    # Objects in a typed list (PodList) carry no kind of their own.
    untyped_fit = listed in (None, "List", f"{kind}List")
    fit = [item for item in found if (item["kind"] == kind if item.get("kind") else untyped_fit)]
    if found and not fit:
        other = found[0].get("kind") or listed
        raise EvidenceError(f"{source} should hold {kind} objects and holds {other} objects", hint=remedy)
    return fit


def _remedy(source: str) -> str:
    resource = source.rpartition("/")[2].partition(".")[0]
    if resource == "version":
        return f"write it again: kubectl get --raw /version > {source}"
    return f"write it again: kubectl get {resource} -A -o json > {source}"


def _called(item: dict[str, Any], index: int) -> str:
    """A name for `item` that holds even where its metadata is garbled."""
    metadata = item.get("metadata")
    if isinstance(metadata, dict) and metadata.get("name"):
        return f"{metadata.get('namespace') or 'default'}/{metadata['name']}"
    return f"item {index + 1}"


def _metadata(item: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """(metadata, namespace, name)."""
    metadata = object_of(item.get("metadata"))
    name = string_of(metadata.get("name"))
    if not name:
        raise ValueError("it has no metadata.name")
    return metadata, string_of(metadata.get("namespace")) or "default", name


# ------------------------------------------------------------------------------------------------------- Services


def _service(item: dict[str, Any]) -> Service:
    metadata, namespace, name = _metadata(item)
    spec = object_of(item.get("spec"))
    cluster_ips = strings_of(spec.get("clusterIPs"))
    if not cluster_ips and spec.get("clusterIP"):
        cluster_ips = (string_of(spec["clusterIP"]),)
    client_ip = object_of(object_of(spec.get("sessionAffinityConfig")).get("clientIP"))
    status = object_of(item.get("status"))
    load_balancer = object_of(status.get("loadBalancer"))
    return Service(
        namespace=namespace,
        name=name,
        type=string_of(spec.get("type")) or "ClusterIP",
        cluster_ips=cluster_ips,
        external_ips=strings_of(spec.get("externalIPs")),
        ports=tuple([_service_port(object_of(port)) for port in list_of(spec.get("ports"))]),
        selector=string_map(spec.get("selector")),
        external_traffic_policy=string_of(spec.get("externalTrafficPolicy")) or "Cluster",
        internal_traffic_policy=string_of(spec.get("internalTrafficPolicy")) or "Cluster",
        session_affinity=string_of(spec.get("sessionAffinity")) or "None",
        session_affinity_timeout=number_of(client_ip.get("timeoutSeconds"), 10800),
        health_check_node_port=number_of(spec.get("healthCheckNodePort"), 0),
        load_balancer_source_ranges=strings_of(spec.get("loadBalancerSourceRanges")),
        load_balancer_class=optional_string(spec.get("loadBalancerClass")),
        load_balancer_ip=optional_string(spec.get("loadBalancerIP")),
        allocate_load_balancer_node_ports=optional_bool(spec.get("allocateLoadBalancerNodePorts"))
        is not False,
        publish_not_ready_addresses=bool(optional_bool(spec.get("publishNotReadyAddresses"))),
        ingress=tuple(
            [
                LoadBalancerIngress(
                    ip=optional_string(entry.get("ip")),
                    hostname=optional_string(entry.get("hostname")),
                    ip_mode=optional_string(entry.get("ipMode")),
                )
                for entry in map(object_of, list_of(load_balancer.get("ingress")))
            ]
        ),
        ip_families=strings_of(spec.get("ipFamilies")),
        labels=string_map(metadata.get("labels")),
        annotations=string_map(metadata.get("annotations")),
        conditions=_conditions(status.get("conditions")),
    )


def _service_port(port: dict[str, Any]) -> ServicePort:
    number = number_of(port.get("port"), None)
    if number is None:
        raise ValueError("one of its ports has no number")
    target = port.get("targetPort")
    if isinstance(target, str):
        target = target or None
    return ServicePort(
        name=string_of(port.get("name")),
        protocol=string_of(port.get("protocol")) or "TCP",
        port=number,
        target_port=target if isinstance(target, str) else number_of(target, None),
        node_port=number_of(port.get("nodePort"), 0),
    )


# ------------------------------------------------------------------------------------------------------ endpoints


def _endpoint_slice(item: dict[str, Any]) -> EndpointSlice:
    metadata, namespace, name = _metadata(item)
    labels = string_map(metadata.get("labels"))
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service_name=labels.get(_SERVICE_NAME_LABEL, ""),
        address_type=string_of(item.get("addressType")) or "IPv4",
        ports=_endpoint_ports(item.get("ports")),
        endpoints=tuple([_endpoint(object_of(endpoint)) for endpoint in list_of(item.get("endpoints"))]),
        labels=labels,
    )


def _endpoint_ports(ports: Any) -> tuple[EndpointPort, ...]:
    return tuple(
        [
            EndpointPort(
                name=string_of(port.get("name")),
                protocol=string_of(port.get("protocol")) or "TCP",
                port=number_of(port.get("port"), None),
            )
            for port in map(object_of, list_of(ports))
        ]
    )


def _endpoint(endpoint: dict[str, Any]) -> Endpoint:
    conditions = object_of(endpoint.get("conditions"))
    # `topology` is v1beta1's; v1 keeps what it has no field for in `deprecatedTopology`.
    topology = object_of(endpoint.get("topology") or endpoint.get("deprecatedTopology"))
    hints = object_of(endpoint.get("hints"))
    target = object_of(endpoint.get("targetRef"))
    return Endpoint(
        addresses=strings_of(endpoint.get("addresses")),
        ready=optional_bool(conditions.get("ready")),
        serving=optional_bool(conditions.get("serving")),
        terminating=optional_bool(conditions.get("terminating")),
        node_name=optional_string(endpoint.get("nodeName") or topology.get(_HOSTNAME_LABEL)),
        zone=optional_string(endpoint.get("zone") or topology.get(_ZONE_LABEL)),
        hints_for_zones=_hint_names(hints.get("forZones")) if hints else (),
        hints_for_nodes=_hint_names(hints.get("forNodes")) if hints else (),
        target_kind=optional_string(target.get("kind")),
        target_namespace=optional_string(target.get("namespace")),
        target_name=optional_string(target.get("name")),
        hostname=optional_string(endpoint.get("hostname")),
    )


def _hint_names(hints: Any) -> tuple[str, ...]:
    return tuple([string_of(object_of(hint).get("name")) for hint in list_of(hints)])


def _endpoints(item: dict[str, Any]) -> list[EndpointSlice]:
    metadata, namespace, name = _metadata(item)
    labels = string_map(metadata.get("labels"))
    slices = []
    for subset in map(object_of, list_of(item.get("subsets"))):
        ports = _endpoint_ports(subset.get("ports"))
        by_family: dict[str, list[Endpoint]] = {}
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in map(object_of, list_of(subset.get(field))):
                endpoint = _subset_endpoint(address, ready)
                family = "IPv6" if ":" in endpoint.addresses[0] else "IPv4"
                by_family.setdefault(family, []).append(endpoint)
        for family, endpoints in by_family.items():
            slices.append(
                EndpointSlice(
                    namespace=namespace,
                    name=name,
                    service_name=name,
                    address_type=family,
                    ports=ports,
                    endpoints=tuple(endpoints),
                    labels=labels,
                    origin="Endpoints",
                )
            )
    if not slices:
        slices.append(
            EndpointSlice(
                namespace=namespace, name=name, service_name=name, labels=labels, origin="Endpoints"
            )
        )
    return slices


def _subset_endpoint(address: dict[str, Any], ready: bool) -> Endpoint:
    ip = string_of(address.get("ip"))
    if not ip:
        raise ValueError("one of its addresses has no ip")
    target = object_of(address.get("targetRef"))
    return Endpoint(
        addresses=(ip,),
        ready=ready,
        node_name=optional_string(address.get("nodeName")),
        target_kind=optional_string(target.get("kind")),
        target_namespace=optional_string(target.get("namespace")),
        target_name=optional_string(target.get("name")),
        hostname=optional_string(address.get("hostname")),
    )


# ----------------------------------------------------------------------------------------------------------- pods


class _PodReader:
    """Pods of one file. Pods of one workload are alike, and what they have alike is kept once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def _shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, or what it made for the same key before."""
        try:
            found: T | None = self._known.get(key)
        except TypeError:  # a value of the wrong shape, of which `make` complains
            return make()
        if found is None:
            found = self._known[key] = make()
        return found

    def pod(self, item: dict[str, Any]) -> Pod:
        """One v1 Pod."""
        metadata, namespace, name = _metadata(item)
        spec, status = object_of(item.get("spec")), object_of(item.get("status"))
        containers = [object_of(container) for container in list_of(spec.get("containers"))]
        init_containers = [object_of(container) for container in list_of(spec.get("initContainers"))]
        # An init container that restarts always is a sidecar: it serves as long as the pod does.
        sidecars = [container for container in init_containers if container.get("restartPolicy") == "Always"]
        serving = [*containers, *sidecars]
        pod_ips = tuple([string_of(object_of(entry).get("ip")) for entry in list_of(status.get("podIPs"))])
        if not pod_ips and status.get("podIP"):
            pod_ips = (string_of(status["podIP"]),)
        owner_kind, owner_name = self._owner(metadata.get("ownerReferences"))
        labels = object_of(metadata.get("labels"))
        return Pod(
            namespace=namespace,
            name=name,
            node_name=optional_string(spec.get("nodeName")),
            host_network=bool(optional_bool(spec.get("hostNetwork"))),
            phase=string_of(status.get("phase")),
            pod_ips=pod_ips,
            host_ip=optional_string(status.get("hostIP")),
            labels=self._shared(("labels", *labels.items()), lambda: string_map(labels)),
            ports=self._ports(serving),
            containers=(
                *[self._status(object_of(entry)) for entry in list_of(status.get("containerStatuses"))],
                *_init_statuses(status.get("initContainerStatuses"), sidecars),
            ),
            conditions=self._conditions(list_of(status.get("conditions"))),
            readiness_probes=self._probes(serving),
            deletion_timestamp=optional_string(metadata.get("deletionTimestamp")),
            owner_kind=owner_kind,
            owner_name=owner_name,
            images=self._shared(
                ("images", *[container.get("image") for container in containers]),
                lambda: tuple([string_of(container.get("image")) for container in containers]),
            ),
        )

    @staticmethod
    def _owner(references: Any) -> tuple[str | None, str | None]:
        for reference in map(object_of, list_of(references)):
            if reference.get("controller"):
                return optional_string(reference.get("kind")), optional_string(reference.get("name"))
        return None, None

    def _ports(self, serving: list[dict[str, Any]]) -> tuple[ContainerPort, ...]:
        key = [
            (container.get("name"), *[tuple(port.items()) for port in list_of(container.get("ports"))])
            for container in serving
        ]
        return self._shared(
            ("ports", *key),
            lambda: tuple([port for container in serving for port in _container_ports(container)]),
        )

    def _status(self, entry: dict[str, Any]) -> ContainerStatus:
        state, detail = next(iter(object_of(entry.get("state")).items()), ("", None))
        key = (
            "status", entry.get("name"), entry.get("ready"), entry.get("started"), entry.get("restartCount"),
            entry.get("image"), state, detail.get("reason") if isinstance(detail, dict) else None,
        )  # fmt: skip
        return self._shared(key, lambda: _container_status(entry))

    def _conditions(self, conditions: list[Any]) -> tuple[Condition, ...]:
        key = [
            (c.get("type"), c.get("status"), c.get("reason"), c.get("message"), c.get("lastTransitionTime"))
            for c in conditions
        ]
        return self._shared(("conditions", *key), lambda: _conditions(conditions))

    def _probes(self, serving: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
        return tuple(
            [
                (string_of(container.get("name")), self._probe(container["readinessProbe"]))
                for container in serving
                if container.get("readinessProbe")
            ]
        )

    def _probe(self, probe: Any) -> str:
        parts = object_of(probe).items()
        key = [(name, *value.items()) if isinstance(value, dict) else (name, value) for name, value in parts]
        return self._shared(("probe", *key), lambda: describe_probe(probe))


def _container_ports(container: dict[str, Any]) -> list[ContainerPort]:
    return [
        ContainerPort(
            container=string_of(container.get("name")),
            name=string_of(port.get("name")),
            protocol=string_of(port.get("protocol")) or "TCP",
            container_port=number_of(port.get("containerPort"), 0),
            host_port=number_of(port.get("hostPort"), 0),
            host_ip=string_of(port.get("hostIP")),
        )
        for port in map(object_of, list_of(container.get("ports")))
    ]


def _container_status(entry: dict[str, Any]) -> ContainerStatus:
    state, detail = next(iter(object_of(entry.get("state")).items()), ("", None))
    return ContainerStatus(
        name=string_of(entry.get("name")),
        ready=bool(optional_bool(entry.get("ready"))),
        started=optional_bool(entry.get("started")),
        state=state,
        reason=string_of(object_of(detail).get("reason")),
        image=string_of(entry.get("image")),
    )


def _init_statuses(entries: Any, sidecars: list[dict[str, Any]]) -> Iterable[ContainerStatus]:
    """Statuses of sidecars, and of the init containers that have not completed."""
    sidecar_names = {container.get("name") for container in sidecars}
    for entry in map(object_of, list_of(entries)):
        status = _container_status(entry)
        completed = status.state == "terminated" and status.reason == "Completed"
        if status.name in sidecar_names or not completed:
            yield status


def describe_probe(probe: Any) -> str:
    """A readiness probe in words, e.g. "HTTP GET /healthz on port 8080, every 10 s, timeout 1 s, 3 failures"."""
    probe = object_of(probe)
    if probe.get("httpGet"):
        get = object_of(probe["httpGet"])
        host = f" of {string_of(get['host'])}" if get.get("host") else ""
        what = (
            f"{string_of(get.get('scheme')) or 'HTTP'} GET {string_of(get.get('path')) or '/'}"
            f" on port {get.get('port')}{host}"
        )
    elif probe.get("tcpSocket"):
        what = f"TCP connect to port {object_of(probe['tcpSocket']).get('port')}"
    elif probe.get("grpc"):
        grpc = object_of(probe["grpc"])
        service = f" of service {string_of(grpc['service'])}" if grpc.get("service") else ""
        what = f"gRPC health check{service} on port {grpc.get('port')}"
    elif probe.get("exec"):
        what = f"command `{' '.join(strings_of(object_of(probe['exec']).get('command')))}`"
    else:
        what = "a probe of a kind that ktp does not know"
    delay = number_of(probe.get("initialDelaySeconds"), 0)
    return (
        f"{what}, every {number_of(probe.get('periodSeconds'), 10)} s"
        f", timeout {number_of(probe.get('timeoutSeconds'), 1)} s"
        f", {number_of(probe.get('failureThreshold'), 3)} failures"
        + (f", first after {delay} s" if delay else "")
    )


def _conditions(conditions: Any) -> tuple[Condition, ...]:
    return tuple(
        [
            Condition(
                type=string_of(condition.get("type")),
                status=string_of(condition.get("status")),
                reason=string_of(condition.get("reason")),
                message=string_of(condition.get("message")),
                last_transition_time=string_of(condition.get("lastTransitionTime")),
            )
            for condition in map(object_of, list_of(conditions))
        ]
    )


# ---------------------------------------------------------------------------------------------------------- nodes


def _node(item: dict[str, Any]) -> Node:
    metadata, _namespace, name = _metadata(item)
    spec, status = object_of(item.get("spec")), object_of(item.get("status"))
    pod_cidrs = strings_of(spec.get("podCIDRs"))
    if not pod_cidrs and spec.get("podCIDR"):
        pod_cidrs = (string_of(spec["podCIDR"]),)
    info = object_of(status.get("nodeInfo"))
    return Node(
        name=name,
        addresses=tuple(
            [
                (string_of(address.get("type")), string_of(address.get("address")))
                for address in map(object_of, list_of(status.get("addresses")))
            ]
        ),
        pod_cidrs=pod_cidrs,
        labels=string_map(metadata.get("labels")),
        annotations=string_map(metadata.get("annotations")),
        conditions=_conditions(status.get("conditions")),
        taints=tuple(
            [
                Taint(
                    key=string_of(taint.get("key")),
                    value=string_of(taint.get("value")),
                    effect=string_of(taint.get("effect")),
                )
                for taint in map(object_of, list_of(spec.get("taints")))
            ]
        ),
        unschedulable=bool(optional_bool(spec.get("unschedulable"))),
        provider_id=optional_string(spec.get("providerID")),
        kubelet_version=string_of(info.get("kubeletVersion")),
        kube_proxy_version=string_of(info.get("kubeProxyVersion")),
        kernel_version=string_of(info.get("kernelVersion")),
    )
