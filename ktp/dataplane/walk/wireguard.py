"""What a route sends into a WireGuard device: the peer that its destination belongs to, and the way there.

Its first packets, and the answers of the peer, are one UDP connection between the ports that both ends listen on.
"""

from __future__ import annotations

from itertools import pairwise

from ktp.dataplane.host import Host
from ktp.dataplane.packet import UDP, to_text
from ktp.dataplane.state import State
from ktp.dataplane.tunnel import WIREGUARD
from ktp.dataplane.walk.context import Leaf, Walk
from ktp.dataplane.walk.doors import Enter
from ktp.dataplane.walk.ends import end_unknown
from ktp.dataplane.walk.errors import send_error
from ktp.dataplane.walk.links import is_of_no_node
from ktp.dataplane.walk.tunnels import outer_ends, outer_passes, untunnelled, why_untunnelled
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.dataplane.wireguard import peer_of, peer_with, taker
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.trace import Disposition, Flow, Symptom
from ktp.model.tunnel import IPAddress, TunnelDevice, TunnelFault, Wireguard, WireguardPeer


def encrypted(
    walk: Walk, state: State, host: Host, routed: str, tunnel: TunnelDevice, own: Wireguard
) -> None:
    """A packet enters a WireGuard device; `routed` is the node that its route means, where the peer does not tell."""
    p = state.packet
    if walk.is_tunnels and (p.proto, p.sport, p.local) == (UDP, own.port, True):
        untunnelled(walk, state, host, tunnel, TunnelFault.LOOP, to_text(p.family, p.dst))  # send4: -ELOOP
        return
    peer = peer_of(own, p.family, p.dst)
    if peer is None:
        _refused(walk, state, host, tunnel, TunnelFault.NO_PEER)
        return
    has_key = [
        name
        for name, node in walk.topology.nodes.items()
        for t in (node.tunnels or {}).values()
        if t.wireguard is not None and t.wireguard.public_key == peer.public_key
    ]
    if len(has_key) > 1:
        end_unknown(walk, state, host.name, f"{has_key[0]} and {has_key[1]} have the same WireGuard key")
        return
    name = _came_from(walk, state, host, tunnel, peer)
    answers = name is not None
    if not answers:
        if peer.endpoint is None:
            _refused(walk, state, host, tunnel, TunnelFault.NO_ENDPOINT)
            return
        name = _node_at(walk, state, host, peer, has_key[0] if has_key else None, routed)
    if name is None:
        about = str(peer.endpoint[0]) if peer.endpoint is not None else ""
        untunnelled(walk, state, host, tunnel, TunnelFault.NO_SUCH_PEER, about)
        return
    target = walk.places.walkable(name, p.family)
    if target is None:
        through_unknown_node(walk, state, host, name)
        return
    if not target.has_network:
        walk.go(Enter(state, target, "?", None))
        return
    port = None if answers or peer.endpoint is None else peer.endpoint[1]
    far, fault = taker(target.state, own, peer, port, p.family, p.src)
    if fault is not None:
        untunnelled(walk, state, host, tunnel, fault, name, far=name)
        return
    if far is None:
        words = f"WireGuard on {name} takes what {tunnel.name} of {host.name} sends it"
        state.assume(Assumption(words, EvidenceKind.NEIGHBOURS, name))
    if not answers and not _gets_there(walk, state, host, target, tunnel, peer, far):
        return
    walk.go(Enter(state, target, far.name if far is not None else _device(target, tunnel), None))


def _came_from(walk: Walk, state: State, host: Host, tunnel: TunnelDevice, peer: WireguardPeer) -> str | None:
    """The node whose packet this answers, where that came by the device: its endpoint is where that was sent from."""
    for before, hop in pairwise(state.hops) if state.direction != "request" else ():
        if (hop.direction, hop.node, hop.arrived.iif) != ("request", host.name, tunnel.name):
            continue
        node = walk.topology.nodes.get(before.node)
        read = [t.wireguard for t in (node.tunnels or {}).values() if t.wireguard] if node is not None else []
        if not read or peer.public_key in {device.public_key for device in read}:
            return before.node
    return None


def _node_at(
    walk: Walk, state: State, host: Host, peer: WireguardPeer, has_key: str | None, routed: str
) -> str | None:
    """The node that a peer's endpoint is an address of, None where it is no node's."""
    assert peer.endpoint is not None
    ip, _ = peer.endpoint
    key = (ip.version, int(ip))
    name = walk.owners.get(key)
    # A handshake that ended tells that the network translates the address into the node's.
    if name is not None or (is_of_no_node(walk, key) and not (has_key and peer.answered)):
        return name
    name = has_key or routed
    state.assume(Assumption(f"{ip} leads to {name}", EvidenceKind.NEIGHBOURS, host.name))
    return name


def _gets_there(
    walk: Walk,
    state: State,
    host: Host,
    target: Host,
    tunnel: TunnelDevice,
    peer: WireguardPeer,
    far: TunnelDevice | None,
) -> bool:
    """Whether both ends' packets come to the other; else the end is noted."""
    own, there = tunnel.wireguard, far.wireguard if far is not None else None
    assert own is not None
    assert peer.endpoint is not None
    if (peer.endpoint[0].version, int(peer.endpoint[0])) not in walk.owners:
        return True  # by way of others, as `_node_at` has taken for granted
    asked = _flow(host, own, peer.endpoint)
    back = peer_with(there, own.public_key) if there is not None else None
    if there is not None and back is not None and back.endpoint is not None and peer.answered:
        # Where the other end has sent first, packets to it are answers in connection tracking.
        begun = outer_ends(walk, _flow(target, there, back.endpoint), own.mark)
        if _connect(begun) and not _connect(outer_ends(walk, asked, there.mark)):
            if not back.keepalive:
                why = f"whether {target.name} has sent through {far.name if far else ''} of late, as it has to first"
                end_unknown(walk, state, host.name, why)
            return back.keepalive
    if not outer_passes(walk, state, host, tunnel, asked, there.mark if there is not None else 0):
        return False
    if peer.sent and not (peer.heard or peer.answered):
        why = f"{target.name} has never answered WireGuard's handshakes, and nothing that was read tells why"
        end_unknown(walk, state, host.name, why)
        return False
    return True


def _flow(host: Host, own: Wireguard, to: tuple[IPAddress, int]) -> Flow:
    """A device's own packets (send4 and send6, socket.c)."""
    ip, port = to
    return Flow(
        dst=str(ip), port=port, protocol="udp", from_node=host.name, source_port=own.port, mark=own.mark
    )


def _connect(leaves: list[Leaf]) -> bool:
    return bool(leaves) and all(leaf.symptom is Symptom.CONNECTS for leaf in leaves)


def _device(host: Host, tunnel: TunnelDevice) -> str:
    """The WireGuard device of a node of which no more was read."""
    names = [t.name for t in (host.state.tunnels or {}).values() if t.kind == WIREGUARD]
    return names[0] if len(names) == 1 else tunnel.name


def _refused(walk: Walk, state: State, host: Host, tunnel: TunnelDevice, fault: TunnelFault) -> None:
    """wg_xmit tells the sender that its host cannot be reached."""
    p = state.packet
    step, words = why_untunnelled(state, host, tunnel, fault, to_text(p.family, p.dst))
    p.oif = None
    conn = state.conns[-1] if state.conns and state.conns[-1].node == host.name else None
    p.ct = conn.copy() if conn is not None else None
    kind = "icmp-host-unreachable" if p.family == 4 else "icmp6-addr-unreachable"
    send_error(walk, state, host, kind, Disposition.LOST, words, step, "route")
