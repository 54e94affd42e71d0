"""What a route sends into a tunnel: the far end, and whether the tunnel's own packets get there."""

from __future__ import annotations

from ktp.dataplane.host import Host
from ktp.dataplane.packet import to_text
from ktp.dataplane.state import State, StepRecord
from ktp.dataplane.tunnel import device_of
from ktp.dataplane.walk.context import Leaf, Walk
from ktp.dataplane.walk.doors import Enter
from ktp.dataplane.walk.ends import close_hop, end_unknown, lost
from ktp.dataplane.walk.links import is_of_no_node
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.effect import Untunnelled
from ktp.model.trace import Disposition, Flow, StepKind, Symptom
from ktp.model.tunnel import IPAddress, TunnelDevice, TunnelFault


def tunnelled(
    walk: Walk, state: State, host: Host, target: Host, tunnel: TunnelDevice, end: IPAddress | None
) -> None:
    """What a route sends into a tunnel becomes a packet of this node to the far end's, which rules may stop."""
    own = [a for a, n in walk.owners.items() if n == target.name]
    key: tuple[int, int] | None
    if end is not None:
        key = (end.version, int(end))
        name = walk.owners.get(key)
        if name is None and is_of_no_node(walk, key):
            untunnelled(walk, state, host, tunnel, TunnelFault.NO_SUCH_PEER, str(end))
            return
        if name is not None and name != target.name:
            other = walk.places.walkable(name, state.packet.family)
            if other is None:
                through_unknown_node(walk, state, host, name)
                return
            target = other
    else:
        underlay = tunnel.local.version if tunnel.local is not None else 4
        key = next((a for a in own if a[0] == underlay and a in walk.topology.node_addresses), None)
        words = f"the tunnel {tunnel.name} leads to the node's address that the API tells"
        state.assume(Assumption(words, EvidenceKind.NEIGHBOURS, host.name))
    device, fault = device_of(target.state, tunnel)
    if fault is not None:
        untunnelled(walk, state, host, tunnel, fault, target.name, far=target.name)
        return
    if key is not None and tunnel.port:
        own_address = str(tunnel.local) if tunnel.local is not None else None
        flow = Flow(dst=to_text(*key), port=tunnel.port, protocol="udp", from_node=host.name, src=own_address)
        if not outer_passes(walk, state, host, tunnel, flow):
            return
    walk.go(Enter(state, target, device or tunnel.name, None))


def untunnelled(
    walk: Walk,
    state: State,
    host: Host,
    tunnel: TunnelDevice | None,
    fault: TunnelFault,
    about: str,
    far: str = "",
) -> None:
    """A tunnel does not carry the packet; `about` says for whom, and `far` names a node whose device is at fault."""
    step, words = why_untunnelled(state, host, tunnel, fault, about, far)
    lost(walk, state, host, words, "route", step)


def why_untunnelled(
    state: State, host: Host, tunnel: TunnelDevice | None, fault: TunnelFault, about: str, far: str = ""
) -> tuple[StepRecord, str]:
    """The step and the words for it; `tunnel` None for IPsec, which needs no device."""
    what = f"the tunnel {tunnel.name}" if tunnel is not None else "IPsec"
    words = f"{what} of {host.name} does not carry it: {fault.value} ({about})"
    return state.note(StepKind.ROUTE, Untunnelled(fault, far, words), hook="TUNNEL"), words


def outer_passes(
    walk: Walk, state: State, host: Host, tunnel: TunnelDevice | None, flow: Flow, echo: int | None = None
) -> bool:
    """Whether a tunnel's own packets, `flow`, get there, and answers of the mark `echo` back; else the end is noted."""
    leaves = outer_ends(walk, flow, echo)
    if not leaves:
        untunnelled(walk, state, host, tunnel, TunnelFault.LOOP, flow.dst)
        return False
    for assumption in dict.fromkeys(a for leaf in leaves for a in leaf.state.assumptions):
        state.assume(assumption)
    stopped = [leaf for leaf in leaves if leaf.symptom is not Symptom.CONNECTS]
    if not stopped:
        return True
    own = f"the tunnel's own packets ({flow.protocol.upper()} {f'{flow.port} ' if flow.port else ''}to {flow.dst})"
    unknown = [leaf for leaf in stopped if leaf.disposition is Disposition.UNDETERMINED]
    leaf = (unknown or stopped)[0]
    if unknown or len(stopped) < len(leaves):
        end_unknown(walk, state, host.name, f"whether {own} get through: {leaf.reason}")
        return False
    reason = f"{own} do not get through: {leaf.reason}"
    disposition = leaf.disposition if state.direction == "request" else Disposition.LOST
    if state.steps is not None:
        close_hop(state, host)
    walk.end(Leaf(state, disposition, Symptom.TIMES_OUT, reason, leaf.step, leaf.node, leaf.kind))
    return False


def outer_ends(walk: Walk, flow: Flow, echo: int | None) -> list[Leaf]:
    """The ends of a tunnel's own packets, [] where they are routed into the tunnel that they come from."""
    key = (flow, echo)
    leaves = walk.outer.get(key)
    if leaves is None:
        walk.outer[key] = []
        leaves = walk.outer[key] = walk.alone(flow, echo)
    return leaves
