"""Tables, chains, sets, stateful objects and rules, and the names of priorities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from ktp.model.nftables.expressions import SetElement
from ktp.model.nftables.statements import Counter, Limit, Quota, Statement, Synproxy
from ktp.model.record import dataclass
from ktp.model.xtables_chains import is_chain_of_xtables


@dataclass(frozen=True, slots=True, kw_only=True)
class NftRule:
    """One rule. `index` is its place in the chain from 0; `handle` and `line` (of a text) are 0 where not known."""

    statements: tuple[Statement, ...]
    comment: str | None = None
    index: int = 0
    handle: int = field(default=0, compare=False)
    line: int = field(default=0, compare=False)
    source: str | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The rule as `nft list ruleset` prints it; verbatim where it was read from such a text."""
        if self.source is None:
            words = [str(statement) for statement in self.statements]
            if self.comment is not None:
                words.append(f'comment "{self.comment}"')
            object.__setattr__(self, "source", " ".join(words))
        return self.source or ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class NftChain:
    """A chain; a base chain has `type`, `hook`, `priority` and `policy`."""

    name: str
    rules: tuple[NftRule, ...] = ()
    type: str | None = None
    hook: str | None = None
    priority: int | None = None
    policy: str | None = None
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    comment: str | None = None
    handle: int = field(default=0, compare=False)

    @property
    def is_base(self) -> bool:
        """Whether the kernel calls it at a hook."""
        return self.hook is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class NftSet:
    """A named set. `key_types` has one data type for each part of the key.

    `flags` are of constant, interval, timeout, dynamic; nft 1.0.6 leaves "dynamic" out of its JSON. `typeof` is the
    declaration's text where the set was declared so.
    """

    name: str
    key_types: tuple[str, ...]
    elements: tuple[SetElement, ...] = ()
    flags: tuple[str, ...] = ()
    timeout: int | None = None
    gc_interval: int | None = None
    size: int | None = None
    policy: str | None = None
    auto_merge: bool = False
    statements: tuple[Statement, ...] = ()
    typeof: str | None = field(default=None, compare=False)
    comment: str | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftMap(NftSet):
    """A named map; `value_types` is ("verdict",), data types, or the kind of a stateful object ("counter")."""

    value_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NftObject:
    """A named stateful object.

    `kind` is counter, quota, limit, ct helper, ct timeout, ct expectation, synproxy or secmark. Counters, quotas,
    limits and synproxies have their statement in `statement`; the others their words in `options`.
    """

    kind: str
    name: str
    statement: Counter | Quota | Limit | Synproxy | None = None
    options: Mapping[str, str | int | Mapping[str, int]] = field(default_factory=dict)
    comment: str | None = None
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftFlowtable:
    """A flow table: connections in it pass by the rules from ingress on."""

    name: str
    hook: str | None = None
    priority: int | None = None
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    counter: bool = False
    handle: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftTable:
    """A table. `flags` are of dormant, owner, persist, or "unreadable" where the listing has a flag it garbles."""

    family: str
    name: str
    chains: Mapping[str, NftChain] = field(default_factory=dict)
    sets: Mapping[str, NftSet] = field(default_factory=dict)
    maps: Mapping[str, NftMap] = field(default_factory=dict)
    objects: tuple[NftObject, ...] = ()
    flowtables: tuple[NftFlowtable, ...] = ()
    flags: tuple[str, ...] = ()
    comment: str | None = None
    handle: int = field(default=0, compare=False)

    @property
    def base_chains(self) -> tuple[NftChain, ...]:
        """The chains that the kernel calls."""
        return tuple(chain for chain in self.chains.values() if chain.hook is not None)

    @property
    def is_dormant(self) -> bool:
        """Whether the table's base chains are unhooked (`flags dormant`)."""
        return "dormant" in self.flags

    @property
    def is_xtables(self) -> bool:
        """Whether iptables-nft would take the table for its own: its name and base chains are those of iptables.

        Such a table is in `iptables-save` too, and there with its matches in full.
        """
        base = self.base_chains
        return bool(base) and all(map(self.is_of_xtables, base))

    def is_of_xtables(self, chain: NftChain) -> bool:
        """Whether a base chain of the table is one of iptables': it is in `iptables-save` then, with what it leads to.

        Others of the same table are not: iptables-nft-save tells that there are some, and prints the rest.
        """
        return is_chain_of_xtables(self.family, self.name, chain.name, chain.type, chain.hook, chain.priority)

    def set_or_map(self, name: str) -> NftSet | None:
        """The set or map of that name: they share one name space."""
        return self.sets.get(name) or self.maps.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftRuleset:
    """All nftables of one node, or those that were read. `source` names the file or command."""

    tables: tuple[NftTable, ...]
    source: str = field(default="", compare=False)
    version: str | None = field(default=None, compare=False)

    def table(self, family: str, name: str) -> NftTable | None:
        """The table or None."""
        for table in self.tables:
            if table.family == family and table.name == name:
                return table
        return None

    def base_chains(self) -> Iterator[tuple[NftTable, NftChain]]:
        """Every base chain with its table, in the listing's order."""
        for table in self.tables:
            for chain in table.base_chains:
                yield table, chain


_INET_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}


def priority_names(family: str) -> Mapping[str, int]:
    """The names of standard priorities of a family (nft(8), "Standard priority names")."""
    if family == "bridge":
        return _BRIDGE_PRIORITIES
    if family in ("arp", "netdev"):
        return {"filter": 0}
    return _INET_PRIORITIES
