"""Matches on what comes behind the IP header: protocols, their ports, flags and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ktp.dataplane import packet as pk
from ktp.dataplane.matches.compiled import Compiled, Rows, Test, all_of, always, negate, number_range, port_in
from ktp.dataplane.packet import ICMP, ICMP6, SCTP, TCP, UDP, Packet
from ktp.model.ruleset import Match, Option

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


def _ports_of(number: int, option: Option, source: bool) -> Test | None:
    found = number_range(option.args[0])
    if found is None:
        return None
    low, high = found
    if low == high and not source:
        if option.negated:
            return lambda p, h, hook: p.proto == number and p.dport != low
        return lambda p, h, hook: p.dport == low and p.proto == number
    ranges = [(low, high)]

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.proto != number:
            return False
        answer = port_in(p.sport if source else p.dport, ranges)
        return answer if answer is None else answer != option.negated

    return test


_TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}


def _flag_bits(text: str) -> int:
    bits = 0
    for word in text.split(","):
        bits |= _TCP_FLAGS[word.upper()]
    return bits


def _transport(match: Match, number: int) -> Compiled | None:
    tests: list[Test] = []
    for option in match.options:
        flag = option.flag
        if flag in ("--sport", "--source-port", "--dport", "--destination-port"):
            test = _ports_of(number, option, flag in ("--sport", "--source-port"))
            if test is None:
                return None
            tests.append(test)
        elif flag == "--syn" and number == TCP:
            tests.append(negate(lambda p, h, hook: p.tcp_flags & 0b010111 == pk.SYN, option.negated))
        elif flag == "--tcp-flags" and number == TCP and len(option.args) == 2:
            try:
                mask, wanted = _flag_bits(option.args[0]), _flag_bits(option.args[1])
            except KeyError:
                return None
            tests.append(
                negate(lambda p, h, hook, m=mask, w=wanted: p.tcp_flags & m == w, option.negated)  # type: ignore[misc]
            )
        elif flag == "--tcp-option" and number == TCP:
            tests.append(always(None))
        elif flag == "--chunk-types" and number == SCTP:
            tests.append(_sctp_chunks(option))
        else:
            return None
    if not tests:
        return Compiled(lambda p, h, hook: p.proto == number)
    return Compiled(all_of(tests))


def _sctp_chunks(option: Option) -> Test:
    how, wanted = (option.args[0], option.args[1]) if len(option.args) > 1 else ("any", option.args[0])
    names = {w.split(":")[0].upper() for w in wanted.split(",")}
    # An association begins with one INIT chunk alone; the answer is one INIT_ACK.

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.proto != SCTP:
            return False
        chunk = "INIT_ACK" if p.reply else "INIT"
        if "ALL" in names:
            return how == "any"
        if how in ("any", "only"):
            return chunk in names
        return names == {chunk}

    return negate(test, option.negated)


# icmp names of libxt_icmp.h: name → (type, lowest code, highest code)
_ICMP_NAMES = {
    "any": (255, 0, 255), "echo-reply": (0, 0, 255), "pong": (0, 0, 255), "destination-unreachable": (3, 0, 255),
    "network-unreachable": (3, 0, 0), "host-unreachable": (3, 1, 1), "protocol-unreachable": (3, 2, 2),
    "port-unreachable": (3, 3, 3), "fragmentation-needed": (3, 4, 4), "source-route-failed": (3, 5, 5),
    "network-unknown": (3, 6, 6), "host-unknown": (3, 7, 7), "network-prohibited": (3, 9, 9),
    "host-prohibited": (3, 10, 10), "TOS-network-unreachable": (3, 11, 11), "TOS-host-unreachable": (3, 12, 12),
    "communication-prohibited": (3, 13, 13), "source-quench": (4, 0, 255), "redirect": (5, 0, 255),
    "echo-request": (8, 0, 255), "ping": (8, 0, 255), "router-advertisement": (9, 0, 255),
    "router-solicitation": (10, 0, 255), "time-exceeded": (11, 0, 255), "ttl-exceeded": (11, 0, 255),
    "ttl-zero-during-transit": (11, 0, 0), "parameter-problem": (12, 0, 255), "timestamp-request": (13, 0, 255),
    "timestamp-reply": (14, 0, 255), "address-mask-request": (17, 0, 255), "address-mask-reply": (18, 0, 255),
}  # fmt: skip


_ICMP6_NAMES = {
    "destination-unreachable": (1, 0, 255), "no-route": (1, 0, 0), "communication-prohibited": (1, 1, 1),
    "beyond-scope": (1, 2, 2), "address-unreachable": (1, 3, 3), "port-unreachable": (1, 4, 4),
    "failed-policy": (1, 5, 5), "reject-route": (1, 6, 6), "packet-too-big": (2, 0, 255),
    "time-exceeded": (3, 0, 255), "ttl-exceeded": (3, 0, 255), "parameter-problem": (4, 0, 255),
    "echo-request": (128, 0, 255), "ping": (128, 0, 255), "echo-reply": (129, 0, 255), "pong": (129, 0, 255),
    "router-solicitation": (133, 0, 255), "router-advertisement": (134, 0, 255),
    "neighbour-solicitation": (135, 0, 255), "neighbor-solicitation": (135, 0, 255),
    "neighbour-advertisement": (136, 0, 255), "neighbor-advertisement": (136, 0, 255), "redirect": (137, 0, 255),
}  # fmt: skip


def _icmp(match: Match, number: int) -> Compiled | None:
    names = _ICMP_NAMES if number == ICMP else _ICMP6_NAMES
    tests: list[Test] = [lambda p, h, hook: p.proto == number]
    for option in match.options:
        if option.flag not in ("--icmp-type", "--icmpv6-type"):
            return None
        word = option.args[0]
        if word in names:
            kind, low, high = names[word]
        else:
            t, _, c = word.partition("/")
            if not t.isdigit() or (c and not c.isdigit()):
                return None
            kind, low, high = int(t), int(c) if c else 0, int(c) if c else 255
        if number == ICMP and kind == 255:
            continue

        def test(
            p: Packet, h: Host, hook: str, kind: int = kind, low: int = low, high: int = high
        ) -> bool | None:
            if p.icmp is None:
                return False
            return p.icmp[0] == kind and low <= p.icmp[1] <= high

        tests.append(negate(test, option.negated))
    return Compiled(all_of(tests))


def _multiport(match: Match) -> Compiled | None:
    if len(match.options) != 1:
        return None
    option = match.options[0]
    ranges: list[tuple[int, int]] = []
    for word in option.args[0].split(","):
        found = number_range(word)
        if found is None:
            return None
        ranges.append(found)
    which = option.flag
    if which not in ("--sports", "--source-ports", "--dports", "--destination-ports", "--ports"):
        return None

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if which in ("--dports", "--destination-ports"):
            return port_in(p.dport, ranges)
        if which in ("--sports", "--source-ports"):
            return port_in(p.sport, ranges)
        one, other = port_in(p.sport, ranges), port_in(p.dport, ranges)
        if one or other:
            return True
        return None if one is None or other is None else False

    return Compiled(negate(test, option.negated))


def _tcpmss(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None if p.proto == TCP and p.tcp_flags & pk.SYN else False)


def _absent_header(match: Match) -> Compiled | None:
    # ktp's packets carry no extension headers: matches on them are false, inverted or not (ip6t_rt.c, …).
    return Compiled(always(False))


def _other_protocol(number: int) -> Callable[[Match], Compiled | None]:
    def compile_it(match: Match) -> Compiled | None:
        return Compiled(lambda p, h, hook: None if p.proto == number else False)

    return compile_it


ROWS: Rows = {
    "tcp": (
        lambda m: _transport(m, TCP),
        "exact",
        "`--tcp-option` is unknown: the options of the SYN are not known",
    ),
    "udp": (lambda m: _transport(m, UDP), "exact", ""),
    "udplite": (lambda m: _transport(m, 136), "exact", ""),
    "sctp": (lambda m: _transport(m, SCTP), "exact", "the first chunk is INIT, its answer INIT_ACK"),
    "dccp": (lambda m: _transport(m, 33), "exact", "only ports"),
    "icmp": (lambda m: _icmp(m, ICMP), "exact", ""),
    "icmp6": (lambda m: _icmp(m, ICMP6), "exact", ""),
    "ipv6-icmp": (lambda m: _icmp(m, ICMP6), "exact", ""),
    "icmpv6": (lambda m: _icmp(m, ICMP6), "exact", ""),
    "multiport": (_multiport, "exact", ""),
    "tcpmss": (_tcpmss, "unknown", "false for packets without SYN"),
    "rt": (_absent_header, "exact", "no IPv6 extension headers"),
    "frag": (_absent_header, "exact", "no IPv6 extension headers"),
    "hbh": (_absent_header, "exact", "no IPv6 extension headers"),
    "dst": (_absent_header, "exact", "no IPv6 extension headers"),
    "mh": (_absent_header, "exact", "no IPv6 extension headers"),
    "ah": (_other_protocol(51), "exact", "false for other protocols"),
    "esp": (_other_protocol(50), "exact", "false for other protocols"),
    "ipcomp": (_other_protocol(108), "exact", "false for other protocols"),
}
