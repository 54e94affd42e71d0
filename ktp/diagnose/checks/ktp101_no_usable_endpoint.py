"""The Service has no usable endpoint anywhere.

# What it means
No EndpointSlice of the Service lists an endpoint that kube-proxy may use for this port.

# Why traffic fails
Without endpoints kube-proxy balances nothing; it adds a rule that rejects the packet with an ICMP port unreachable,
which a client sees as "connection refused". The traffic policy plays no part in it.

# Evidence
The Service's EndpointSlices (or Endpoints), and on the nodes the rule "has no endpoints".

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME

# Fix
Give the Service endpoints: pods that its selector matches, or EndpointSlices of your own where it has no selector.

# Example
A Service without selector whose EndpointSlice was never made.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.changes import pod_added
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.diagnose.checks.endpoints_common import (
    family_without_endpoints,
    leaving_endpoints,
    selected_pods,
    unlisted_ports,
    without_endpoints,
)
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a port has no usable endpoint and no other check tells why."""
    elsewhere = unlisted_ports(case)  # KTP104, KTP105
    family = family_without_endpoints(case)  # KTP110
    entries = [
        e
        for e in without_endpoints(case)
        if e.port not in elsewhere and e.front_end.ip_version != family and not leaving_endpoints(case, e)
    ]
    if not entries:
        return
    pods = selected_pods(case)
    if pods is not None and (not pods or not any(p.is_ready for p in pods)):
        return  # KTP103, KTP102
    service = case.service
    node = entries[0].node
    mended = case.mended(entries, f"pod on {node}", lambda: pod_added(case, node), node)
    evidence = [
        field(f"EndpointSlices of {service.key}", "no endpoint with ready, or serving and terminating")
    ]
    if not service.selector:
        why = (
            "it has no selector, so its EndpointSlices must be made by hand, and none lists a ready endpoint"
        )
        evidence.append(field(f"Service {service.key}", "spec.selector: none"))
    else:
        why = "no EndpointSlice of it lists a usable endpoint" + (
            ", though ready pods match its selector: the EndpointSlice controller is behind" if pods else ""
        )
    if mended:
        evidence.append(counterfactual(f"with a ready endpoint on {node}, {mended[0].title} connects"))
    yield CHECK.finding(
        f"{service.key} has no usable endpoint anywhere: {why}",
        evidence=evidence,
        fix=Fix("give the Service a ready endpoint", cures=mended.cures(entries) if mended else None),
        cells=entries,
    )


CHECK = Check("KTP101", "NoUsableEndpoint", Severity.ERROR, run)
