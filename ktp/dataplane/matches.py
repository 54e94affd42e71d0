"""Matches of xtables rules, compiled to three-valued tests (iptables-extensions(8), net/netfilter/xt_*.c).

A test takes (packet, host, hook) and answers True, False or None: None is "unknown". A match may come with an
assumption, a sentence that holds where its answer is used ("the rate is below the limit").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from ktp.dataplane import packet as pk
from ktp.dataplane.host import interface_matches
from ktp.dataplane.packet import ICMP, ICMP6, PROTOCOLS, SCTP, TCP, UDP, IpvsConn, Packet, Port, to_int
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.host import POD_DEVICES, UNNAMED_DEVICES, UPLINK
from ktp.model.ruleset import Match, Option

if TYPE_CHECKING:
    from ktp.dataplane.host import Host

Test = Callable[[Packet, "Host", str], "bool | None"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled match: its test, and what must be assumed for the answer to hold."""

    test: Test
    assumption: Assumption | None = None
    probability: float | None = (
        None  # of matching, where the match draws lots (statistic); test is then ignored
    )
    recent: tuple[str, str, bool] | None = None  # (list name, "src"|"dst", whether it enters the address)


@dataclass(frozen=True, slots=True)
class MatchSupport:
    """How well a match is modelled: "exact", "assumed" (exact given a stated assumption) or "unknown"."""

    name: str
    level: str
    note: str = ""


def _always(answer: bool | None) -> Test:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        return answer

    return test


def _negate(test: Test, negated: bool) -> Test:
    if not negated:
        return test

    def inverted(p: Packet, h: Host, hook: str) -> bool | None:
        answer = test(p, h, hook)
        return None if answer is None else not answer

    return inverted


def _number_range(text: str, names: dict[str, int] | None = None) -> tuple[int, int] | None:
    low, sep, high = text.partition(":")
    try:
        if not sep:
            value = _port(low, names)
            return value, value
        return (_port(low, names) if low else 0), (_port(high, names) if high else 65535)
    except ValueError:
        return None


_SERVICES = {
    "http": 80,
    "https": 443,
    "ssh": 22,
    "domain": 53,
    "ntp": 123,
    "bootps": 67,
    "bootpc": 68,
    "snmp": 161,
}


def _port(text: str, names: dict[str, int] | None) -> int:
    if text.isdigit():
        return int(text)
    try:
        return (names or _SERVICES)[text]
    except KeyError:
        raise ValueError(text) from None


def _port_in(port: Port, ranges: list[tuple[int, int]]) -> bool | None:
    if isinstance(port, int):
        return any(low <= port <= high for low, high in ranges)
    least, most = port
    inside = False
    for low, high in ranges:
        if low <= least and high >= most:
            return True
        if high >= least and low <= most:
            inside = True
    return None if inside else False


# -- conditions on the IP header (-s -d -p -i -o -f)


def _address_test(option: Option, source: bool) -> Test | None:
    try:
        net = ip_network(option.args[0], strict=False)
    except ValueError:
        text, _, mask_text = option.args[0].partition("/")
        try:  # a mask that is no prefix, e.g. 10.0.0.1/255.0.0.255
            family, number = to_int(text)
            _, mask = to_int(mask_text)
        except (ValueError, OSError):
            return None
        return _masked(family, number & mask, mask, source, option.negated)
    family = net.version
    bits = 32 if family == 4 else 128
    mask = ((1 << net.prefixlen) - 1) << (bits - net.prefixlen)
    return _masked(family, int(net.network_address), mask, source, option.negated)


def _masked(family: int, value: int, mask: int, source: bool, negated: bool) -> Test:
    if source:
        if negated:
            return lambda p, h, hook: p.src & mask != value
        return lambda p, h, hook: p.src & mask == value
    if negated:
        return lambda p, h, hook: p.dst & mask != value
    return lambda p, h, hook: p.dst & mask == value


def _protocol_test(option: Option) -> Test | None:
    word = option.args[0].lower()
    if word in ("all", "0"):
        return _always(not option.negated)
    number = int(word) if word.isdigit() else PROTOCOLS.get(word)
    if number is None:
        return None
    if option.negated:
        return lambda p, h, hook: p.proto != number
    return lambda p, h, hook: p.proto == number


