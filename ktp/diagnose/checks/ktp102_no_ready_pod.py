"""Pods match the Service's selector, but none of them is ready.

# What it means
The selector finds pods; none has the condition Ready, so no EndpointSlice offers a usable endpoint.

# Why traffic fails
kube-proxy uses ready endpoints only (from 1.26 on also those that still serve while they terminate). With none left it
rejects the packet: "connection refused".

# Evidence
The pods with the reason that the kubelet gives, and the EndpointSlices' conditions.

# Confirm by hand
    kubectl get pods -n NAMESPACE -l SELECTOR -o wide
    kubectl describe pod -n NAMESPACE POD

# Fix
Make the pods ready: look at the readiness probe and at the container's log. `publishNotReadyAddresses: true` sends
traffic to pods that are not ready.

# Example
A readiness probe that asks a path the application does not have.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.diagnose.checks.endpoints_common import (
    selected_pods,
    selector_text,
    why_not_ready,
    without_endpoints,
)
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where pods match and none is ready."""
    entries = without_endpoints(case)
    pods = selected_pods(case)
    if not entries or not pods or any(p.is_ready for p in pods):
        return
    service = case.service
    home = next((p.node_name for p in pods if p.node_name), entries[0].node)
    mended = case.mended(entries, f"pod on {home}", lambda: pod_added(case, home), home)
    evidence: list[Evidence] = [
        field(f"Pod {p.key} on {p.node_name or 'no node'}", why_not_ready(p)) for p in pods[:5]
    ]
    if mended:
        evidence.append(counterfactual(f"with a ready pod on {home}, {mended[0].title} connects"))
    yield CHECK.finding(
        f"{len(pods)} pod{'s' * (len(pods) != 1)} match{'es' * (len(pods) == 1)} {selector_text(service.selector)}, "
        f"none is ready: {why_not_ready(pods[0])} ({pods[0].name})",
        evidence=evidence,
        fix=Fix(
            "make the pods ready",
            command=f"kubectl describe pod -n {service.namespace} {pods[0].name}",
            cures=mended.cures(entries) if mended else None,
        ),
        cells=entries,
    )


CHECK = Check("KTP102", "NoReadyPod", Severity.ERROR, run)
