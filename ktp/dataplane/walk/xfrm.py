"""IPsec: what a policy has sent in a tunnel of ESP, what it stops, and what it asks of packets that come in."""

from __future__ import annotations

from ktp.dataplane.host import Host
from ktp.dataplane.state import State
from ktp.dataplane.walk.context import Leaf, Walk
from ktp.dataplane.walk.doors import Enter
from ktp.dataplane.walk.ends import close_hop, end_unknown, ended, lost
from ktp.dataplane.walk.links import is_of_no_node
from ktp.dataplane.walk.tunnels import outer_ends, outer_passes, why_untunnelled
from ktp.dataplane.walk.unread import through_unknown_node
from ktp.dataplane.xfrm import (
    Unclear,
    accepts,
    is_protected,
    policy_for,
    same_state,
    states_for,
    tunnel_of,
)
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.trace import Disposition, Flow, Symptom
from ktp.model.tunnel import TunnelFault
from ktp.model.xfrm import SecurityState, Template


def lets_out(walk: Walk, state: State, host: Host) -> bool:
    """Whether a route is given to a packet (xfrm_lookup), before FORWARD or OUTPUT; else its end is noted."""
    return not isinstance(_wanted(walk, state, host), _Ended)


def protected(walk: Walk, state: State, host: Host) -> bool:
    """Whether IPsec took a packet that leaves, as it is after POSTROUTING (nf_xfrm_me_harder), and carries it on."""
    wanted = _wanted(walk, state, host)
    if wanted is None:
        return False
    if isinstance(wanted, _Ended):
        return True
    template, states = wanted
    assert template.dst is not None
    key = (template.dst.version, int(template.dst))
    name = walk.owners.get(key)
    if name is None and is_of_no_node(walk, key):
        _stopped(walk, state, host, TunnelFault.NO_SUCH_PEER, str(template.dst))
        return True
    target = walk.places.walkable(name, state.packet.family) if name is not None else None
    if name is None or target is None or not target.has_network:
        close_hop(state, host)
        if name is None:
            end_unknown(walk, state, host.name, f"whose address {template.dst} is, to which IPsec sends")
        else:
            through_unknown_node(walk, state, host, name)
        return True
    taken, sent = _taken(state, target, states)
    if taken is None and sent is None:
        _stopped(walk, state, host, TunnelFault.NO_STATE, f"{name}, of SPI {states[0].spi:#x}", name)
        return True
    if sent is None or len({s.ports for s in states}) > 1:
        why = f"which of several IPsec states is used, of which {name} has not all"
        end_unknown(walk, state, host.name, why)
        return True
    leaf = _sent(walk, state, host, target, sent)
    if leaf is not None:
        close_hop(state, host)
        arrived = leaf.state
        walk.go(
            Enter(state, target, arrived.arrived.iif or "?", None, mark=arrived.packet.mark, secured=taken)
        )
    return True


def lets_in(walk: Walk, state: State, host: Host, direction: str) -> bool:
    """Whether policies let a packet be forwarded ("fwd") or delivered ("in") here; else its end is noted.

    They are asked of the packet as it came by the wire (nf_nat_decode_session).
    """
    xfrm, secured = host.state.xfrm, state.packet.secured
    if xfrm is None or state.packet.iif in (None, "lo") or not (xfrm.policies or secured):
        return True
    asked = state.arrived.copy()
    asked.mark = state.packet.mark
    if is_protected(xfrm, asked):
        return True
    policy = policy_for(xfrm, direction, asked)
    if isinstance(policy, Unclear):
        end_unknown(walk, state, host.name, f"whether {host.name} takes it is not known: {policy.why}")
        return False
    fault: TunnelFault | None = None
    if policy is not None and policy.blocks:
        fault = TunnelFault.BLOCKED
    elif secured is not None and (policy is None or not accepts(policy, secured)):
        fault = TunnelFault.NO_POLICY  # also of a policy that asks for nothing (secpath_has_nontransport)
    elif secured is None and policy is not None and not all(t.is_optional for t in policy.templates):
        fault = TunnelFault.UNPROTECTED
    if fault is not None:
        _stopped(walk, state, host, fault, f"dir {direction}")
    return fault is None


class _Ended:
    """The packet's end was noted."""


