"""The Service's only endpoints are terminating.

# What it means
Every endpoint that still serves belongs to a pod that is being deleted.

# Why traffic fails
kube-proxy up to 1.25 uses no terminating endpoint: the port is refused from the moment the deletion begins. From 1.26
on it falls back to those that still serve, where no other is ready; when they end, the port is refused.

# Evidence
The EndpointSlices' conditions, kube-proxy's version, and that the cells connect with the same endpoints ready.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o jsonpath='{.items[*].endpoints[*].conditions}'
    kubectl get pods -n NAMESPACE -l SELECTOR          # Terminating

# Fix
Find out why no new pod is ready: the workload was scaled to zero, its update waits, or a node is being drained. A
PodDisruptionBudget and maxUnavailable: 0 keep a ready pod through updates and drains.

# Example
A Deployment with one replica and strategy Recreate, during an update.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import slices_changed
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import selection_of, without_endpoints
from ktp.kubeproxy.endpoints import ProxyEndpoint
from ktp.model.cluster import EndpointSlice
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where all that serves is terminating: as an error where kube-proxy does not use it, else as a warning."""
    cells = [e for e in without_endpoints(case) if _leaving(case, e)]
    if cells:
        yield from _unused(case, cells)
        return
    seen: dict[str, tuple[ProxyEndpoint, ...]] = {}
    for entry in case.entries:
        selection = selection_of(case, entry)
        if selection.usable and not any(e.ready for e in selection.usable):
            seen.setdefault(entry.port.name or str(entry.port.port), selection.usable)
    for port, endpoints in seen.items():
        yield CHECK.finding(
            f"{case.service.key} port {port} lives on terminating endpoints alone ({listed(_name(e) for e in endpoints)}): "
            "it is refused as soon as they end",
            evidence=[field(f"EndpointSlices of {case.service.key}", _conditions(e)) for e in endpoints[:4]],
            fixes=[Fix(summary="get a ready pod running: find out why no new one is", cost="none")],
            severity=Severity.WARNING,
        )


def _unused(case: Case, cells: list[Entry]) -> Iterable[Finding]:
    def ready(one: EndpointSlice) -> EndpointSlice:
        return replace(
            one,
            endpoints=tuple(
                replace(e, ready=True, terminating=False) if e.is_terminating and e.is_serving else e
                for e in one.endpoints
            ),
        )

    mended = case.mended(cells, "terminating endpoints ready", lambda: slices_changed(case, ready))
    if not mended:
        return
    first = mended[0]
    endpoints = _leaving(case, first)
    version = case.examiner.proxy(first.node).versions
    yield CHECK.finding(
        f"all that still serves {case.service.key} is terminating ({listed(_name(e) for e in endpoints)}), and kube-proxy "
        f"{version} uses no terminating endpoint (1.26 and later does)",
        evidence=[
            *(field(f"EndpointSlices of {case.service.key}", _conditions(e)) for e in endpoints[:4]),
            counterfactual(f"with the same endpoints ready, {first.title} on {first.node} connects"),
        ],
        fixes=[
            Fix(
                summary="get a ready pod running: find out why no new one is",
                cost="none",
                verified=True,
                outcome=f"{len(mended)} of {len(cells)} cells then connect",
            ),
            Fix(
                summary="upgrade kube-proxy to 1.26 or later, which serves from them meanwhile",
                cost="an upgrade",
            ),
        ],
        cells=cells,
    )


def _leaving(case: Case, entry: Entry) -> list[ProxyEndpoint]:
    return [e for e in selection_of(case, entry).listed if e.is_usable_when_terminating]


def _name(endpoint: ProxyEndpoint) -> str:
    return endpoint.pod or endpoint.ip


def _conditions(endpoint: ProxyEndpoint) -> str:
    return (
        f"{endpoint.ip} ({_name(endpoint)}): ready {str(endpoint.ready).lower()}, serving "
        f"{str(endpoint.serving).lower()}, terminating {str(endpoint.terminating).lower()}"
    )


CHECK = Check(code="KTP112", name="OnlyTerminating", severity=Severity.ERROR, page=__doc__ or "", run=run)
