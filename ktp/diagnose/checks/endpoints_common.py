"""What the checks on endpoints share: which endpoints a port has, as kube-proxy selects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.diagnose.case import Case, Entry
from ktp.kubeproxy.endpoints import EndpointSelection, external_policy_local
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.model.cluster import Endpoint, Pod, ServicePort


def honours_local(case: Case, entry: Entry) -> bool:
    """Whether the node's kube-proxy honours `externalTrafficPolicy: Local` at this front end."""
    proxy = case.examiner.proxy(entry.node)
    external_ip = entry.front_end.kind is FrontEndKind.EXTERNAL_IP
    return external_policy_local(case.service, proxy.versions.minors()[-1], proxy, external_ip=external_ip)


def selection_of(case: Case, entry: Entry) -> EndpointSelection:
    """The endpoints that the dialled node's kube-proxy uses for the entry's port, or those of a node alike."""
    node = case.alike.twin_of.get(entry.node, entry.node)
    on_node = case.examiner.port_on(case.service, entry.port, node)
    return on_node.selection(ip_version=entry.front_end.ip_version)


def holders(case: Case) -> set[str]:
    """The nodes that hold a usable endpoint of the Service, by its slices."""
    return {
        e.node_name
        for s in case.examiner.slices_of(case.service)
        for e in s.endpoints
        if e.node_name and (e.is_ready or e.is_serving)
    }


def without_endpoints(case: Case) -> list[Entry]:
    """Failing cells of ports that have no usable endpoint anywhere."""
    if not case.examiner.index.knows(case.service):
        return []
    return [e for e in case.failing() if not selection_of(case, e).has_endpoints]


def of_port(entries: Iterable[Entry], port: ServicePort) -> list[Entry]:
    """The cells of one service port."""
    return [e for e in entries if e.port == port]


def unlisted_ports(case: Case) -> list[ServicePort]:
    """Service ports that no slice with a ready endpoint lists by name and protocol, though some has ready endpoints."""
    slices = [s for s in case.examiner.slices_of(case.service) if any(e.is_ready for e in s.endpoints)]
    if not slices:
        return []
    there = {(p.name, p.protocol.upper()) for s in slices for p in s.ports if p.port is not None}
    return [p for p in case.service.ports if (p.name, p.protocol.upper()) not in there]


def names_no_container_port(port: ServicePort, pod: Pod) -> bool:
    """Whether targetPort is a name, and no container of the pod declares a port of that name and protocol."""
    target = port.target_port
    if not isinstance(target, str) or target.isdecimal() or not target:
        return False
    return not any(p.name == target and p.protocol.upper() == port.protocol.upper() for p in pod.ports)


def family_without_endpoints(case: Case) -> int | None:
    """The address family of a dual-stack Service that has no usable endpoint while the other one has; else None."""
    versions = {e.front_end.ip_version for e in case.entries}
    if versions != {4, 6} or not case.examiner.index.knows(case.service):
        return None
    has = {
        v: any(selection_of(case, e).has_endpoints for e in case.entries if e.front_end.ip_version == v)
        for v in (4, 6)
    }
    if has[4] == has[6]:
        return None
    return 4 if has[6] else 6


def leaving_endpoints(case: Case, entry: Entry) -> list[Endpoint]:
    """Endpoints of the entry's family that serve and terminate, by the EndpointSlices (whatever kube-proxy reads)."""
    slices = (case.examiner.index.slices or {}).get((case.service.namespace, case.service.name), ())
    kind = "IPv6" if entry.front_end.ip_version == 6 else "IPv4"
    return [
        e
        for s in slices
        if s.address_type == kind
        and any((p.name, p.protocol) == (entry.port.name, entry.port.protocol) for p in s.ports)
        for e in s.endpoints
        if e.is_terminating and e.is_serving and not e.ready
    ]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a pod's labels satisfy a Service's selector (equality, all of it)."""
    return all(labels.get(k) == v for k, v in selector.items())


def selected_pods(case: Case) -> list[Pod] | None:
    """The pods that the Service selects; None where pods were not read or there is no selector."""
    pods = case.snapshot.cluster.pods
    if pods is None or not case.service.selector:
        return None
    return [
        p for p in pods if p.namespace == case.service.namespace and matches(case.service.selector, p.labels)
    ]


def selector_text(selector: Mapping[str, str]) -> str:
    """`app=nginx,tier=web`."""
    return ",".join(f"{k}={v}" for k, v in selector.items())


def why_not_ready(pod: Pod) -> str:
    """Why a pod is not ready, in the kubelet's words."""
    if pod.deletion_timestamp:
        return f"terminating since {pod.deletion_timestamp}"
    if pod.phase != "Running":
        return f"phase {pod.phase or 'unknown'}"
    for status in pod.containers:
        if status.state == "waiting" and status.reason:
            return f"container {status.name} waits: {status.reason}"
        if status.state == "terminated":
            return f"container {status.name} has ended: {status.reason or 'no reason given'}"
    probes = dict(pod.readiness_probes)
    for status in pod.containers:
        if not status.ready and status.name in probes:
            return f"container {status.name} fails its readiness probe ({probes[status.name]})"
    for condition in pod.conditions:
        if condition.type == "Ready" and condition.status != "True":
            since = f" since {condition.last_transition_time}" if condition.last_transition_time else ""
            return (condition.message or condition.reason or "condition Ready is not True") + since
    return "condition Ready is not True"
