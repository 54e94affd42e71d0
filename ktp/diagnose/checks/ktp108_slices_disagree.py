"""The Service's EndpointSlices and its Endpoints object list different ready addresses.

# What it means
Both API objects say who serves the Service; they are kept by two controllers, and one of them is behind, stopped, or
was written over by hand.

# Why traffic fails
kube-proxy reads EndpointSlices (Endpoints only up to 1.18, and up to 1.21 where it is told to). Ingress controllers,
service meshes and scripts may still read Endpoints: two clients of one Service then get different answers.

# Evidence
The addresses that only one of the two lists as ready.

# Confirm by hand
    kubectl get endpoints -n NAMESPACE NAME -o yaml
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o yaml

# Fix
Look at kube-controller-manager's log (endpoint-controller, endpointslice-controller,
endpointslicemirroring-controller). For a Service without selector write only one of the two by hand: Endpoints are
mirrored to slices, not the other way.

# Example
A script still writes Endpoints for an external database, and somebody made an EndpointSlice for it too.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.kubeproxy.endpoints import uses_endpoints_objects
from ktp.model.cluster import EndpointSlice
from ktp.model.diagnosis import Finding, Fix, Severity

_OVER_CAPACITY = 1000  # an Endpoints object holds no more addresses


def run(case: Case) -> Iterable[Finding]:
    """Fires where both were read and list different ready addresses of the family that Endpoints hold."""
    index = case.examiner.index
    key = (case.service.namespace, case.service.name)
    if index.slices is None or index.endpoints is None:
        return
    old = _ready(index.endpoints.get(key, ()))
    families = {version for _, version in old} or {4}
    new = {a for a in _ready(index.slices.get(key, ())) if a[1] in families}
    only_old, only_new = sorted(a for a, _ in old - new), sorted(a for a, _ in new - old)
    if not (only_old or only_new) or len(old) >= _OVER_CAPACITY or key not in index.endpoints:
        return
    readers = [
        n
        for n in case.nodes
        if uses_endpoints_objects(case.examiner.proxy(n).versions.minors()[-1], case.examiner.proxy(n))
    ]
    reads = "Endpoints" if readers else "EndpointSlices"
    evidence = []
    if only_old:
        evidence.append(field(f"Endpoints {case.service.key}", f"only here: {listed(only_old, 8)}"))
    if only_new:
        evidence.append(field(f"EndpointSlices of {case.service.key}", f"only here: {listed(only_new, 8)}"))
    yield CHECK.finding(
        f"the EndpointSlices and the Endpoints of {case.service.key} list different ready addresses; "
        f"kube-proxy reads {reads}",
        evidence=evidence,
        fix=Fix(
            "find out which controller is behind (kube-controller-manager's log), or remove "
            "the hand-made one",
            command=f"kubectl get endpoints,endpointslices -n {case.service.namespace} -o wide",
        ),
    )


def _ready(parts: Iterable[EndpointSlice]) -> set[tuple[str, int]]:
    return {
        (address, 6 if ":" in address else 4)
        for part in parts
        if part.ports or part.origin == "Endpoints"
        for e in part.endpoints
        if e.is_ready and not e.is_terminating
        for address in e.addresses[:1]
    }


CHECK = Check("KTP108", "SlicesDisagreeWithEndpoints", Severity.WARNING, run)
