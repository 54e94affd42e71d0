"""Which IPsec policy and state a packet meets (net/xfrm: xfrm_policy.c, xfrm_state.c)."""

from __future__ import annotations

from ipaddress import ip_address

from ktp.dataplane.packet import ESP, PROTOCOLS, UDP, Packet, to_text
from ktp.model.record import dataclass
from ktp.model.xfrm import Policy, SecurityState, Selector, Template, Xfrm


@dataclass(frozen=True, slots=True)
class Unclear:
    """Which policy decides is not known, or not what it does: `why`."""

    why: str


def policy_for(xfrm: Xfrm, direction: str, p: Packet) -> Policy | Unclear | None:
    """The policy that decides for a packet; None where none does. Those of xfrm interfaces are not for it."""
    found = [
        policy
        for policy in xfrm.policies
        if (policy.direction, policy.interface) == (direction, 0)
        and p.mark & policy.mark[1] == policy.mark[0]
        and _selects(policy.selector, p)
    ]
    # The order in which policies of one priority were added is not printed.
    first = min((policy.priority for policy in found if not policy.selector.rest), default=None)
    best = [policy for policy in found if first is None or policy.priority <= first]
    if any(policy.selector.rest for policy in best):
        return Unclear("ports or devices in the selector of an IPsec policy")
    if len({(policy.blocks, policy.templates) for policy in best}) > 1:
        return Unclear("several IPsec policies of the same priority")
    return best[0] if best else None


def tunnel_of(policy: Policy) -> Template | Unclear:
    """The one tunnel of ESP that a policy asks for."""
    match policy.templates:
        case [Template(protocol="esp", mode="tunnel", dst=dst, src=src) as only] if dst and src:
            return only
        case _:
            return Unclear("an IPsec policy that does not ask for one tunnel of ESP")


def states_for(xfrm: Xfrm, template: Template, p: Packet) -> list[SecurityState]:
    """The states with which a packet may be sent as a template has it (xfrm_state_find)."""
    return [
        state
        for state in xfrm.states or ()
        if (state.protocol, state.mode, state.reqid, state.dst, state.src, state.interface)
        == (template.protocol, template.mode, template.reqid, template.dst, template.src, 0)
        and template.spi in (0, state.spi)
        and p.mark & state.mark[1] == state.mark[0]
        and (state.selector is None or _selects(state.selector, p))
    ]


def same_state(xfrm: Xfrm, sent: SecurityState) -> SecurityState | None:
    """The state by which a node takes what was sent with another node's (xfrm_state_lookup, xfrm_input)."""
    for state in xfrm.states or ():
        if (state.dst, state.spi, state.protocol) == (sent.dst, sent.spi, sent.protocol):
            return state if (state.ports is None) is (sent.ports is None) else None
    return None


def accepts(policy: Policy, state: SecurityState) -> bool:
    """Whether a policy lets in what came out of a state (xfrm_policy_ok)."""
    return any(
        (t.protocol, t.mode) == (state.protocol, state.mode)
        and t.reqid in (0, state.reqid)
        and t.spi in (0, state.spi)
        and t.src in (None, state.src)
        for t in policy.templates
    )


def is_protected(xfrm: Xfrm, p: Packet) -> bool:
    """Whether a packet of the node is one that IPsec has made."""
    return p.proto == ESP or (
        p.proto == UDP
        and any(
            state.ports == (p.sport, p.dport) and str(state.dst) == to_text(p.family, p.dst)
            for state in xfrm.states or ()
        )
    )


def will_protect(xfrm: Xfrm | None, p: Packet) -> bool | None:
    """Whether a packet is to be sent by IPsec (its route's dst->xfrm); None where that is not known."""
    if xfrm is None or is_protected(xfrm, p):
        return False
    policy = policy_for(xfrm, "out", p)
    return None if isinstance(policy, Unclear) else policy is not None and bool(policy.templates)


def _selects(selector: Selector, p: Packet) -> bool:
    if selector.protocol is not None and p.proto != PROTOCOLS.get(selector.protocol, selector.protocol):
        return selector.protocol == str(p.proto)
    return all(
        (net.version == p.family and ip_address(to_text(p.family, number)) in net)
        or (net.version != p.family and net.prefixlen == 0)
        for net, number in ((selector.src, p.src), (selector.dst, p.dst))
    )
