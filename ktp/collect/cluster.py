"""What is read from the API server to answer a question: as little as the question needs.

Only the Services and their endpoints must be had; whatever else may not be read is an evidence gap.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ktp.collect.kube_api import EMPTY_LIST, ObjectList
from ktp.collect.parallel import run_in_parallel
from ktp.errors import ApiError, ApiForbiddenError, ApiNotFoundError, NotFoundError, UsageError
from ktp.model.announcing import CILIUM_L2, LEASE_PREFIX, LEASES, RESOURCES, Resource
from ktp.model.capture import PARTIAL, EvidenceGap, MemoryCapture
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi

SERVICES = "cluster/services.json"
ENDPOINT_SLICES = "cluster/endpointslices.json"
ENDPOINTS = "cluster/endpoints.json"
NODES = "cluster/nodes.json"
PODS = "cluster/pods.json"
VERSION = "cluster/version.json"
POLICIES = "cluster/networkpolicies.json"
_SERVICE_LB = "svccontroller.k3s.cattle.io/svcname"
_CILIUM_NAMESPACE = "kube-system"  # where Cilium is by default, and its leases with it
_NOT_ANNOUNCED = "whether a load-balancer address is announced is not known"

SCOPED = {SERVICES, ENDPOINT_SLICES, ENDPOINTS, PODS}

# Where kube-proxy's configuration is kept: (ConfigMap of kube-system, key), by kubeadm and by EKS.
KUBE_PROXY_CONFIG_MAPS = (("kube-proxy", "config.conf"), ("kube-proxy-config", "config"))
KUBE_PROXY_SELECTOR = "k8s-app=kube-proxy"


@dataclass(slots=True)
class Part:
    """What one of several reads adds to a capture."""

    lists: dict[str, ObjectList] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    gaps: list[EvidenceGap] = field(default_factory=list)
    kube_proxy_config: bytes | None = None


def named_service(api: KubeApi, namespace: str, name: str) -> dict[str, Any]:
    """The Service as the API has it. Raises NotFoundError, with near names, where there is none."""
    try:
        return api.get(f"/api/v1/namespaces/{_segment(namespace)}/services/{_segment(name)}")
    except ApiNotFoundError:
        raise _service_not_found(api, namespace, name) from None


def require_namespace(api: KubeApi, namespace: str) -> None:
    """NotFoundError, with near names, where there is no such namespace."""
    if (error := _namespace_not_found(api, namespace)) is not None:
        raise error


def collect_service(api: KubeApi, namespace: str, name: str) -> MemoryCapture:
    """The evidence about one Service: itself, its endpoints, the pods it selects, the nodes, kube-proxy.

    Raises NotFoundError, with near names, if there is no such Service or namespace, and ApiError where the
    Service or its endpoints cannot be read; everything else that cannot be read becomes a gap.
    """
    if not namespace or not name:
        raise UsageError(
            "a Service needs a name", hint="write it as NAMESPACE/NAME, or NAME with -n NAMESPACE"
        )
    in_namespace = f"/api/v1/namespaces/{_segment(namespace)}"
    service = named_service(api, namespace, name)
    (service.get("metadata") or {}).pop("managedFields", None)
    services = ObjectList(
        keys=(f"{namespace}/{name}",), items=(json.dumps(service, ensure_ascii=False).encode(),)
    )
    selector = (service.get("spec") or {}).get("selector") or {}
    reads: list[Callable[[], Part]] = [
        partial(_endpoints_of, api, namespace, name),
        partial(nodes_of, api),
        partial(version, api),
        partial(kube_proxy_config, api),
        partial(_kube_proxy_pods, api),
        partial(_policies, api, f"/namespaces/{_segment(namespace)}"),
    ]
    if (service.get("spec") or {}).get("type") == "LoadBalancer":
        reads.append(partial(_announcing, api))
        if not ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
            reads.append(partial(_service_lb_pods, api, name))
    if selector:
        words = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        reads.insert(2, partial(_pods, api, f"{in_namespace}/pods", words))
    return _join(api, services, run_in_parallel(reads), scope="service")


def collect_services(api: KubeApi, namespace: str | None) -> MemoryCapture:
    """The evidence about every Service of a namespace, or of the cluster if `namespace` is None.

    Errors as in `collect_service`; NotFoundError if there is no such namespace.
    """
    scope = f"/namespaces/{_segment(namespace)}" if namespace is not None else ""
    reads: list[Callable[[], Part]] = [
        partial(_services, api, f"/api/v1{scope}/services"),
        partial(_all_endpoints, api, scope),
        partial(nodes_of, api),
        partial(_pods, api, f"/api/v1{scope}/pods"),
        partial(version, api),
        partial(kube_proxy_config, api),
        partial(_policies, api, scope),
        partial(_announcing, api),
    ]
    if namespace not in {None, "kube-system"}:
        reads.append(partial(_kube_proxy_pods, api))
    parts = run_in_parallel(reads)
    services = parts[0].lists[SERVICES]
    # A namespace that does not exist answers with an empty list.
    if namespace is not None and not services.items and (error := _namespace_not_found(api, namespace)):
        raise error
    return _join(api, services, parts[1:], scope="" if namespace is None else "namespace")


def _segment(name: str) -> str:
    return quote(name, safe="")


def joined(
    lists: Mapping[str, ObjectList], parts: Iterable[Part]
) -> tuple[dict[str, ObjectList], dict[str, bytes], list[EvidenceGap], bytes | None]:
    """`lists` with those of all parts, the files of both, the gaps, and kube-proxy's configuration where one has it."""
    every = dict(lists)
    files: dict[str, bytes] = {}
    gaps: list[EvidenceGap] = []
    config = None
    for part in parts:
        for file, objects in part.lists.items():
            every[file] = every.get(file, EMPTY_LIST) + objects
        files |= part.files
        gaps += part.gaps
        config = config or part.kube_proxy_config
    return every, files | {file: objects.to_json() for file, objects in every.items()}, gaps, config


