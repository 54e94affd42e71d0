"""A connection's long packets are lost between two nodes: it connects, then hangs.

# What it means
The packets that open a connection are short. Full segments are as long as the devices of both ends allow, and a tunnel
puts its own headers before them. The network device that they reach at the next node has a smaller MTU than they have
bytes. Or the tunnel's packets are too long to leave, and may not be cut: VXLAN's and Geneve's over IPv6, or with `df`.

# Why traffic fails
A device drops what is longer than it takes, or its switch does, and nobody tells the sender, who sends the same again.
Requests and answers of a few hundred bytes get through: health checks are green, a login page loads, a download stops.

# Evidence
MTUs of devices and routes (`ip-addr.json`, `ip-route.json`), the kind of the tunnel (`ip-link.json`), and the way that
the connection takes. Of an outside client an MTU of 1500 is supposed. Some network cards, and most of virtual machines,
take more than their MTU says: hence a warning. What a node's own kernel loses is certain, and an error. Rules that
lower the segment size (TCPMSS, `tcp option maxseg`) are taken into account. In JSON a cell has the numbers (`hang`).
Or `ktp probe --from-nodes --to-pods`: short packets to a pod were answered, and full ones neither that nor refused by
an ICMP error. A firewall that lets short ICMP echos pass alone would look the same.

# Confirm by hand
    ip link show dev eth0                          # on both nodes: mtu
    ktp probe NAMESPACE/NAME --from-nodes --to-pods
    ping -M do -s 1472 OTHER-NODE                  # 1472 + 28 = 1500 bytes; less gets through, this does not
    curl -o /dev/null http://NODE:NODEPORT/large   # stops after the headers

# Fix
Give the devices of all nodes of one network the same MTU, and the tunnel that MTU less its headers: 50 bytes for VXLAN
over IPv4, 20 for IP in IP, 60 for WireGuard. A network plugin that finds the MTU by itself needs a restart.

# Example
One node was moved to a cloud network that carries 1450 bytes; the others kept 1500, and flannel's 1450 inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import with_state
from ktp.diagnose.checks.base import Check, counterfactual, listed
from ktp.diagnose.sizes import ETHERNET, Crossing, crossings, hang_of
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Path, Symptom

_SENT = {"request": "what clients send", "reply": "answers"}


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node that takes less than others send it of a connecting cell's longest packets."""
    found: dict[tuple[str, str], dict[Crossing, tuple[Entry, Path]]] = {}
    for entry in case.entries:
        fact = entry.asked.fact
        if entry.port.protocol != "TCP" or fact is None or len(case.snapshot.nodes) < 2:
            continue
        for path in fact.paths:
            if path.symptom is not Symptom.CONNECTS:
                continue
            for each in crossings(case.snapshot, path, from_outside=_is_outside(entry)):
                if each.is_lost:
                    lost = found.setdefault((each.receiver, each.receiving_device), {})
                    lost.setdefault(each, (entry, path))
                    case.hangs.setdefault(entry.key, hang_of(each))
    for (receiver, device), lost in found.items():
        yield _finding(case, receiver, device, lost)


def _is_outside(entry: Entry) -> bool:
    return entry.vantage is Vantage.EXTERNAL


def _finding(case: Case, receiver: str, device: str, lost: dict[Crossing, tuple[Entry, Path]]) -> Finding:
    most = max(lost, key=lambda crossing: crossing.sent)
    entry, _ = lost[most]
    by = (
        f"the tunnel {most.tunnel} makes {most.sent} of them"
        if most.tunnel
        else f"it leaves by {most.device}"
    )
    senders = sorted({crossing.sender for crossing in lost})
    sending = {(c.sender, c.device): None for c in lost}
    evidence = [
        Evidence("link", node, f"{name}: mtu {case.snapshot.nodes[node].takes(name)}")
        for node, name in dict.fromkeys(((receiver, device), *sending))
    ][:4]
    wider = _wider(case.snapshot, most)
    if not any(
        c.is_lost for e, path in lost.values() for c in crossings(wider, path, from_outside=_is_outside(e))
    ):
        evidence.append(
            counterfactual(f"with an MTU of {most.sent} at {device} of {receiver}, all of it gets there")
        )
    if most.is_certain:
        most_of = f"{device} of {receiver} takes {most.taken}, and the tunnel's packets may not be cut"
    else:
        most_of = f"{device} of {receiver} takes {most.taken} by its MTU"
    supposed = f" (of the client an MTU of {ETHERNET} is supposed)" if _is_outside(entry) else ""
    verb, fate = ("then hangs", "are lost") if most.is_certain else ("may then hang", "may be lost")
    return CHECK.finding(
        f"{entry.title} on {entry.node} connects, and {verb}: a full segment has {most.segment} bytes, {by}, "
        f"and {most_of}: {_SENT[most.direction]} of that length from {listed(senders)} {fate}{supposed}",
        node=receiver,
        nodes=[receiver, *(s for s in senders if s != receiver)],
        evidence=evidence,
        fix=Fix(
            f"give {device} of {receiver} an MTU of {most.sent}, where its network carries that; else "
            "lower the others, and the tunnels in them",
            cost="connections stop for a moment where a device is set anew",
        ),
        cells=dict.fromkeys(e for e, _ in lost.values()),
        severity=Severity.ERROR if most.is_certain else None,
    )


def _wider(snapshot: Snapshot, lost: Crossing) -> Snapshot:
    """With a receiving device that takes what is sent."""
    state = snapshot.nodes[lost.receiver]
    interfaces = tuple(
        replace(i, mtu=lost.sent) if i.name == lost.receiving_device else i for i in state.interfaces or ()
    )
    return with_state(snapshot, replace(state, interfaces=interfaces))


CHECK = Check("KTP220", "TooLong", Severity.WARNING, run)
