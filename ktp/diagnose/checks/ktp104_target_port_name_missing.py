"""The Service's targetPort is a name that no container of its pods has.

# What it means
spec.ports[].targetPort names a container port; the pods that the selector matches declare no port of that name and
protocol.

# Why traffic fails
The EndpointSlice controller looks the name up in each pod and leaves the port out where it does not find it. With no
endpoint for the port, kube-proxy rejects the traffic: "connection refused", while the pods are up and ready.

# Evidence
The Service's targetPort, the ports that the pods' containers declare, and that the cells connect once the slices list
the port.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.ports}'
    kubectl get pods -n NAMESPACE -l SELECTOR -o jsonpath='{.items[*].spec.containers[*].ports}'

# Fix
Name the container port in the pod template, or write the port's number in targetPort.

# Example
targetPort: web, and the Deployment's container port is called http.
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
    """Fires for each port with a targetPort name that none, or only some, of the ready pods have."""
    pods = [p for p in selected_pods(case) or () if p.is_ready]
    for port in case.service.ports:
        without = [p for p in pods if names_no_container_port(port, p)]
        if not without:
            continue
        number = port.port
        cells = of_port(without_endpoints(case), port) if port in unlisted_ports(case) else []
        supposed = EndpointPort(name=port.name, protocol=port.protocol, port=number)
        mended = case.mended(cells, f"slices list {port.name} {number}", partial(port_listed, case, supposed))
        every = len(without) == len(pods)
        if every and cells and not mended:
            continue
        declared = listed(
            dict.fromkeys(
                f"{p.name or 'unnamed'} {p.container_port}/{p.protocol}" for pod in without for p in pod.ports
            ),
            6,
        )
        evidence = [
            field(
                f"Service {case.service.key}",
                f"spec.ports[{port.name or port.port}].targetPort: {port.target_port}",
            ),
            field(f"Pod {without[0].key}", f"container ports: {declared or 'none declared'}"),
        ]
        evidence += mending("with that port in the slices", mended)
        who = (
            "no container of its pods has"
            if every
            else f"{len(without)} of {len(pods)} ready pods do not have"
        )
        yield CHECK.finding(
            f"{case.service.key}: targetPort {port.target_port} of port {port.port} is a name that {who}",
            evidence=evidence,
            fix=Fix(
                f"name the container port {port.target_port}, or put the port's number into targetPort",
                cost="a new pod template restarts the pods; targetPort does not",
                cures=mended.cures() if mended else None,
            ),
            cells=cells,
            severity=Severity.ERROR if every else Severity.WARNING,
        )


CHECK = Check("KTP104", "TargetPortNameMissing", Severity.ERROR, run)
