"""Strict reverse path filtering drops the packet.

# What it means
rp_filter is 1 on the interface by which the packet arrives, and the node's route back to the sender leads elsewhere.

# Why traffic fails
The kernel takes the source for forged and drops the packet before any filter rule sees it.

# Evidence
The sysctl (the larger of `all` and the interface counts), and the route to the sender.

# Confirm by hand
    sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.IFACE.rp_filter
    ip route get POD-IP from CLIENT iif IFACE       # the pod's address: it is checked after the translation
    nstat -az TcpExtIPReversePathFilter

# Fix
Loose mode (2) on the interface, or a routing rule that sends answers back the way the questions came.

# Example
A node with two networks whose default route leaves by the other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.diagnose.case import Case, decided_evidence
from ktp.diagnose.checks.base import Check, mending
from ktp.diagnose.checks.passing_common import growing
from ktp.diagnose.checks.sysctl_common import mended_by_sysctls
from ktp.model.diagnosis import Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which loose filtering mends a failing cell."""
    for node, strict, mended, _ in mended_by_sysctls(case, "loose rp_filter", _loosened):
        first = mended[0]
        yield CHECK.finding(
            f"{node} drops packets by strict reverse path filtering: {first.cell.reason}",
            node=node,
            evidence=[
                *decided_evidence(first.cell),
                *growing(case.state(node), "TcpExt.IPReversePathFilter"),
                *mending("with rp_filter = 2", mended),
            ],
            fix=Fix(
                f"set rp_filter to 2 (loose) on the interface at {node}",
                cost="packets with forged sources are checked less strictly",
                command="; ".join(f"sysctl -w {k}=2" for k in sorted(strict)),
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _loosened(sysctls: Mapping[str, str]) -> dict[str, str]:
    return {k: "2" for k, v in sysctls.items() if k.endswith(".rp_filter") and v.strip() == "1"}


CHECK = Check("KTP203", "ReversePathFilter", Severity.ERROR, run)
