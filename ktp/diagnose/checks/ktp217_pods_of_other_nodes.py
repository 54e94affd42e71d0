"""The policy is Cluster, and still only the nodes that hold a pod answer: nothing is carried to pods of other nodes.

# What it means
`ktp probe` dialled the nodes. Each that holds an endpoint answers; each from which every endpoint is on another node
does not, though by its rules, or by the API objects, packets go there. Unless nothing from the prober comes to those
nodes at all, the suspicion is what carries packets from node to node for pods: flannel's, Calico's or Cilium's tunnel,
or routes.

With `--to-pods` nodes dial pods of other nodes directly, past all front ends. Where all of a node's pods stay silent to
another that should reach them by its rules, that is found without a comparison.

# Why traffic fails
Commonly UDP 8472 or 4789 (vxlan), 6081 (geneve), 51820 (WireGuard) or protocol 4 (ipip) is blocked between the nodes by
a firewall or security group; or the tunnel ends at another address than the nodes reach each other by; or a device's
checksum offload spoils what is sent through it: Linux before 5.7 (5.6.13, 5.4.41, 4.19.123, 4.14.181) where a VXLAN's
packet is masqueraded twice with --random-fully, and network cards of virtual machines.

# Evidence
What the tries met on either kind of node, and what the rules predict. Tunnels that leave their checksums to what is
underneath (`ethtool.txt`: tx-checksum-ip-generic) are named as the suspicion that they are; most work well.

# Confirm by hand
    ktp probe NAMESPACE/NAME --from-nodes --to-pods    # nodes dial each other, and each other's pods
    ip -d link show type vxlan                   # the tunnel, its port and its own address
    tcpdump -ni any udp port 8472                # on both nodes, while a client tries: does it leave, does it arrive?

# Fix
Open the tunnel's port between the nodes. Where packets arrive and nothing comes of them, look at the tunnel's own
address (flannel: --iface) and at the offloads (ethtool -K flannel.1 tx-checksum-ip-generic off).

# Example
A security group that lets the API server's and kubelet's ports in, and no UDP 8472.
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check
from ktp.model.diagnosis import Finding, Severity


def run(case: Case) -> Iterable[Finding]:  # noqa: ARG001 - the probe adds these; a broken tunnel that was read is KTP214
    """Never fires by itself: the probe makes these findings."""
    return ()


CHECK = Check("KTP217", "PodsOfOtherNodes", Severity.WARNING, run)
