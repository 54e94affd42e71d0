"""Whether a connection's longest packets get where its first ones do: MTUs, and what a tunnel adds.

A SYN is short. Once data flows, segments are as long as both ends allow (RFC 9293, 3.7.1: each end announces what its
device takes, less the headers; TCPMSS lowers that). What a node cannot send on because of its length it tells the
sender, who then sends less, unless a rule stops what tells it. A tunnel's own packets are cut where they are too long,
but not by all kinds of tunnels. What is longer than the *receiving* device takes is lost without a word: nothing below
tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

from ktp.dataplane.answer import fold
from ktp.dataplane.walk import LimitExceededError, Walker
from ktp.dataplane.wireguard import peer_of
from ktp.model.diagnosis import Hang
from ktp.model.effect import TooLong
from ktp.model.host import NodeState, Route
from ktp.model.record import dataclass
from ktp.model.snapshot import Snapshot
from ktp.model.trace import DecidedBy, Flow, Hop, Path, Step, Symptom
from ktp.model.tunnel import TunnelDevice

if TYPE_CHECKING:  # some ninety dataclasses, for nodes that have such rules
    from ktp.model.nftables import Statement

ETHERNET = 1500
"""What an outside client's network is taken to carry, in bytes."""

# What a tunnel puts before an IPv4 packet's or IPv6 packet's own header, in bytes, without the outer IP header
# (RFC 7348; RFC 8926 without options; RFC 2003; RFC 2784; WireGuard's data message with its tag, padded no further than
# its device's MTU).
HEADERS = {
    "vxlan": 14 + 8 + 8,
    "geneve": 14 + 8 + 8,
    "ipip": 0,
    "sit": 0,
    "gre": 4,
    "gretap": 14 + 4,
    "wireguard": 8 + 16 + 16,
}
OUTER = {4: 20, 6: 40}
# These send on no packet that is then too long, but tell its sender (tnl_update_pmtu, ipip6_tunnel_xmit), unless they
# ignore DF, or with IPv6 in them look for no path MTU.
_TELL_SENDERS = frozenset(("ipip", "sit", "gre", "gretap"))
_TCP_HEADERS = {4: 40, 6: 60}


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What becomes of the longest packets between two nodes. Lengths are in bytes, of IP packets.

    `segment` is the connection's packet, `sent` what leaves for it by `device` of `sender` (the longest piece,
    where that cuts it), `taken` what `receiver`'s device takes. A tunnel's packet that is too long already for the
    device that it should leave by, and may not be cut, has the sender for a receiver.
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

    @property
    def is_certain(self) -> bool:
        """Whether it is the kernel that loses it: a device may take more than its MTU says."""
        return self.is_lost and self.sender == self.receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """A packet of `segment` bytes that `device` of `node` takes no more than `limit` of, and `step`, that tells nobody.

    `stopped_by` is what stopped the error that goes to the sender, and where. `lock_unread`: whether the
    sender's route has a locked MTU was not told; if so, it sends what may be cut.
    """

    direction: str
    node: str
    device: str
    segment: int
    limit: int
    stopped_by: DecidedBy
    lock_unread: bool = False


def crossings(snapshot: Snapshot, path: Path, *, from_outside: bool) -> Iterator[Crossing]:
    """Where a connected path's longest packets go from node to node, both ways; none where lengths are not known."""
    ways = _ways(path)
    lengths = longest(snapshot, path, from_outside=from_outside)
    if lengths is not None:
        for hops, length in zip(ways, lengths, strict=True):
            yield from _along(snapshot, hops, length)


def longest(snapshot: Snapshot, path: Path, *, from_outside: bool) -> tuple[int, int] | None:
    """How long packets of a connected path get there and back, in bytes; None where that was not read."""
    asked, answered = _ways(path)
    if not asked or not answered:
        return None
    client = ETHERNET if from_outside else _of_end(snapshot, asked[0])
    server = _of_end(snapshot, answered[0])
    if client is None or server is None:
        return None
    length = min(client, server)
    found = []
    for hops in (
        answered,
        asked,
    ):  # what a SYN announces limits the answers, what its answer does the requests
        limits = [_clamped(snapshot, hop, step) for hop in hops for step in hop.steps if _clamps(step)]
        known = [limit for limit in limits if limit is not None]
        if len(known) < len(limits):
            return None
        found.append(min([length, *known]))
    return found[0], found[1]


