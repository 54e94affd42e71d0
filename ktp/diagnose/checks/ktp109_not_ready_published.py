"""The Service sends traffic to pods that are not ready.

# What it means
publishNotReadyAddresses is true: endpoints are listed as ready whatever the readiness probes say, and some pod is not
ready now.

# Why traffic fails
kube-proxy balances over such pods like over any other. A client whose connection is given to one may be refused, or
wait for an answer; the next try may succeed.

# Evidence
The field, and the pods that are not ready, each with the kubelet's reason.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.publishNotReadyAddresses}'
    kubectl get pods -n NAMESPACE -l SELECTOR

# Fix
Nothing, where the peers of a StatefulSet must find each other before they are ready; else set it to false.

# Example
A Service copied from a database's headless Service, which needs the field, to one for clients, which does not.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import selected_pods, why_not_ready
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where the field is set and an endpoint's pod is not ready."""
    service = case.service
    if not service.publish_not_ready_addresses:
        return
    listed_there = {
        a for s in case.examiner.slices_of(service) for e in s.endpoints if e.is_ready for a in e.addresses
    }
    pods = [p for p in selected_pods(case) or () if not p.is_ready and listed_there.intersection(p.pod_ips)]
    if not pods:
        return
    yield CHECK.finding(
        f"{service.key} publishes pods that are not ready: {listed(p.name for p in pods)} "
        f"get{'s' * (len(pods) == 1)} traffic all the same",
        evidence=[
            field(f"Service {service.key}", "spec.publishNotReadyAddresses: true"),
            *(field(f"Pod {p.key} on {p.node_name or 'no node'}", why_not_ready(p)) for p in pods[:4]),
        ],
        fix=Fix(
            "set publishNotReadyAddresses: false, if the clients should only meet ready pods",
            cost="without a ready pod the port is refused",
            patch={"spec": {"publishNotReadyAddresses": False}},
        ),
    )


CHECK = Check("KTP109", "NotReadyPublished", Severity.INFO, run)
