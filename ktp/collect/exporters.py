"""The reports of the pods of `ktp check --serve`, one a node, through the API server's proxy."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ktp.collect.parallel import OnProgress, run_each
from ktp.errors import ApiError, EvidenceError
from ktp.model.capture import EvidenceGap
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi

T = TypeVar("T")
SELECTOR = "app.kubernetes.io/name=ktp"
_PORT = "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What the pod of a node answered, or why there is no answer."""

    node: str
    report: T | None = None
    gap: EvidenceGap | None = None


def ask_exporters(
    api: KubeApi,
    nodes: Collection[str],
    take: Callable[[dict[str, Any], str], T],
    *,
    parallel: int,
    on_progress: OnProgress | None = None,
) -> list[Answer[T]]:
    """The report of each of `nodes`, of every Node of the cluster where none is named.

    `take` makes of a report, and of words for where it is from, what is kept of it (EvidenceError: it is none).
    A node without a pod that runs, and a pod that does not answer, is an answer with a gap. Raises ApiError where pods
    cannot be listed, EvidenceError where there is no pod of ktp at all.
    """
    pods: dict[str, str] = {}
    for item in api.list_pages("/api/v1/pods", {"labelSelector": SELECTOR}).items:
        found = json.loads(item)
        if (at := _report_of(found)) is not None:
            pods[found["spec"]["nodeName"]] = at
    if not pods:
        raise EvidenceError(
            "no pod of ktp check --serve runs in the cluster",
            hint=f"`ktp fleet manifest` prints the DaemonSet; its pods have the label {SELECTOR}",
        )
    names = list(nodes) or [key.removeprefix("/") for key in api.list_pages("/api/v1/nodes").keys]
    return run_each(
        names, lambda node: _ask(api, node, pods.get(node), take), workers=parallel, on_progress=on_progress
    )


def _report_of(pod: dict[str, Any]) -> str | None:
    """The path of a pod's report, None where it does not run or has no such port."""
    spec, metadata = pod.get("spec") or {}, pod.get("metadata") or {}
    if (pod.get("status") or {}).get("phase") != "Running" or not spec.get("nodeName"):
        return None
    ports = [p for c in spec.get("containers") or () for p in c.get("ports") or () if p.get("name") == _PORT]
    if not ports:
        return None
    where = f"{metadata.get('name')}:{ports[0].get('containerPort')}"
    return f"/api/v1/namespaces/{metadata.get('namespace')}/pods/{where}/proxy/report"


def _ask(api: KubeApi, node: str, path: str | None, take: Callable[[dict[str, Any], str], T]) -> Answer[T]:
    if path is None:
        return Answer(node=node, gap=_gap(node, f"no pod of ktp runs on {node}", None))
    try:
        return Answer(node=node, report=take(api.get(path), f"the pod of ktp on {node}"))
    except ApiError as error:
        return Answer(
            node=node, gap=_gap(node, f"the pod of ktp on {node} gave no report: {error.message}", error.hint)
        )
    except EvidenceError as error:
        return Answer(node=node, gap=_gap(node, error.message, None))


def _gap(node: str, message: str, remedy: str | None) -> EvidenceGap:
    return EvidenceGap("node-report", node, message, remedy=remedy)
