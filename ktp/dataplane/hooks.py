"""Which programs hang at which netfilter hook of a node, in the kernel's order (enum nf_ip_hook_priorities)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, islice, permutations, product
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ktp.dataplane.host import Host
from ktp.dataplane.ipvs import FORWARD_PRIORITY, INPUT_PRIORITY, OUTPUT_PRIORITY
from ktp.dataplane.state import State, Verdict
from ktp.dataplane.xtables import Program
from ktp.model.ruleset import Backend, are_ports_lost

if TYPE_CHECKING:
    from ktp.dataplane.order_told import Told

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"
HOOKS = (PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING)

CONNTRACK_PRIORITY = -200
_NAT_DST, _NAT_SRC = -100, 100
_TABLES = {
    "raw": (-300, (PREROUTING, OUTPUT)),
    "mangle": (-150, HOOKS),
    "filter": (0, (INPUT, FORWARD, OUTPUT)),
    "security": (50, (INPUT, FORWARD, OUTPUT)),
}
_NAT_HOOKS = (PREROUTING, INPUT, OUTPUT, POSTROUTING)


class HookProgram(Protocol):
    """What can hang at a hook: a table of an xtables ruleset, or an nftables base chain."""

    backend: str
    table: str

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Every way through it."""
        ...

    def is_idle(self, hook: str) -> bool:
        """Whether it can do nothing at this hook."""
        ...

    def listed_as(self, family: str, hook: str) -> tuple[str, str, str]:
        """Family, table and name of its base chain in nf_tables, for a packet of `family` ("ip", "ip6")."""
        ...


class Group(NamedTuple):
    """Programs of one priority. `kind` is "conntrack", "nat", "ipvs" or "table".

    Of one priority the kernel runs first what was registered last. `programs` is one order that is possible, and
    `others` are those that are as well. `notes` say what told the order, where that is no more than likely, or of
    another moment. `reroutes` tells that a changed mark or TOS makes local output route again (mangle, nft type route);
    `hooked`, of nat, that some chain or table of nat is there, and with it nat at every hook.
    """

    kind: str
    priority: int
    programs: tuple[HookProgram, ...] = ()
    others: tuple[tuple[HookProgram, ...], ...] = ()
    reroutes: bool = False
    notes: tuple[str, ...] = ()
    hooked: bool = False


