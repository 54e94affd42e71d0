"""What nft rules do to packets: reject, change a mark or header, translate addresses (nft(8), STATEMENTS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ktp.dataplane import packet as pk
from ktp.dataplane.host import Host
from ktp.dataplane.nft_outcome import END, NO_MATCH, ON_CODE, Action, Outcome, Way, fork, undecided
from ktp.dataplane.nft_values import BREAK, Getter, Span
from ktp.dataplane.packet import RANDOM_PORTS, Packet, Port
from ktp.dataplane.state import ACCEPT, DROP, REJECT, State, Verdict
from ktp.dataplane.xtables import redirect_address, translate_destination, translate_source
from ktp.model.assumption import Assumption
from ktp.model.effect import Change, Drop, Effect, Mark, Nat, NoTrack, Refuse
from ktp.model.nftables import Ct, Expression, Meta, Payload, Reject

# Addresses or ports of a range that are followed one by one; of a larger one the drawn is unknown.
_MAX_RANGE = 256

_REJECT: Final = {
    ("icmp", "port-unreachable"): "icmp-port-unreachable",
    ("icmp", "net-unreachable"): "icmp-net-unreachable",
    ("icmp", "host-unreachable"): "icmp-host-unreachable",
    ("icmp", "prot-unreachable"): "icmp-proto-unreachable",
    ("icmp", "net-prohibited"): "icmp-net-prohibited",
    ("icmp", "host-prohibited"): "icmp-host-prohibited",
    ("icmp", "admin-prohibited"): "icmp-admin-prohibited",
    ("icmpv6", "no-route"): "icmp6-no-route",
    ("icmpv6", "admin-prohibited"): "icmp6-adm-prohibited",
    ("icmpv6", "addr-unreachable"): "icmp6-addr-unreachable",
    ("icmpv6", "port-unreachable"): "icmp6-port-unreachable",
    ("icmpv6", "policy-fail"): "icmp6-policy-fail",
    ("icmpv6", "reject-route"): "icmp6-reject-route",
}
# nft_reject_icmp_code, nft_reject_icmpv6_code
_REJECT_ANY: Final = {
    "port-unreachable": ("icmp-port-unreachable", "icmp6-port-unreachable"),
    "admin-prohibited": ("icmp-admin-prohibited", "icmp6-adm-prohibited"),
    "no-route": ("icmp-net-unreachable", "icmp6-no-route"),
    "host-unreachable": ("icmp-host-unreachable", "icmp6-addr-unreachable"),
}


def reject(statement: Reject) -> Action:
    """`reject`; no match where its type is for another protocol or family."""
    code = str(statement.code) if statement.code is not None else ""

    def act(state: State, host: Host, hook: str) -> Outcome:
        p = state.packet
        if statement.type == "tcp reset":
            if p.proto != pk.TCP:
                return NO_MATCH
            kind: str | None = "tcp-reset"
        elif statement.type == "icmpx":
            pair = _REJECT_ANY.get(code)
            kind = None if pair is None else pair[0] if p.family == 4 else pair[1]
        else:
            if (statement.type == "icmp") != (p.family == 4):
                return NO_MATCH
            kind = _REJECT.get((statement.type, code))
        if kind is None:
            return undecided(state, f"ktp does not know the type of `{statement}`")
        return Outcome(END, Verdict(REJECT, state, kind), Refuse(kind))

    return act


# ---------------------------------------------------------------------------------------------------- changes

Changer = Callable[[State, Any], "Effect | None"]


def changing(change: Changer, value: Any, why: str) -> Action:
    """An action that sets `value`, which was found already, by `change`."""

    def act(state: State, host: Host, hook: str) -> Outcome:
        if value is BREAK:
            return NO_MATCH
        if not isinstance(value, int):
            return undecided(state, f"the value that the rule sets is not known: {why}")
        effect = change(state, value)
        if effect is None:
            return undecided(state, "the rule rewrites a header of a connection that is already tracked")
        return Outcome(ON_CODE, None, effect)

    return act


def has_header(p: Packet, key: Expression) -> bool:
    """Whether the packet has the header that a `set` statement writes to: nft puts that condition before it."""
    match key:
        case Payload("ip"):
            return p.family == 4
        case Payload("ip6"):
            return p.family == 6
        case Payload("tcp" | "udp" | "sctp" as protocol):
            return p.proto == pk.PROTOCOLS[protocol]
        case _:
            return True


def changer(key: Expression) -> Changer | None:
    """What a `set` statement changes of what ktp models; None where nothing."""
    match key:
        case Meta("mark"):
            return _set_mark
        case Ct("mark"):
            return _set_connection_mark
        case Payload("ip" | "ip6", "dscp"):
            return _set_dscp
        case Payload("ip", "ttl") | Payload("ip6", "hoplimit"):
            return _set_ttl
        case Payload("ip" | "ip6", "saddr" | "daddr") | Payload(
            "tcp" | "udp" | "sctp" | "th", "sport" | "dport"
        ):
            return _header_setter(key.field)
        case Ct("zone"):
            return lambda state, value: None
        case _:
            return None


def _set_mark(state: State, value: int) -> Effect:
    before, state.packet.mark = state.packet.mark, value & 0xFFFFFFFF
    return Mark(before, state.packet.mark, 0, state.packet.mark)


def _set_connection_mark(state: State, value: int) -> Effect:
    ct, new = state.packet.ct, value & 0xFFFFFFFF
    before = ct.mark if ct is not None else new
    if ct is not None:
        ct.mark = new
    return Mark(before, new, 0, new, connection=True)


def _set_dscp(state: State, value: int) -> Effect:
    p = state.packet
    p.tos = (p.tos & 3) | (value & 0x3F) << 2
    return Change(f"DSCP set to {value}")


def _set_ttl(state: State, value: int) -> Effect:
    state.packet.ttl = value
    state.packet.from_far = False
    return Change(f"TTL set to {value}")


def _header_setter(field: str) -> Changer:
    def change(state: State, value: int) -> Effect | None:
        p = state.packet
        if p.ct is not None:
            return None
        if field == "saddr":
            p.src = value
        elif field == "daddr":
            p.dst = value
        elif field == "sport":
            p.sport = value
        else:
            p.dport = value
        return Change(f"{field} rewritten, outside connection tracking: {p.words()}")

    return change


def notrack(state: State, host: Host, hook: str) -> Outcome:
    """`notrack`: the packet stays without connection, if it has none yet."""
    p = state.packet
    if p.ct is None:
        p.ctstate = pk.UNTRACKED
    return Outcome(ON_CODE, None, NoTrack())


# -------------------------------------------------------------------------------------------------------- NAT


def fixed(value: Any) -> Getter:
    """A getter of one value."""
    return lambda p, h, hook: value


def _choices(value: Any, now: int, *, netmap: bool, keep: bool) -> list[int] | None:
    """The numbers that a NAT value may give; None where they are too many. `keep`: a number inside stays."""
    if value is None:
        return [now]
    if not isinstance(value, Span):
        return [value]
    if netmap and value.prefix is not None:
        return [value.low | now & (value.high ^ value.low)]
    if keep and value.low <= now <= value.high:
        return [now]
    if value.high - value.low >= _MAX_RANGE:
        return None
    return list(range(value.low, value.high + 1))


_DRAWN_ADDRESS = Assumption(
    "of a range of addresses the kernel takes one by a hash of the client's: each is as likely"
)


def translated_destination(
    state: State, host: Host, hook: str, target: Any, ports: Any, *, netmap: bool, kind: Nat = Nat.DNAT
) -> Outcome:
    """`dnat`: the packet's new destination; each where the kernel draws one of several."""
    p = state.packet
    addresses = _choices(target, p.dst, netmap=netmap, keep=False)
    if isinstance(p.dport, int):
        numbers: Sequence[Port] | None = _choices(ports, p.dport, netmap=False, keep=True)
    else:
        numbers = [p.dport] if ports is None else [ports] if isinstance(ports, int) else None
    if addresses is None or numbers is None or len(addresses) * len(numbers) > _MAX_RANGE:
        return undecided(state, "which address or port of the range is drawn is not known")
    if len(addresses) > 1:
        state.assume(_DRAWN_ADDRESS)
    share = 1 / (len(addresses) * len(numbers))
    ways = [Way(share, _destination(address, number, kind)) for address in addresses for number in numbers]
    return fork(ways, state, host, hook)


