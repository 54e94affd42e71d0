"""Node ports do not answer on 127.0.0.1.

# What it means
net.ipv4.conf.all.route_localnet is 0, or kube-proxy runs with localhost node ports off, or in a mode that has none.

# Why traffic fails
A packet from 127.0.0.1 must leave the node towards the pod, which the kernel forbids without route_localnet. In
nftables and IPVS mode kube-proxy serves no node port on loopback at all.

# Evidence
The sysctl, or kube-proxy's mode.

# Confirm by hand
    sysctl net.ipv4.conf.all.route_localnet
    curl http://NODE-IP:NODEPORT/       # instead of 127.0.0.1

# Fix
Dial the node's address. Nothing but local tools is concerned.

# Example
A health check script on the node that asks 127.0.0.1:31015.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Entry, decided_evidence
from ktp.diagnose.checks.base import Check, field
from ktp.kubeproxy.frontends import serves_node_port
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires where a node port fails on loopback and works on the node's own address."""
    cells = []
    nodes = []
    for entry in case.failing():
        if entry.vantage is not Vantage.LOCALHOST:
            continue
        twin = next(
            (e for e in case.on(entry.node) if e.title == entry.title and e.vantage is Vantage.NODE),
            None,
        )
        if (twin is not None and twin.cell.symptom is Symptom.CONNECTS and not twin.fails) or _never_served(
            case, entry
        ):
            cells.append(entry)
            nodes.append(entry.node)
    if not cells:
        return
    first = cells[0]
    state = case.state(first.node)
    value = ((state.sysctls if state is not None else None) or {}).get("net.ipv4.conf.all.route_localnet")
    evidence: list[Evidence] = []
    if value is not None and first.front_end.ip_version == 4 and not _never_served(case, first):
        evidence.append(Evidence("sysctl", first.node, f"net.ipv4.conf.all.route_localnet = {value}"))
    evidence += decided_evidence(first.cell) or (field("kube-proxy", first.asked.intent.decided_by),)
    served = any(
        e.vantage is Vantage.NODE and e.title == first.title and e.cell.symptom is Symptom.CONNECTS
        for e in case.entries
    )
    loopback = "127.0.0.1" if first.front_end.ip_version == 4 else "::1"
    yield CHECK.finding(
        f"{first.title} does not answer on {loopback} of the nodes: dial a node's own address",
        nodes=list(dict.fromkeys(nodes)),
        evidence=evidence,
        fix=Fix(
            "dial the node's address instead of loopback",
            verified=served,
            outcome="a process of the node connects to the node's own address" if served else "",
        ),
        cells=cells,
    )


def _never_served(case: Case, entry: Entry) -> bool:
    """Whether no mode and version that the node's kube-proxy may have serves node ports on loopback."""
    proxy = case.examiner.proxy(entry.node)
    address = entry.asked.question.front_end.ip
    return address is not None and not any(
        serves_node_port(address, proxy, minor=minor, mode=mode).yes
        for mode in proxy.modes
        for minor in proxy.versions.minors()
    )


CHECK = Check("KTP202", "LoopbackNotRouted", Severity.INFO, run)
