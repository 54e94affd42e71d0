"""Clients on the node see another answer than clients outside.

# What it means
From the node itself, or from its pods, the port answers; from outside it does not.

# Why traffic fails
Under externalTrafficPolicy Local kube-proxy exempts packets of the node itself, and in ClusterCIDR mode packets of
pods: they go to any endpoint of the cluster. A curl on the node proves nothing about the outside.

# Evidence
The cells of both kinds of client, side by side.

# Confirm by hand
    curl http://NODE-IP:NODEPORT/       # on the node: answers
    curl http://NODE-IP:NODEPORT/       # from another machine: does not

# Fix
Test from outside the cluster.

# Example
"It works when I curl it on the node" - and nobody else reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, a_try, listed
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires where a node's own client connects and the outside does not."""
    by_title: dict[str, list[str]] = {}
    for entry in case.failing():
        if entry.vantage is not Vantage.EXTERNAL:
            continue
        twin = next(
            (e for e in case.on(entry.node) if e.title == entry.title and e.vantage is Vantage.NODE),
            None,
        )
        if twin is not None and twin.cell.symptom is Symptom.CONNECTS and not twin.fails:
            by_title.setdefault(entry.title, []).append(entry.node)
    for title, nodes in by_title.items():
        what = a_try(next(e for e in case.entries if e.title == title))
        yield CHECK.finding(
            f"on {listed(case.alike.everywhere(nodes))} {what} on the node itself to {title} connects and the "
            "outside does not: a try on the node proves nothing",
            nodes=nodes,
            evidence=[
                Evidence(
                    "field",
                    "the matrix",
                    f"{node}: from outside {_symptom(case, title, node, Vantage.EXTERNAL)}, on the node connects",
                )
                for node in nodes[:3]
            ],
            fix=Fix("test from outside the cluster"),
        )


def _symptom(case: Case, title: str, node: str, vantage: Vantage) -> str:
    for e in case.on(node):
        if e.key == (title, node, vantage.value):
            return "connects to a socket of the node itself" if e.is_swallowed else e.cell.symptom.value
    return "unknown"


CHECK = Check("KTP504", "NodeSeesOtherAnswer", Severity.INFO, run)
