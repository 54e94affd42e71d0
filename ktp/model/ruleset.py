"""xtables rules (iptables, ip6tables): options, matches, targets, rules, chains, rulesets.

A ruleset is a mapping from (table, chain) to rules. Who fills it (a whole dump read lazily, a node asked chain by
chain) is not visible here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Protocol, overload

from ktp.model.reading import WHOLE, Lack, Reading, TableReading, Unread, unread_words
from ktp.model.record import dataclass

# Base chains in hook order, as iptables-save prints them (iptables, nft.c: xtables_ipv4[]).
BASE_CHAINS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
BUILT_IN_CHAINS = frozenset(BASE_CHAINS["mangle"])


class Backend(str, Enum):
    """Which kernel interface holds the rules: x_tables (`iptables-legacy`) or nf_tables (`iptables-nft`)."""

    LEGACY = "iptables-legacy"
    NFT = "iptables-nft"
    UNKNOWN = "iptables"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a match or target as `iptables-save` prints it, e.g. `! --dport 80`.

    `quoted` has bit N set where argument N stood in double quotes.
    """

    flag: str
    args: tuple[str, ...] = ()
    negated: bool = False
    quoted: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule.

    `name` is the extension (`-m NAME`), or "" for the conditions on the IP header that need none
    (`-s -d -p -i -o -f`), of which each is one Match with one Option.
    """

    name: str
    options: tuple[Option, ...]

    def option(self, flag: str) -> Option | None:
        """The first option spelled `flag`, or None."""
        for option in self.options:
            if option.flag == flag:
                return option
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule does: a verdict, an extension or a user chain; `goto` where `-g` leads there."""

    name: str
    options: tuple[Option, ...] = ()
    goto: bool = False

    def option(self, flag: str) -> Option | None:
        """The first option spelled `flag`, or None."""
        for option in self.options:
            if option.flag == flag:
                return option
        return None

    def value(self, flag: str) -> str | None:
        """The first argument of option `flag`, or None where it is absent or bare."""
        option = self.option(flag)
        return option.args[0] if option is not None and option.args else None


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets and bytes that a rule or policy has counted."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule of a dump.

    `text` is the line from `-A` on, verbatim; `line` its 1-based line in the source (0 where there is none);
    `position` its 1-based place in its chain; `error` is set where the line could not be understood: such a rule
    has no matches and no target, and whoever evaluates it must answer "unknown". `unread` is set where it stands for
    rules that were not read. `lost` tells what the program that printed it left out.
    """

    table: str
    chain: str
    text: str
    matches: tuple[Match, ...] = ()
    target: Target | None = None
    counters: Counters | None = None
    line: int = 0
    position: int = 0
    error: str | None = None
    unread: Unread | None = None
    lost: Lack | None = None

    @property
    def comment(self) -> str | None:
        """The text of `-m comment --comment`, the first one."""
        for match in self.matches:
            if match.name == "comment" and match.options and match.options[0].args:
                return match.options[0].args[0]
        return None


class LineBlock(Sequence[str]):
    """The lines of a large chain, held as one block of bytes and decoded when asked for.

    The block begins with the newline before the first line and ends with the last line's. A search reads it once;
    asking for a line by its number finds out where all of them begin.
    """

    __slots__ = ("_data", "_found", "_size", "_starts")

    def __init__(self, data: bytes) -> None:
        """Hold `data`, which begins and ends with a newline."""
        self._data = data
        self._size = data.count(b"\n") - 1
        self._starts: list[int] | None = None
        self._found: dict[int, str] = {}

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if index < 0:
            index += self._size
        if not 0 <= index < self._size:
            raise IndexError(index)
        found = self._found.get(index)
        if found is None:
            found = self._found[index] = self._line(self._start(index))
        return found

    def _start(self, index: int) -> int:
        if index == 0:
            return 1
        if index == self._size - 1:
            return self._data.rindex(b"\n", 0, len(self._data) - 1) + 1
        if self._starts is None:
            self._starts = [m.start() + 1 for m in re.finditer(b"\n", self._data)]
        return self._starts[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data[1:-1].decode("utf-8", "surrogateescape").split("\n") if self._size else ())

    def _line(self, start: int) -> str:
        return self._data[start : self._data.index(b"\n", start)].decode("utf-8", "surrogateescape")

    def containing(self, text: bytes, unless: re.Pattern[bytes] | None = None) -> list[int]:
        """Numbers (from 0) of the lines that contain `text`, which has no newline, and do not match `unless`."""
        starts = self._occurrences(text)
        if unless is not None:
            starts = (start for start in starts if not unless.match(self._data, start))
        return self._numbers(starts)

    def matching(self, pattern: re.Pattern[bytes]) -> list[int]:
        """Numbers of the lines at whose newline before them `pattern` matches."""
        last = len(self._data) - 1
        return self._numbers(m.start() + 1 for m in pattern.finditer(self._data) if m.start() != last)

    def _occurrences(self, text: bytes) -> Iterator[int]:
        data = self._data
        at = data.find(text)
        while at >= 0:
            yield data.rfind(b"\n", 0, at) + 1
            at = data.find(text, data.index(b"\n", at))

    def _numbers(self, starts: Iterable[int]) -> list[int]:
        numbers: list[int] = []
        number, before = -1, 0
        for start in starts:
            number += self._data.count(b"\n", before, start)
            before = start
            numbers.append(number)
            self._found[number] = self._line(start)
        return numbers


class Chain:
    """A chain: its name, its policy where it is a base chain, and its rules, parsed when first asked for.

    Where it was not read whole (`reading`) a rule stands for those that are not known, so that it is never empty.
    """

    __slots__ = (
        "__weakref__",
        "_parse",
        "_raw",
        "_rules",
        "counters",
        "first_line",
        "name",
        "policy",
        "reading",
        "table",
    )

    def __init__(
        self,
        table: str,
        name: str,
        raw: Sequence[str],
        parse: Callable[[str, str, str, int, int], Rule],
        *,
        policy: str | None = None,
        counters: Counters | None = None,
        first_line: int | Sequence[int] = 0,
        reading: Reading = Reading.WHOLE,
    ) -> None:
        """Hold the raw lines `raw`; `parse(table, chain, text, line, position)` makes a Rule of one."""
        self.table = table
        self.name = name
        self.policy = policy
        self.counters = counters
        self.first_line = first_line
        self.reading = reading
        self._raw = raw
        self._parse = parse
        self._rules: list[Rule | None] = [None] * len(raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __iter__(self) -> Iterator[Rule]:
        return (self.rule(i) for i in range(len(self._raw)))

    @property
    def parser(self) -> Callable[[str, str, str, int, int], Rule]:
        """What makes Rules of this chain's lines: (table, chain, text, line, position) → Rule."""
        return self._parse

    def raw(self, index: int) -> str:
        """Rule `index` (0-based) as the dump has it, counters included."""
        return self._raw[index]

    def raw_lines(self) -> Sequence[str]:
        """All rules as the dump has them."""
        return self._raw

    def containing(self, text: str) -> list[int]:
        """Indexes of the rules whose line contains `text`."""
        if isinstance(self._raw, LineBlock):
            return self._raw.containing(text.encode("utf-8", "surrogateescape"))
        return [i for i, line in enumerate(self._raw) if text in line]

    def has_target(self, name: str) -> bool:
        """Whether a rule's target is `name`; also where that may be: a rule that names it was not understood."""
        rules = (self.rule(i) for i in self.containing(name))
        return any(r.error is not None or (r.target is not None and r.target.name == name) for r in rules)

    def rule(self, index: int) -> Rule:
        """Rule `index` (0-based), parsed once."""
        rule = self._rules[index]
        if rule is None:
            if isinstance(self.first_line, int):
                line = self.first_line + index if self.first_line else 0
            else:
                line = self.first_line[index]
            rule = self._parse(self.table, self.name, self._raw[index], line, index + 1)
            self._rules[index] = rule
        return rule


