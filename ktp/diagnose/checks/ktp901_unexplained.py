"""Something fails and no check of ktp explains it.

# What it means
The walk of the packet ends where it does for a reason that ktp can show but has no name for.

# Why traffic fails
See the evidence: the step that ended the packet.

# Evidence
The rule, route or socket that decided.

# Confirm by hand
    ktp trace --from CLIENT --to ADDRESS:PORT -v

# Fix
Look at the trace; if the cause is a common one, ktp should learn it.

# Example
A blackhole route to the pod network.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check
from ktp.model.diagnosis import Finding, Severity


def run(case: Case) -> Iterable[Finding]:  # noqa: ARG001 - the report adds these for the cells left over
    """Never fires by itself: the report makes these findings of the cells that no other check explains."""
    return ()


CHECK = Check("KTP901", "Unexplained", Severity.WARNING, run)
