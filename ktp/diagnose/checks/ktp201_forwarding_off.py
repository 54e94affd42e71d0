"""The node does not forward packets.

# What it means
net.ipv4.ip_forward (or the interface's forwarding, or net.ipv6.conf.all.forwarding) is 0.

# Why traffic fails
kube-proxy translates the packet to the pod's address; to bring it there the node must forward it, and drops it
instead, silently. Only endpoints with the node's own address (hostNetwork) still answer.

# Evidence
The sysctl.

# Confirm by hand
    sysctl net.ipv4.ip_forward net.ipv4.conf.all.forwarding

# Fix
    sysctl -w net.ipv4.ip_forward=1      # and in /etc/sysctl.d/, so that it survives a restart

# Example
A hardening script or `systemctl restart systemd-sysctl` set ip_forward back to 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, mending
from ktp.diagnose.checks.rule_common import decided_here, merged
from ktp.diagnose.checks.sysctl_common import mended_by_sysctls
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.effect import Setting


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which turning forwarding on mends a failing cell."""
    for node, off, mended, _ in mended_by_sysctls(case, "forwarding", _turned_on):
        key = "net.ipv4.ip_forward" if "net.ipv4.ip_forward" in off else sorted(off)[0]
        yield CHECK.finding(
            f"{node} does not forward packets ({key} = 0): what it translates to a pod's address is dropped there",
            node=node,
            evidence=[
                Evidence("sysctl", node, f"{key} = 0"),
                *mending(f"with {key} = 1", mended),
            ],
            fix=Fix(
                f"turn forwarding on at {node}",
                cost="none: every Kubernetes node forwards",
                command=f"sysctl -w {key}=1",
                cures=mended.cures(),
            ),
            cells=merged(mended, decided_here(case, node, lambda d: d.setting is Setting.FORWARDING)),
        )


def _turned_on(sysctls: Mapping[str, str]) -> dict[str, str]:
    return {
        k: "1"
        for k, v in sysctls.items()
        if v.strip() == "0"
        and (
            k == "net.ipv4.ip_forward"
            or (k.startswith(("net.ipv4.conf.", "net.ipv6.conf.")) and k.endswith(".forwarding"))
        )
    }


CHECK = Check("KTP201", "ForwardingOff", Severity.ERROR, run)
