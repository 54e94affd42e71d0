"""kube-proxy's rules, or Cilium, leave this client's packets alone.

# What it means
In this version and mode kube-proxy does not translate the address for this kind of client. The packet goes where the
node's routes lead: usually out to the load balancer or router that owns the address.

# Why traffic fails
Whether somebody answers there is beyond the cluster. Up to 1.20 processes of a node that dial an external IP are not
translated; in iptables mode neither is a load-balancer or external IP of a Service without endpoints, dialled on a
node. Cilium never translates a connection from inside the cluster to an external IP that is no node's.

# Evidence
What kube-proxy of this version writes, and where the packet leaves.

# Confirm by hand
    ip route get ADDRESS                    # on the node
    iptables-save -t nat | grep ADDRESS

# Fix
On nodes, dial the cluster IP, or upgrade kube-proxy.

# Example
A script on the nodes asks a Service's external IP, and kube-proxy is 1.20: from outside the same address answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.checks.base import Check, field, listed
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Disposition


def run(case: Case) -> Iterable[Finding]:
    """Fires where the API objects and the version call for no translation, and the packet is lost outside."""
    found: dict[str, list[Entry]] = {}
    for entry in case.failing():
        if entry.asked.intent.passes and entry.cell.disposition is Disposition.LOST:
            found.setdefault(entry.title, []).append(entry)
    for title, entries in found.items():
        first = entries[0]
        nodes = list(dict.fromkeys(e.node for e in entries))
        who = {
            frozenset((Vantage.EXTERNAL,)): f"outside clients that come to {listed(nodes)}",
            frozenset((Vantage.NODE,)): f"processes of {listed(nodes)}",
        }.get(frozenset(e.vantage for e in entries), f"clients of {listed(nodes)}")
        plane = case.examiner.data_plane(first.node)
        yield CHECK.finding(
            f"{plane or 'kube-proxy'} lets packets of {who} to {title} pass as they are: {first.cell.reason}",
            nodes=nodes,
            evidence=[
                field(
                    plane or "kube-proxy",
                    "it translates no connection from inside the cluster to an external IP"
                    if plane
                    else f"{case.examiner.proxy(first.node).versions}: {first.asked.intent.decided_by}",
                ),
                Evidence("route", first.node, first.cell.reason),
            ],
            fix=Fix("on nodes, dial the Service's cluster IP instead"),
            cells=entries,
        )


CHECK = Check("KTP412", "LeftAlone", Severity.INFO, run)
