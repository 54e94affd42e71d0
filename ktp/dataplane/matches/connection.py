"""Matches on the packet's connection, in conntrack and in IPVS."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import TYPE_CHECKING

from ktp.dataplane import packet as pk
from ktp.dataplane.matches.compiled import (
    Compiled,
    Rows,
    Test,
    all_of,
    always,
    mark_of,
    negate,
    number_range,
    port_in,
)
from ktp.dataplane.packet import PROTOCOLS, IpvsConn, Packet
from ktp.model.ruleset import Match, Option

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


def _connmark(match: Match) -> Compiled | None:
    asked = mark_of(match)
    if asked is None:
        return None
    value, mask, negated = asked

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.ct is None:
            return False  # connmark_mt: no entry, no match, inverted or not
        return (p.ct.mark & mask == value) != negated

    return Compiled(test)


_STATES = {
    "NEW": pk.NEW,
    "ESTABLISHED": pk.ESTABLISHED,
    "RELATED": pk.RELATED,
    "INVALID": pk.INVALID,
    "UNTRACKED": pk.UNTRACKED,
    "SNAT": pk.SNAT_BIT,
    "DNAT": pk.DNAT_BIT,
}


def _state(match: Match) -> Compiled | None:
    if len(match.options) != 1:
        return None
    option = match.options[0]
    try:
        bits = sum({_STATES[w.strip().upper()] for w in option.args[0].split(",")})
    except KeyError:
        return None
    if option.negated:
        return Compiled(lambda p, h, hook: not state_bits(p) & bits)
    return Compiled(lambda p, h, hook: bool(state_bits(p) & bits))


def state_bits(p: Packet) -> int:
    """ctstate of the packet, with the virtual states SNAT and DNAT (xt_conntrack.c, conntrack_mt)."""
    bits = p.ctstate
    if p.ct is not None:
        if p.ct.snat:
            bits |= pk.SNAT_BIT
        if p.ct.dnat:
            bits |= pk.DNAT_BIT
    return bits


def _conntrack(match: Match) -> Compiled | None:
    """xt_conntrack.c, conntrack_mt.

    Of a packet without an entry only the state is asked: where --ctstate fits it matches, whatever else is asked, and
    without --ctstate it does not match, inverted or not.
    """
    states: list[Test] = []
    tests: list[Test] = []
    for option in match.options:
        flag, negated = option.flag, option.negated
        arg = option.args[0] if option.args else ""
        test: Test | None
        if flag == "--ctstate":
            compiled = _state(Match("conntrack", (Option("--ctstate", option.args, negated),)))
            if compiled is None:
                return None
            states.append(compiled.test)
            continue
        if flag == "--ctproto":
            number = int(arg) if arg.isdigit() else PROTOCOLS.get(arg.lower())
            if number is None:
                return None
            test = _ct_field(lambda p, number=number: p.ct.proto == number)  # type: ignore[misc]
        elif flag in ("--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst"):
            try:
                net = ip_network(arg, strict=False)
            except ValueError:
                return None
            test = _ct_field(
                _tuple_address(flag, int(net.network_address), net.max_prefixlen - net.prefixlen)
            )
        elif flag in ("--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport"):
            ports = number_range(arg)
            if ports is None:
                return None
            test = _ct_port(flag, ports)
        elif flag == "--ctstatus":
            # NONE is no bit (xt_conntrack.c asks status & mask): by itself it never matches
            words = set(arg.upper().split(","))
            test = _ct_field(lambda p, words=words: bool(words & _status(p)))  # type: ignore[misc]
        elif flag == "--ctdir":
            wanted_reply = arg.upper() == "REPLY"
            test = _ct_field(lambda p, wanted_reply=wanted_reply: p.reply == wanted_reply)  # type: ignore[misc]
        elif flag == "--ctexpire":
            test = always(None)
        else:
            return None
        tests.append(negate(test, negated))
    if not tests:
        return Compiled(all_of(states)) if states else None
    fields = all_of(tests)

    def tracked(p: Packet, h: Host, hook: str) -> bool | None:
        return bool(states) if p.ct is None else fields(p, h, hook)

    return Compiled(all_of([*states, tracked]))


def _ct_field(answer: Callable[[Packet], bool | None]) -> Test:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        return False if p.ct is None else answer(p)

    return test


def _tuple_address(flag: str, value: int, shift: int) -> Callable[[Packet], bool]:
    def answer(p: Packet) -> bool:
        ct = p.ct
        assert ct is not None
        number = {
            "--ctorigsrc": ct.osrc,
            "--ctorigdst": ct.odst,
            "--ctreplsrc": ct.dst,
            "--ctrepldst": ct.src,
        }[flag]
        return number >> shift == value >> shift

    return answer


def _ct_port(flag: str, ports: tuple[int, int]) -> Test:
    def answer(p: Packet) -> bool | None:
        ct = p.ct
        assert ct is not None
        number = {
            "--ctorigsrcport": ct.osport,
            "--ctorigdstport": ct.odport,
            "--ctreplsrcport": ct.dport,
            "--ctrepldstport": ct.sport,
        }[flag]
        return port_in(number, [ports])

    return _ct_field(answer)


def _status(p: Packet) -> set[str]:
    ct = p.ct
    assert ct is not None
    out = set()
    if ct.confirmed:
        out.add("CONFIRMED")
    if ct.seen_reply:
        out.add("SEEN_REPLY")
    return out


def _helper(match: Match) -> Compiled | None:
    option = match.option("--helper")
    if option is None or not option.args:
        return None

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        # xt_helper.c looks at the master of an expected connection; ktp's flows have none.
        return option.negated if p.ct is not None else False

    return Compiled(test)


_IPVS_METHODS = {"GATE": "route", "IPIP": "tunnel", "MASQ": "masq"}


def _ipvs(match: Match) -> Compiled | None:
    tests: list[Callable[[Packet, IpvsConn], bool | None]] = []
    for option in match.options:
        test = _ipvs_option(option)
        if test is None:
            return None
        if option.flag != "--ipvs":
            tests.append(test)
    only = match.option("--ipvs") if not tests else None

    def answer(p: Packet, h: Host, hook: str) -> bool | None:
        if only is not None:
            return p.ipvs_property != only.negated
        # ipvs_mt looks the connection up by the packet's addresses: only of a request, behind its translation.
        conn = p.ipvs
        if conn is None or p.reply or (p.src, p.sport) != conn.client or (p.dst, p.dport) != conn.real:
            return False
        results = [test(p, conn) for test in tests]
        return False if False in results else None if None in results else True

    return Compiled(answer)


def _ipvs_option(option: Option) -> Callable[[Packet, IpvsConn], bool | None] | None:
    """One option of -m ipvs (net/netfilter/xt_ipvs.c, extensions/libxt_ipvs.c); None where it is none."""
    n, value = option.negated, option.args[0] if option.args else ""
    match option.flag:
        case "--ipvs":
            return lambda p, c: True
        case "--vproto":
            number = int(value) if value.isdigit() else PROTOCOLS[value.lower()]
            return lambda p, c: (p.proto == number) != n
        case "--vport":
            port = int(value)
            return lambda p, c: (c.virtual[1] == port) != n if isinstance(c.virtual[1], int) else None
        case "--vportctl":
            # The controlling connection: FTP's, or the template of persistence.
            control = int(value)
            return lambda p, c: (c.persistent and c.virtual[1] == control) != n
        case "--vaddr":
            network = ip_network(value, strict=False)
            family, mask, base = network.version, int(network.netmask), int(network.network_address)
            return lambda p, c: (p.family == family and c.virtual[0] & mask == base) != n
        case "--vdir":
            answer = value.upper() == "REPLY"
            # A request goes in the original direction; without an entry nothing matches.
            return lambda p, c: p.ct is not None and answer == n
        case "--vmethod":
            method = _IPVS_METHODS[value.upper()]
            return lambda p, c: (c.method == method) != n
    return None


ROWS: Rows = {
    "connmark": (_connmark, "exact", ""),
    "conntrack": (_conntrack, "exact", "`--ctexpire` is unknown"),
    "state": (_state, "exact", ""),
    "helper": (_helper, "exact", "a Service's connections are no helper's children"),
    "ipvs": (_ipvs, "exact", ""),
}
