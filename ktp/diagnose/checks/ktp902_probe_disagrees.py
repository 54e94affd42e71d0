"""A real connection met something else than ktp predicts.

# What it means
`ktp probe` (or `diagnose svc --probe`, `--health`) dialled a front end or a health check, and what happened is not what
the evidence says: it connects where it should not, or fails where it should connect, or fails in another way.

# Why traffic fails
What decided is not in the evidence: a firewall, security group or NAT between the prober and the node; an application
that does not listen or is overloaded; rules or endpoints that changed since they were read; or a fault of ktp.

# Evidence
What the tries met, from which address, beside the prediction and the rule or field that it rests on.

# Confirm by hand
    curl -v --connect-timeout 2 http://NODE-IP:NODEPORT/
    ktp trace --from MY-IP --to NODE-IP:NODEPORT -v
    tcpdump -ni any tcp port NODEPORT            # on the node: does it arrive?

# Fix
If nothing arrives at the node, look between: security groups, firewalls, routes. If it arrives, collect the evidence
anew and probe again; if ktp still differs from the kernel, report it with a snapshot.

# Example
ktp predicts that node-a answers; a security group lets nobody in, and all five tries time out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check
from ktp.model.diagnosis import Finding, Severity


def run(case: Case) -> Iterable[Finding]:  # noqa: ARG001 - the probe adds these, a snapshot alone has none
    """Never fires by itself: the probe makes these findings."""
    return ()


CHECK = Check("KTP902", "ProbeDisagrees", Severity.WARNING, run)