class Ruleset(Protocol):
    """The xtables rules of one address family and one back end on one node."""

    family: str  # "ip" or "ip6"
    backend: Backend
    source: str  # the file or command they were read from

    def tables(self) -> Sequence[str]:
        """Names of the tables that the source lists."""
        ...

    def chain_names(self, table: str) -> Iterable[str]:
        """Names of the chains of `table`, in the source's order."""
        ...

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain, or None where the table or the chain does not exist.

        What was not read gives a chain of which a rule says so: to be told from one that is there by has_chain.
        """
        ...

    def reading(self, table: str) -> TableReading:
        """How far `table` was read."""
        ...


PORT_CHAINS = (
    ("nat", "KUBE-NODEPORTS"),
    ("nat", "KUBE-SERVICES"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-PROXY-FIREWALL"),
)
"""Chains of kube-proxy in which a rule that asks for a protocol asks for a port, too."""
PORT_FLAGS = frozenset(
    ("--dport", "--dports", "--destination-port", "--destination-ports", "--sport", "--sports")
)
_SAMPLE = 8


def recorded_of(ruleset: Ruleset) -> Ruleset:
    """The ruleset as it was read, where another was made from it: that one names it as `recorded`."""
    while (under := getattr(ruleset, "recorded", None)) is not None:
        ruleset = under
    return ruleset


def are_ports_lost(ruleset: Ruleset) -> bool:
    """Whether the program that saved the rules prints no ports: then no rule of it is to be trusted to ask for none."""
    for table, name in PORT_CHAINS:
        chain = ruleset.chain(table, name) if has_chain(ruleset, table, name) else None
        rules = (chain.rule(i) for i in range(min(len(chain), _SAMPLE))) if chain is not None else ()
        if any(rule.lost is Lack.PORTS_LOST for rule in rules):
            return True
    return False


def has_chain(ruleset: Ruleset, table: str, name: str) -> bool:
    """Whether something was read of that chain: it is there for certain."""
    chain = ruleset.chain(table, name)
    return chain is not None and chain.reading is not Reading.NOT_READ


class DictRuleset:
    """A ruleset held in memory."""

    def __init__(
        self, family: str, backend: Backend, source: str, tables: Mapping[str, Mapping[str, Chain]]
    ) -> None:
        """Hold `tables`: table name → chain name → Chain."""
        self.family = family
        self.backend = backend
        self.source = source
        self._tables = tables

    def tables(self) -> Sequence[str]:
        """Names of the tables."""
        return tuple(self._tables)

    def chain_names(self, table: str) -> Iterable[str]:
        """Names of the chains of `table`; empty where there is no such table."""
        return tuple(self._tables.get(table, ()))

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain or None."""
        return self._tables.get(table, {}).get(name)

    def reading(self, table: str) -> TableReading:  # noqa: ARG002 (of every table)
        """Whole: what is not here is not there."""
        return WHOLE


