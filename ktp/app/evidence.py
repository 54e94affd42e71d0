"""The snapshot that a question is put to: of a file, or of a cluster and those of its nodes that may be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ktp.app.settings import Settings, offline, open_offline, split_name
from ktp.errors import EvidenceError, NotFoundError, UsageError
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi
    from ktp.collect.nft_chains import Reach
    from ktp.dataplane.walk import Walker
    from ktp.model.capture import Capture
    from ktp.model.cluster import Cluster, Service
    from ktp.model.snapshot import Snapshot

    _Pods = Mapping[str, Mapping[str, str]]


def snapshot_for_service(settings: Settings, text: str) -> tuple[Snapshot, Service]:
    """The snapshot that answers questions to one Service, live or not, and that Service."""
    from ktp.parse.snapshot import parse_snapshot

    if offline(settings):
        snapshot = parse_snapshot(open_offline(settings), nodes=settings.nodes or None)
        namespace, name = split_name(text, settings)
        return _check_nodes(snapshot, settings), find_service(snapshot.cluster, namespace, name)
    capture = _collect_one(settings, text)
    snapshot = _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)
    namespace, name = split_name(text, settings, _default_namespace(settings))
    return snapshot, find_service(snapshot.cluster, namespace, name)


def snapshot_for_all(settings: Settings, namespace: str | None, *, reach: Reach | None = None) -> Snapshot:
    """The snapshot that answers questions to all Services (of one namespace), live or not.

    With `reach`, of large live nodes only the rules that it reaches.
    """
    from ktp.parse.snapshot import parse_snapshot

    if offline(settings):
        return _check_nodes(parse_snapshot(open_offline(settings), nodes=settings.nodes or None), settings)
    from ktp.collect.cluster import collect_services
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    capture = with_nodes(settings, collect_services(api, namespace), api=api, reach=reach)
    return _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)


def _default_namespace(settings: Settings) -> str:
    from ktp.collect.kube_config import load_configuration

    return load_configuration(settings.kubeconfig, settings.context).namespace or "default"


def _collect_one(settings: Settings, text: str) -> Capture:
    from ktp.collect.cluster import collect_service
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    namespace, name = split_name(text, settings, api.default_namespace)
    capture = collect_service(api, namespace, name)
    return with_nodes(settings, capture, api=api, reach=_reach(capture), pods="asked")


def _reach(capture: Capture) -> Reach:
    """The rules that packets to the Services of `capture` can meet, and the chains that kube-proxy would give them."""
    from ktp.collect.nft_chains import Reach, service_destinations
    from ktp.kubeproxy.names import KUBE_MARK_DROP, KUBE_MARK_MASQ, service_chains, service_port_strings
    from ktp.parse.kubernetes import parse_cluster_with_gaps

    cluster, _ = parse_cluster_with_gaps(capture)
    chains = [
        ("nat", chain)
        for service in cluster.services.values()
        for port in service.ports
        for name in service_port_strings(service, port)
        for own in (service_chains(name, port.protocol),)
        for chain in (own.svc, own.svl, own.ext, own.xlb, own.fw)
    ]
    # What-if questions give rules to Services that have none now, and those lead here.
    chains += [("nat", KUBE_MARK_MASQ), ("nat", KUBE_MARK_DROP)]
    return Reach(destinations=service_destinations(capture), chains=tuple(dict.fromkeys(chains)))


def with_nodes(
    settings: Settings,
    capture: Capture,
    *,
    api: KubeApi | None = None,
    reach: Reach | None = None,
    pods: str = "none",
) -> Capture:
    """Join what the nodes themselves say, by --node-access; with `reach`, of large ones only the rules it reaches.

    `pods` are those whose network namespaces are read where --pods does not say which: none, asked or all.
    """
    from ktp.collect.children import ending_children
    from ktp.collect.pod_namespaces import pods_to_read
    from ktp.collect.ssh import all_nodes
    from ktp.model.capture import merge_captures

    require_nodes(settings, capture)
    if settings.node_access == "exporter":
        raise UsageError(
            "--node-access exporter is for ktp diagnose svc: the pods say how their nodes do, and not their rules"
        )
    if settings.counters and settings.node_access in ("none", "agent"):
        raise UsageError(
            f"--counters needs a shell on the nodes, which --node-access {settings.node_access} is not",
            hint="use --node-access local, ssh or --node-shell",
        )
    if settings.pods == "exec" and pods == "none":
        raise UsageError(
            "--pods exec enters the pods of named Services, and no Service is named here",
            hint="name one, or use --pods none",
        )
    if settings.pods == "exec" and api is not None:
        from ktp.collect.pod_sockets import collect_pod_sockets

        asked = {
            node: addresses
            for node, addresses in pods_to_read(capture, every=False).items()
            if not settings.nodes or node in settings.nodes
        }
        sockets = collect_pod_sockets(api, capture, asked)
        capture = merge_captures(capture, sockets, source=capture.source)
    if settings.node_access == "none":
        return capture
    with ending_children():
        which = "none" if settings.pods == "exec" else settings.pods or pods
        wanted = pods_to_read(capture, every=which == "all") if which != "none" else {}
        way = WAYS.get(settings.node_access)
        nodes = all_nodes(capture, settings.nodes)
        if way is None:
            read = _this_node(settings, capture, reach, wanted)
        elif not nodes:
            read = _no_node_known(capture)
        else:
            read = way(_Asked(settings, capture, nodes, reach, wanted, api))
    return merge_captures(capture, read, source=capture.source if not read.node_names() else None)


def require_nodes(settings: Settings, capture: Capture) -> None:
    """NotFoundError for a --node that the cluster does not have: nobody logs in to a machine of a mistyped name."""
    from ktp.collect.ssh import node_addresses

    known = set(node_addresses(capture))
    for name in settings.nodes:
        if known and name not in known:
            raise NotFoundError(f"there is no node {name!r} in the cluster" + did_you_mean(name, known))


def _this_node(settings: Settings, capture: Capture, reach: Reach | None, pods: _Pods) -> Capture:
    """--node-access local, and auto, which reads nothing where this machine is no node and says how it could."""
    from ktp.collect.local_node import collect_local_node, local_node_name
    from ktp.collect.ssh import all_nodes
    from ktp.model.capture import EvidenceGap, MemoryCapture, merge_captures

    name = local_node_name(capture)
    if name is None and settings.node_access == "local":
        if len(settings.nodes) != 1:
            raise EvidenceError(
                "this machine is none of the cluster's nodes",
                hint="say which one it is with --node NAME, or run ktp on the node",
            )
        name = settings.nodes[0]
    if name is not None and settings.nodes and name not in settings.nodes:
        name = None
    others = [node for node in all_nodes(capture, settings.nodes) if node != name]
    gaps = []
    if others:
        count = f"node {others[0]}" if len(others) == 1 else f"{len(others)} nodes"
        message = (
            f"the rules of {count} were not read, since ktp does not run there"
            if name is not None
            else f"this machine is no node of the question, and so the rules of {count} were not read"
        )
        remedy = (
            "--node-access ssh reads them by SSH, --node-access agent through the agents' pods, --node-shell by a "
            "command of yours"
        )
        gaps.append(EvidenceGap("node-access", "nodes", message, remedy=remedy))
    unread = MemoryCapture(files={}, gaps=tuple(gaps), source=capture.source)
    if name is None:
        return unread
    read = collect_local_node(name, reach=reach, pods=pods.get(name), counters=settings.counters)
    return merge_captures(read, unread, source=read.source)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of which nodes; `capture` is what the API server said."""

    settings: Settings
    capture: Capture
    nodes: tuple[str, ...]
    reach: Reach | None
    pods: _Pods
    api: KubeApi | None


