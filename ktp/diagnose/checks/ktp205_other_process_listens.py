"""Another process listens on the node port.

# What it means
The node has a listening socket on the Service's node port, and it is not kube-proxy's: from 1.24 on kube-proxy opens
none (up to 1.23 it holds every node port itself, and such a socket is no finding).

# Why traffic fails
As long as kube-proxy's rules translate the packet, the socket is never reached and only its owner wonders. Where the
rules do not catch the packet (missing, stale, or another address), the process answers in the Service's place.

# Evidence
The socket, kube-proxy's version, and the cells that end at it.

# Confirm by hand
    ss -lntup | grep ':NODEPORT '

# Fix
Move the process to a port outside the node-port range, or give the Service another node port.

# Example
A monitoring agent on the nodes was configured to port 30100, and a Service was given the same number later.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, field
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import ListeningSocket


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node with a socket on a node port that kube-proxy does not hold."""
    for node in case.nodes:
        state = case.state(node)
        versions = case.examiner.proxy(node).versions
        for port in case.service.ports:
            found = [
                s
                for s in (state.sockets if state is not None else None) or ()
                if port.node_port == s.port
                and s.port != 0
                and s.protocol == port.protocol.lower()
                and not (s.ip is not None and s.ip.is_loopback)
                and not _may_be_kube_proxy(s, versions.minors()[0])
            ]
            if not found:
                continue
            cells = [e for e in case.on(node) if e.port == port and e.is_external and e.is_swallowed]
            socket = found[0]
            where = f"{socket.ip or '*'}:{socket.port}/{socket.protocol}"
            owner = f" ({socket.process})" if socket.process else ""
            effect = (
                f"{cells[0].title} ends there instead of at the Service"
                if cells
                else "kube-proxy's rules take the Service's packets first, so that the process is not reached there"
            )
            yield CHECK.finding(
                f"a process of {node}{owner} listens on {where}, a node port of {case.service.key}: {effect}",
                node=node,
                evidence=[
                    Evidence("socket", f"{node} ss -lntu", f"{where}{owner}"),
                    field("kube-proxy", f"{versions} opens no node ports"),
                    *(Evidence("socket", e.node, f"{e.vantage.value}: {e.cell.reason}") for e in cells[:3]),
                ],
                fix=Fix(
                    "move the process to another port, or give the Service another node port",
                    cost="a restart",
                ),
                cells=cells,
                severity=Severity.ERROR if cells else Severity.INFO,
            )


def _may_be_kube_proxy(socket: ListeningSocket, oldest: int) -> bool:
    if socket.process:
        return "kube-proxy" in socket.process or "hyperkube" in socket.process or "k3s" in socket.process
    return oldest <= 23


CHECK = Check("KTP205", "OtherProcessListens", Severity.ERROR, run)
