"""loadBalancerSourceRanges keep clients out.

# What it means
The Service lists the client networks that may use its load-balancer IP; all others are dropped on the nodes.

# Why traffic fails
kube-proxy drops packets to the load-balancer IP from other sources (1.25 and later; before, only where the address is
the node's own). Node ports and external IPs are not restricted. Pods are not exempt.

# Evidence
spec.loadBalancerSourceRanges, and the rule that drops.

# Confirm by hand
    kubectl get svc -n NAMESPACE NAME -o jsonpath='{.spec.loadBalancerSourceRanges}'

# Fix
Add the client's network to spec.loadBalancerSourceRanges.

# Example
The office got a new address range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, decided_evidence
from ktp.diagnose.changes import reprogrammed
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.kubeproxy.frontends import FrontEndKind
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Finding, Fix, Severity
from ktp.model.snapshot import Snapshot

_LABEL = "no source ranges"


def run(case: Case) -> Iterable[Finding]:
    """Fires where the load-balancer IP answers a client once its ranges are taken away."""
    ranges = case.service.load_balancer_source_ranges
    if not ranges:
        return
    failing = [e for e in case.failing() if e.front_end.kind is FrontEndKind.LOAD_BALANCER]
    if not failing:
        return
    mended = case.mended(failing, _LABEL, lambda: _open(case))
    further = [e for e in failing if e not in mended and case.gets_further(e, _LABEL, lambda: _open(case))]
    if not mended and not further:
        return
    first = [*mended, *further][0]
    asked = case.examiner.client is not None
    cells = [*mended, *further]
    who = sorted({e.asked.question.client_name for e in cells})
    yield CHECK.finding(
        f"loadBalancerSourceRanges ({', '.join(ranges)}) keep out {', '.join(who[:3])}: {first.title} does "
        f"not answer there" + ("" if mended else "; they are not the only thing in the way"),
        nodes=list(dict.fromkeys(e.node for e in cells)),
        evidence=[
            field(f"Service {case.service.key}", f"spec.loadBalancerSourceRanges: {', '.join(ranges)}"),
            *decided_evidence(first.cell),
            counterfactual(
                f"without source ranges, {first.title} answers {first.asked.question.client_name}"
                if mended
                else f"without source ranges, and then: {case.ask_again(first, _LABEL, lambda: _open(case)).reason}"
            ),
        ],
        fix=Fix(
            "add the client's network to spec.loadBalancerSourceRanges",
            cost="those clients may then use the load balancer",
            cures=mended.cures(cells),
        ),
        cells=cells,
        # Whoever asks for one client wants to know of it; else the ranges do what they are for.
        severity=Severity.ERROR if asked and any(e.vantage is Vantage.EXTERNAL for e in cells) else None,
    )


def _open(case: Case) -> Snapshot:
    cluster = case.snapshot.cluster
    service = replace(case.service, load_balancer_source_ranges=())
    changed = replace(cluster, services={**cluster.services, service.key: service})
    return reprogrammed(case.snapshot, changed, service.key)


CHECK = Check("KTP601", "SourceRangesExclude", Severity.INFO, run)