def untold(
    walker: Walker, snapshot: Snapshot, flow: Flow, paths: Iterable[Path], *, from_outside: bool
) -> Iterator[tuple[Path, Untold]]:
    """The connected ways of a flow on which a node cannot tell an end that its packets are too long."""
    found: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        if path.symptom is not Symptom.CONNECTS:
            continue
        lengths = longest(snapshot, path, from_outside=from_outside)
        if lengths is not None and any(
            length > (_allowed(snapshot, hop) or length)
            for hops, length in zip(_ways(path), lengths, strict=True)
            for hop in hops
        ):
            found.setdefault(lengths, []).append(path)
    for lengths, those in found.items():
        try:
            answer = fold(flow, walker.walk(flow, lengths))
        except LimitExceededError:
            continue
        ends = [(other, lost) for other in answer.paths if (lost := _untold(snapshot, other)) is not None]
        for path in those:
            lost = next((lost for other, lost in ends if _same_way(path, other)), None)
            if lost is not None:
                yield path, lost


def _untold(snapshot: Snapshot, path: Path) -> Untold | None:
    """Of a way of long packets, that it ends where nobody is told."""
    decided = path.decided_by
    step = decided.step if decided is not None else None
    effect = next((e for e in (step.effects if step is not None else ()) if isinstance(e, TooLong)), None)
    if decided is None or effect is None or path.symptom is not Symptom.TIMES_OUT:
        return None
    end = path.hops[-1]
    direction = "request" if any(h.direction == "error" for h in path.hops) else "reply"
    sender = next(h for h in path.hops if h.direction == direction)
    last = end.steps[-1]
    return Untold(
        direction=direction, lock_unread=_lock_unread(snapshot, sender),
        node=decided.node, device=effect.device, segment=effect.length, limit=effect.limit,
        stopped_by=DecidedBy(node=end.node, pod=end.pod, kind=last.kind, step=last),
    )  # fmt: skip


def hang_of(lost: Crossing | Untold) -> Hang:
    """The same as a report has it."""
    if isinstance(lost, Untold):
        return Hang(
            direction=lost.direction, segment=lost.segment, sent=lost.segment, taken=lost.limit, sender=lost.node,
            device=lost.device, certain=True, stopped_by=lost.stopped_by,
        )  # fmt: skip
    return Hang(
        direction=lost.direction, segment=lost.segment, sent=lost.sent, taken=lost.taken, sender=lost.sender,
        device=lost.device, receiver=lost.receiver, receiving_device=lost.receiving_device, tunnel=lost.tunnel,
        certain=lost.is_certain,
    )  # fmt: skip


def _same_way(path: Path, other: Path) -> bool:
    """Whether a way that ends early begins as `path` does: the nodes that were passed, and where it was sent to."""
    mine = [(h.node, h.pod, h.left.dst) for h in path.hops if h.direction == "request"]
    theirs = [(h.node, h.pod, h.left.dst) for h in other.hops if h.direction == "request"][: len(mine)]
    return mine[: len(theirs)] == theirs


def _ways(path: Path) -> tuple[list[Hop], list[Hop]]:
    asked = [h for h in path.hops if h.direction == "request"]
    return asked, [h for h in path.hops if h.direction == "reply"]


def _along(snapshot: Snapshot, hops: Sequence[Hop], segment: int) -> Iterator[Crossing]:
    for number, (hop, following) in enumerate(pairwise(hops)):
        here, there = snapshot.nodes.get(hop.node), snapshot.nodes.get(following.node)
        if hop.node == following.node or hop.pod or following.pod:
            continue
        if here is None or there is None or here.tunnels is None:
            return
        allowed = _allowed(snapshot, hop)
        if allowed is None:
            return
        is_own = number == 0 and hop.in_interface is None
        segment = min(segment, allowed)  # the sender is told, and sends less
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
        found = _by_tunnel(snapshot, *ends, hop, segment, is_own=is_own)
        if found is None:
            return
        segment = found.segment
        yield found


