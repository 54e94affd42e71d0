"""Whether a connection's longest packets get where its first ones do: MTUs, and what a tunnel adds.

A SYN is short. Once data flows, segments are as long as both ends allow (RFC 9293, 3.7.1: each end announces what its
device takes, less the headers). What a node cannot send on because of its length it tells the sender, who then sends
less; what is longer than the *receiving* device takes is lost without a word: nothing in the layer below tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

from ktp.model.host import NodeState
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Hop, Path
from ktp.model.tunnel import TunnelDevice

if TYPE_CHECKING:  # some ninety dataclasses, for nodes that have such rules
    from ktp.model.nftables import Statement

ETHERNET = 1500
"""What an outside client's network is taken to carry, in bytes."""

# What a tunnel puts before an IPv4 packet's or IPv6 packet's own header, in bytes, without the outer IP header
# (RFC 7348; RFC 8926 without options; RFC 2003; RFC 2784).
_HEADERS = {"vxlan": 14 + 8 + 8, "geneve": 14 + 8 + 8, "ipip": 0, "sit": 0, "gre": 4, "gretap": 14 + 4}
_OUTER = {4: 20, 6: 40}
# These send on no packet that is then too long, but tell its sender (tnl_update_pmtu).
_TELL_SENDERS = frozenset(("ipip", "sit", "gre"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What becomes of the longest packets between two nodes. Lengths are in bytes, of IP packets.

    `segment` is the connection's packet, `sent` what leaves for it by `device` of `sender` (the longest piece,
    where that cuts it), `taken` what `receiver`'s device takes.
    """

    direction: str  # request reply
    sender: str
    device: str
    receiver: str
    receiving_device: str
    tunnel: str | None
    segment: int
    sent: int
    taken: int

    @property
    def is_lost(self) -> bool:
        """Whether it is longer than the receiving device takes."""
        return self.sent > self.taken


def crossings(snapshot: Snapshot, path: Path, *, from_outside: bool) -> Iterator[Crossing]:
    """Where a connected path's longest packets go from node to node, both ways; none where lengths are not known."""
    ways = [[h for h in path.hops if h.direction == direction] for direction in ("request", "reply")]
    if not all(ways) or any(_clamps(hop) for hop in path.hops):
        return
    client = ETHERNET if from_outside else _of_end(snapshot, ways[0][0])
    server = _of_end(snapshot, ways[1][0])
    if client is None or server is None:
        return
    for hops in ways:
        yield from _along(snapshot, hops, min(client, server))


def _along(snapshot: Snapshot, hops: Sequence[Hop], segment: int) -> Iterator[Crossing]:
    for number, (hop, following) in enumerate(pairwise(hops)):
        here, there = snapshot.nodes.get(hop.node), snapshot.nodes.get(following.node)
        if hop.node == following.node or hop.pod or following.pod:
            continue
        if here is None or there is None or here.tunnels is None:
            return
        allowed = here.mtu_of(hop.out_interface)
        if allowed is None:
            return
        is_own = number == 0 and hop.in_interface is None
        if not is_own:
            segment = min(segment, allowed)  # else the sender is told, and sends less
        tunnel = (here.tunnels or {}).get(hop.out_interface or "")
        if tunnel is None:
            taken = there.takes(following.in_interface)
            if taken is None or not (
                _is_ethernet(here, hop.out_interface) and _is_ethernet(there, following.in_interface)
            ):
                return
            yield Crossing(
                direction=hop.direction, sender=hop.node, device=hop.out_interface or "", receiver=following.node,
                receiving_device=following.in_interface or "", tunnel=None, segment=segment, sent=segment, taken=taken,
            )  # fmt: skip
            continue
        ends = (here, tunnel), (there, (there.tunnels or {}).get(following.in_interface or ""))
        found = _by_tunnel(snapshot, *ends, hop.direction, segment, is_own=is_own)
        if found is None:
            return
        segment = found.segment
        yield found


def _by_tunnel(
    snapshot: Snapshot,
    here: tuple[NodeState, TunnelDevice],
    there: tuple[NodeState, TunnelDevice | None],
    direction: str,
    segment: int,
    *,
    is_own: bool,
) -> Crossing | None:
    (sender, tunnel), (receiver, _) = here, there
    mine, theirs = _underlay(snapshot, *here), _underlay(snapshot, *there)
    if tunnel.kind not in _HEADERS or mine is None or theirs is None:
        return None
    (device, version), (receiving_device, _) = mine, theirs
    limit, taken = sender.mtu_of(device), receiver.takes(receiving_device)
    if limit is None or taken is None:
        return None
    added = _HEADERS[tunnel.kind] + _OUTER[version]
    # A sender of the same node is told as well, since Linux 5.9 (skb_tunnel_check_pmtu).
    if tunnel.kind in _TELL_SENDERS or is_own:
        segment = min(segment, limit - added)
    return Crossing(
        direction=direction, sender=sender.name, device=device, receiver=receiver.name,
        receiving_device=receiving_device, tunnel=tunnel.name, segment=segment,
        sent=min(segment + added, limit), taken=taken,
    )  # fmt: skip


def _is_ethernet(state: NodeState, device: str | None) -> bool:
    """Whether it is a device of a network, and not one whose packets leave as another's (WireGuard has "none")."""
    return any(i.name == device and i.link_type == "ether" for i in state.interfaces or ())


def _underlay(snapshot: Snapshot, state: NodeState, tunnel: TunnelDevice | None) -> tuple[str, int] | None:
    """The device of a node that its tunnels' packets pass, and the version of IP there."""
    node = (snapshot.cluster.nodes or {}).get(state.name)
    local = tunnel.local if tunnel is not None else None
    known = (
        [local]
        if local is not None
        else [ip_address(a) for a in (node.addresses_of("InternalIP") if node else ())]
    )
    for interface in state.interfaces or ():
        for address in interface.addresses:
            if address.ip in known:
                return interface.name, address.ip.version
    return None


def _of_end(snapshot: Snapshot, hop: Hop) -> int | None:
    """How long packets an end of the connection takes; of a pod that was not read, as the node's end of its link."""
    state = snapshot.nodes.get(hop.node)
    if state is None:
        return None
    if hop.pod:
        inside = state.pods.get(hop.pod)
        return inside.mtu_of(hop.out_interface) if inside is not None else None
    return state.mtu_of(hop.in_interface or hop.out_interface)


def _clamps(hop: Hop) -> bool:
    """Whether a rule changes what an end announces (TCPMSS, `tcp option maxseg size set`): then it knows better."""
    return any(
        (step.rule is not None and step.rule.target is not None and step.rule.target.name == "TCPMSS")
        or (step.nft_rule is not None and any(map(_sets_option, step.nft_rule.statements)))
        for step in hop.steps
    )


def _sets_option(statement: Statement) -> bool:
    from ktp.model.nftables import ExtensionHeader, Mangle

    return (
        isinstance(statement, Mangle)
        and isinstance(statement.key, ExtensionHeader)
        and statement.key.kind == "tcp option"
    )
