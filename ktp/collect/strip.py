"""What a snapshot never holds: Secrets, environments, command lines, copies of manifests, tokens.

Also of a snapshot that somebody made by hand with kubectl, which may hold anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from ktp.collect import wireguard, xfrm
from ktp.errors import SnapshotError
from ktp.model.announcing import LEASE_PREFIX, LEASES, RESOURCES
from ktp.model.capture import PARTIAL, Capture, EvidenceGap, MemoryCapture

CLUSTER_KINDS: Mapping[str, str] = {
    "cluster/services.json": "Service",
    "cluster/endpointslices.json": "EndpointSlice",
    "cluster/endpoints.json": "Endpoints",
    "cluster/pods.json": "Pod",
    "cluster/nodes.json": "Node",
    "cluster/networkpolicies.json": "NetworkPolicy",
    **{resource.file: resource.kind for resource in (*RESOURCES, LEASES)},
}
# What belongs to the cluster, though MetalLB keeps its own in a namespace, and Cilium its leases.
_OF_THE_CLUSTER = frozenset(("Node", *(resource.kind for resource in (*RESOURCES, LEASES))))
_VERSION = "cluster/version.json"
NODE_FILE = re.compile(
    r"(?:(?:pods/[^/]+|again)/(?=[^/]+$))?(?:ip6?tables(?:-legacy|-nft)?-save\.txt|nft-ruleset\.(?:json|txt)|nft-hooks\.txt|ipset-save\.txt|ipvsadm\.txt"
    r"|ip-addr\.json|ip-link\.json|ip-neigh\.json|bridge-fdb\.json|ethtool\.txt|wg\.txt|ip-xfrm-(?:policy|state)\.txt|conntrack\.txt|netstat\.txt|ip6?-(?:rule|route)\.json|ss\.txt|sysctl\.txt|kube-proxy-config\.(?:yaml|json)"
    r"|cilium/(?:bpf-[a-z-]+\.json|status\.json|config\.(?:txt|json)|version\.txt|(?:service|identity)-list\.json"
    r"|policy-get\.json))"
)
_COPIED_MANIFEST = re.compile(
    r"last-applied|/applied$|original-configuration|token|secret|password|credential", re.I
)
_CONTAINER_FIELDS = (
    "env", "envFrom", "volumeMounts", "volumeDevices", "lifecycle", "livenessProbe", "startupProbe",
)  # fmt: skip
_POD_FIELDS = ("volumes", "imagePullSecrets", "serviceAccount", "serviceAccountName")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def strip_capture(
    capture: Capture, *, namespace: str | None = None, nodes: Collection[str] | None = None
) -> MemoryCapture:
    """`capture` without secrets; of API objects only those of `namespace`, of nodes only `nodes`, where given.

    Pods of kube-system that are kube-proxy's and all Node objects stay. Files that are none of a snapshot's are left
    out and counted in a gap. Raises SnapshotError where a list of API objects cannot be read.
    """
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    for name in capture.names():
        parts = name.split("/")
        if parts[0] == "nodes" and nodes is not None and parts[1] not in nodes:
            continue
        if name in CLUSTER_KINDS:
            files[name] = _strip_list(name, capture.read(name), namespace)
        elif name in {_VERSION, PARTIAL}:
            files[name] = capture.read(name)
        elif parts[0] == "nodes" and _is_of_other(parts, namespace):
            continue
        elif parts[0] == "nodes" and NODE_FILE.fullmatch("/".join(parts[2:])):
            content = capture.read(name)
            if "kube-proxy-config" in name:
                content = _without_kubeconfig(content)
            elif name.endswith("/wg.txt"):
                content = wireguard.without_keys(content.decode(errors="replace")).encode()
            elif "/ip-xfrm-" in name:
                content = xfrm.without_keys(content.decode(errors="replace")).encode()
            files[name] = content
        else:
            left_out.append(name)
    if namespace is not None:
        scoped = dict.fromkeys(
            sorted(f for f in files if CLUSTER_KINDS.get(f, "Node") not in _OF_THE_CLUSTER), "namespace"
        )
        known = json.loads(files.get(PARTIAL, b"{}"))
        files[PARTIAL] = json.dumps({**scoped, **known}).encode()
    gaps = list(capture.gaps)
    if nodes is not None:
        gaps = [gap for gap in gaps if _about(gap, nodes, capture)]
    if left_out:
        names = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
        message = f"{len(left_out)} files are none of a snapshot's and were left out: {names}"
        gaps.append(EvidenceGap("left-out", "files", message))
    return MemoryCapture(files=files, gaps=tuple(gaps), source=capture.source)


def _is_of_other(parts: list[str], namespace: str | None) -> bool:
    """Whether a node's file is of a pod in another Kubernetes namespace than the one asked."""
    return namespace is not None and parts[2:3] == ["pods"] and parts[3].partition("_")[0] != namespace