class EditedRuleset:
    """A ruleset with some chains in another form; the rest is the recorded one."""

    def __init__(self, base: Ruleset, chains: Mapping[tuple[str, str], Chain]) -> None:
        """`chains` by table and name take the place of those of `base`."""
        self.family = base.family
        self.backend = base.backend
        self.source = base.source
        self._base = base
        self._chains = chains

    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(dict.fromkeys((*self._base.tables(), *(t for t, _ in self._chains))))

    def chain_names(self, table: str) -> tuple[str, ...]:
        """Names of the chains."""
        return tuple(
            dict.fromkeys((*self._base.chain_names(table), *(c for t, c in self._chains if t == table)))
        )

    def chain(self, table: str, name: str) -> Chain | None:
        """The changed chain, else the recorded one."""
        changed = self._chains.get((table, name))
        return self._base.chain(table, name) if changed is None else changed

    def reading(self, table: str) -> TableReading:
        """As of the recorded one."""
        return self._base.reading(table)


def like(chain: Chain, lines: list[str], policy: str | None = None) -> Chain:
    """A chain of the same name with other rules (and policy)."""
    return Chain(
        chain.table, chain.name, lines, chain.parser, policy=policy or chain.policy, counters=chain.counters
    )


class PartialRuleset:
    """A ruleset of which not all was read."""

    def __init__(self, base: Ruleset, readings: Mapping[str, TableReading]) -> None:
        """Hold `base`, which has what was read; `readings` tells of every table that was not read whole."""
        self.family = base.family
        self.backend = base.backend
        self.source = base.source
        self._base = base
        self._readings = readings
        self._chains: dict[tuple[str, str], Chain | None] = {}

    def tables(self) -> Sequence[str]:
        """Names of the tables, also of those that are there and were not read."""
        return tuple(dict.fromkeys((*self._base.tables(), *self._readings)))

    def chain_names(self, table: str) -> Iterable[str]:
        """Names of the chains of which something was read."""
        unread = self.reading(table).unread
        names = self._base.chain_names(table)
        return tuple(n for n in names if n not in unread) if unread else names

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain; None only where it is certain that there is none."""
        key = (table, name)
        if key not in self._chains:
            self._chains[key] = self._read(table, name)
        return self._chains[key]

    def reading(self, table: str) -> TableReading:
        """How far `table` was read."""
        return self._readings.get(table, WHOLE)

    def _read(self, table: str, name: str) -> Chain | None:
        reading = self.reading(table)
        found = self._base.chain(table, name)
        if reading.lack is None or name in reading.whole:
            return found
        if reading.prefix and name.startswith(reading.prefix):
            return found or Chain(table, name, (), _no_rule)
        unread = Unread(table=table, chain=name, lack=reading.lack, assumed=reading.assumed)
        if reading.reading is Reading.NOT_READ or name in reading.unread:
            return _with_unread(None, Reading.NOT_READ, None, unread)
        if found is None:
            return None if reading.names_known else _with_unread(None, Reading.NOT_READ, None, unread)
        if reading.cut is not None:
            return found if name != reading.cut else _with_unread(found, Reading.PART, None, unread)
        # What stands before a rule that was read is taken not to concern the packet; what decides it may come after.
        return _with_unread(found, Reading.PART, replace(unread, assumed=True), unread)


def unread_ruleset(family: str, backend: Backend, source: str, tables: Iterable[str]) -> PartialRuleset:
    """A back end that has these tables, of which nothing was read: taken not to concern the packet."""
    reading = TableReading(reading=Reading.NOT_READ, lack=Lack.OTHER_BACKEND, assumed=True)
    return PartialRuleset(DictRuleset(family, backend, source, {}), dict.fromkeys(tables, reading))


def _no_rule(*_: object) -> Rule:
    raise AssertionError("an empty chain has no line")


def _with_unread(chain: Chain | None, reading: Reading, before: Unread | None, after: Unread) -> Chain:
    """The chain with rules that stand for those that were not read."""
    first = 0 if before is None else 1
    rules = tuple(chain) if chain is not None else ()

    def parse(table: str, name: str, text: str, line: int, position: int) -> Rule:
        index = position - 1 - first
        if 0 <= index < len(rules):
            return replace(rules[index], position=index + 1)
        unread = after if index >= len(rules) or before is None else before
        error = None if unread.assumed else unread_words(unread)
        place = max(index + 1, 0)
        return Rule(table=table, chain=name, text=text, error=error, line=line, position=place, unread=unread)

    place = f"# {after.table} {after.chain}: "
    ahead = () if before is None else (place + "rules before, not read",)
    lines = chain.raw_lines() if chain is not None else ()
    return Chain(
        after.table,
        after.chain,
        (*ahead, *lines, place + ("rules behind, not read" if rules else "rules not read")),
        parse,
        policy=chain.policy if chain is not None else None,
        counters=chain.counters if chain is not None else None,
        first_line=(*((0,) * first), *(r.line for r in rules), 0),
        reading=reading,
    )