def _join(api: KubeApi, services: ObjectList, parts: Iterable[Part], *, scope: str) -> MemoryCapture:
    """One capture of all parts; `scope` names whose objects the lists have, "" for all of the cluster's."""
    lists, files, gaps, config = joined({SERVICES: services}, parts)
    if scope:
        # Nodes are always read whole. Who has an address is not told by what only some have.
        files[PARTIAL] = json.dumps(dict.fromkeys(sorted(files.keys() & SCOPED), scope)).encode()
    if config is not None:
        # One ConfigMap serves the kube-proxy of every node.
        nodes = (key.removeprefix("/") for key in lists.get(NODES, EMPTY_LIST).keys)
        files |= {f"nodes/{node}/kube-proxy-config.yaml": config for node in nodes}
    return MemoryCapture(files=files, gaps=tuple(gaps), source=api.source)


# ------------------------------------------------------------------------------------------------ single reads


def _listed(
    api: KubeApi, file: str, path: str, kind: str, lost: str, *, subject: str = "", labels: str = ""
) -> Part:
    """A list of objects, those with `labels`; a gap of `kind` that says what is `lost` where it cannot be read."""
    try:
        return Part(lists={file: api.list_pages(path, {"labelSelector": labels} if labels else {})})
    except ApiError as error:
        return Part(gaps=[_gap(kind, subject or kind, error, lost)])


def _services(api: KubeApi, path: str) -> Part:
    return Part(lists={SERVICES: api.list_pages(path)})


def _endpoints_of(api: KubeApi, namespace: str, name: str) -> Part:
    """The EndpointSlices of one Service; its Endpoints where the server has no EndpointSlices of it."""
    selector = {"labelSelector": f"kubernetes.io/service-name={name}"}
    part = _slices(api, f"/namespaces/{_segment(namespace)}", selector)
    if part.lists.get(ENDPOINT_SLICES, EMPTY_LIST).items:
        return part
    try:
        endpoints = api.get(f"/api/v1/namespaces/{_segment(namespace)}/endpoints/{_segment(name)}")
    except ApiNotFoundError:
        part.lists[ENDPOINTS] = EMPTY_LIST
    except ApiForbiddenError as error:
        part.gaps.append(_gap("endpoints", f"{namespace}/{name}", error, "its endpoints are not known"))
    else:
        (endpoints.get("metadata") or {}).pop("managedFields", None)
        item = json.dumps(endpoints, ensure_ascii=False).encode()
        part.lists[ENDPOINTS] = ObjectList(keys=(f"{namespace}/{name}",), items=(item,))
    return part


def _all_endpoints(api: KubeApi, scope: str) -> Part:
    part = _slices(api, scope, {})
    if part.lists.get(ENDPOINT_SLICES, EMPTY_LIST).items:
        return part
    try:
        part.lists[ENDPOINTS] = api.list_pages(f"/api/v1{scope}/endpoints")
    except ApiForbiddenError as error:
        part.gaps.append(_gap("endpoints", "endpoints", error, "the endpoints of the Services are not known"))
    return part


