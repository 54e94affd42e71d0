"""Which programs hang at which netfilter hook of a node, in the kernel's order (enum nf_ip_hook_priorities)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ktp.dataplane.host import Host
from ktp.dataplane.state import State, Verdict
from ktp.dataplane.xtables import Program

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
    """Programs of one priority. `kind` is "conntrack", "nat" or "table".

    Where `ordered` is False the kernel runs them in the order of registration, last first, which is not known.
    `reroutes` tells that a changed mark or TOS makes local output route again (mangle, nft type route).
    """

    kind: str
    priority: int
    programs: tuple[HookProgram, ...] = ()
    ordered: bool = True
    reroutes: bool = False


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
                ordered = len(programs) == 1 or _known_order(programs)
                if kind == "nat":
                    nat.append((priority, tuple(programs)))
                else:
                    groups.append(Group("table", priority, tuple(programs), ordered, priority in reroutes))
            if hook in (PREROUTING, OUTPUT):
                groups.append(Group("conntrack", CONNTRACK_PRIORITY))
            if hook in _NAT_HOOKS:
                # nf_nat_core calls all nat chains of a hook in turn, by their own priorities, at its own place.
                place_of_nat = _NAT_DST if hook in (PREROUTING, OUTPUT) else _NAT_SRC
                programs_of_nat = tuple(p for _, ps in nat for p in ps)
                ordered = all(len(ps) == 1 or _known_order(ps) for _, ps in nat)
                groups.append(Group("nat", place_of_nat, programs_of_nat, ordered))
            groups.sort(key=lambda g: g.priority)
            self._groups[hook] = tuple(groups)

    def groups(self, hook: str) -> tuple[Group, ...]:
        """The groups of `hook`, first to run first."""
        return self._groups[hook]


def _known_order(programs: Sequence[HookProgram]) -> bool:
    """Chains of nftables tables at one priority run in the order of the listing's registration: unknown too."""
    return len(programs) < 2
