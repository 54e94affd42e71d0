"""No container of the Service's pods declares the targetPort; whether something listens there was not looked at.

# What it means
The pods declare ports, and the Service's targetPort is none of them. containerPort is a note for people: a program may
listen on a port that no container declares, and often the Service has the wrong number.

# Why traffic fails
Where nothing listens on the port, clients are refused by the pod itself, on every node and under every policy.

# Evidence
spec.ports[].targetPort of the Service, and the ports that the pods' containers declare. Where the pods' sockets were
read, KTP212 tells instead.

# Confirm by hand
    kubectl get pods -n NAMESPACE -l SELECTOR -o jsonpath='{.items[*].spec.containers[*].ports}'
    ss -lntu                           # in the pod's network namespace: nsenter -t PID -n ss -lntu

# Fix
Correct targetPort, or declare the port on which the program listens.

# Example
containerPort 8080, targetPort 8081.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field, listed
from ktp.diagnose.checks.endpoints_common import of_port, selected_pods
from ktp.model.assumption import PROGRAM_LISTENS
from ktp.model.cluster import ServicePort
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each port whose number no ready pod's container declares, where no pod's sockets were read."""
    pods = [p for p in selected_pods(case) or () if p.is_ready]
    for port in case.service.ports:
        number = _number(port)
        if not pods or number is None or not all(p.ports for p in pods):
            continue  # pods that declare nothing say nothing
        declared = {(c.container_port, c.protocol.upper()) for p in pods for c in p.ports}
        if number in {declared_number for declared_number, _ in declared}:
            continue  # of UDP ports the protocol is often forgotten
        cells = of_port(case.entries, port)
        if not any(PROGRAM_LISTENS in e.cell.assumptions for e in cells):
            continue
        ports = listed([f"{n}/{protocol}" for n, protocol in sorted(declared)], 6)
        yield CHECK.finding(
            f"targetPort {number} of port {port.port} of {case.service.key} is declared by no container of its pods "
            f"({ports}); whether a program listens there was not looked at",
            evidence=[
                field(
                    f"Service {case.service.key}",
                    f"spec.ports[{port.name or port.port}].targetPort: {number}",
                ),
                field(f"Pod {pods[0].key}", f"container ports: {ports}"),
            ],
            fix=Fix(
                "see on which port the program listens, and put it into targetPort (or declare it)",
                command=f"kubectl get pods -n {case.service.namespace} {pods[0].name} "
                "-o jsonpath='{.spec.containers[*].ports}'",
            ),
        )


def _number(port: ServicePort) -> int | None:
    target = port.target_port
    if target is None:
        return port.port
    if isinstance(target, str):
        return int(target) if target.isdecimal() else None
    return target


CHECK = Check("KTP113", "TargetPortUndeclared", Severity.WARNING, run)
