"""What a shell offers behind `ktp`: names of Services, namespaces, nodes and findings, from where the question goes.

A shell waits for the answer at every press of a key: an API server that does not answer at once has no names to offer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ktp.app.settings import Settings, offline, open_offline

PATIENCE = 2.0


def service_names(settings: Settings) -> list[str]:
    """`NAMESPACE/NAME` of every Service, without the namespace where -n gives it."""
    found = _within(PATIENCE, lambda: _objects(settings, "services"))
    wanted = settings.namespace
    return sorted(
        name if wanted else f"{namespace}/{name}" for namespace, name in found if wanted in (None, namespace)
    )


def namespaces(settings: Settings) -> list[str]:
    """The namespaces that have Services."""
    return sorted({namespace for namespace, _ in _within(PATIENCE, lambda: _objects(settings, "services"))})


def node_names(settings: Settings) -> list[str]:
    """The Nodes."""
    return sorted(name for _, name in _within(PATIENCE, lambda: _objects(settings, "nodes")))


def codes() -> list[tuple[str, str]]:
    """The findings: code and name."""
    from ktp.diagnose.checks import ALL_CHECKS

    return sorted((check.code, check.name) for check in ALL_CHECKS)


def _objects(settings: Settings, kind: str) -> list[tuple[str, str]]:
    """(namespace, name) of every object of a kind; [] where there are none to be had."""
    if offline(settings):
        from ktp.parse.kubernetes import parse_nodes, parse_services

        capture = open_offline(settings)
        name = f"cluster/{kind}.json"
        if not capture.has(name):
            return []
        if kind == "nodes":
            return [("", node) for node in parse_nodes(capture.read(name))]
        return [(s.namespace, s.name) for s in parse_services(capture.read(name)).values()]
    from ktp.collect.kube_api import connect

    api = connect(settings.kubeconfig, settings.context, connect_timeout=PATIENCE, read_timeout=PATIENCE)
    keys = (key.rpartition("/") for key in api.list_pages(f"/api/v1/{kind}").keys)
    return [(namespace, name) for namespace, _, name in keys]


def _within(seconds: float, ask: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """What `ask` finds within so many seconds; [] where it fails or takes longer."""
    found: list[tuple[str, str]] = []

    def work() -> None:
        try:
            found.extend(ask())
        except Exception:  # noqa: BLE001 - a shell has no place for an error
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return list(found)
