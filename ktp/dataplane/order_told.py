"""Which of several base chains at one priority runs first, as counters of two readings tell.

A base chain that drops or refuses a packet leaves it to none behind it (nf_hook_slow), and one that translates it in
nat leaves its connection to none (nf_nat_inet_fn). So where a rule of one chain counted packets that another would all
have taken, the other did not run before it. One reading tells nothing: what it counted may be older than the other's
rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, permutations
from typing import Any, NamedTuple, cast

from ktp.dataplane.counted import CountingTable, Moved, NftCounting, XtTable, rewrites
from ktp.dataplane.hooks import HookProgram, place_of
from ktp.dataplane.host import Host
from ktp.dataplane.nft import BaseChain, place_of_chain
from ktp.dataplane.partly_known import Known, PartlyKnown, PartlyKnownTable, takes_all
from ktp.dataplane.state import State, Verdict
from ktp.model.nftables import NftTable
from ktp.model.rules_twice import RulesReading
from ktp.model.ruleset import Backend

_MOST_RULES = 400  # that counted, of one table, are looked at
_MOST_ASKED = 64  # of those another table is asked about
# Who knows no more of packets need not ask what becomes of them all.
_TOO_LITTLE = frozenset(("family", "proto"))
Key = tuple[str, str]
"""Back end and table, as a HookProgram names them."""


class Told(NamedTuple):
    """Of two tables `first` runs before `second`: a rule of its counted `packets` that the other would have taken.

    They came by one of `hooks`. Where these are several, the order is that of one of them.
    """

    first: Key
    second: Key
    chain: str
    rule: str
    packets: int
    hooks: tuple[str, ...]

    @property
    def words(self) -> str:
        """For people."""
        first, second = " ".join(self.first), " ".join(self.second)
        counted = f"{self.packets} packet{'s' if self.packets > 1 else ''}"
        taken = (
            f"; its chains at {' and '.join(self.hooks)} are taken to have been registered together"
            if len(self.hooks) > 1
            else ""
        )
        return (
            f"{first} runs before {second}: between two readings of the rules its `{self.rule}` counted {counted}, "
            f"which {second} would have taken{taken}"
        )


class _Side:
    """A table of a node: what it counted, and what its base chains do with packets of which little is known."""

    def __init__(self, key: Key, counting: CountingTable, of: PartlyKnown | PartlyKnownTable) -> None:
        self.key = key
        self.counting = counting
        self._of = of
        self._takes: dict[Any, bool] = {}
        self._moved: list[Moved] | None = None
        self._is_same: bool | None = None

    @property
    def moved(self) -> list[Moved]:
        """Rules that counted; none where the table is not the same in both readings."""
        if self._moved is None:
            found = self.counting.moved()
            self._is_same = found is not None
            # What is known best of is asked first.
            self._moved = sorted(
                islice(found or (), _MOST_RULES),
                key=lambda rule: min((len(k.fields) for _, k in rule.ways), default=0),
                reverse=True,
            )
        return self._moved

    @property
    def is_same(self) -> bool:
        """Whether the table is the same in both readings."""
        return self.moved is not None and bool(self._is_same)

    def place(self, base: str) -> tuple[str, int, str] | None:
        """Hook, priority and kind ("nat" or "table") of a base chain."""
        if isinstance(self._of, PartlyKnown):
            return None if self._of.chain(base) is None else place_of(self.key[1], base)
        chain = self._of.source.chains.get(base)
        at = place_of_chain(chain) if chain is not None else None
        # Of several of one table at one place the order among them is known, and that to others is one each.
        return (
            at if sum(1 for each in self._of.source.base_chains if place_of_chain(each) == at) == 1 else None
        )

    def takes(self, known: Known, host: Host, at: tuple[str, int, str]) -> bool:
        """Whether its base chain of that place leaves no such packet to those behind."""
        key = (known.key, at)
        if key not in self._takes:
            self._of.known = known
            run = self._run(at)
            self._takes[key] = run is not None and takes_all(
                run, known, self._of.family, host, at[0], nat=at[2] == "nat"
            )
        return self._takes[key]

    def _run(self, at: tuple[str, int, str]) -> Callable[[State, Host, str], list[Verdict]] | None:
        of = self._of
        if isinstance(of, PartlyKnown):
            return of.run if self.place(at[0]) == at else None
        here = [chain for chain in of.source.base_chains if self.place(chain.name) == at]
        return BaseChain(of, here[0], at[1]).run if here else None


class Sides:
    """The tables of one node for packets of one family."""

    def __init__(self, first: RulesReading, last: RulesReading | None, host: Host, family: int) -> None:
        """`last` None: the rules were read once."""
        self._first, self._last, self._host, self._family = first, last, host, family
        self._sides: dict[Key, _Side | None] = {}
        self._would_tell: set[frozenset[Key]] = set()
        self.told: dict[tuple[Key, ...], tuple[Told, ...]] = {}

    def of(self, program: HookProgram) -> _Side | None:
        """The table of a program; None where it was not read so."""
        key = key_of(program)
        if key not in self._sides:
            self._sides[key] = self._make(key, program)
        return self._sides[key]

    def _make(self, key: Key, program: HookProgram) -> _Side | None:
        word = "ip" if self._family == 4 else "ip6"
        if isinstance(program, BaseChain):
            first = self._table(self._first, program.program.source)
            last = self._table(self._last, program.program.source)
            if first is None or rewrites(first):
                return None
            return _Side(
                key, NftCounting(first, last, self._family), PartlyKnownTable(first, self._host, self._family)
            )
        backend, table = key
        found = [
            next((r for r in reading.rulesets if (r.family, r.backend.value) == (word, backend)), None)
            for reading in (self._first, self._last or RulesReading())
        ]
        if found[0] is None or table not in found[0].tables():
            return None
        if backend == Backend.NFT.value and self._is_made_anew(word, table):
            return None
        return _Side(key, XtTable(found[0], found[1], table), PartlyKnown(found[0], table))

    @staticmethod
    def _table(reading: RulesReading | None, like: NftTable) -> NftTable | None:
        nft = reading.nft if reading is not None else None
        return nft.table(like.family, like.name) if nft is not None else None

    def _is_made_anew(self, family: str, table: str) -> bool:
        """Whether nft's listings tell that a table of iptables-nft is not the one that it was."""
        if self._last is None or self._first.nft is None or self._last.nft is None:
            return False
        first, last = (nft.table(family, table) for nft in (self._first.nft, self._last.nft))
        if first is None or last is None:
            return True
        return (first.handle, [(c.name, c.handle) for c in first.base_chains]) != (
            last.handle,
            [(c.name, c.handle) for c in last.base_chains],
        )

    def compare(self, programs: Iterable[HookProgram]) -> tuple[Told, ...]:
        """What the counters tell of the order of the programs, pair by pair; nothing where they contradict."""
        sides = [self.of(program) for program in programs]
        found: list[Told] = []
        for first, second in permutations(sides, 2):
            if first is None or second is None or first.key == second.key:
                continue
            if first.is_same and second.is_same:
                found += self._refuted(first, second)
        return tuple(found)

    def _refuted(self, first: _Side, second: _Side) -> Iterator[Told]:
        hooks_told = set()
        for rule in first.moved[:_MOST_ASKED]:
            hooks = self._hooks(rule, first, second)
            if hooks and hooks not in hooks_told:
                hooks_told.add(hooks)
                yield Told(first.key, second.key, rule.chain, rule.text, rule.packets, hooks)

    def _hooks(self, rule: Moved, first: _Side, second: _Side) -> tuple[str, ...]:
        """By which hooks the rule's packets may have come, if the second table takes all of them there; else ()."""
        hooks = []
        for base, known in rule.ways:
            at = first.place(base)
            if at is None or known.fields.keys() <= _TOO_LITTLE or not second.takes(known, self._host, at):
                return ()
            hooks.append(at[0])
        return tuple(dict.fromkeys(hooks))

    def would_tell(
        self, programs: Sequence[HookProgram], steps: Callable[[], Iterable[tuple[HookProgram, str, str]]]
    ) -> bool:
        """Whether packets that come move counters that tell something of the order of the programs.

        `steps` are rules (program, chain, text) that one packet meets in them. Once one would tell, no other is asked.
        """
        keys = frozenset(map(key_of, programs))
        if keys not in self._would_tell:
            others = [self.of(program) for program in programs]
            for program, chain, text in dict.fromkeys(steps()):
                first = self.of(program)
                rule = first.counting.may_count(chain, text) if first is not None else None
                if first is None or rule is None:
                    continue
                if any(o is not None and o.key != first.key and self._hooks(rule, first, o) for o in others):
                    self._would_tell.add(keys)
                    return True
        return keys in self._would_tell