def _wanted(walk: Walk, state: State, host: Host) -> tuple[Template, list[SecurityState]] | _Ended | None:
    """The tunnel that a packet is to be sent in, and the states for it; None without one."""
    xfrm, p = host.state.xfrm, state.packet
    if xfrm is None or not xfrm.policies or is_protected(xfrm, p):
        return None
    policy = policy_for(xfrm, "out", p)
    if policy is None:
        return None
    if not isinstance(policy, Unclear):
        if policy.blocks:
            # A process is told at once (EPERM).
            symptom = Symptom.UNREACHABLE if p.local and p.iif is None else Symptom.TIMES_OUT
            _stopped(walk, state, host, TunnelFault.BLOCKED, "dir out", symptom=symptom)
            return _Ended()
        if not policy.templates:
            return None
        template = tunnel_of(policy)
        if isinstance(template, Template) and xfrm.states is not None:
            states = states_for(xfrm, template, p)
            if states:
                return template, states
            _stopped(walk, state, host, TunnelFault.NO_STATE, f"{host.name} to {template.dst}")
            return _Ended()
        policy = template if isinstance(template, Unclear) else Unclear("the IPsec states were not read")
    end_unknown(walk, state, host.name, f"how {host.name} sends it is not known: {policy.why}")
    return _Ended()


def _taken(
    state: State, target: Host, states: list[SecurityState]
) -> tuple[SecurityState | None, SecurityState | None]:
    """The state of the far end that takes the packets, and the one they were sent with; that None where it may vary.

    The former is None where nothing was read there, too.
    """
    xfrm = target.state.xfrm
    if xfrm is None or xfrm.states is None:
        words = f"{target.name} takes what IPsec sends it, and lets it in"
        state.assume(Assumption(words, EvidenceKind.NEIGHBOURS, target.name))
        return None, states[0]
    found = [(theirs, mine) for mine in states if (theirs := same_state(xfrm, mine)) is not None]
    if not found:
        return None, None
    return found[0][0], found[0][1] if len(found) == len(states) else None


def _sent(walk: Walk, state: State, host: Host, target: Host, sent: SecurityState) -> Leaf | None:
    """Where IPsec's own packets come to, None where they do not, and the end is noted."""
    flow = _flow(host, sent, state.packet.mark)
    if not host.owns(sent.src.version, int(sent.src)):
        end_unknown(
            walk, state, host.name, f"{sent.src}, from which IPsec sends, is no address of {host.name}"
        )
        return None
    begun = _begun(state, host, target)
    # To connection tracking, packets of an answer answer those of the request.
    flow, echo = (
        (_flow(host, sent, state.packet.mark), None) if begun is None else (_flow(target, begun, 0), 0)
    )
    return outer_ends(walk, flow, echo)[0] if outer_passes(walk, state, host, None, flow, echo) else None


def _begun(state: State, host: Host, target: Host) -> SecurityState | None:
    """The state with which the request came from there that this answers."""
    xfrm = target.state.xfrm
    for hop in state.hops if state.direction != "request" and xfrm is not None else ():
        if hop.direction != "request" or hop.node != target.name or xfrm is None:
            continue
        policy = policy_for(xfrm, "out", hop.left)
        template = tunnel_of(policy) if policy is not None and not isinstance(policy, Unclear) else None
        if isinstance(template, Template) and template.dst is not None:
            states = states_for(xfrm, template, hop.left)
            if states and host.owns(template.dst.version, int(template.dst)):
                return states[0]
    return None


def _flow(host: Host, sent: SecurityState, mark: int) -> Flow:
    """The packets that a state makes: ESP, or UDP around it, with the mark of the packet inside."""
    source, port = sent.ports or (None, 0)
    return Flow(
        dst=str(sent.dst), src=str(sent.src), from_node=host.name, protocol="esp" if sent.ports is None else "udp",
        port=port, source_port=source, mark=mark if sent.output_mark is None else sent.output_mark,
    )  # fmt: skip


def _stopped(
    walk: Walk,
    state: State,
    host: Host,
    fault: TunnelFault,
    about: str,
    far: str = "",
    symptom: Symptom = Symptom.TIMES_OUT,
) -> None:
    step, words = why_untunnelled(state, host, None, fault, about, far)
    if fault is TunnelFault.BLOCKED and state.direction == "request":
        ended(walk, state, Disposition.DROPPED, symptom, words, host, "route", step)
    else:
        lost(walk, state, host, words, "route", step, symptom)
