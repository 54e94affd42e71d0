"""The answer comes back another way than the question went.

# What it means
A pod dials another node's node port. That node's rules take pods for local traffic and send them on to a third node
without masquerading; the endpoint then answers the pod directly.

# Why traffic fails
The answer does not pass the node that translated the address, so nobody translates it back: the client sees an answer
from an address that it never asked, and drops it. Where some endpoints are on the dialled node, it works now and then.

# Evidence
The way of the question and of the answer.

# Confirm by hand
    conntrack -L -d NODE-IP       # on the dialled node: SYN_SENT, [UNREPLIED]

# Fix
Pods should dial the cluster IP, not a node port of another node.

# Example
A pod on node-a asks node-b:30006, and only a third of its connections succeed.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case, goes_astray
from ktp.diagnose.checks.base import Check, listed
from ktp.diagnose.checks.health_common import is_kept_off
from ktp.kubeproxy.outcome import PODS
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires where a pod's request arrives and the answer's way misses the node that translated it."""
    cells = []
    text = ""
    for entry in case.failing():
        fact = entry.asked.fact
        if entry.vantage not in PODS or fact is None:
            continue
        path = next((path for path in fact.paths if goes_astray(entry, path)), None)
        if path is not None:
            cells.append(entry)
            asked = [h.node for h in path.hops if h.direction == "request"]
            answered = [h.node for h in path.hops if h.direction == "reply"]
            text = text or (
                f"question: {' → '.join(asked)}; answer: {' → '.join(answered)} → {entry.asked.question.client_name}"
            )
    if not cells:
        return
    nodes = list(dict.fromkeys(e.node for e in cells))
    yield CHECK.finding(
        f"pods of other nodes that dial {cells[0].title} on {listed(nodes)} lose answers, which miss the node that "
        "translates",
        nodes=nodes,
        evidence=[Evidence("route", cells[0].node, text)],
        fix=Fix(
            "let pods dial the cluster IP instead of another node's node port",
            verified=True,
            outcome="the cluster IP is translated on the pod's own node",
        ),
        cells=cells,
        severity=Severity.INFO if all(is_kept_off(case, node) for node in nodes) else None,
    )


CHECK = Check("KTP505", "AnswerByOtherWay", Severity.WARNING, run)
