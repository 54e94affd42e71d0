"""The Service's selector matches no pod.

# What it means
No pod in the Service's namespace carries all labels of spec.selector.

# Why traffic fails
The EndpointSlices stay empty and kube-proxy rejects the traffic on every node: "connection refused".

# Evidence
spec.selector, and the labels of the pods that come nearest.

# Confirm by hand
    kubectl get pods -n NAMESPACE -l SELECTOR
    kubectl get pods -n NAMESPACE --show-labels

# Fix
Correct the selector or the pods' labels, or start the workload (it may be scaled to zero).

# Example
The selector says app=web, the pods carry app=website.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from ktp.diagnose.case import Case
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, field, mending
from ktp.diagnose.checks.endpoints_common import selected_pods, selector_text, without_endpoints
from ktp.model.cluster import Pod
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where pods are known and none matches."""
    entries = without_endpoints(case)
    if not entries or selected_pods(case) != []:
        return
    service = case.service
    evidence = [field(f"Service {service.key}", f"spec.selector: {selector_text(service.selector)}")]
    near = _nearest(case)
    if near is not None:
        pod, missing = near
        evidence.append(field(f"Pod {pod.key}", f"comes nearest; it lacks {missing}"))
    node = entries[0].node
    mended = case.mended(entries, f"pod on {node}", lambda: pod_added(case, node), node)
    evidence += mending(f"with a ready pod that matches on {node}", mended)
    yield CHECK.finding(
        f"the selector {selector_text(service.selector)} matches no pod in namespace {service.namespace}",
        evidence=evidence,
        fix=Fix(
            "correct spec.selector or the pods' labels, or scale the workload up",
            command=f"kubectl get pods -n {service.namespace} --show-labels",
            cures=mended.cures(entries) if mended else None,
        ),
        cells=entries,
    )


_ALIKE = 0.75


def _nearest(case: Case) -> tuple[Pod, str] | None:
    selector = case.service.selector
    best: tuple[float, Pod] | None = None
    for pod in case.snapshot.cluster.pods or ():
        if pod.namespace != case.service.namespace:
            continue
        # A label that agrees, or one that is nearly so: a typing error.
        alike = [SequenceMatcher(None, v, pod.labels.get(k, "")).ratio() for k, v in selector.items()]
        if alike and max(alike) >= _ALIKE and (best is None or sum(alike) > best[0]):
            best = (sum(alike), pod)
    if best is None:
        return None
    pod = best[1]
    missing = [
        f"{k}={v} (it has {k}={pod.labels[k]})" if k in pod.labels else f"{k}={v}"
        for k, v in selector.items()
        if pod.labels.get(k) != v
    ]
    return pod, ", ".join(missing)


CHECK = Check("KTP103", "SelectorMatchesNothing", Severity.ERROR, run)
