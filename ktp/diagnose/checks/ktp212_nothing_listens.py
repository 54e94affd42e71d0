"""Nothing in the endpoint's network namespace listens on the target port, or only where nobody else can connect.

# What it means
The rules lead to the pod, and the packet arrives there; no socket in the pod takes it. Kubernetes does not check that:
a readiness probe may ask another port, and containerPort is a note for people.

# Why traffic fails
The pod's kernel answers with a reset (TCP) or an ICMP port unreachable (UDP): connection refused. A program that
listens on 127.0.0.1 only is reached by its own pod alone; so a try inside the pod succeeds and proves nothing.

# Evidence
The sockets of the pod's network namespace, or of the node for a pod with hostNetwork.

# Confirm by hand
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME -o yaml
    ss -lntu                           # in the pod's network namespace: nsenter -t PID -n ss -lntu

# Fix
Put the port that the program listens on into targetPort, or let the program listen on the target port of all addresses.

# Example
targetPort 8081, and the program listens on 8080; a development server that listens on localhost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import field
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import listening, target_port_changed
from ktp.diagnose.checks.base import Check, listed, mending
from ktp.diagnose.checks.endpoints_common import selection_of
from ktp.kubeproxy.names import host_port
from ktp.model.change import Change
from ktp.model.cluster import ServicePort
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import ListeningSocket
from ktp.model.record import dataclass
from ktp.model.trace import Disposition

_MOST_PORTS = 3  # other ports of the pod that are tried as targetPort


@dataclass(slots=True)
class _Deaf:
    """Endpoints of one service port that nothing listens for, and the cells in which that shows."""

    port: ServicePort
    number: int
    programs: dict[tuple[str, str, bool], tuple[ListeningSocket, ...]] = field(default_factory=dict)
    cells: dict[Entry, None] = field(default_factory=dict)


def run(case: Case) -> Iterable[Finding]:
    """Fires for each service port of which an endpoint refuses."""
    found: dict[tuple[str, int, int], _Deaf] = {}
    for entry in case.entries:
        for path in entry.paths:
            if path.disposition is not Disposition.NO_LISTENER or path.endpoint_ip is None:
                continue
            if any(t for h in path.hops if h.pod for s in h.steps for t in s.translations):
                continue  # the pod's own rules have led it to another port: KTP213
            ends = ((e.ip, e.port, e) for e in selection_of(case, entry).listed)
            end = next(
                (e for ip, port, e in ends if (ip, port) == (path.endpoint_ip, path.endpoint_port)), None
            )
            if end is None or end.node_name is None or end.pod is None:
                continue
            state = case.state(end.node_name)
            inside = state.pods.get(end.pod) if state is not None else None
            own = {a.ip for i in (state.interfaces if state is not None else None) or () for a in i.addresses}
            of_node = inside is None and end.address in own
            inside = state if of_node else inside
            if inside is None or inside.sockets is None:
                continue
            key = (entry.port.protocol, entry.port.port, end.port)
            deaf = found.setdefault(key, _Deaf(entry.port, end.port))
            deaf.programs[end.node_name, end.pod, of_node] = inside.sockets
            deaf.cells[entry] = None
    for deaf in found.values():
        yield _finding(case, deaf)


def _finding(case: Case, deaf: _Deaf) -> Finding:
    service, number, protocol = case.service, deaf.number, deaf.port.protocol.lower()
    cells = list(deaf.cells)
    pods = [pod for _, pod, _ in deaf.programs]
    nodes = sorted({node for node, _, _ in deaf.programs})
    same = [
        s
        for sockets in deaf.programs.values()
        for s in sockets
        if s.port == number and s.protocol == protocol
    ]
    heard = case.mended(
        cells, f"listening on {deaf.port.port} {number}/{protocol}",
        partial(listening, case.snapshot, tuple(deaf.programs), number, protocol),
    )  # fmt: skip
    of_node = all(is_of_node for _, _, is_of_node in deaf.programs)
    where = f"the network of {listed(nodes)}, which {listed(pods)} shares," if of_node else listed(pods)
    what = f"nothing in {where} listens on the target port {number}/{protocol}"
    if same:
        addresses = listed(dict.fromkeys(_place(s) for s in same))
        what = f"{listed(pods)} listens on {addresses} only, which takes no connection to its address"
        if all(s.ip is not None and s.ip.is_loopback for s in same):
            what = f"{listed(pods)} listens on {addresses} only, which no other host can reach"
    evidence = [
        Evidence("socket", f"{node} {pod}", _listening(sockets, protocol))
        for (node, pod, _), sockets in deaf.programs.items()
    ][:4]
    fixes = []
    for other in _other_ports(deaf):
        label = f"targetPort {deaf.port.port} {other.port}"
        by = case.mended(cells, label, partial(target_port_changed, case, deaf.port, other.port))
        if not by:
            continue
        program = other.process or "a program"
        entry = {"port": deaf.port.port, "protocol": deaf.port.protocol, "targetPort": other.port}
        patch = {"spec": {"ports": [entry]}}
        fixes.append(
            Fix(
                f"set targetPort of port {deaf.port.port} to {other.port}, on which {program} listens",
                cost="none, where that is the program that is meant",
                patch=patch,
                command=f"kubectl patch service -n {service.namespace} {service.name} "
                f"-p '{json.dumps(patch, separators=(',', ':'))}'",
                cures=by.cures(cells),
                change=Change(kind="target-port", value=f"{deaf.port.port}={other.port}"),
            )
        )
        evidence += mending(f"with targetPort {other.port}", by)
    fixes.append(
        Fix(
            f"let the program listen on port {number} of all addresses",
            cost="the pods start anew",
            cures=heard.cures(cells),
        )
    )
    return CHECK.finding(what, node=nodes[0], nodes=nodes, evidence=evidence, fixes=fixes, cells=cells)


def _other_ports(deaf: _Deaf) -> list[ListeningSocket]:
    """Sockets on ports that every one of the pods listens on, where others can connect; few ports, or it is a guess."""
    protocol = deaf.port.protocol.lower()
    open_to_all = [
        {
            s.port: s
            for s in sockets
            if s.protocol == protocol and s.port != deaf.number and (s.ip is None or not s.ip.is_loopback)
        }
        for sockets in deaf.programs.values()
    ]
    if any(is_of_node for _, _, is_of_node in deaf.programs):
        return []  # a node has many programs
    common = set.intersection(*(set(ports) for ports in open_to_all))
    return [open_to_all[0][p] for p in sorted(common)] if len(common) <= _MOST_PORTS else []


def _place(s: ListeningSocket) -> str:
    wildcard = "[::]" if s.family == 6 else "0.0.0.0" if s.family == 4 else "*"
    return host_port(str(s.ip), s.port) if s.ip is not None else f"{wildcard}:{s.port}"


def _listening(sockets: Iterable[ListeningSocket], protocol: str) -> str:
    there = [
        f"{_place(s)}{f' ({s.process})' if s.process else ''}" for s in sockets if s.protocol == protocol
    ]
    return f"listening {protocol} sockets: {listed(dict.fromkeys(there), 6) or 'none'}"


CHECK = Check("KTP212", "NothingListens", Severity.ERROR, run)
