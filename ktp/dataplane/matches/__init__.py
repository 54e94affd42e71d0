"""Matches of xtables rules, compiled to three-valued tests (iptables-extensions(8), net/netfilter/xt_*.c).

A test takes (packet, host, hook) and answers True, False or None: None is "unknown". A match may come with an
assumption, a sentence that holds where its answer is used ("the rate is below the limit").

A room for each kind of match holds all that the packet walker knows of it, and its row of the reference page.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktp.dataplane.matches import connection, devices, limits, packet, transport
from ktp.dataplane.matches.compiled import Compiled, Rows, Test, always
from ktp.dataplane.matches.header import header
from ktp.dataplane.matches.packet import dscp_value
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


__all__ = ["Compiled", "MatchSupport", "Test", "compile_match", "dscp_value", "supported_matches"]