def _slices(api: KubeApi, scope: str, params: Mapping[str, str]) -> Part:
    """EndpointSlices; a server before 1.21 has no discovery.k8s.io/v1 (404), its Endpoints say the same."""
    part = Part()
    try:
        part.lists[ENDPOINT_SLICES] = api.list_pages(
            f"/apis/discovery.k8s.io/v1{scope}/endpointslices", params
        )
    except ApiNotFoundError:
        pass
    except ApiForbiddenError as error:
        lost = "Endpoints, which tell less, are read instead"
        part.gaps.append(_gap("endpointslices", "endpointslices", error, lost))
    return part


def nodes_of(api: KubeApi) -> Part:
    """Every Node object; a gap where they cannot be read."""
    return _listed(api, NODES, "/api/v1/nodes", "nodes", "the nodes and their addresses are not known")


def _pods(api: KubeApi, path: str, labels: str = "") -> Part:
    return _listed(api, PODS, path, "pods", "why a pod is not an endpoint cannot be told", labels=labels)


def node_object(api: KubeApi, name: str) -> Part:
    """One Node object; a gap where it cannot be read."""
    try:
        node = api.get(f"/api/v1/nodes/{_segment(name)}")
    except ApiError as error:
        return Part(gaps=[_gap("nodes", f"nodes/{name}", error, "what the Node object says is not known")])
    (node.get("metadata") or {}).pop("managedFields", None)
    return Part(lists={NODES: ObjectList(keys=(f"/{name}",), items=(json.dumps(node).encode(),))})


def version(api: KubeApi) -> Part:
    """The API server's version; a gap where it cannot be read."""
    try:
        return Part(files={VERSION: json.dumps(api.get("/version")).encode()})
    except ApiError as error:
        return Part(gaps=[_gap("version", "version", error, "the version of the API server is not known")])


def _service_lb_pods(api: KubeApi, name: str) -> Part:
    """The pods of k3s's ServiceLB for a Service of that name; they are rarely there, and so their lack is not told."""
    part = _listed(api, PODS, "/api/v1/pods", "pods", "", labels=f"{_SERVICE_LB}={name}")
    part.gaps.clear()
    return part


def _policies(api: KubeApi, scope: str) -> Part:
    """NetworkPolicies; who may not read them learns less of what the network plugin drops."""
    try:
        return Part(lists={POLICIES: api.list_pages(f"/apis/networking.k8s.io/v1{scope}/networkpolicies")})
    except ApiNotFoundError:
        return Part()
    except ApiError as error:
        lost = "whether a NetworkPolicy keeps clients out is not known"
        return Part(gaps=[_gap("networkpolicies", "networkpolicies", error, lost)])


def _announcing(api: KubeApi) -> Part:
    """The objects of MetalLB and Cilium that tell of load-balancer addresses, a list a kind.

    Nothing, and no gap, where the cluster has neither; an empty list of a kind that an installed one does not have.
    """
    part = Part()
    try:
        groups = {
            group.get("name"): [each.get("version") for each in group.get("versions") or ()]
            for group in api.get("/apis").get("groups") or ()
        }
    except (ApiError, AttributeError):
        return part  # its absence is the usual case, and who may not ask for kinds may not read them
    served: dict[str, dict[str, str]] = {}  # group → plural → path of its newest version
    for group, versions in {(r.group, r.versions) for r in RESOURCES if r.group in groups}:
        paths = served.setdefault(group, {})
        for version in versions:
            if version not in groups[group]:
                continue
            prefix = f"/apis/{group}/{version}"
            try:
                found = api.get(prefix).get("resources") or ()
            except ApiError as error:
                part.gaps.append(_gap("announcing", prefix, error, _NOT_ANNOUNCED))
                return part
            for entry in found:
                if isinstance(entry, dict):
                    paths.setdefault(str(entry.get("name")), f"{prefix}/{entry.get('name')}")
    for resource in RESOURCES:
        if resource.group in served:
            path = served[resource.group].get(resource.plural)
            part.lists[resource.file] = EMPTY_LIST
            if path is not None:
                _read_announcing(api, part, resource, path)
    if CILIUM_L2.plural in served.get(CILIUM_L2.group, {}):
        path = f"/apis/{LEASES.group}/{LEASES.versions[0]}/namespaces/{_CILIUM_NAMESPACE}/{LEASES.plural}"
        _read_announcing(api, part, LEASES, path, pack=_lease_of_cilium)
    return part


