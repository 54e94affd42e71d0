"""The common options of the command line, and which cluster or snapshot they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ktp.errors import UsageError
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.model.capture import Capture


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
    fail_on: str = "warning"
    node_shell: str | None = None
    ssh_user: str | None = None
    ssh_options: tuple[str, ...] = ()
    sudo: bool = False
    pods: str | None = None  # none, asked, all, exec; None: as the command would have it
    counters: int = 0  # seconds between two readings of the nodes' counters; 0: none
    parallel: int = 16
    timeout: float = 120.0
    # Told (nodes done, nodes in all, node) while nodes are read.
    progress: Callable[[int, int, str], None] | None = None
    # Told what is done beyond reading, before it is.
    warn: Callable[[str], None] = lambda _: None


def demo_path() -> Path:
    """The folder of the packaged snapshot."""
    return Path(__file__).parent.parent / "demo" / "article"


def offline(settings: Settings) -> bool:
    """Whether the question goes to a snapshot and not to a live cluster."""
    return settings.demo or settings.snapshot is not None


def open_offline(settings: Settings) -> Capture:
    """The capture of --demo or --snapshot. Raises SnapshotError."""
    from ktp.collect.snapshot import open_snapshot
    from ktp.parse.manifests import with_lists

    if settings.demo and settings.snapshot is not None:
        raise UsageError("--demo and --snapshot are two different snapshots; give one of them")
    return with_lists(open_snapshot(demo_path() if settings.demo else Path(settings.snapshot or "")))


def split_name(text: str, settings: Settings, default_namespace: str = "default") -> tuple[str, str]:
    """`[NAMESPACE/]NAME` → (namespace, name); -n fills the namespace in."""
    namespace, slash, name = text.rpartition("/")
    if slash and (not namespace or not name or "/" in namespace):
        raise UsageError(f"{text!r} is not a Service name; write NAMESPACE/NAME or NAME with -n NAMESPACE")
    if not name:
        raise UsageError("the name of the Service is empty; write NAMESPACE/NAME")
    return namespace or settings.namespace or default_namespace, name