def key_of(program: HookProgram) -> Key:
    """What the program's table is known by."""
    return program.backend, program.table


def sides_of(host: Host, family: int) -> Sides:
    """The tables of a node as they were read, kept with the host."""
    if family not in host.sides:
        twice = host.state.rules_twice
        first = twice.first if twice is not None else RulesReading(host.state.rulesets, host.state.nft)
        host.sides[family] = Sides(first, twice.last if twice is not None else None, host, family)
    return cast("Sides", host.sides[family])


def told_at(host: Host, family: int, hook: str, programs: tuple[HookProgram, ...]) -> tuple[Told, ...]:
    """What two readings tell of the order of programs of one priority at a hook: firmly, or else of several hooks.

    What is told of this hook alone goes before what is told of several: these may have been registered apart.
    """
    if host.state.rules_twice is None:
        return ()
    sides = sides_of(host, family)
    keys = tuple(map(key_of, programs))
    if keys not in sides.told:
        sides.told[keys] = sides.compare(programs)
    found: dict[frozenset[Key], list[Told]] = {}
    for told in sides.told[keys]:
        if hook in told.hooks:
            found.setdefault(frozenset((told.first, told.second)), []).append(told)
    out: list[Told] = []
    for pair in found.values():
        fewest = min(len(told.hooks) for told in pair)
        best = [told for told in pair if len(told.hooks) == fewest]
        if len({told.first for told in best}) == 1:
            out.append(best[0])
    return tuple(out)
