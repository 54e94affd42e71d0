"""No EndpointSlice lists a port of the Service port's name and protocol.

# What it means
kube-proxy joins a Service port and an EndpointSlice port by name and protocol, both exactly. The slices hold ready
endpoints, but under another name or protocol.

# Why traffic fails
For kube-proxy the port has no endpoint, so it rejects the traffic: "connection refused". The number of the port plays
no part in the join.

# Evidence
Name and protocol on both sides, and that the cells connect once they are the same.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o jsonpath='{.items[*].ports}'
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.ports}'

# Fix
Give the slice's port the Service port's name (an unnamed port is "") and protocol. Slices made by hand for a Service
without selector are the usual place; those of the controller follow by themselves.

# Example
A hand-made EndpointSlice has a port named http, and the Service's only port has no name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case
from ktp.diagnose.changes import port_listed
from ktp.diagnose.checks.base import Check, field, listed, mending
from ktp.diagnose.checks.endpoints_common import (
    names_no_container_port,
    of_port,
    selected_pods,
    unlisted_ports,
    without_endpoints,
)
from ktp.model.cluster import EndpointPort
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each failing port that ready endpoints have under another name or protocol only."""
    ready = [p for p in selected_pods(case) or () if p.is_ready]
    for port in unlisted_ports(case):
        if ready and all(names_no_container_port(port, p) for p in ready):
            continue  # KTP104
        cells = of_port(without_endpoints(case), port)
        there = [
            p
            for s in case.examiner.slices_of(case.service)
            if any(e.is_ready for e in s.endpoints)
            for p in s.ports
            if p.port is not None
        ]
        if not cells or not there:
            continue
        like = next((p for p in there if p.name == port.name), there[0])
        supposed = EndpointPort(name=port.name, protocol=port.protocol, port=like.port)
        mended = case.mended(
            cells,
            f"slices list {port.name} {like.port}",
            partial(port_listed, case, supposed),
        )
        if not mended:
            continue
        found = listed(dict.fromkeys(f'"{p.name}" {p.port}/{p.protocol}' for p in there), 6)
        yield CHECK.finding(
            f'{case.service.key}: no EndpointSlice lists a port named "{port.name}" of protocol {port.protocol}; '
            f"they list {found}",
            evidence=[
                field(
                    f"Service {case.service.key}", f'spec.ports: name "{port.name}", protocol {port.protocol}'
                ),
                field(f"EndpointSlices of {case.service.key}", f"ports: {found}"),
                *mending("with that name and protocol in the slices", mended),
            ],
            fix=Fix(
                "give the Service port and the slice's port the same name and protocol",
                cures=mended.cures(),
            ),
            cells=cells,
        )


CHECK = Check("KTP105", "SlicePortMismatch", Severity.ERROR, run)
