"""Which rules of a table counted packets between two readings of it, and what packets those were.

Of a table that is another in the second reading (rules, policies, elements, handles, a counter that was set back)
nothing is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from ktp.dataplane.partly_known import Known, known_of, known_of_rule, known_of_statements
from ktp.model.nftables import (
    AnonymousSet,
    Counter,
    NftChain,
    NftMap,
    NftRule,
    NftTable,
    SetReference,
    Statement,
    Vmap,
)
from ktp.model.nftables import Mangle as NftMangle
from ktp.model.nftables import Payload as NftPayload
from ktp.model.nftables import Verdict as NftVerdict
from ktp.model.ruleset import Chain, Rule, Ruleset

_HOOKS = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))
_COUNTED = re.compile(r"\[(\d+):\d+\] ")
_TARGET = re.compile(r" -[jg] (\S+)")
_MOST_CHAINS = 4000  # of a table; those of larger nodes are not read twice
_MOST_WAYS = 16  # that lead to one rule


class Moved(NamedTuple):
    """A rule that counted `packets`; each of `ways` is a base chain that leads to it, and what is known of them then.

    None of `ways` where too many lead there.
    """

    text: str
    chain: str
    packets: int
    ways: tuple[tuple[str, Known], ...]


class CountingTable(Protocol):
    """A table whose rules may count."""

    def moved(self) -> Iterable[Moved] | None:
        """The rules that counted packets between both readings; None where it is not the same table in both."""
        ...

    def may_count(self, chain: str, text: str) -> Moved | None:
        """A rule that would count, as it would be told of; None where it has no counter."""
        ...


class XtTable:
    """A table of iptables, in both readings."""

    def __init__(self, first: Ruleset, last: Ruleset | None, table: str) -> None:
        """`last` None: it was read once."""
        self._first, self._last, self._table = first, last, table
        self._callers: Mapping[str, list[tuple[Chain, int]]] | None = None

    def moved(self) -> Iterable[Moved] | None:
        """As of `CountingTable`."""
        table = self._table
        if self._last is None:
            return None
        names = tuple(self._first.chain_names(table))
        if names != tuple(self._last.chain_names(table)) or len(names) > _MOST_CHAINS:
            return None
        found: list[tuple[Chain, int, int]] = []
        for name in names:
            first, last = self._first.chain(table, name), self._last.chain(table, name)
            if first is None or last is None or len(first) != len(last) or first.policy != last.policy:
                return None
            for index, (before, after) in enumerate(zip(first.raw_lines(), last.raw_lines(), strict=True)):
                if before == after:
                    continue
                was, now = _COUNTED.match(before), _COUNTED.match(after)
                if was is None or now is None or before[was.end() :] != after[now.end() :]:
                    return None
                if (packets := int(now[1]) - int(was[1])) < 0:
                    return None
                found.append((first, index, packets))
        return (self._moved(chain, index, packets) for chain, index, packets in found if packets)

    def may_count(self, chain: str, text: str) -> Moved | None:
        """As of `CountingTable`: the kernel counts for every rule of iptables."""
        found = self._first.chain(self._table, chain)
        if found is None or len(tuple(self._first.chain_names(self._table))) > _MOST_CHAINS:
            return None
        return next(
            (self._moved(found, i, 0) for i in found.containing(text) if found.rule(i).text == text), None
        )

    def _moved(self, chain: Chain, index: int, packets: int) -> Moved:
        rule = chain.rule(index)
        ways = []
        for number, (base, rules) in enumerate(self._leading_to(chain.name, (rule,))):
            known = known_of(map(known_of_rule, rules))
            if known is not None:
                ways.append((base, known))
            if number >= _MOST_WAYS:
                return Moved(rule.text, chain.name, packets, ())
        return Moved(rule.text, chain.name, packets, tuple(ways))

    def _leading_to(self, name: str, rules: tuple[Rule, ...]) -> Iterator[tuple[str, tuple[Rule, ...]]]:
        if name in _HOOKS:
            yield name, rules
        if len(rules) > _MOST_WAYS:
            yield "", ()  # deeper than chains are: no base chain
            return
        if self._callers is None:
            self._callers = self._find_callers()
        for chain, index in self._callers.get(name, ()):
            yield from self._leading_to(chain.name, (chain.rule(index), *rules))

    def _find_callers(self) -> Mapping[str, list[tuple[Chain, int]]]:
        names = dict.fromkeys(self._first.chain_names(self._table))
        found: dict[str, list[tuple[Chain, int]]] = {}
        for name in names:
            chain = self._first.chain(self._table, name)
            for index, line in enumerate(chain.raw_lines() if chain is not None else ()):
                # What a comment says may look so as well: then the rule leads nowhere, or is known to by its target.
                for word in dict.fromkeys(_TARGET.findall(line)):
                    if word in names and chain is not None:
                        target = chain.rule(index).target
                        if target is None or target.name == word:
                            found.setdefault(word, []).append((chain, index))
        return found


class NftCounting:
    """A table of nft, in both readings."""

    def __init__(self, first: NftTable, last: NftTable | None, family: int) -> None:
        """`family` 4 or 6: of packets of the other nothing is told."""
        self._first, self._last, self._family = first, last, family
        self._callers: Mapping[str, list[tuple[str, NftRule, int]]] | None = None

    def moved(self) -> Iterable[Moved] | None:
        """As of `CountingTable`."""
        if self._last is None or _identity(self._first) != _identity(self._last):
            return None
        found: list[tuple[NftChain, NftRule, int]] = []
        for name, chain in self._first.chains.items():
            for rule, after in zip(chain.rules, self._last.chains[name].rules, strict=True):
                before, now = _counter(rule), _counter(after)
                if before is not None and now is not None:
                    packets = now[1].packets - before[1].packets
                    if packets < 0:
                        return None
                    if packets:
                        found.append((chain, rule, packets))
        return (self._moved(chain, rule, packets) for chain, rule, packets in found)

    def may_count(self, chain: str, text: str) -> Moved | None:
        """As of `CountingTable`: a rule of nft counts where it says so."""
        found = self._first.chains.get(chain)
        rules = found.rules if found is not None else ()
        for rule in rules:
            if found is not None and rule.text == text and _counter(rule) is not None:
                return self._moved(found, rule, 0)
        return None

    def _moved(self, chain: NftChain, rule: NftRule, packets: int) -> Moved:
        counter = _counter(rule)
        assert counter is not None
        ways = []
        # What changes a packet's addresses on its way makes it another than it came.
        if not rewrites(self._first):
            own = known_of_statements(rule.statements[: counter[0]])
            for number, (base, parts) in enumerate(self._leading_to(chain.name, (own,))):
                if number >= _MOST_WAYS:
                    return Moved(rule.text, chain.name, packets, ())
                known = known_of(parts)
                if known is None or known.fields.get("family", self._family) != self._family:
                    continue
                may_be_other = self._first.family == "inet" and "family" not in known.fields
                ways.append(("" if may_be_other else base, known))
        return Moved(rule.text, chain.name, packets, tuple(ways))

    def _leading_to(self, name: str, parts: tuple[Known, ...]) -> Iterator[tuple[str, tuple[Known, ...]]]:
        if self._first.chains[name].is_base:
            yield name, parts
        if len(parts) > _MOST_WAYS:
            yield "", ()
            return
        if self._callers is None:
            self._callers = self._find_callers()
        for caller, rule, at in self._callers.get(name, ()):
            yield from self._leading_to(caller, (known_of_statements(rule.statements[:at]), *parts))

    def _find_callers(self) -> Mapping[str, list[tuple[str, NftRule, int]]]:
        found: dict[str, list[tuple[str, NftRule, int]]] = {}
        for name, chain in self._first.chains.items():
            for rule in chain.rules:
                for at, statement in enumerate(rule.statements):
                    for target in dict.fromkeys(_targets(self._first, statement)):
                        found.setdefault(target, []).append((name, rule, at))
        return {name: callers for name, callers in found.items() if name in self._first.chains}


def _identity(table: NftTable) -> object:
    """What is the same in two readings of one table, counters apart."""
    chains = [(c, c.handle, [r.handle for r in c.rules]) for c in table.chains.values()]
    return table, table.handle, chains


def _counter(rule: NftRule) -> tuple[int, Counter] | None:
    """Where in a rule its counter stands, and the counter."""
    for at, statement in enumerate(rule.statements):
        if isinstance(statement, Counter) and statement.name is None:
            return at, statement
    return None


def _targets(table: NftTable, statement: Statement) -> Iterator[str]:
    verdicts: Iterable[object] = (statement,)
    if isinstance(statement, Vmap):
        data = statement.data
        if isinstance(data, SetReference):
            named = table.set_or_map(data.name)
            verdicts = (e.value for e in named.elements) if isinstance(named, NftMap) else ()
        elif isinstance(data, AnonymousSet):
            verdicts = (e.value for e in data.elements)
    for verdict in verdicts:
        if isinstance(verdict, NftVerdict) and verdict.target is not None:
            yield verdict.target


def rewrites(table: NftTable) -> bool:
    """Whether rules of a table give packets other addresses or ports, other than by nat."""
    return any(
        isinstance(statement, NftMangle) and isinstance(statement.key, NftPayload)
        for chain in table.chains.values()
        for rule in chain.rules
        for statement in rule.statements
    )