def _by_ssh(asked: _Asked) -> Capture:
    from ktp.collect.ssh import SshSettings, collect_over_ssh

    settings = asked.settings
    ssh = SshSettings(
        user=settings.ssh_user,
        options=settings.ssh_options,
        sudo=settings.sudo,
        parallel=settings.parallel,
        timeout=settings.timeout,
        counters=settings.counters,
    )
    return collect_over_ssh(
        asked.capture, asked.nodes, ssh, reach=asked.reach, pods=asked.pods, on_progress=settings.progress
    )


_MOST_UNASKED = 10
"""On so many nodes something is created without that they were named."""


def _by_shell(asked: _Asked) -> Capture:
    from ktp.collect.node_shell import NodeShell, collect_by_shell

    settings, nodes = asked.settings, asked.nodes
    shell = NodeShell(
        command=settings.node_shell or "",
        sudo=settings.sudo,
        parallel=settings.parallel,
        timeout=settings.timeout,
        counters=settings.counters,
    )
    if shell.preset.makes:
        if len(nodes) > _MOST_UNASKED and not settings.nodes:
            raise UsageError(
                f"--node-shell {shell.command} makes {shell.preset.makes}, and the cluster has {len(nodes)} nodes",
                hint="say with --node which of them are read",
            )
        settings.warn(
            f"--node-shell {shell.command} makes {shell.preset.makes} ({shell.preset.command}); ktp has it removed "
            f"afterwards ({shell.preset.cleaning}), unless it is interrupted"
        )
    return collect_by_shell(nodes, shell, reach=asked.reach, pods=asked.pods, on_progress=settings.progress)


