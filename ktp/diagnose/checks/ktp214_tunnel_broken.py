"""A tunnel between nodes does not carry what the routes send into it.

# What it means
Pods of other nodes are reached through a tunnel device (flannel's, Calico's), and the entries that say where its
packets go, or the device at the far end, are missing or wrong: of WireGuard the peer with the pod's address among its
allowed IPs, its endpoint, its key, or this node's source address among the allowed IPs there. Or an IPsec policy blocks
the packet, asks for a state that is not there, or takes only what comes by IPsec.

# Why traffic fails
The packet enters the tunnel and never comes out. With policy Cluster only connections that draw a pod of the dialled
node itself succeed: it looks like policy Local.

# Evidence
The tunnel devices, the neighbour table and the forwarding database of the nodes (`ip-link.json`, `ip-neigh.json`,
`bridge-fdb.json`), WireGuard's peers (`wg.txt`), IPsec's policies and states (`ip-xfrm-policy.txt`,
`ip-xfrm-state.txt`), without private and preshared keys. A firewall that drops the tunnel's own packets is KTP301, with
its rule.

# Confirm by hand
    ip -d link show type vxlan
    ip neigh show
    wg show                      # endpoint, allowed ips, and when the last handshake was
    ip xfrm policy; ip xfrm state list nokeys
    ip route get POD-IP

# Fix
Restart the network plugin's agent on the node: it writes these entries. Where the far end's address is no node's, see
which interface the agent chose (flannel: annotation flannel.alpha.coreos.com/public-ip).

# Example
flannel on a machine with two networks announces the address of the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ktp.diagnose.case import Case, Entry
from ktp.diagnose.changes import with_state
from ktp.diagnose.checks.base import Check, mending
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.effect import Untunnelled
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Path, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose tunnel loses a failing cell's packets."""
    found: dict[str, dict[Entry, Path]] = {}
    for entry in case.failing():
        for path in entry.paths:
            decided = path.decided_by
            if path.symptom is Symptom.CONNECTS or decided is None or decided.step is None:
                continue
            if any(isinstance(effect, Untunnelled) for effect in decided.step.effects):
                found.setdefault(decided.node, {}).setdefault(entry, path)
    for node, paths in found.items():
        mended = case.mended(paths, f"tunnels of {node} carry", partial(_carrying, case.snapshot, node))
        if not mended:
            continue
        first = mended[0]
        decided = paths[first].decided_by
        effects = decided.step.effects if decided is not None and decided.step is not None else ()
        where = next((e.far for e in effects if isinstance(e, Untunnelled)), "") or node
        yield CHECK.finding(
            paths[first].reason,
            node=node,
            evidence=[
                Evidence("route", node, decided.rule if decided is not None else ""),
                *mending("with a tunnel that carries", mended),
            ],
            fix=Fix(
                f"restart the network plugin's agent on {where}, and see which interface it uses",
                cures=mended.cures(),
            ),
            cells=mended,
        )


def _carrying(snapshot: Snapshot, node: str) -> Snapshot:
    """The node with tunnels of which nothing is known: taken to carry."""
    return with_state(snapshot, replace(snapshot.nodes[node], tunnels=None, xfrm=None))


CHECK = Check("KTP214", "TunnelBroken", Severity.ERROR, run)
