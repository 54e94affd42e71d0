"""Tunnels that leave checksums to what is underneath, as the suspicion that they are where packets were lost.

A vxlan or geneve device with tx-checksum-ip-generic passes packets on whose inner checksum is still to be made. Linux
spoiled the outer UDP checksum of such a packet where it was masqueraded once more, with --random-fully (kubernetes
issue 88986; fixed in Linux 5.7, 5.6.13, 5.4.41, 4.19.123 and 4.14.181; kube-proxy since 1.16.13, 1.17.9 and 1.18.6
takes its mark away, so that it does not come to that). Network cards, those of virtual machines above all, did so
later, too (projectcalico/calico pull request 6842, flannel-io/flannel issue 1279).
"""

from __future__ import annotations

from collections.abc import Iterable

from ktp.model.diagnosis import Evidence, Fix
from ktp.model.snapshot import Snapshot

GENERIC = "tx-checksum-ip-generic"
WORDS = (
    "tunnels of {} leave checksums to be made underneath, which some kernels and network cards do wrongly: "
    "a suspicion"
)
_IN_UDP = frozenset(("vxlan", "geneve"))


def deferring(snapshot: Snapshot, nodes: Iterable[str]) -> list[tuple[str, str]]:
    """The (node, device) of tunnels in UDP that leave checksums to others; none where that was not read."""
    return [
        (name, device)
        for name in nodes
        if (state := snapshot.nodes.get(name)) is not None
        for device, tunnel in (state.tunnels or {}).items()
        if tunnel.kind in _IN_UDP and tunnel.is_up and (state.offloads or {}).get(device, {}).get(GENERIC)
    ]


def shown(snapshot: Snapshot, found: Iterable[tuple[str, str]]) -> list[Evidence]:
    """A line of evidence for each."""
    evidence = []
    for node, device in found:
        known = (snapshot.cluster.nodes or {}).get(node)
        kernel = f", Linux {known.kernel_version}" if known is not None and known.kernel_version else ""
        evidence.append(Evidence("offload", node, f"{device}: {GENERIC} on{kernel}"))
    return evidence


def trial(found: Iterable[tuple[str, str]]) -> Fix | None:
    """What to try; None where there is nothing to suspect."""
    devices = dict.fromkeys(device for _, device in found)
    if not devices:
        return None
    return Fix(
        "try without that offload, on these nodes: if packets then arrive, a kernel or network card spoils "
        "checksums",
        cost="the processor makes the checksums; until the device is made anew",
        command=" && ".join(f"ethtool -K {device} {GENERIC} off" for device in devices),
    )