def _by_agent(asked: _Asked) -> Capture:
    from ktp.collect.kube_api import connect
    from ktp.collect.kube_proxy_exec import collect_through_kube_proxy

    settings = asked.settings
    return collect_through_kube_proxy(
        asked.api or connect(settings.kubeconfig, settings.context),
        asked.nodes,
        asked.capture,
        parallel=settings.parallel,
        timeout=settings.timeout,
        reach=asked.reach,
        on_progress=settings.progress,
    )


WAYS: Mapping[str, Callable[[_Asked], Capture]] = {"ssh": _by_ssh, "shell": _by_shell, "agent": _by_agent}
"""The ways of --node-access to other machines; with any other word this one alone is read."""


def _no_node_known(capture: Capture) -> Capture:
    from ktp.model.capture import EvidenceGap, MemoryCapture

    gap = EvidenceGap(
        "node-access",
        "nodes",
        "no node is known by name, and so none was read",
        remedy="name them with --node, or get the right to list nodes",
    )
    return MemoryCapture(files={}, gaps=(gap,), source=capture.source)


def _check_nodes(snapshot: Snapshot, settings: Settings) -> Snapshot:
    known = set(snapshot.nodes) | set(snapshot.cluster.nodes or {})
    for name in settings.nodes:
        if known and name not in known:
            raise NotFoundError(
                f"there is no node {name!r} in the {'snapshot' if offline(settings) else 'cluster'}"
                + did_you_mean(name, known)
            )
    return snapshot


def find_service(cluster: Cluster, namespace: str, name: str) -> Service:
    """The Service, or NotFoundError with the names that come near."""
    found = cluster.services.get(f"{namespace}/{name}")
    if found is not None:
        return found
    names = sorted(s.name for s in cluster.services.values() if s.namespace == namespace)
    elsewhere = sorted(s.key for s in cluster.services.values() if s.name == name)
    if not names:
        namespaces = sorted({s.namespace for s in cluster.services.values()})
        there = f"; there is {', '.join(elsewhere[:3])}"
        raise NotFoundError(
            f"there is no Service in namespace {namespace!r}"
            + (
                there
                if elsewhere and not near_names(namespace, namespaces)
                else did_you_mean(namespace, namespaces)
            ),
            hint=f"ktp diagnose svc {elsewhere[0]}" if len(elsewhere) == 1 else None,
            near=tuple(elsewhere[:3]),
        )
    if elsewhere:
        raise NotFoundError(
            f"there is no Service {name!r} in namespace {namespace!r}; there is {', '.join(elsewhere[:3])}",
            hint=f"ktp diagnose svc {elsewhere[0]}" if len(elsewhere) == 1 else None,
            near=tuple(elsewhere[:3]),
        )
    raise NotFoundError(
        f"there is no Service {name!r} in namespace {namespace!r}" + did_you_mean(name, names)
    )


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """Those that somebody who wrote `name` may have meant, nearest first."""
    from difflib import get_close_matches

    return get_close_matches(name, sorted(set(names)), n=3, cutoff=0.5)


def did_you_mean(name: str, names: set[str] | list[str]) -> str:
    """The end of a sentence about a name that is none: those that come near, or all where they are few."""
    near = near_names(name, names)
    if near or not names:
        return f"; did you mean {' or '.join(near)}?" if near else ""
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(sorted(names)[:8])}"


def walker_for(snapshot: Snapshot) -> Walker:
    """The packet walker over a snapshot."""
    from ktp.dataplane.walk import Walker
    from ktp.diagnose.topology import topology_of

    return Walker(topology_of(snapshot))


def node_names(snapshot: Snapshot) -> set[str]:
    """Every node that is known, by the API or by its own words."""
    return {*snapshot.nodes, *(snapshot.cluster.nodes or ())}