def _interface_test(option: Option, incoming: bool) -> Test:
    pattern = option.args[0]
    if pattern == "+":
        return _always(not option.negated)
    of_pods = pattern.startswith(POD_DEVICES)

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        name = p.iif if incoming else p.oif
        if name is None:
            # No interface of that side at this hook is the empty name; "?" is one that is not known.
            return False
        if name in UNNAMED_DEVICES:
            # What leads out of a node is no pod's.
            return False if name == UPLINK and of_pods and h.has_network else None
        return interface_matches(pattern, name)

    return _negate(test, option.negated)


def _header(match: Match) -> Compiled | None:
    option = match.options[0]
    flag = option.flag
    test: Test | None
    if flag == "-s":
        test = _address_test(option, True)
    elif flag == "-d":
        test = _address_test(option, False)
    elif flag == "-p":
        test = _protocol_test(option)
    elif flag == "-i":
        test = _interface_test(option, True)
    elif flag == "-o":
        test = _interface_test(option, False)
    elif flag == "-f":
        test = _always(option.negated)  # ktp's packets are whole: conntrack defragments before
    else:
        test = _always(True)
    return None if test is None else Compiled(test)


# -- layer 4


def _ports_of(number: int, option: Option, source: bool) -> Test | None:
    found = _number_range(option.args[0])
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
        answer = _port_in(p.sport if source else p.dport, ranges)
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
            tests.append(_negate(lambda p, h, hook: p.tcp_flags & 0b010111 == pk.SYN, option.negated))
        elif flag == "--tcp-flags" and number == TCP and len(option.args) == 2:
            try:
                mask, wanted = _flag_bits(option.args[0]), _flag_bits(option.args[1])
            except KeyError:
                return None
            tests.append(
                _negate(lambda p, h, hook, m=mask, w=wanted: p.tcp_flags & m == w, option.negated)  # type: ignore[misc]
            )
        elif flag == "--tcp-option" and number == TCP:
            tests.append(_always(None))
        elif flag == "--chunk-types" and number == SCTP:
            tests.append(_sctp_chunks(option))
        else:
            return None
    if not tests:
        return Compiled(lambda p, h, hook: p.proto == number)
    return Compiled(_all(tests))


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        unknown = False
        for one in tests:
            answer = one(p, h, hook)
            if answer is False:
                return False
            if answer is None:
                unknown = True
        return None if unknown else True

    return test


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

    return _negate(test, option.negated)


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

        tests.append(_negate(test, option.negated))
    return Compiled(_all(tests))


def _multiport(match: Match) -> Compiled | None:
    if len(match.options) != 1:
        return None
    option = match.options[0]
    ranges: list[tuple[int, int]] = []
    for word in option.args[0].split(","):
        found = _number_range(word)
        if found is None:
            return None
        ranges.append(found)
    which = option.flag
    if which not in ("--sports", "--source-ports", "--dports", "--destination-ports", "--ports"):
        return None

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if which in ("--dports", "--destination-ports"):
            return _port_in(p.dport, ranges)
        if which in ("--sports", "--source-ports"):
            return _port_in(p.sport, ranges)
        one, other = _port_in(p.sport, ranges), _port_in(p.dport, ranges)
        if one or other:
            return True
        return None if one is None or other is None else False

    return Compiled(_negate(test, option.negated))


# -- addresses, marks, connection state


def _addrtype(match: Match) -> Compiled | None:
    limit_in = match.option("--limit-iface-in") is not None
    limit_out = match.option("--limit-iface-out") is not None
    tests: list[Test] = []
    for option in match.options:
        if option.flag not in ("--src-type", "--dst-type"):
            if option.flag in ("--limit-iface-in", "--limit-iface-out"):
                continue
            return None
        wanted = frozenset(option.args[0].upper().split(","))
        source = option.flag == "--src-type"

        def test(
            p: Packet, h: Host, hook: str, wanted: frozenset[str] = wanted, source: bool = source
        ) -> bool | None:
            dev = p.iif if limit_in else p.oif if limit_out else None
            ip = p.src if source else p.dst
            if p.family == 6:
                return h.has_address_type6(ip, wanted, dev)
            return h.address_type(4, ip, dev) in wanted

        tests.append(_negate(test, option.negated))
    return Compiled(_all(tests)) if tests else None


