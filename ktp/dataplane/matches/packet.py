"""Matches on the packet itself: its addresses, mark, type, length and header fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktp.dataplane.matches.compiled import Compiled, Rows, Test, all_of, mark_of, negate, number_range
from ktp.dataplane.packet import TCP, Packet, to_int
from ktp.model.assumption import Assumption
from ktp.model.ruleset import Match, Option

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


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

        tests.append(negate(test, option.negated))
    return Compiled(all_of(tests)) if tests else None


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
            negate(
                lambda p, h, hook, a=first, b=last, s=source: a <= (p.src if s else p.dst) <= b,  # type: ignore[misc]
                option.negated,
            )
        )
    return Compiled(all_of(tests)) if tests else None


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

    return Compiled(negate(test, option.negated))


def _mark(match: Match) -> Compiled | None:
    asked = mark_of(match)
    if asked is None:
        return None
    value, mask, negated = asked
    if negated:
        return Compiled(lambda p, h, hook: p.mark & mask != value)
    return Compiled(lambda p, h, hook: p.mark & mask == value)


def _pkttype(match: Match) -> Compiled | None:
    option = match.option("--pkt-type")
    if option is None:
        return None
    return Compiled(negate(lambda p, h, hook: p.pkttype == option.args[0], option.negated))


def _length(match: Match) -> Compiled | None:
    option = match.option("--length")
    if option is None:
        return None
    found = number_range(option.args[0])
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

    return Compiled(negate(test, option.negated))


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
    return Compiled(negate(test, option.negated))


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
    return Compiled(negate(lambda p, h, hook: p.tos >> 2 == value, option.negated), _DEFAULT_TOS)


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
    return Compiled(negate(lambda p, h, hook: p.tos & mask == value, option.negated), _DEFAULT_TOS)


def _ecn(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None)


ROWS: Rows = {
    "mark": (_mark, "exact", ""),
    "addrtype": (_addrtype, "exact", "from the local routing table; without routes, from the addresses"),
    "iprange": (_iprange, "exact", ""),
    "set": (_set, "exact", "needs `ipset save`; counters and --return-nomatch are unknown"),
    "pkttype": (_pkttype, "exact", "unicast"),
    "length": (_length, "exact", "known for a SYN within its options, unknown for datagrams"),
    "ttl": (_ttl, "exact", "of packets from outside it is unknown"),
    "hl": (_ttl, "exact", "of packets from outside it is unknown"),
    "dscp": (_dscp, "assumed", "DSCP 0 unless a rule sets it"),
    "tos": (_tos, "assumed", "TOS 0 unless a rule sets it"),
    "ecn": (_ecn, "unknown", ""),
}
