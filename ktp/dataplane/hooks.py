"""Which programs hang at which netfilter hook of a node, in the kernel's order (enum nf_ip_hook_priorities)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ktp.dataplane.host import Host
from ktp.dataplane.ipvs import INPUT_PRIORITY, OUTPUT_PRIORITY
from ktp.dataplane.state import State, Verdict
from ktp.dataplane.xtables import Program
from ktp.model.ruleset import Backend

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


class Group(NamedTuple):
    """Programs of one priority. `kind` is "conntrack", "nat", "ipvs" or "table".

    Where `ordered` is False the kernel runs them in the order of registration, last first, which is not known; `note`
    is then set where the tables' handles tell it as far as they can. `reroutes` tells that a changed mark or TOS makes
    local output route again (mangle, nft type route).
    """

    kind: str
    priority: int
    programs: tuple[HookProgram, ...] = ()
    ordered: bool = True
    reroutes: bool = False
    note: str = ""


class NftBaseChain(Protocol):
    """An nftables base chain as `ktp.dataplane.nft` compiles it."""

    backend: str
    table: str
    hook: str
    priority: int
    chain_type: str  # filter nat route

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Every way through it."""
        ...

    def is_idle(self, hook: str) -> bool:
        """Whether it can do nothing."""
        ...


class HookTable:
    """The groups of every hook of one node and family."""

    def __init__(self, host: Host, family: int, nft_chains: Sequence[NftBaseChain] = ()) -> None:
        """Register the node's xtables rulesets of the family and its native nftables base chains."""
        self._groups: dict[str, tuple[Group, ...]] = {}
        word = "ip" if family == 4 else "ip6"
        rulesets = host.state.rulesets_of(word)
        compiled = {(i, t): Program(r, t) for i, r in enumerate(rulesets) for t in r.tables()}
        for hook in HOOKS:
            at: dict[tuple[int, str], list[HookProgram]] = {}
            reroutes: set[int] = set()
            for number, ruleset in enumerate(rulesets):
                for table in ruleset.tables():
                    if table == "nat":
                        if hook not in _NAT_HOOKS:
                            continue
                        priority = _NAT_DST if hook in (PREROUTING, OUTPUT) else _NAT_SRC
                        kind = "nat"
                    else:
                        place = _TABLES.get(table)
                        if place is None or hook not in place[1]:
                            continue
                        priority, kind = place[0], "table"
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
            nat: list[tuple[int, tuple[HookProgram, ...]]] = []
            for (priority, kind), programs in sorted(at.items(), key=lambda item: item[0]):
                ranked = _by_registration(host, word, programs)
                if kind == "nat":
                    nat.append((priority, ranked or tuple(programs)))
                    continue
                groups.append(
                    Group(
                        "table",
                        priority,
                        ranked or tuple(programs),
                        len(programs) == 1,
                        priority in reroutes,
                        HANDLE_NOTE if ranked else "",
                    )
                )
            if hook in (PREROUTING, OUTPUT):
                groups.append(Group("conntrack", CONNTRACK_PRIORITY))
            if hook in _NAT_HOOKS:
                # nf_nat_core calls all nat chains of a hook in turn, by their own priorities, at its own place.
                place_of_nat = _NAT_DST if hook in (PREROUTING, OUTPUT) else _NAT_SRC
                programs_of_nat = tuple(p for _, ps in nat for p in ps)
                ordered = all(len(ps) == 1 for _, ps in nat)
                known = all(_by_registration(host, word, ps) for _, ps in nat)
                groups.append(
                    Group("nat", place_of_nat, programs_of_nat, ordered, note=HANDLE_NOTE if known else "")
                )
            if host.virtual_servers is not None and hook in (INPUT, OUTPUT):
                groups.append(Group("ipvs", INPUT_PRIORITY if hook == INPUT else OUTPUT_PRIORITY))
            groups.sort(key=lambda g: g.priority)
            self._groups[hook] = tuple(groups)

    def groups(self, hook: str) -> tuple[Group, ...]:
        """The groups of `hook`, first to run first."""
        return self._groups[hook]


HANDLE_NOTE = "of tables at one priority the one made last (by its handle) runs first"


def _by_registration(host: Host, family: str, programs: Sequence[HookProgram]) -> tuple[HookProgram, ...]:
    """The programs, last registered first, as far as table handles tell; () where they do not.

    nf_hook_entries_grow puts a new hook before those of its priority. nf_tables numbers tables as they are made, and a
    table's base chains are made with it as a rule (kube-proxy, firewalld; iptables-nft makes them on demand).
    """
    if len(programs) == 1:
        return tuple(programs)
    nft = host.state.nft
    handles: dict[tuple[str, str], int] = {}
    for table in nft.tables if nft is not None else ():
        if table.handle:  # 0 where the listing has none
            handles[table.family, table.name] = table.handle
    ranked: list[tuple[int, HookProgram]] = []
    for program in programs:
        if program.backend == Backend.LEGACY.value:
            return ()
        source = getattr(getattr(program, "program", None), "source", None)
        key = (source.family, source.name) if source is not None else (family, program.table)
        if key not in handles:
            return ()
        ranked.append((handles[key], program))
    if len({handle for handle, _ in ranked}) < len(ranked):
        return ()
    return tuple(program for _, program in sorted(ranked, key=lambda item: -item[0]))