def _value_mask(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def _mark(match: Match, connection: bool) -> Compiled | None:
    if len(match.options) != 1 or match.options[0].flag != "--mark":
        return None
    option = match.options[0]
    try:
        value, mask = _value_mask(option.args[0])
    except (ValueError, IndexError):
        return None
    negated = option.negated
    if not connection:
        if negated:
            return Compiled(lambda p, h, hook: p.mark & mask != value)
        return Compiled(lambda p, h, hook: p.mark & mask == value)

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
            ports = _number_range(arg)
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
            test = _always(None)
        else:
            return None
        tests.append(_negate(test, negated))
    if not tests:
        return Compiled(_all(states)) if states else None
    fields = _all(tests)

    def tracked(p: Packet, h: Host, hook: str) -> bool | None:
        return bool(states) if p.ct is None else fields(p, h, hook)

    return Compiled(_all([*states, tracked]))


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
        return _port_in(number, [ports])

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


# -- lots, lists, limits


def _statistic(match: Match) -> Compiled | None:
    mode = match.option("--mode")
    if mode is None:
        return None
    if mode.args[0] == "random":
        option = match.option("--probability")
        if option is None:
            return None
        chance = float(option.args[0])
        return Compiled(_always(True), probability=1 - chance if option.negated else chance)
    every = match.option("--every")
    if mode.args[0] == "nth" and every is not None:
        chance = 1 / int(every.args[0])
        return Compiled(
            _always(True),
            Assumption(
                "the counter of a `statistic --mode nth` rule may stand anywhere, so it is drawn like a lot"
            ),
            1 - chance if every.negated else chance,
        )
    return None


def _recent(match: Match) -> Compiled | None:
    name_option = match.option("--name")
    name = name_option.args[0] if name_option is not None and name_option.args else "DEFAULT"
    side = "dst" if match.option("--rdest") is not None else "src"
    mode = next((o for o in match.options if o.flag in ("--set", "--rcheck", "--update", "--remove")), None)
    if mode is None:
        return None
    if mode.flag == "--set":
        return Compiled(_always(not mode.negated), recent=(name, side, True))
    hits = match.option("--hitcount")
    note = Assumption(
        "no earlier connection of this client is remembered (`recent` match, session affinity)",
        EvidenceKind.CONNTRACK,
    )
    if hits is not None and int(hits.args[0]) > 1:
        return Compiled(_always(mode.negated), note)
    return Compiled(_always(mode.negated), note, recent=(name, side, False))


def _below_limit(what: str) -> Callable[[Match], Compiled | None]:
    def compile_it(match: Match) -> Compiled | None:
        return Compiled(_always(True), Assumption(f"the traffic is below the limit of the `{what}` rule"))

    return compile_it


def _hashlimit(match: Match) -> Compiled | None:
    if not all(o.flag.startswith("--hashlimit") for o in match.options):
        return None
    above = match.option("--hashlimit-above") is not None
    upto = next((o for o in match.options if o.flag in ("--hashlimit-upto", "--hashlimit")), None)
    answer = not above
    if upto is not None and upto.negated:
        answer = not answer
    return Compiled(_always(answer), Assumption("the traffic is below the limit of the `hashlimit` rule"))


def _connlimit(match: Match) -> Compiled | None:
    above = next((o for o in match.options if o.flag == "--connlimit-above"), None)
    upto = next((o for o in match.options if o.flag == "--connlimit-upto"), None)
    if above is not None:
        limit, answer = int(above.args[0]), above.negated
        if limit == 0:
            return Compiled(_always(not above.negated))
    elif upto is not None:
        answer = not upto.negated
        if int(upto.args[0]) == 0:
            return Compiled(_always(upto.negated))
    else:
        return None
    return Compiled(
        _always(answer), Assumption("the client has fewer connections open than the `connlimit` rule allows")
    )


def _quota(match: Match) -> Compiled | None:
    option = match.option("--quota")
    if option is None:
        return None
    return Compiled(_always(not option.negated), Assumption("the quota of the `quota` rule is not used up"))


# -- sets and ranges


def _iprange(match: Match) -> Compiled | None:
    tests: list[Test] = []
    for option in match.options:
        if option.flag not in ("--src-range", "--dst-range"):
            return None
        low, _, high = option.args[0].partition("-")
        try:
            first, last = to_int(low)[1], to_int(high or low)[1]
        except (ValueError, OSError):
            return None
        source = option.flag == "--src-range"
        tests.append(
            _negate(
                lambda p, h, hook, a=first, b=last, s=source: a <= (p.src if s else p.dst) <= b,  # type: ignore[misc]
                option.negated,
            )
        )
    return Compiled(_all(tests)) if tests else None


def _set(match: Match) -> Compiled | None:
    option = match.option("--match-set")
    if option is None or len(option.args) != 2:
        return None
    name, directions = option.args
    counting = any(
        o.flag.startswith(("--packets", "--bytes")) or o.flag == "--return-nomatch" for o in match.options
    )

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if counting:
            return None
        return h.in_set(name, p, directions)

    return Compiled(_negate(test, option.negated))


# -- interfaces of a bridge, packet fields


def _physdev(match: Match) -> Compiled | None:
    tests: list[Test] = []
    for option in match.options:
        flag, negated = option.flag, option.negated
        arg = option.args[0] if option.args else ""
        if flag == "--physdev-is-in":
            tests.append(_negate(lambda p, h, hook: p.physin is not None, negated))
        elif flag == "--physdev-is-out":
            tests.append(_negate(lambda p, h, hook: p.physout is not None, negated))
        elif flag == "--physdev-is-bridged":
            tests.append(_negate(lambda p, h, hook: p.bridged, negated))
        elif flag in ("--physdev-in", "--physdev-out"):
            incoming = flag == "--physdev-in"

            def test(
                p: Packet,
                h: Host,
                hook: str,
                arg: str = arg,
                incoming: bool = incoming,
                negated: bool = negated,
            ) -> bool | None:
                if p.physin is None:
                    return (
                        negated  # physdev_mt: without the bridge's note every condition is taken as not met
                    )
                if incoming:
                    answer = h.port_matches(p.iif, arg)
                elif p.physout is None:
                    return False
                else:
                    answer = h.port_matches(p.oif, arg)
                return None if answer is None else answer != negated

            tests.append(test)
        else:
            return None
    return Compiled(_all(tests)) if tests else None


def _pkttype(match: Match) -> Compiled | None:
    option = match.option("--pkt-type")
    if option is None:
        return None
    return Compiled(_negate(lambda p, h, hook: p.pkttype == option.args[0], option.negated))


def _length(match: Match) -> Compiled | None:
    option = match.option("--length")
    if option is None:
        return None
    found = _number_range(option.args[0])
    if found is None:
        return None
    low, high = found

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.length is not None:
            return low <= p.length <= high
        # A SYN with options is 44 to 60 bytes long; a datagram may have any length. IPv6 headers are 20 bytes longer.
        least, most = (40, 60) if p.proto == TCP else (28, 65515)
        if p.family == 6:
            least, most = least + 20, most + 20
        if low <= least and most <= high:
            return True
        return False if high < least or low > most else None

    return Compiled(_negate(test, option.negated))


def _ttl(match: Match) -> Compiled | None:
    if len(match.options) != 1:
        return None
    option = match.options[0]
    flag = option.flag.replace("--hl-", "--ttl-")
    value = int(option.args[0])

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        # A sender begins with 64, 128 or 255 and a way of unknown length lies behind it.
        if flag == "--ttl-eq":
            if p.local or p.reply:
                return p.ttl == value
            return None if 1 <= value <= 255 else False
        if p.local or p.reply:
            return p.ttl < value if flag == "--ttl-lt" else p.ttl > value
        if flag == "--ttl-lt":
            return False if value <= 1 else None
        return True if value < 1 else None

    if flag not in ("--ttl-eq", "--ttl-lt", "--ttl-gt"):
        return None
    return Compiled(_negate(test, option.negated))


_DSCP_CLASSES = {
    **{f"CS{n}": n * 8 for n in range(8)},
    **{f"AF{c}{d}": c * 8 + d * 2 for c in range(1, 5) for d in range(1, 4)},
    "BE": 0,
    "EF": 46,
}


def dscp_value(option: Option) -> int | None:
    """The number that `--dscp`/`--dscp-class`/`--set-dscp…` names, or None."""
    word = option.args[0]
    if option.flag.endswith("class"):
        return _DSCP_CLASSES.get(word.upper())
    try:
        return int(word, 0)
    except ValueError:
        return None


def _dscp(match: Match) -> Compiled | None:
    if len(match.options) != 1:
        return None
    option = match.options[0]
    value = dscp_value(option)
    if value is None or option.flag not in ("--dscp", "--dscp-class"):
        return None
    return Compiled(_negate(lambda p, h, hook: p.tos >> 2 == value, option.negated), _DEFAULT_TOS)


_DEFAULT_TOS = Assumption("the client sends with the default DSCP/TOS 0")


def _tos(match: Match) -> Compiled | None:
    option = match.option("--tos")
    if option is None:
        return None
    try:
        text, _, mask_text = option.args[0].partition("/")
        value, mask = int(text, 0), int(mask_text, 0) if mask_text else 0xFF
    except ValueError:
        return None
    return Compiled(_negate(lambda p, h, hook: p.tos & mask == value, option.negated), _DEFAULT_TOS)


def _ecn(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None)


def _helper(match: Match) -> Compiled | None:
    option = match.option("--helper")
    if option is None:
        return None
    name = option.args[0]

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        # xt_helper.c looks at the master of an expected connection; ktp's flows have none.
        return option.negated if p.ct is not None else False

    _ = name
    return Compiled(test)


def _policy(match: Match) -> Compiled | None:
    wanted = match.option("--pol")
    if wanted is None:
        return None
    none = wanted.args[0] == "none"
    return Compiled(_always(none != wanted.negated), Assumption("no IPsec policy applies to the packet"))


def _rpfilter(match: Match) -> Compiled | None:
    if any(o.flag not in ("--loose", "--validmark", "--accept-local", "--invert") for o in match.options):
        return None
    loose = match.option("--loose") is not None
    validmark = match.option("--validmark") is not None
    accept_local = match.option("--accept-local") is not None
    invert = match.option("--invert") is not None

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        answer = h.rpfilter(p, loose=loose, validmark=validmark, accept_local=accept_local)
        return None if answer is None else answer != invert

    return Compiled(test)


def _owner(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.local:
            return None
        # xt_owner.c: a packet without a socket matches only where every condition is negated.
        return all(o.negated for o in match.options)

    return Compiled(test)


def _socket(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.local:
            return None
        found = h.listener(p.family, p.proto, p.dst, p.dport, p.iif)
        if found is False:
            return False
        return None

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
            # IPVS marks answers, too, as it undoes its translation: behind the filter table.
            known = not p.reply or hook != "POSTROUTING"
            return (p.ipvs is not None) != only.negated if known else None
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


def _mac(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        return False if p.local and hook in ("OUTPUT", "POSTROUTING") else None

    return Compiled(test)


def _absent_header(match: Match) -> Compiled | None:
    # ktp's packets carry no extension headers: matches on them are false, inverted or not (ip6t_rt.c, …).
    return Compiled(_always(False))


def _other_protocol(number: int) -> Callable[[Match], Compiled | None]:
    def compile_it(match: Match) -> Compiled | None:
        return Compiled(lambda p, h, hook: None if p.proto == number else False)

    return compile_it


def _tcpmss(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None if p.proto == TCP and p.tcp_flags & pk.SYN else False)


def _nfacct(match: Match) -> Compiled | None:
    return Compiled(_always(True))


def _comment(match: Match) -> Compiled | None:
    return Compiled(_always(True))


def _cpu(match: Match) -> Compiled | None:
    return Compiled(_always(None))


def _cgroup(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None if p.local else all(o.negated for o in match.options))


def _realm(match: Match) -> Compiled | None:
    option = match.option("--realm")
    if option is None:
        return None
    try:
        value, mask = _value_mask(option.args[0])
    except ValueError:
        return None
    return Compiled(
        _negate(_always(mask & 0 == value), option.negated),
        Assumption("no route carries a realm (`ip -j route` shows none)"),
    )


def _bpf_unknown(match: Match) -> Compiled | None:
    return Compiled(_always(None))


_TABLE: dict[str, tuple[Callable[[Match], Compiled | None], str, str]] = {
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
    "addrtype": (_addrtype, "exact", "from the local routing table; without routes, from the addresses"),
    "mark": (lambda m: _mark(m, False), "exact", ""),
    "connmark": (lambda m: _mark(m, True), "exact", ""),
    "conntrack": (_conntrack, "exact", "`--ctexpire` is unknown"),
    "state": (_state, "exact", ""),
    "statistic": (
        _statistic,
        "exact",
        "random: both ways with their probabilities; nth: assumed to stand anywhere",
    ),
    "recent": (
        _recent,
        "assumed",
        "the lists are not in a dump: no earlier packet of the address is assumed",
    ),
    "set": (_set, "exact", "needs `ipset save`; counters and --return-nomatch are unknown"),
    "iprange": (_iprange, "exact", ""),
    "comment": (_comment, "exact", ""),
    "nfacct": (_nfacct, "exact", "it counts and always matches"),
    "limit": (_below_limit("limit"), "assumed", "below the limit"),
    "hashlimit": (_hashlimit, "assumed", "below the limit"),
    "connlimit": (_connlimit, "assumed", "below the limit"),
    "quota": (_quota, "assumed", "not used up"),
    "physdev": (
        _physdev,
        "exact",
        "where some ports of the bridge match and some do not, which one it is is unknown",
    ),
    "pkttype": (_pkttype, "exact", "unicast"),
    "length": (_length, "exact", "known for a SYN within its options, unknown for datagrams"),
    "ttl": (_ttl, "exact", "of packets from outside it is unknown"),
    "hl": (_ttl, "exact", "of packets from outside it is unknown"),
    "dscp": (_dscp, "assumed", "DSCP 0 unless a rule sets it"),
    "tos": (_tos, "assumed", "TOS 0 unless a rule sets it"),
    "helper": (_helper, "exact", "a Service's connections are no helper's children"),
    "policy": (_policy, "assumed", "no IPsec"),
    "rpfilter": (_rpfilter, "exact", "needs the routes"),
    "realm": (_realm, "assumed", "no realms"),
    "owner": (_owner, "exact", "unknown for packets of the node's own processes"),
    "socket": (_socket, "exact", "false where nothing listens, else unknown"),
    "cgroup": (_cgroup, "exact", "unknown for packets of the node's own processes"),
    "mac": (_mac, "unknown", "source hardware addresses of arriving frames are not known"),
    "tcpmss": (_tcpmss, "unknown", "false for packets without SYN"),
    "ecn": (_ecn, "unknown", ""),
    "rt": (_absent_header, "exact", "no IPv6 extension headers"),
    "frag": (_absent_header, "exact", "no IPv6 extension headers"),
    "hbh": (_absent_header, "exact", "no IPv6 extension headers"),
    "dst": (_absent_header, "exact", "no IPv6 extension headers"),
    "mh": (_absent_header, "exact", "no IPv6 extension headers"),
    "ah": (_other_protocol(51), "exact", "false for other protocols"),
    "esp": (_other_protocol(50), "exact", "false for other protocols"),
    "ipcomp": (_other_protocol(108), "exact", "false for other protocols"),
    "bpf": (_bpf_unknown, "unknown", ""),
    "cluster": (_bpf_unknown, "unknown", ""),
    "connbytes": (_bpf_unknown, "unknown", ""),
    "connlabel": (_bpf_unknown, "unknown", ""),
    "cpu": (_cpu, "unknown", ""),
    "devgroup": (_bpf_unknown, "unknown", ""),
    "eui64": (_bpf_unknown, "unknown", ""),
    "geoip": (_bpf_unknown, "unknown", ""),
    "ipv6header": (_bpf_unknown, "unknown", ""),
    "ipvs": (_ipvs, "exact", "unknown for answers with --ipvs alone"),
    "osf": (_bpf_unknown, "unknown", ""),
    "rateest": (_bpf_unknown, "unknown", ""),
    "string": (_bpf_unknown, "unknown", ""),
    "time": (_bpf_unknown, "unknown", "the clock of the node is not in a snapshot"),
    "u32": (_bpf_unknown, "unknown", ""),
}


def supported_matches() -> tuple[MatchSupport, ...]:
    """Every match that ktp knows by name and how well, for the reference page."""
    header = MatchSupport("-s -d -p -i -o -f", "exact", "")
    return (header, *(MatchSupport(name, level, note) for name, (_, level, note) in sorted(_TABLE.items())))


def compile_match(match: Match) -> Compiled | None:
    """The compiled match, or None where it (or one of its options) is not modelled."""
    if match.name == "":
        return _header(match)
    entry = _TABLE.get(match.name)
    if entry is None:
        return None
    try:
        return entry[0](match)
    except (ValueError, IndexError):
        return None
