"""Use cases: the one place that joins collecting, parsing, asking and showing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktp.errors import EvidenceError, NotFoundError, UsageError

if TYPE_CHECKING:
    from ktp.dataplane.walk import Walker
    from ktp.model.capture import Capture
    from ktp.model.cluster import Cluster, Service
    from ktp.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The common options of the command line."""

    snapshot: str | None = None
    demo: bool = False
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    nodes: tuple[str, ...] = ()
    node_access: str = "auto"
    output: str = "text"
    color: str = "auto"
    verbose: bool = False


def demo_path() -> Path:
    """The folder of the packaged snapshot."""
    return Path(__file__).parent / "demo" / "article"


def offline(settings: Settings) -> bool:
    """Whether the question goes to a snapshot and not to a live cluster."""
    return settings.demo or settings.snapshot is not None


def open_offline(settings: Settings) -> Capture:
    """The capture of --demo or --snapshot. Raises SnapshotError."""
    from ktp.collect.snapshot import open_snapshot

    if settings.demo and settings.snapshot is not None:
        raise UsageError("--demo and --snapshot are two different snapshots; give one of them")
    return open_snapshot(demo_path() if settings.demo else Path(settings.snapshot or ""))


def split_name(text: str, settings: Settings, default_namespace: str = "default") -> tuple[str, str]:
    """`[NAMESPACE/]NAME` → (namespace, name); -n fills the namespace in."""
    namespace, slash, name = text.rpartition("/")
    if slash and (not namespace or not name or "/" in namespace):
        raise UsageError(f"{text!r} is not a Service name; write NAMESPACE/NAME or NAME with -n NAMESPACE")
    if not name:
        raise UsageError("the name of the Service is empty; write NAMESPACE/NAME")
    return namespace or settings.namespace or default_namespace, name


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


def snapshot_for_all(settings: Settings, namespace: str | None) -> Snapshot:
    """The snapshot that answers questions to all Services (of one namespace), live or not."""
    from ktp.parse.snapshot import parse_snapshot

    if offline(settings):
        return _check_nodes(parse_snapshot(open_offline(settings), nodes=settings.nodes or None), settings)
    from ktp.collect.cluster import collect_services
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    capture = _with_nodes(settings, collect_services(api, namespace))
    return _check_nodes(parse_snapshot(capture, nodes=settings.nodes or None), settings)


def _default_namespace(settings: Settings) -> str:
    from ktp.collect.kube_config import load_configuration

    return load_configuration(settings.kubeconfig, settings.context).default_namespace or "default"


def _collect_one(settings: Settings, text: str) -> Capture:
    from ktp.collect.cluster import collect_service
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context)
    namespace, name = split_name(text, settings, api.default_namespace)
    return _with_nodes(settings, collect_service(api, namespace, name))


def _with_nodes(settings: Settings, capture: Capture) -> Capture:
    """Join what the nodes themselves say, by --node-access."""
    from ktp.collect.local_node import collect_local_node, local_node_name
    from ktp.model.capture import merge_captures

    if settings.node_access == "none":
        return capture
    if settings.node_access in ("auto", "local"):
        name = local_node_name(capture)
        if name is None and settings.node_access == "local":
            if len(settings.nodes) != 1:
                raise EvidenceError(
                    "this machine is none of the cluster's nodes",
                    hint="say which one it is with --node NAME, or run ktp on the node",
                )
            name = settings.nodes[0]
        if name is None or (settings.nodes and name not in settings.nodes):
            return capture
        return merge_captures(capture, collect_local_node(name))
    raise UsageError(f"--node-access {settings.node_access} is not available in this version")


def _check_nodes(snapshot: Snapshot, settings: Settings) -> Snapshot:
    known = set(snapshot.nodes) | set(snapshot.cluster.nodes or {})
    for name in settings.nodes:
        if known and name not in known:
            raise NotFoundError(
                f"there is no node {name!r} in the {'snapshot' if offline(settings) else 'cluster'}"
                + _near(name, known)
            )
    return snapshot


def find_service(cluster: Cluster, namespace: str, name: str) -> Service:
    """The Service, or NotFoundError with the names that come near."""
    found = cluster.services.get(f"{namespace}/{name}")
    if found is not None:
        return found
    names = sorted(s.name for s in cluster.services.values() if s.namespace == namespace)
    if not names:
        namespaces = sorted({s.namespace for s in cluster.services.values()})
        raise NotFoundError(f"there is no Service in namespace {namespace!r}" + _near(namespace, namespaces))
    elsewhere = sorted(s.key for s in cluster.services.values() if s.name == name)
    if elsewhere:
        raise NotFoundError(
            f"there is no Service {name!r} in namespace {namespace!r}; there is {', '.join(elsewhere[:3])}"
        )
    raise NotFoundError(f"there is no Service {name!r} in namespace {namespace!r}" + _near(name, names))


def _near(name: str, names: set[str] | list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(names)[:8])}"


def walker_for(snapshot: Snapshot) -> Walker:
    """The packet walker over a snapshot."""
    from ktp.dataplane.walk import Walker
    from ktp.diagnose.topology import topology_of

    return Walker(topology_of(snapshot))