def _read_announcing(
    api: KubeApi,
    part: Part,
    resource: Resource,
    path: str,
    pack: Callable[[str, dict[str, Any], bytes], bytes | None] = lambda _key, _object, item: item,
) -> None:
    try:
        part.lists[resource.file] = api.list_pages(path, pack=pack)
    except ApiError as error:
        part.lists.pop(resource.file, None)
        part.gaps.append(_gap("announcing", resource.plural, error, _NOT_ANNOUNCED))


def _lease_of_cilium(key: str, _object: dict[str, Any], item: bytes) -> bytes | None:
    """Leases of kube-system are of every controller there."""
    return item if key.partition("/")[2].startswith(LEASE_PREFIX) else None


def kube_proxy_config(api: KubeApi) -> Part:
    """kube-proxy's configuration from the ConfigMap that kubeadm or EKS keeps it in; a gap where there is none."""
    problem: ApiError | None = None
    for config_map, key in KUBE_PROXY_CONFIG_MAPS:
        try:
            found = api.get(f"/api/v1/namespaces/kube-system/configmaps/{config_map}")
        except ApiNotFoundError:
            continue
        except ApiError as error:
            problem = error
            continue
        content = (found.get("data") or {}).get(key)
        if isinstance(content, str):
            return Part(kube_proxy_config=content.encode())
    lost = "kube-proxy's mode and settings are inferred from the rules, or taken to be its defaults"
    subject = "kube-system/kube-proxy"
    if problem is not None:
        return Part(gaps=[_gap("kube-proxy-config", subject, problem, lost)])
    message = f"kube-system has no ConfigMap with kube-proxy's configuration; {lost}"
    return Part(gaps=[EvidenceGap("kube-proxy-config", subject, message)])


def _kube_proxy_pods(api: KubeApi) -> Part:
    return _listed(
        api,
        PODS,
        "/api/v1/namespaces/kube-system/pods",
        "kube-proxy-pods",
        "kube-proxy's version is not known and taken to be the API server's",
        subject="kube-system/kube-proxy",
        labels=KUBE_PROXY_SELECTOR,
    )


def _gap(kind: str, subject: str, error: ApiError, lost: str) -> EvidenceGap:
    """The gap that a failed read leaves; `api-forbidden` if a permission is all that is missing."""
    if isinstance(error, ApiForbiddenError) and kind != "kube-proxy-config":
        kind = "api-forbidden"
    return EvidenceGap(kind, subject, f"{error.message}; {lost}", remedy=error.hint)


# ------------------------------------------------------------------------------------------------ wrong names


def _service_not_found(api: KubeApi, namespace: str, name: str) -> NotFoundError:
    if (error := _namespace_not_found(api, namespace)) is not None:
        return error
    message = f'no Service "{name}" in namespace "{namespace}"'
    near = near_names(name, _names(api, f"/api/v1/namespaces/{_segment(namespace)}/services"))
    if near:
        return NotFoundError(f"{message}; did you mean {_alternatives(near)}?", near=near)
    namesakes = _keys(api, "/api/v1/services", {"fieldSelector": f"metadata.name={name}"})
    if namesakes:
        return NotFoundError(f"{message}; did you mean {_alternatives(namesakes[:3])}?", near=namesakes[:3])
    return NotFoundError(message, hint=f"`kubectl get services -n {namespace}` lists what there is")


def _namespace_not_found(api: KubeApi, namespace: str) -> NotFoundError | None:
    """The error to raise if there is no such namespace; None if there is, or if it cannot be told."""
    try:
        api.get(f"/api/v1/namespaces/{_segment(namespace)}")
    except ApiNotFoundError:
        near = near_names(namespace, _names(api, "/api/v1/namespaces"))
        message = f'there is no namespace "{namespace}"'
        if near:
            return NotFoundError(f"{message}; did you mean {_alternatives(near)}?", near=near)
        return NotFoundError(message, hint="`kubectl get namespaces` lists what there is")
    except ApiError:
        return None
    return None


def near_names(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Up to three of `names` that someone who typed `name` may have meant, best first."""
    names = sorted(set(names))
    alike = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    parts = [
        other for other in names if len(name) > 2 and (name in other or (len(other) > 2 and other in name))
    ]
    return tuple(dict.fromkeys([*alike, *parts]))[:3]


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _names(api: KubeApi, path: str) -> list[str]:
    return [key.rpartition("/")[2] for key in _keys(api, path, {})]


def _keys(api: KubeApi, path: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """NAMESPACE/NAME of every object; none if they may not be read, for they only serve a suggestion."""
    try:
        return api.list_pages(path, params).keys
    except ApiError:
        return ()
