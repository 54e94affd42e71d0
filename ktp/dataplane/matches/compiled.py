"""A compiled match, and what tests are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ktp.dataplane.packet import Packet, Port
from ktp.model.assumption import Assumption
from ktp.model.record import dataclass
from ktp.model.ruleset import Match

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


def always(answer: bool | None) -> Test:
    """A test that always says the same."""

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        return answer

    return test


def negate(test: Test, negated: bool) -> Test:
    """What `!` makes of a test."""
    if not negated:
        return test

    def inverted(p: Packet, h: Host, hook: str) -> bool | None:
        answer = test(p, h, hook)
        return None if answer is None else not answer

    return inverted


def all_of(tests: list[Test]) -> Test:
    """Whether all tests say yes."""
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


def number_range(text: str) -> tuple[int, int] | None:
    """`80`, `80:90`, `http`; None where it is none."""
    low, sep, high = text.partition(":")
    try:
        if not sep:
            value = _port(low)
            return value, value
        return (_port(low) if low else 0), (_port(high) if high else 65535)
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


def _port(text: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        return _SERVICES[text]
    except KeyError:
        raise ValueError(text) from None


def port_in(port: Port, ranges: list[tuple[int, int]]) -> bool | None:
    """Whether a port is in one of the ranges; None where it may be."""
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


def value_mask(text: str) -> tuple[int, int]:
    """`0x1/0xff`: value and mask. Raises ValueError."""
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def mark_of(match: Match) -> tuple[int, int, bool] | None:
    """What `--mark` asks: value, mask, and whether for another value; None where it cannot be told."""
    if len(match.options) != 1 or match.options[0].flag != "--mark":
        return None
    option = match.options[0]
    try:
        return *value_mask(option.args[0]), option.negated
    except (ValueError, IndexError):
        return None


Rows = dict[str, tuple[Callable[[Match], "Compiled | None"], str, str]]
"""Matches by name: how it is compiled, how well it is modelled ("exact", "assumed", "unknown"), and a note."""
