"""`conntrack -L` or /proc/net/nf_conntrack → tracked connections; the kernel's counter files → counters."""

from __future__ import annotations

import re
from ipaddress import ip_address

from ktp.errors import EvidenceError
from ktp.model.passing import CounterReading, Counters, TrackedConnection, Tuple
from ktp.parse.text import decode_text

_PROTOCOLS = frozenset(("tcp", "udp", "sctp"))
_ENDS = ("src", "dst", "sport", "dport")
_UPTIME = re.compile(r"(\d+\.\d+) \d+\.\d+")
_NAMED = re.compile(r"([A-Z]\w*): (.+)")
# Tables in /proc/net/stat have no name of their own; each is told by a column that the other lacks.
_UNNAMED = {"clashres": "nf_conntrack", "searched": "nf_conntrack", "in_slow_tot": "rt_cache"}


def parse_connections(data: bytes | str, *, source: str = "conntrack.txt") -> tuple[TrackedConnection, ...]:
    """The entries of TCP, UDP and SCTP, in the order printed; other protocols' are left out.

    Raises EvidenceError naming the first line that is no entry.
    """
    found = []
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        words = line.split()
        if (
            not words or words[0] == "conntrack"
        ):  # `conntrack v1.4.7 (conntrack-tools): 2 flow entries have been shown.`
            continue
        if words[0] in ("ipv4", "ipv6"):  # /proc/net/nf_conntrack names the family and its number first
            words = words[2:]
        pairs = [word.partition("=")[::2] for word in words if "=" in word]
        ends = [(key, value) for key, value in pairs if key in _ENDS]
        if len(words) < 3 or not words[1].isdecimal() or not pairs:
            raise _no_entry(source, number, line)
        if words[0] not in _PROTOCOLS:
            continue
        try:
            if [key for key, _ in ends] != [*_ENDS, *_ENDS]:
                raise ValueError
            values = [value for _, value in ends]
            original, reply = _tuple(values[:4]), _tuple(values[4:])
        except ValueError:
            raise _no_entry(source, number, line) from None
        found.append(
            TrackedConnection(
                protocol=words[0],
                original=original,
                reply=reply,
                is_answered="[UNREPLIED]" not in words,
                is_closing=words[0] == "tcp" and len(words) > 3 and words[3] in ("TIME_WAIT", "CLOSE"),
                text=" ".join(line.split()),
            )
        )
    return tuple(found)


def _tuple(values: list[str]) -> Tuple:
    src, dst, sport, dport = values
    return Tuple(src=ip_address(src), dst=ip_address(dst), sport=int(sport), dport=int(dport))


def _no_entry(source: str, number: int, line: str) -> EvidenceError:
    return EvidenceError(
        f"{source} line {number} is no tracked connection: {line[:80]!r}",
        hint="keep what `conntrack -L` prints",
    )


def parse_counters(data: bytes | str, *, source: str = "netstat.txt") -> Counters | None:
    """The first and the last reading; None where there is but one, which tells nothing of now.

    A reading is /proc/uptime, /proc/net/netstat, /proc/net/snmp, /proc/net/stat/nf_conntrack and
    /proc/net/stat/rt_cache one behind the other, or some of them. A table that comes again begins the next reading.

    Raises EvidenceError where a line belongs to none of these.
    """
    readings: list[CounterReading] = []
    values: dict[str, int] = {}
    uptime: float | None = None
    begun: set[str] = set()  # names of this reading's tables

    def end() -> None:
        nonlocal values, uptime
        if values:
            readings.append(CounterReading(values=values, uptime=uptime))
        values, uptime = {}, None
        begun.clear()

    table, columns = "", list[str]()
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if times := _UPTIME.fullmatch(line.strip()):
            end()
            uptime = float(times[1])
            continue
        named = _NAMED.fullmatch(line.strip())
        if named:
            name, rest = named[1], named[2].split()
            if not _are_numbers(rest):
                if name in begun:
                    end()
                begun.add(name)
                table, columns = name, rest
                continue
            if name != table or len(rest) != len(columns):
                raise _no_counters(source, number, line)
            values.update(
                (f"{name}.{column}", int(value)) for column, value in zip(columns, rest, strict=True)
            )
            continue
        unnamed = next((_UNNAMED[word] for word in words if word in _UNNAMED), "")
        if unnamed:
            if unnamed in begun:
                end()
            begun.add(unnamed)
            table, columns = unnamed, words
            continue
        # A line for each CPU, in hexadecimal; a CPU's counters are its own.
        if table not in _UNNAMED.values() or len(words) != len(columns):
            raise _no_counters(source, number, line)
        try:
            for column, value in zip(columns, words, strict=True):
                key = f"{table}.{column}"
                values[key] = values.get(key, 0) + int(value, 16)
        except ValueError:
            raise _no_counters(source, number, line) from None
    end()
    return Counters(first=readings[0], last=readings[-1]) if len(readings) > 1 else None


def _are_numbers(words: list[str]) -> bool:
    return all(word.lstrip("-").isdecimal() for word in words)


def _no_counters(source: str, number: int, line: str) -> EvidenceError:
    return EvidenceError(
        f"{source} line {number} belongs to no table of counters: {line[:80]!r}",
        hint="keep what /proc/net/netstat, /proc/net/snmp and /proc/net/stat/nf_conntrack hold",
    )
