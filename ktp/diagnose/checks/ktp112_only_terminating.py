"""The Service's only endpoints are terminating.

# What it means
Every endpoint that still serves belongs to a pod that is being deleted.

# Why traffic fails
kube-proxy up to 1.25 uses no terminating endpoint: the port is refused from the moment the deletion begins. From 1.26
on it falls back to those that still serve, where no other is ready; when they end, the port is refused.

# Evidence
The EndpointSlices' conditions, kube-proxy's version, and that the cells connect with a ready pod.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o yaml | grep -A4 conditions
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
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, counterfactual, field, listed
from ktp.diagnose.checks.endpoints_common import leaving_endpoints, selection_of, without_endpoints
from ktp.kubeproxy.endpoints import ProxyEndpoint
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where all that serves is terminating: as an error where kube-proxy does not use it, else as a warning."""
    cells = [e for e in without_endpoints(case) if leaving_endpoints(case, e)]
    if cells:
        yield from _unused(case, cells)
        return
    seen: dict[str, tuple[ProxyEndpoint, ...]] = {}
    for entry in case.entries:
        selection = selection_of(case, entry)
        if selection.usable and not any(e.ready for e in selection.usable):
            seen.setdefault(entry.port.name or str(entry.port.port), selection.usable)
    for port, endpoints in seen.items():
        names = listed(e.pod or e.ip for e in endpoints)
        yield CHECK.finding(
            f"{case.service.key} port {port} lives on terminating endpoints alone ({names}): it is refused as soon as "
            "they end",
            evidence=[
                field(
                    f"EndpointSlices of {case.service.key}",
                    _conditions(e.ip, e.pod, ready=e.ready, serving=e.serving, terminating=e.terminating),
                )
                for e in endpoints[:4]
            ],
            fixes=[_FIX],
            severity=Severity.WARNING,
        )


_FIX = Fix("get a ready pod running: find out why no new one is")


def _unused(case: Case, cells: list[Entry]) -> Iterable[Finding]:
    first = cells[0]
    endpoints = leaving_endpoints(case, first)
    mended = case.mended(cells, f"pod on {first.node}", lambda: pod_added(case, first.node), first.node)
    if not mended:
        return
    names = listed(e.target_name or e.addresses[0] for e in endpoints)
    yield CHECK.finding(
        f"all that still serves {case.service.key} is terminating ({names}), and kube-proxy "
        f"{case.examiner.proxy(first.node).versions} uses no terminating endpoint (1.26 and later does)",
        evidence=[
            *(
                field(
                    f"EndpointSlices of {case.service.key}",
                    _conditions(
                        e.addresses[0],
                        e.target_name,
                        ready=e.is_ready,
                        serving=e.is_serving,
                        terminating=True,
                    ),
                )
                for e in endpoints[:4]
            ),
            counterfactual(f"with a ready pod on {first.node}, {mended[0].title} connects"),
        ],
        fixes=[
            replace(_FIX, cures=mended.cures(cells)),
            Fix("upgrade kube-proxy to 1.26 or later, which serves from them meanwhile", cost="an upgrade"),
        ],
        cells=cells,
    )


def _conditions(ip: str, name: str | None, *, ready: bool, serving: bool, terminating: bool) -> str:
    said = {"ready": ready, "serving": serving, "terminating": terminating}
    return f"{ip} ({name or 'no pod'}): " + ", ".join(f"{k} {str(v).lower()}" for k, v in said.items())


CHECK = Check("KTP112", "OnlyTerminating", Severity.ERROR, run)
