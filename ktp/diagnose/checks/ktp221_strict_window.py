"""Packets that connection tracking calls INVALID are dropped by kube-proxy, TCP segments outside the window among them.

# What it means
The kernel compares each TCP segment with what the connection has agreed on so far. One that lies outside belongs to no
connection by its reckoning: INVALID. Where net.netfilter.nf_conntrack_tcp_be_liberal is 0, that is asked of every
segment; where it is 1, of resets alone. The counter of such packets grew while the node was looked at.

# Why traffic fails
kube-proxy drops INVALID packets in FORWARD, since the node would not translate them back, and the client would answer
them with a reset. Segments that are late, that come by a path which the node does not see whole, or after a device that
changes their numbers, are lost there: a connection stands, and then hangs or comes to nothing.

# Evidence
The counter twice (`ktp diagnose --counters SECONDS`, or both readings in a snapshot's `netstat.txt`), the sysctl, and
the rule. The counter is of the whole node: it counts wrong checksums and answers to unknown connections, too, and does
not tell whose packets they were.

# Confirm by hand
    conntrack -S                                           # invalid, a column of each CPU
    iptables -t filter -L KUBE-FORWARD -v -n -x            # packets of the rule with INVALID
    sysctl -w net.netfilter.nf_conntrack_log_invalid=6     # TCP's are logged, with the reason; 0 ends that

# Fix
Find why segments are out of order (two paths, offloads, a device that rewrites), or let them pass:
net.netfilter.nf_conntrack_tcp_be_liberal 1. kube-proxy from 1.29 on sets it by conntrack.tcpBeLiberal, and leaves the
rule out where it is 1; before, the rule stays, and of segments outside the window it meets resets alone.

# Example
A download through a node port, of which a switch holds back segments for a second: it stops in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check
from ktp.diagnose.checks.passing_common import INVALID, LIBERAL, growing, growth, strict_drop
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node that counted INVALID packets, asks every segment, and drops them by kube-proxy's rule."""
    for node in case.nodes:
        state = case.state(node)
        by = growth(state, (INVALID,)).get(INVALID)
        rule = strict_drop(state) if by else None
        if rule is None:
            continue
        yield CHECK.finding(
            f"{node} counted {by} packets that fit no connection while it was looked at, and kube-proxy drops such on "
            "their way through; TCP segments outside the window are among what is counted; whether the Service's "
            "were, a counter does not tell",
            node=node,
            evidence=[
                *growing(state, INVALID),
                Evidence("sysctl", node, f"{LIBERAL} = 0"),
                rule,
            ],
            fix=Fix(
                f"let segments outside the window pass on {node} (kube-proxy from 1.29 on: "
                "conntrack.tcpBeLiberal)",
                cost="forged segments are checked by the endpoint alone",
                command=f"sysctl -w {LIBERAL}=1",
            ),
        )


CHECK = Check("KTP221", "StrictWindow", Severity.INFO, run)