def _by_tunnel(
    snapshot: Snapshot,
    here: tuple[NodeState, TunnelDevice],
    there: tuple[NodeState, TunnelDevice | None],
    hop: Hop,
    segment: int,
    *,
    is_own: bool,
) -> Crossing | None:
    (sender, tunnel), (receiver, _) = here, there
    to = ip_address(hop.left.dst) if hop.left.dst else None
    family = to.version if to is not None else 4
    peer = peer_of(tunnel.wireguard, family, int(to)) if tunnel.wireguard is not None and to else None
    outer = peer.endpoint[0].version if peer is not None and peer.endpoint is not None else None
    mine, theirs = _underlay(snapshot, *here, outer), _underlay(snapshot, *there, outer)
    if tunnel.kind not in HEADERS or mine is None or theirs is None:
        return None
    (device, limit, version), (receiving_device, taken, _) = mine, theirs
    added = HEADERS[tunnel.kind] + OUTER[version]
    # vxlan_xmit_one and geneve_xmit_skb tell a sender of the same node, too, since Linux 5.9 (skb_tunnel_check_pmtu).
    told = tunnel.kind in _TELL_SENDERS and not tunnel.ignores_df and (tunnel.finds_mtu or family == 4)
    if told or (is_own and tunnel.kind in ("vxlan", "geneve")):
        segment = min(segment, limit - added)
    sent = segment + added
    if sent > limit and tunnel.kind in ("vxlan", "geneve") and (version == 6 or tunnel.df != "unset"):
        # ip6_fragment, and ip_fragment where DF is set: the error goes to the node itself.
        receiver, receiving_device, taken = sender, device, limit
    else:
        sent = min(sent, limit)
    return Crossing(
        direction=hop.direction, sender=sender.name, device=device, receiver=receiver.name,
        receiving_device=receiving_device, tunnel=tunnel.name, segment=segment, sent=sent, taken=taken,
    )  # fmt: skip


def _is_ethernet(state: NodeState, device: str | None) -> bool:
    """Whether it is a device of a network, and not one whose packets leave as another's (WireGuard has "none")."""
    return any(i.name == device and i.link_type == "ether" for i in state.interfaces or ())


def _underlay(
    snapshot: Snapshot, state: NodeState, tunnel: TunnelDevice | None, outer: int | None
) -> tuple[str, int, int] | None:
    """The device of a node that its tunnels' packets pass, its MTU, and the version of IP there, `outer` if known."""
    node = (snapshot.cluster.nodes or {}).get(state.name)
    local = tunnel.local if tunnel is not None else None
    known = (
        [local]
        if local is not None
        else [ip_address(a) for a in (node.addresses_of("InternalIP") if node else ())]
    )
    for interface in state.interfaces or ():
        for address in interface.addresses:
            if address.ip in known and interface.mtu is not None:
                return interface.name, interface.mtu, outer or address.ip.version
    return None


def _of_end(snapshot: Snapshot, hop: Hop) -> int | None:
    """How long packets an end of the connection takes; of a pod that was not read, as the node's end of its link."""
    state = snapshot.nodes.get(hop.node)
    if state is None:
        return None
    if hop.pod or hop.in_interface is None:
        return _allowed(snapshot, hop)
    inside = _sending_pod(state, hop)
    if inside is not None:
        own = _closest(inside, None, hop.arrived.dst)
        return _by_route(inside, own[0].dev, hop.arrived.dst) if own else None
    return state.takes(hop.in_interface)


def _sending_pod(state: NodeState, hop: Hop) -> NodeState | None:
    """The namespace that a node gets a request from, where it is a pod's and was read."""
    sender = ip_address(hop.arrived.src) if hop.arrived.src else None
    return next(
        (p for p in state.pods.values() for i in p.interfaces or () for a in i.addresses if a.ip == sender),
        None,
    )


