"""Which rules of a long chain may match a packet, by exact destinations and ports: kube-proxy has thousands in one.

An index is of the rules as they were read. It is kept for as long as the chain lives, for all that ask it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from ktp.dataplane import packet as pk
from ktp.dataplane.packet import Packet, to_text
from ktp.model.ruleset import Chain, LineBlock

_KEY = re.compile(
    r"(?:\[[^\]]*\] )?-A \S+ (?:(?:! )?-s \S+ )?"
    r"(?:-d ([0-9a-f.:]+)/(?:32|128) "
    r"|(?:-d \S+ )?-p (tcp|udp|sctp) (?:-m comment --comment (?:\"(?:[^\"\\]|\\.)*\"|[^\" ]+) )?"
    r"(?:-m addrtype --dst-type LOCAL )?-m (?:tcp|udp|sctp) --dport (\d+) )"
)
_OF_ONE_ADDRESS = re.compile(rb"(?:\[[^\]\n]*\] )?-A \S+ (?:(?:! )?-s \S+ )?-d [0-9a-f.:]+/(?:32|128) ")
INDEX_FROM = 12
"""Rules; shorter chains are walked whole."""
_SEARCHES = 8  # so many packets' candidates are searched for in a chain's text before the chain is indexed
# As _KEY, for a whole chain's text: a line that does not match says nothing of one destination or port.
_NOT_KEYED = (
    rb"\n(?!-A %b -d [0-9a-f.:]+/(?:32|128) |(?:\[[^\]\n]*\] )?-A %b (?:(?:! )?-s \S+ )?"
    rb"(?:-d [0-9a-f.:]+/(?:32|128) "
    rb"|(?:-d \S+ )?-p (?:tcp|udp|sctp) (?:-m comment --comment (?:\"(?:[^\"\\\n]|\\.)*\"|[^\" \n]+) )?"
    rb"(?:-m addrtype --dst-type LOCAL )?-m (?:tcp|udp|sctp) --dport \d+ ))"
)


class _Index:
    """What was found of one chain. It must not hold the chain, which would then live for ever."""

    __slots__ = ("by_key", "other", "searches")

    def __init__(self) -> None:
        self.by_key: dict[str | tuple[str, int], int | list[int]] | None = None
        self.other: list[int] = []  # that say nothing of one destination or port
        self.searches = 0


_INDEXES: WeakKeyDictionary[Chain, _Index] = WeakKeyDictionary()


def positions(chain: Chain, p: Packet) -> Sequence[int]:
    """The places of the rules that may match a packet of this destination, protocol and port, in order; or more."""
    if len(chain) < INDEX_FROM:
        return range(len(chain))
    index = _INDEXES.get(chain)
    if index is None:
        index = _INDEXES[chain] = _Index()
    block = chain.raw_lines()
    if index.by_key is None and index.searches < _SEARCHES:
        return _search(index, chain.name, block, p)
    if index.by_key is None:
        _fill(index, block)
    assert index.by_key is not None
    found = [index.by_key.get(to_text(p.family, p.dst))]
    if isinstance(p.dport, int):
        found.append(index.by_key.get((pk.PROTOCOL_NAMES.get(p.proto, ""), p.dport)))
    hits = [i for each in found if each is not None for i in ((each,) if isinstance(each, int) else each)]
    return sorted({*hits, *index.other}) if hits else index.other


def _search(index: _Index, name: str, lines: Sequence[str], p: Packet) -> Sequence[int]:
    """As the index would answer, or more, from the chain's text: a few questions do not pay for an index."""
    dst = f" -d {to_text(p.family, p.dst)}/{32 if p.family == 4 else 128} "
    port = f" --dport {p.dport} " if isinstance(p.dport, int) else dst
    if isinstance(lines, LineBlock):
        if not index.searches:
            escaped = re.escape(name.encode("utf-8", "surrogateescape"))
            index.other = lines.matching(re.compile(_NOT_KEYED % (escaped, escaped)))
        hits = lines.containing(dst.encode())
        # Thousands may be for port 80 of one other address each: they are not even decoded.
        ports = lines.containing(port.encode(), unless=_OF_ONE_ADDRESS)
    else:
        if not index.searches:
            index.other = [i for i, line in enumerate(lines) if not _KEY.match(line)]
        hits = [i for i, line in enumerate(lines) if dst in line]
        ports = [i for i, line in enumerate(lines) if port in line]
    index.searches += 1
    # A rule for one other address is none for this packet, whatever its port is (a cluster IP's is often 80).
    ports = [i for i in ports if (found := _KEY.match(lines[i])) is None or found[1] is None]
    return sorted({*hits, *ports, *index.other})


def _fill(index: _Index, lines: Sequence[str]) -> None:
    by_key: dict[str | tuple[str, int], int | list[int]] = {}
    other: list[int] = []
    match = _KEY.match
    for i, line in enumerate(lines):
        m = match(line)
        if m is None:
            other.append(i)
            continue
        dst, proto, port = m.groups()
        key = dst if dst is not None else (proto, int(port))
        known = by_key.setdefault(key, i)
        if isinstance(known, list):
            known.append(i)
        elif known != i:
            by_key[key] = [known, i]
    index.by_key, index.other = by_key, other
