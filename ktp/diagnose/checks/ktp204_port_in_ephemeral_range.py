"""A node port lies in the range that the node hands out for outgoing connections.

# What it means
net.ipv4.ip_local_port_range includes the Service's node port (or its healthCheckNodePort), and
net.ipv4.ip_local_reserved_ports does not exempt it.

# Why traffic fails
Any process of the node may be given the port, for an outgoing connection or as a listening port of the kernel's choice.
A process that listens there is never reached from outside, for kube-proxy's rules take its packets first. Where
kube-proxy itself must open the port (healthCheckNodePort; up to 1.23 every node port) it fails with "address already in
use" as long as the other holds it, and a load balancer then sees the node as down.

# Evidence
Both sysctls and the ports.

# Confirm by hand
    sysctl net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports
    ss -tanp | grep ':NODEPORT '

# Fix
    sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767      # and in /etc/sysctl.d/

# Example
A tuning guide set the range to "1024 65000" on machines with many outgoing connections.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, listed
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity

_RANGE = "net.ipv4.ip_local_port_range"
_RESERVED = "net.ipv4.ip_local_reserved_ports"


def run(case: Case) -> Iterable[Finding]:
    """Fires once for all nodes whose range holds a port of the Service."""
    service = case.service
    wanted = [p.node_port for p in service.ports if p.node_port]
    wanted += [service.health_check_node_port] if service.health_check_node_port else []
    taken: dict[str, tuple[list[int], str, str]] = {}
    for node in case.nodes if wanted else ():
        state = case.state(node)
        sysctls = (state.sysctls if state is not None else None) or {}
        bounds = sysctls.get(_RANGE, "").split()
        if len(bounds) != 2 or not all(b.isdigit() for b in bounds):
            continue
        low, high = int(bounds[0]), int(bounds[1])
        reserved = sysctls.get(_RESERVED, "")
        inside = [n for n in wanted if low <= n <= high and not _holds(reserved, n)]
        if inside:
            taken[node] = (inside, f"{low} {high}", reserved.strip())
    if not taken:
        return
    ports = listed(dict.fromkeys(str(n) for inside, _, _ in taken.values() for n in inside))
    nodes = list(taken)
    first = taken[nodes[0]]
    opens = service.health_check_node_port in {n for inside, _, _ in taken.values() for n in inside} or any(
        case.examiner.proxy(n).versions.minors()[-1] <= 23 for n in nodes
    )
    yield CHECK.finding(
        f"port {ports} lies in the range for outgoing connections ({first[1].replace(' ', ' to ')}) on {listed(nodes)} "
        "and is not reserved: another process may be given it",
        nodes=nodes,
        evidence=[
            Evidence("sysctl", n, f"{_RANGE} = {taken[n][1]}; {_RESERVED} = {taken[n][2] or '(empty)'}")
            for n in nodes[:4]
        ],
        fix=Fix(
            "reserve the node ports",
            cost="as many fewer ports for outgoing connections",
            command=f"sysctl -w {_RESERVED}=30000-32767",
        ),
        severity=Severity.WARNING if opens else Severity.INFO,
    )


def _holds(reserved: str, number: int) -> bool:
    for part in reserved.replace(" ", "").split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and int(low) <= number <= int(high if high.isdigit() else low):
            return True
    return False


CHECK = Check("KTP204", "PortInEphemeralRange", Severity.INFO, run)
