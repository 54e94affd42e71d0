"""Something in the pod's own network namespace stops the traffic: its rules, or the way that its answers take.

# What it means
The packet arrives at the pod, and there its rules (a sidecar's redirect, a firewall in the pod), its routes (a second
interface, a VPN) or its sysctls keep it from the program, or the answer from the client.

# Why traffic fails
A redirect leads to a port on which the sidecar no longer listens; a rule drops; or the answer leaves by another device
than the request came by, where nobody undoes the Service's translation.

# Evidence
The rule, route or socket in the pod's network namespace, and the same question with the namespace as Kubernetes makes
it.

# Confirm by hand
    iptables-save                      # in the pod's network namespace: nsenter -t PID -n iptables-save
    ip route get CLIENT                # there: by which device do answers leave
    ss -lntu

# Fix
Mend what set it: restart the sidecar or take its redirect out, correct the policy, route answers by eth0.

# Example
A pod whose Envoy sidecar was killed: the redirect to port 15006 stays, and every connection is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.diagnose.case import Case, Entry, decided_evidence
from ktp.diagnose.changes import untouched
from ktp.diagnose.checks.base import Check, mending
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Path, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each pod whose namespace, were it as Kubernetes makes it, would let a failing cell through."""
    found: dict[tuple[str, str], dict[Entry, Path]] = {}
    for entry in case.failing():
        for path in entry.paths:
            decided = path.decided_by
            if path.symptom is not Symptom.CONNECTS and decided is not None and decided.pod:
                found.setdefault((decided.node, decided.pod), {}).setdefault(entry, path)
    for (node, pod), paths in found.items():
        mended = case.mended(
            paths, f"{pod} as Kubernetes makes it", partial(untouched, case.snapshot, node, pod)
        )
        if not mended:
            continue
        first = mended[0]
        yield CHECK.finding(
            f"in the pod's own network namespace: {paths[first].reason}",
            node=node,
            evidence=[
                *_steps(paths[first]),
                *decided_evidence(first.cell),
                *mending("with that namespace as Kubernetes makes it", mended),
            ],
            fix=Fix(
                f"mend what set that up in {pod} (a sidecar, an agent, a second network), or restart it",
                cost="the pod starts anew",
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _steps(path: Path) -> Iterable[Evidence]:
    """The rules in the pod that translated the packet: they do not end it themselves."""
    for hop in path.hops:
        for step in hop.steps if hop.pod and hop.direction == "request" else ():
            if any(step.translations):
                where = " ".join(p for p in (hop.node, hop.pod, step.backend, step.table) if p)
                yield Evidence("rule", where, step.text)


CHECK = Check("KTP213", "PodNetwork", Severity.ERROR, run)