def _destination(address: int, port: Port, kind: Nat) -> Action:
    def act(state: State, host: Host, hook: str) -> Outcome:
        effect = translate_destination(state, address, port, kind)
        return Outcome(END, Verdict(ACCEPT, state), effect)

    return act


def redirected(state: State, host: Host, hook: str, ports: Any) -> Outcome:
    """`redirect`: to this node itself."""
    address = redirect_address(state, host, hook)
    if address is None:
        if not host.has_network:
            return undecided(state, "`redirect`: the addresses of the interface were not read")
        return Outcome(END, Verdict(DROP, state, "`redirect` finds no address on the interface"), Drop())
    return translated_destination(state, host, hook, address, ports, netmap=False, kind=Nat.REDIRECT)


def translated_source(
    state: State, host: Host, hook: str, target: Any, ports: Any, *, netmap: bool, random: bool
) -> Outcome:
    """`snat`: the packet's new source; each where the kernel draws one of several."""
    p = state.packet
    addresses = _choices(target, p.src, netmap=netmap, keep=not random)
    if addresses is None:
        return undecided(state, "which address of the range is drawn is not known")
    sport: Port = p.sport
    if isinstance(ports, Span):
        sport = (ports.low, ports.high)
    elif isinstance(ports, int):
        sport = ports
    elif random:
        sport = RANDOM_PORTS
    if len(addresses) > 1:
        state.assume(_DRAWN_ADDRESS)
    ways = [Way(1 / len(addresses), _source(address, sport)) for address in addresses]
    return fork(ways, state, host, hook)


def _source(address: int, port: Port) -> Action:
    def act(state: State, host: Host, hook: str) -> Outcome:
        effect = translate_source(state, address, port, Nat.SNAT)
        return Outcome(END, Verdict(ACCEPT, state), effect)

    return act