def _allowed(snapshot: Snapshot, hop: Hop) -> int | None:
    """How many bytes what leaves a hop may have, by its device and route; None where that was not read."""
    state = snapshot.nodes.get(hop.node)
    if state is not None and hop.pod:
        state = state.pods.get(hop.pod)
    return _by_route(state, hop.out_interface, hop.left.dst) if state is not None else None


def _by_route(state: NodeState, device: str | None, address: str) -> int | None:
    """The MTU of the closest route by a device to an address, where it has one; else the device's."""
    own = state.takes(device)
    if own is None or not address:
        return own
    found = {r.mtu or own for r in _closest(state, device, address)}
    return min(found) if len(found) == 1 else own if not found else None


def _closest(state: NodeState, device: str | None, address: str) -> list[Route]:
    """The routes by a device, or by any, to an address with the longest prefix."""
    to = ip_address(address)
    routes = [
        r
        for r in state.routes or ()
        if any(device in (h.dev, None) for h in r.nexthops) and r.dst.version == to.version and to in r.dst
    ]
    longest_prefix = max((r.dst.prefixlen for r in routes), default=0)
    return [r for r in routes if r.dst.prefixlen == longest_prefix]


def _lock_unread(snapshot: Snapshot, sender: Hop) -> bool:
    """Whether the sender of IPv4 packets may have a locked MTU: its route has one, and of a lock nothing was told."""
    state, device, to = snapshot.nodes.get(sender.node), sender.out_interface, sender.left.dst
    if state is not None and sender.pod:
        state = state.pods.get(sender.pod)
    elif state is not None and sender.in_interface is not None:
        state, device, to = _sending_pod(state, sender), None, sender.arrived.dst
    if state is None or ip_address(to).version == 6:
        return False
    routes = _closest(state, device, to)
    return any(r.mtu is not None and r.mtu_locked is None for r in routes)


def _clamps(step: Step) -> bool:
    """Whether a rule changes what an end announces: TCPMSS, `tcp option maxseg size set`."""
    return (step.rule is not None and step.rule.target is not None and step.rule.target.name == "TCPMSS") or (
        step.nft_rule is not None and any(map(_sets_option, step.nft_rule.statements))
    )


def _sets_option(statement: Statement) -> bool:
    from ktp.model.nftables import ExtensionHeader, Mangle

    return (
        isinstance(statement, Mangle)
        and isinstance(statement.key, ExtensionHeader)
        and statement.key.kind == "tcp option"
    )


def _clamped(snapshot: Snapshot, hop: Hop, step: Step) -> int | None:
    """How long packets get that a rule lowers the announced size of (xt_TCPMSS.c, nft_rt.c); None where unknown."""
    version = ip_address(hop.left.dst).version
    number: int | None = None
    if step.rule is not None and step.rule.target is not None:
        target = step.rule.target
        size = target.option("--set-mss")
        if size is None and target.option("--clamp-mss-to-pmtu") is None:
            return None
        number = int(size.args[0]) if size is not None and size.args[0].isdecimal() else None
        if size is not None and number is None:
            return None
    else:
        from ktp.model.nftables import Immediate, Mangle, Rt

        values = [
            s.value
            for s in (step.nft_rule.statements if step.nft_rule is not None else ())
            if isinstance(s, Mangle) and _sets_option(s)
        ]
        match values:
            case [Rt("mtu")]:
                pass
            case [Immediate(int() as given)]:
                number = given
            case _:
                return None
    if number is not None:
        return number + _TCP_HEADERS[version]
    state = snapshot.nodes.get(hop.node)
    if state is not None and hop.pod:
        state = state.pods.get(hop.pod)
    if state is None:
        return None
    there = _by_route(state, hop.out_interface, hop.left.dst)
    back = _by_route(state, hop.in_interface, hop.arrived.src) if hop.in_interface is not None else there
    return min(there, back) if there is not None and back is not None else None
