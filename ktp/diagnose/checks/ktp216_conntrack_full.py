"""The node tracks as many connections as it may: packets of new ones are dropped.

# What it means
net.netfilter.nf_conntrack_count has come to net.netfilter.nf_conntrack_max. All connections of the node count, those of
its pods and those that it forwards, whatever Service they are of.

# Why traffic fails
For a new connection the kernel needs a new entry. Where there is no room it looks for an entry of a connection that
never had an answer, to drop that; where it finds none near, it drops the packet (`nf_conntrack: table full, dropping
packet` in the kernel's log). So new connections fail now and then, or all of them, and those that are open go on.

# Evidence
The two sysctls, when they were read. It may be over since.

# Confirm by hand
    sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max
    conntrack -S                                  # drop and early_drop grow
    dmesg | grep 'table full'

# Fix
Raise the limit (kube-proxy sets it by --conntrack-max-per-core and --conntrack-min), and see who opens so many
connections, or leaves them without closing.

# Example
A load test with a connection a request from one pod, on a node with the default limit of a small machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check
from ktp.diagnose.checks.passing_common import growing
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity

COUNT, LIMIT = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose table of connections is full."""
    for node in case.nodes:
        state = case.state(node)
        sysctls = (state.sysctls if state is not None else None) or {}
        count, limit = sysctls.get(COUNT, ""), sysctls.get(LIMIT, "")
        # 0 is no limit (__nf_conntrack_alloc).
        if not (count.isdecimal() and limit.isdecimal()) or not 0 < int(limit) <= int(count):
            continue
        yield CHECK.finding(
            f"{node} tracks {count} connections, and may track {limit}: packets of new ones are dropped where no "
            "unanswered one can be dropped for them",
            node=node,
            evidence=[
                Evidence("sysctl", node, f"{COUNT} = {count}, {LIMIT} = {limit}"),
                *growing(state, "nf_conntrack.drop", "nf_conntrack.early_drop"),
            ],
            fix=Fix(
                f"raise {LIMIT} on {node} (kube-proxy: conntrack.maxPerCore, conntrack.min), and see what "
                "opens so many connections",
                cost="memory of the kernel: some 300 bytes a connection",
                command=f"sysctl -w {LIMIT}={int(limit) * 2}",
            ),
        )


CHECK = Check("KTP216", "ConntrackFull", Severity.WARNING, run)