@runtime_checkable
class NftBaseChain(Protocol):
    """An nftables base chain as `ktp.dataplane.nft` compiles it."""

    backend: str
    table: str
    hook: str
    priority: int
    chain_type: str  # filter nat route
    handles: tuple[int, int]  # of its table, and its own; 0 where the listing has none

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Every way through it."""
        ...

    def is_idle(self, hook: str) -> bool:
        """Whether it can do nothing."""
        ...

    def listed_as(self, family: str, hook: str) -> tuple[str, str, str]:
        """Family, table and name."""
        ...


def place_of(table: str, hook: str) -> tuple[str, int, str] | None:
    """Hook, priority and kind of a table of iptables; None where it does not hang there."""
    if table == "nat":
        priority = _NAT_DST if hook in (PREROUTING, OUTPUT) else _NAT_SRC
        return (hook, priority, "nat") if hook in _NAT_HOOKS else None
    place = _TABLES.get(table)
    return (hook, place[0], "table") if place is not None and hook in place[1] else None


IPVS_PRIORITY = {INPUT: INPUT_PRIORITY, OUTPUT: OUTPUT_PRIORITY, FORWARD: FORWARD_PRIORITY}


class HookTable:
    """The groups of every hook of one node and family."""

    def __init__(self, host: Host, family: int, nft_chains: Sequence[NftBaseChain] = ()) -> None:
        """Register the node's xtables rulesets of the family and its native nftables base chains."""
        self._groups: dict[str, tuple[Group, ...]] = {}
        word = "ip" if family == 4 else "ip6"
        rulesets = host.state.rulesets_of(word)
        compiled = {
            (i, t): Program(r, t, ports_lost=lost)
            for i, r in enumerate(rulesets)
            for lost in (are_ports_lost(r),)
            for t in r.tables()
        }
        hooked = any("nat" in r.tables() for r in rulesets) or any(c.chain_type == "nat" for c in nft_chains)
        for hook in HOOKS:
            at: dict[tuple[int, str], list[HookProgram]] = {}
            reroutes: set[int] = set()
            for number, ruleset in enumerate(rulesets):
                for table in ruleset.tables():
                    place = place_of(table, hook)
                    if place is None:
                        continue
                    _, priority, kind = place
                    if table == "mangle" and hook == OUTPUT:
                        reroutes.add(priority)
                    program = compiled[number, table]
                    if not program.is_idle(hook):
                        at.setdefault((priority, kind), []).append(program)
            for chain in nft_chains:
                if chain.hook != hook or chain.is_idle(hook):
                    continue
                kind = "nat" if chain.chain_type == "nat" else "table"
                at.setdefault((chain.priority, kind), []).append(chain)
                if chain.chain_type == "route" and hook == OUTPUT:
                    reroutes.add(chain.priority)
            groups: list[Group] = []
            nat: list[_Orders] = []
            for (priority, kind), programs in sorted(at.items(), key=lambda item: item[0]):
                found = _by_registration(host, word, hook, priority, programs)
                if kind == "nat":
                    nat.append(found)
                    continue
                first, *others = found.orders
                groups.append(
                    Group("table", priority, first, tuple(others), priority in reroutes, found.notes)
                )
            if hook in (PREROUTING, OUTPUT):
                groups.append(Group("conntrack", CONNTRACK_PRIORITY))
            if hook in _NAT_HOOKS:
                # nf_nat_core calls all nat chains of a hook in turn, by their own priorities, at its own place.
                place_of_nat = _NAT_DST if hook in (PREROUTING, OUTPUT) else _NAT_SRC
                first, *others = (tuple(p for order in each for p in order) for each in _every_nat(nat))
                notes = tuple(note for each in nat for note in each.notes)
                groups.append(Group("nat", place_of_nat, first, tuple(others), notes=notes, hooked=hooked))
            if (host.virtual_servers is not None or host.state.ipvs_unread) and hook in (
                INPUT,
                OUTPUT,
                FORWARD,
            ):
                groups.append(Group("ipvs", IPVS_PRIORITY[hook]))
            groups.sort(key=lambda g: g.priority)
            self._groups[hook] = tuple(groups)

    def groups(self, hook: str) -> tuple[Group, ...]:
        """The groups of `hook`, first to run first."""
        return self._groups[hook]


HANDLE_NOTE = "of chains at one priority the one made last (by the handles of tables and chains) runs first"


class _Orders(NamedTuple):
    """The orders that are possible of programs of one priority, and the notes on them."""

    orders: tuple[tuple[HookProgram, ...], ...]
    notes: tuple[str, ...] = ()


_MOST_ORDERS = 24
_MOST_OF_ONE_PRIORITY = 4  # are asked in every order


def _every_nat(places: Sequence[_Orders]) -> Sequence[tuple[tuple[HookProgram, ...], ...]]:
    """The orders of all nat chains of a hook, which are called in turn by their own priorities."""
    return tuple(islice(product(*(each.orders for each in places)), _MOST_ORDERS))