def _about(gap: EvidenceGap, nodes: Collection[str], capture: Capture) -> bool:
    """Whether a gap is not about a node that is left out."""
    node = gap.subject.partition("/")[0]
    return node in nodes or node not in capture.node_names()


def _strip_list(name: str, content: bytes, namespace: str | None) -> bytes:
    kind = CLUSTER_KINDS[name]
    try:
        document = json.loads(content)
        items = document if isinstance(document, list) else document.get("items", [document])
        kept = [
            _strip_object(item)
            for item in items or ()
            if item.get("kind", kind) == kind and _is_in(item, kind, namespace)
        ]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise SnapshotError(
            f"{name} is not a list of API objects, so what must not travel cannot be taken out of it",
            hint="collect that file again, or remove it",
        ) from None
    lines = b",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() for item in kept)
    return b'{"apiVersion":"v1","kind":"List","items":[\n' + lines + b"\n]}\n"


def _is_in(item: dict[str, Any], kind: str, namespace: str | None) -> bool:
    metadata = item.get("metadata") or {}
    if kind == LEASES.kind and not str(metadata.get("name")).startswith(LEASE_PREFIX):
        return False
    if namespace is None or kind in _OF_THE_CLUSTER:
        return True
    own = metadata.get("namespace")
    return own == namespace or (kind == "Pod" and own == "kube-system" and _is_kube_proxy(item))


def _is_kube_proxy(pod: dict[str, Any]) -> bool:
    labels = (pod.get("metadata") or {}).get("labels") or {}
    return "kube-proxy" in {labels.get("k8s-app"), labels.get("component")}


def _strip_object(item: dict[str, Any]) -> dict[str, Any]:
    metadata = item.get("metadata") or {}
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations") or {}
    for key in [key for key in annotations if _COPIED_MANIFEST.search(key)]:
        del annotations[key]
    if item.get("kind", "Pod") == "Pod" and "spec" in item:
        _strip_pod(item)
    return item


def _strip_pod(pod: dict[str, Any]) -> None:
    spec = pod.get("spec") or {}
    for field in _POD_FIELDS:
        spec.pop(field, None)
    for group in _CONTAINERS:
        for container in spec.get(group) or ():
            for field in _CONTAINER_FIELDS:
                container.pop(field, None)
            if not _is_kube_proxy(pod):  # whose command line tells its mode, and holds no secret
                container.pop("command", None)
                container.pop("args", None)
            _strip_probe(container.get("readinessProbe") or {})


def _strip_probe(probe: dict[str, Any]) -> None:
    """A probe keeps what it asks, without the headers and arguments that may hold a password."""
    if isinstance(probe.get("httpGet"), dict):
        probe["httpGet"].pop("httpHeaders", None)
    command = (probe.get("exec") or {}).get("command")
    if command and len(command) > 1:
        probe["exec"]["command"] = [command[0], "…"]


def _without_kubeconfig(content: bytes) -> bytes:
    """kube-proxy's configuration out of the ConfigMap that holds a kubeconfig besides."""
    if b"ConfigMap" not in content:
        return content
    import yaml

    try:
        document = yaml.safe_load(content)
        if not isinstance(document, dict) or document.get("kind") != "ConfigMap":
            return content
        held = document.get("data") or {}
        return str(held.get("config.conf") or held.get("config") or "").encode()
    except (yaml.YAMLError, AttributeError):
        return b""
