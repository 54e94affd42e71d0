"""IPVS keeps its connections from conntrack, and so no rule gives them the node's address: answers come back elsewhere.

# What it means
kube-proxy runs in IPVS mode on a node where net.ipv4.vs.conntrack is 0, the kernel's default. kube-proxy sets it to 1
as it starts; something set it back.

# Why traffic fails
IPVS translates the destination, and takes the packet out of connection tracking. MASQUERADE in KUBE-POSTROUTING works
on tracked packets only, so the pod sees the client's own address, and its node answers the client directly. Nobody
puts the Service's address back into that answer, and the client does not know it. Pods on the dialled node itself
answer through it, and connect.

# Evidence
The sysctl, and the path of the answer.

# Confirm by hand
    sysctl net.ipv4.vs.conntrack

# Fix
Set it to 1, and find what sets it to 0 (a file in /etc/sysctl.d that is read after kube-proxy started).

# Example
A hardening role that writes the kernel's defaults for all of net.ipv4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, mending
from ktp.diagnose.checks.sysctl_common import mended_by_sysctls
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity

_KEY = "net.ipv4.vs.conntrack"


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which IPVS's connections mend a failing cell once conntrack has them."""
    for node, _, mended, _ in mended_by_sysctls(case, _KEY, _turned_on):
        first = mended[0]
        yield CHECK.finding(
            f"IPVS on {node} keeps its connections from conntrack ({_KEY} is 0): nothing there is masqueraded, and "
            f"{first.title} on {first.node} loses its answers",
            node=node,
            evidence=[
                Evidence("sysctl", node, f"{_KEY} = 0"),
                *mending(f"with {_KEY} = 1", mended, "connects more often"),
            ],
            fix=Fix(
                f"set {_KEY} to 1 on {node}, and find what set it to 0 after kube-proxy had started",
                cost="the pods see the node's address where kube-proxy masquerades, as it means to",
                command=f"sysctl -w {_KEY}=1",
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _turned_on(sysctls: Mapping[str, str]) -> dict[str, str]:
    return {_KEY: "1"} if sysctls.get(_KEY, "").strip() == "0" else {}


CHECK = Check("KTP211", "IpvsConntrackOff", Severity.ERROR, run)