def _by_registration(
    host: Host, family: str, hook: str, priority: int, programs: Sequence[HookProgram]
) -> _Orders:
    """The programs, last registered first, as far as `nft list hooks`, counters or handles tell.

    nf_hook_entries_grow puts a new hook before those of its priority. nf_tables numbers tables as they are made, and a
    table's base chains are made with it as a rule (kube-proxy, firewalld). What is in a table it numbers as it is made,
    too: of two chains of one table the order is certain. iptables-nft makes chains on demand: they are no older than
    its table, and may be younger than any other. Legacy tables have no number: they may stand before all or behind.
    """
    if len(programs) == 1:
        return _Orders((tuple(programs),))
    listed = _as_listed(host, family, hook, priority, programs)
    if listed:
        return _Orders((listed,))
    known, loose = _by_handles(host, family, programs)
    told: tuple[Told, ...] = ()
    if host.state.rules_twice is not None:
        from ktp.dataplane.order_told import told_at

        told = told_at(host, 4 if family == "ip" else 6, hook, tuple(programs))
    by_counters = _pairs(programs, told)
    if any(known.index(a) > known.index(b) for a, b in by_counters if a in known and b in known):
        known, loose = (), tuple(programs)
    by_handles = set(combinations(known, 2))
    # First the likelier one, which is shown where it does not matter: iptables' chains are the older ones.
    orders: Iterable[tuple[HookProgram, ...]] = permutations((*known, *loose))
    if len(programs) > _MOST_OF_ONE_PRIORITY:
        orders = dict.fromkeys(((*known, *loose), (*reversed(loose), *known)))
    possible = [o for o in orders if _keeps(o, by_handles)]
    if any(_keeps(o, by_counters) for o in possible):
        possible = [o for o in possible if _keeps(o, by_counters)]
    else:
        told = ()
    notes = [each.words for each in told]
    if not loose and len({(p.backend, p.table) for p in known}) > 1:
        notes.append(HANDLE_NOTE)
    return _Orders(tuple(possible), tuple(notes))


def _by_handles(
    host: Host, family: str, programs: Sequence[HookProgram]
) -> tuple[tuple[HookProgram, ...], tuple[HookProgram, ...]]:
    """Those whose order handles tell, in it, and those of which they tell nothing."""
    nft = host.state.nft
    handles = {(t.family, t.name): t.handle for t in nft.tables} if nft is not None else {}
    native = {id(p): p.handles for p in programs if isinstance(p, NftBaseChain)}
    newest = max((handle for handle, _ in native.values()), default=0)
    ranked: list[tuple[tuple[int, int], HookProgram]] = []
    loose: list[HookProgram] = []
    for program in programs:
        found = native.get(id(program), (0, 0))
        if program.backend == Backend.NFT.value and (own := handles.get((family, program.table), 0)) > newest:
            found = (own, 0)
        if found[0]:
            ranked.append((found, program))
        else:
            loose.append(program)
    if len({handle for handle, _ in ranked}) < len(ranked):
        return (), tuple(programs)
    return tuple(program for _, program in sorted(ranked, key=lambda item: item[0], reverse=True)), tuple(
        loose
    )


def _pairs(programs: Sequence[HookProgram], told: Iterable[Told]) -> set[tuple[HookProgram, HookProgram]]:
    """Each two of the programs of which the first is told to be before the second."""
    return {
        (a, b)
        for each in told
        for a, b in permutations(programs, 2)
        if ((a.backend, a.table), (b.backend, b.table)) == (each.first, each.second)
    }


def _keeps(order: Sequence[HookProgram], before: Iterable[tuple[HookProgram, HookProgram]]) -> bool:
    """Whether the first of each pair stands before the second."""
    return all(order.index(a) < order.index(b) for a, b in before)


# Older nft prints more than two hooks of one priority in another order than the kernel's.
_ORDERS_THREE = (1, 1, 7)


def _as_listed(
    host: Host, family: str, hook: str, priority: int, programs: Sequence[HookProgram]
) -> tuple[HookProgram, ...]:
    """The programs in the order of `nft list hooks`; () where it does not tell.

    It names base chains; a table of legacy iptables is known by its place. Of nat, kernels before Linux 7 list neither.
    """
    if host.state.nft_hooks is None:
        return ()
    named: dict[tuple[str, str, str], HookProgram] = {}
    legacy = []
    for program in programs:
        if program.backend == Backend.LEGACY.value:
            legacy.append(program)
        else:
            named[program.listed_as(family, hook)] = program
    listed = host.state.nft_hooks.at(family, hook.lower(), priority)
    out = []
    for entry in listed:
        if entry.chain in named:
            out.append(named[entry.chain])
        elif entry.legacy and legacy:
            out.append(legacy.pop())
    known = len(set(map(id, out))) == len(programs)
    nft = host.state.nft
    version = (
        tuple(int(n) for n in (nft.version or "").split(".") if n.isdecimal()) if nft is not None else ()
    )
    if not known or (sum(1 for e in listed if e.chain or e.legacy) > 2 and version < _ORDERS_THREE):
        return ()
    return tuple(out)
