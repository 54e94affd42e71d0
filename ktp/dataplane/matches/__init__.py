"""Matches of xtables rules, compiled to three-valued tests (iptables-extensions(8), net/netfilter/xt_*.c).

A test takes (packet, host, hook) and answers True, False or None: None is "unknown". A match may come with an
assumption, a sentence that holds where its answer is used ("the rate is below the limit").

A room for each kind of match holds all that the packet walker knows of it, and its row of the reference page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ktp.dataplane.matches import connection, devices, limits, packet, transport
from ktp.dataplane.matches.compiled import Compiled, Rows, Test, always
from ktp.dataplane.matches.header import header
from ktp.dataplane.matches.packet import dscp_value
from ktp.model.assumption import Assumption
from ktp.model.record import dataclass
from ktp.model.ruleset import Match


@dataclass(frozen=True, slots=True)
class MatchSupport:
    """How well a match is modelled: "exact", "assumed" (exact given a stated assumption) or "unknown"."""

    name: str
    level: str
    note: str = ""


def _unknown(match: Match) -> Compiled | None:
    return Compiled(always(None))


# Known by name, and neither true nor false.
_UNKNOWN = (
    "bpf", "cluster", "connbytes", "connlabel", "cpu", "devgroup", "eui64", "geoip", "ipv6header", "osf", "rateest",
    "string", "u32",
)  # fmt: skip
_ROWS: Rows = {
    **dict.fromkeys(_UNKNOWN, (_unknown, "unknown", "")),
    "time": (_unknown, "unknown", "the clock of the node is not in a snapshot"),
    **transport.ROWS,
    **connection.ROWS,
    **limits.ROWS,
    **packet.ROWS,
    **devices.ROWS,
}


def supported_matches() -> tuple[MatchSupport, ...]:
    """Every match that ktp knows by name and how well, for the reference page."""
    header = MatchSupport("-s -d -p -i -o -f", "exact", "")
    return (header, *(MatchSupport(name, level, note) for name, (_, level, note) in sorted(_ROWS.items())))


def compile_match(match: Match) -> Compiled | None:
    """The compiled match, or None where it (or one of its options) is not modelled."""
    if match.name == "":
        return header(match)
    entry = _ROWS.get(match.name)
    if entry is None:
        return None
    try:
        return entry[0](match)
    except (ValueError, IndexError):
        return None


class CompiledMatches(NamedTuple):
    """The matches of a rule, as the walk asks them."""

    tests: tuple[Test, ...]
    assumptions: tuple[Assumption, ...]
    chance: float | None
    recent: tuple[tuple[str, str, bool], ...]
    unknown: str | None  # which one is not modelled


_MOST_KEPT = 4096
# By identity: a rule that nodes, or a node and one with something changed, have alike is compiled once for all. What
# the key is the id of is kept beside, so that it names nothing else meanwhile.
_KEPT: dict[int, tuple[tuple[Match, ...], CompiledMatches]] = {}


def compile_matches(matches: tuple[Match, ...]) -> CompiledMatches:
    """The matches of a rule, each compiled. They depend on nothing else."""
    kept = _KEPT.get(id(matches))
    if kept is not None:
        return kept[1]
    found = joined(matches, compile_match)
    if len(_KEPT) >= _MOST_KEPT:
        _KEPT.clear()
    _KEPT[id(matches)] = (matches, found)
    return found


def joined(matches: Iterable[Match], compiled_by: Callable[[Match], Compiled | None]) -> CompiledMatches:
    """The matches of a rule, each as `compiled_by` makes it."""
    tests: list[Test] = []
    assumptions: list[Assumption] = []
    chance: float | None = None
    recent: list[tuple[str, str, bool]] = []
    unknown: str | None = None
    for match in matches:
        compiled = compiled_by(match)
        if compiled is None:
            unknown = f"match {match.name!r} is not modelled"
            continue
        if compiled.assumption is not None:
            assumptions.append(compiled.assumption)
        if compiled.recent is not None:
            recent.append(compiled.recent)
        if compiled.probability is not None:
            chance = (chance if chance is not None else 1.0) * compiled.probability
        elif match.name not in ("comment", "nfacct") and (compiled.recent is None or compiled.recent[2]):
            tests.append(compiled.test)
    return CompiledMatches(tuple(tests), tuple(assumptions), chance, tuple(recent), unknown)


__all__ = [
    "Compiled",
    "CompiledMatches",
    "MatchSupport",
    "Test",
    "compile_match",
    "compile_matches",
    "dscp_value",
    "joined",
    "supported_matches",
]
