"""Packets between pods on one bridge pass no rules, and so the answer of a Service's pod is not translated back.

# What it means
net.bridge.bridge-nf-call-iptables is 0, or the module br_netfilter is not loaded, on a node whose pods share a bridge.

# Why traffic fails
A pod dials the Service, and the node translates the connection to a pod on the same bridge. That pod answers the client
directly over the bridge. No rule sees the answer, nothing puts the Service's address back into it, and the client does
not know a connection to the pod's own address. Clients elsewhere are not concerned, nor are pods whose connection the
node masquerades.

# Evidence
The sysctl, and the pods on either end.

# Confirm by hand
    sysctl net.bridge.bridge-nf-call-iptables
    lsmod | grep br_netfilter
    tcpdump -ni cni0 host POD-IP       # the answer comes from the pod's address, not from the Service's

# Fix
Load br_netfilter and set the sysctl to 1, now and at boot (/etc/modules-load.d, /etc/sysctl.d). kubeadm asks for both.

# Example
A hardened image that sets net.bridge.bridge-nf-call-iptables = 0, as advice for virtual machine hosts has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, mending
from ktp.diagnose.checks.sysctl_common import mended_by_sysctls
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity

_KEYS = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which rules for bridged packets mend a failing cell."""
    for node, _, mended, _ in mended_by_sysctls(case, "bridge netfilter", _turned_on):
        first = mended[0]
        key = _KEYS[first.front_end.ip_version == 6]
        yield CHECK.finding(
            f"on {node} packets between pods on one bridge pass no rules ({key} is 0 or absent): {first.cell.reason}",
            node=node,
            evidence=[
                Evidence("sysctl", node, f"{key} = 0, or no such key: br_netfilter is not loaded"),
                *mending(f"with {key} = 1", mended, "connects more often"),
            ],
            fix=Fix(
                f"load br_netfilter and set {key} to 1 on {node}, now and at boot",
                cost="bridged packets of other things than pods pass the rules too",
                command=f"modprobe br_netfilter; sysctl -w {key}=1",
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _turned_on(sysctls: Mapping[str, str]) -> dict[str, str]:
    return {key: "1" for key in _KEYS if sysctls.get(key, "").strip() == "0"}


CHECK = Check("KTP210", "BridgeNetfilterOff", Severity.ERROR, run)
