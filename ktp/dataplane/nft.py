"""nftables base chains as programs: rules evaluated as nft_do_chain does (net/netfilter/nf_tables_core.c).

Every rule that is met and holds is recorded: the walk that decides is the trace that is shown. What is drawn
(`numgen`, hashes) forks with its chances, what is unknown forks into both answers, and what is taken for granted (a
limit not reached, no earlier packet of a client remembered in a dynamic set) is said with the answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, NamedTuple, cast

from ktp.dataplane.hooks import FORWARD, INPUT, OUTPUT, POSTROUTING, PREROUTING, NftBaseChain
from ktp.dataplane.host import Host
from ktp.dataplane.nft_outcome import (
    ASK,
    FORK,
    GOTO,
    JUMP,
    NO_MATCH_CODE,
    ON_CODE,
    RETURN,
    Action,
    CompiledRule,
    Outcome,
    Tests,
    Way,
)
from ktp.dataplane.nft_program import TableProgram
from ktp.dataplane.packet import Packet
from ktp.dataplane.state import ACCEPT, ASKED, DROP, RANDOM, Decision, RuleOfNft, State, StepRecord, Verdict
from ktp.dataplane.state import UNKNOWN as UNDECIDED
from ktp.model.effect import Count, Drop, Effect, Leave, Unmodelled
from ktp.model.host import UNNAMED_DEVICES
from ktp.model.nftables import (
    Ct,
    CtCount,
    CtObject,
    FlowOffload,
    Mangle,
    Nat,
    NftChain,
    NftTable,
    Queue,
    Reject,
    Synproxy,
    UnsupportedStatement,
    Vmap,
    Xt,
)
from ktp.model.nftables import Verdict as NftVerdict
from ktp.model.ruleset import Backend
from ktp.model.trace import StepKind

BACKEND: Final = "nftables"
_HOOKS: Final = {
    "prerouting": PREROUTING,
    "input": INPUT,
    "forward": FORWARD,
    "output": OUTPUT,
    "postrouting": POSTROUTING,
    # Of one device, before and after everything else.
    "ingress": PREROUTING,
    "egress": POSTROUTING,
}
_BEFORE_ALL, _AFTER_ALL = -1_000_000, 1_000_000
_MAX_STACK = 512


# ------------------------------------------------------------------------------------------------- base chains


class BaseChain:
    """A base chain of an ip, ip6, inet or netdev table, at its hook."""

    backend = BACKEND

    def __init__(self, program: TableProgram, source: NftChain, priority: int) -> None:
        assert source.hook is not None
        self.program = program
        self.source = source
        self.table = program.name
        self.name = source.name
        self.hook = _HOOKS[source.hook]
        self.priority = priority
        self.chain_type = source.type or "filter"
        self.handles = (program.source.handle, source.handle)
        self._of_device = source.hook in ("ingress", "egress")
        self._flags = program.source.flags

    def is_idle(self, hook: str) -> bool:
        """Whether it has no rules and accepts."""
        return not self.source.rules and self.source.policy != "drop"

    def listed_as(self, family: str, hook: str) -> tuple[str, str, str]:
        """Family, table and name."""
        return (self.program.source.family, self.program.source.name, self.name)

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Every way through the chain."""
        if self._of_device:
            applies = self._is_of_device(state.packet)
            if applies is False:
                return [Verdict(ACCEPT, state)]
            if applies is None:
                why = f"nft does not list the device of chain {self.name}"
                return self._ask(state, host, hook, ("device", self.name), why)
        if "unreadable" in self._flags:
            why = f"nft does not list whether table {self.table} is dormant"
            return self._ask(state, host, hook, ("dormant",), why)
        return _walk(self, state, host, hook)

    def _is_of_device(self, p: Packet) -> bool | None:
        name = p.iif if self.hook == PREROUTING else p.oif
        if name is None:
            return False
        if not self.source.devices or name in UNNAMED_DEVICES or p.physin is not None:
            return None
        return name in self.source.devices

    def _ask(self, state: State, host: Host, hook: str, what: tuple[str, ...], why: str) -> list[Verdict]:
        """Both with the chain and without it."""
        key = (host.name, self.backend, self.table, *what)
        known = state.asked.get(key) if state.asked else None
        if known is None:
            other = state.fork()
            for each, answer in ((state, True), (other, False)):
                each.asked = {**(each.asked or {}), key: answer}
                each.decide(Decision(ASKED, key, 0 if answer else 1, 1.0, f"table {self.table}", why, None))
            return [*_walk(self, state, host, hook), Verdict(ACCEPT, other)]
        return _walk(self, state, host, hook) if known else [Verdict(ACCEPT, state)]


class BridgeChain:
    """A base chain of a bridge table: it may stop packets on a bridge, and no more is modelled of it."""

    backend = BACKEND

    def __init__(self, table: NftTable, source: NftChain) -> None:
        assert source.hook is not None
        self.table = f"{table.family} {table.name}"
        self.name = source.name
        self.hook = _HOOKS[source.hook]
        self.priority = _BEFORE_ALL + (source.priority or 0)
        self.chain_type = "filter"
        self.handles = (table.handle, source.handle)
        self._harmless = not _may_stop(table, source, set())
        self._place = (table.family, table.name, source.name)

    def is_idle(self, hook: str) -> bool:
        """Whether it lets all pass."""
        return self._harmless

    def listed_as(self, family: str, hook: str) -> tuple[str, str, str]:
        """Family, table and name."""
        return self._place

    def run(self, state: State, host: Host, hook: str) -> list[Verdict]:
        """Both ways, for a packet on a bridge."""
        p = state.packet
        if p.physin is None and not p.bridged:
            return [Verdict(ACCEPT, state)]
        key = (host.name, self.backend, self.table, self.name, p.flow_key())
        known = state.asked.get(key) if state.asked else None
        if known is not None:
            return [
                Verdict(ACCEPT if known else DROP, state, "" if known else f"chain {self.name} on the bridge")
            ]
        why = f"rules for bridges ({self.table}) are not modelled"
        other = state.fork()
        for each, answer in ((state, True), (other, False)):
            each.asked = {**(each.asked or {}), key: answer}
            each.decide(Decision(ASKED, key, 0 if answer else 1, 1.0, f"chain {self.name}", why, None))
        return [Verdict(ACCEPT, state), Verdict(DROP, other, f"chain {self.name} on the bridge")]


def _may_stop(table: NftTable, chain: NftChain, seen: set[str]) -> bool:
    if chain.policy == "drop":
        return True
    seen.add(chain.name)
    for rule in chain.rules:
        for statement in rule.statements:
            match statement:
                case NftVerdict("jump" | "goto", str(target)):
                    if (
                        target not in seen
                        and target in table.chains
                        and _may_stop(table, table.chains[target], seen)
                    ):
                        return True
                case (
                    NftVerdict("drop")
                    | Reject()
                    | Vmap()
                    | Queue()
                    | UnsupportedStatement()
                    | Mangle()
                    | Xt()
                    | Nat()
                ):
                    return True
                case _:
                    pass
    return False


def nft_base_chains(host: Host, family: int) -> Sequence[NftBaseChain]:
    """The native nftables base chains of a node that packets of `family` (4 or 6) pass.

    Chains that are iptables-nft's and were read as such are left to their own rulesets: nft lists their matches by
    name only.
    """
    ruleset = host.state.nft
    if ruleset is None:
        return ()
    word = "ip" if family == 4 else "ip6"
    elsewhere = {
        table
        for other in host.state.rulesets_of(word)
        if other.backend is not Backend.LEGACY
        for table in other.tables()
    }
    tracked = tracks_connections(host, family)
    found: list[NftBaseChain] = []
    for table in ruleset.tables:
        if table.is_dormant:
            continue
        if table.family == "bridge":
            found += [BridgeChain(table, c) for c in table.base_chains if c.hook in _HOOKS]
            continue
        if table.family not in (word, "inet", "netdev"):
            continue
        program = TableProgram(table, host, family)
        for chain in table.base_chains:
            place = place_of_chain(chain)
            if place is None or (chain.type == "nat" and not tracked):
                continue
            if table.name in elsewhere and table.is_of_xtables(chain):
                continue
            found.append(BaseChain(program, chain, place[1]))
    return found


def place_of_chain(chain: NftChain) -> tuple[str, int, str] | None:
    """Hook, priority and kind ("nat" or "table") of a base chain; None where it hangs at none of the hooks of `HOOKS`.

    Those of one device come before all others, or behind.
    """
    if chain.hook not in _HOOKS:
        return None
    priority = (chain.priority or 0) + {"ingress": _BEFORE_ALL, "egress": _AFTER_ALL}.get(chain.hook, 0)
    return _HOOKS[chain.hook], priority, "nat" if chain.type == "nat" else "table"


def tracks_connections(host: Host, family: int) -> bool:
    """Whether connection tracking is on for packets of `family`: a chain of type nat without it is never asked.

    Expressions and statements turn it on where they need it (nf_ct_netns_get); a chain of type nat alone does not.
    Rules of iptables are not searched for such ones: its nat table is taken to hold some.
    """
    word = "ip" if family == 4 else "ip6"
    if any("nat" in ruleset.tables() for ruleset in host.state.rulesets_of(word)):
        return True
    tables = host.state.nft.tables if host.state.nft is not None else ()
    return any(
        _needs_tracking(rule.statements)
        for table in tables
        if table.family in (word, "inet", "bridge")
        for chain in table.chains.values()
        for rule in chain.rules
    )


def _needs_tracking(part: Any) -> bool:
    if isinstance(part, Ct | Nat | CtCount | CtObject | Synproxy | FlowOffload | Xt):
        return True
    if isinstance(part, tuple):
        return any(map(_needs_tracking, part))
    return is_dataclass(part) and any(_needs_tracking(getattr(part, field.name)) for field in fields(part))


# --------------------------------------------------------------------------------------------------- the walk


class _Frame(NamedTuple):
    """Where one state stands: `operation` of rule `at` of `rules` comes next, or `outcome` is to be acted on."""

    state: State
    chain: str
    rules: tuple[CompiledRule, ...]
    at: int
    operation: int
    stack: tuple[Any, ...]
    effects: tuple[Effect, ...]
    outcome: Outcome | None


def _walk(base: BaseChain, first: State, host: Host, hook: str) -> list[Verdict]:
    """Every way through a base chain. Iterative: a Service may have thousands of endpoints, each a fork."""
    program = base.program
    table = base.table
    out: list[Verdict] = []
    rules = program.chain(base.name)
    assert rules is not None
    work = [_Frame(first, base.name, rules, 0, 0, (), (), None)]
    while work:
        state, chain, rules, index, operation, stack, effects, outcome = work.pop()
        while True:
            if outcome is None:
                if index >= len(rules):
                    if stack:  # the end of a chain: back to the caller
                        (chain, rules, index), stack = stack[-1], stack[:-1]
                        operation, effects = 0, ()
                        continue
                    out.append(_policy(base, state, hook))
                    break
                operations = rules[index].operations
                if operation >= len(operations):
                    _note(state, effects or (Count(),), base, hook, chain, rules[index])
                    index, operation, effects = index + 1, 0, ()
                    continue
                one = operations[operation]
                operation += 1
                if type(one) is Tests:
                    answer: bool | None = True
                    why = ""
                    for number, test in enumerate(one.tests):
                        held = test(state, host, hook)
                        if held is False:
                            answer = False
                            break
                        if held is None and answer:
                            answer, why = None, one.why[number]
                    if answer is True:
                        continue
                    if answer is False:
                        _note_left(state, effects, base, hook, chain, rules[index])
                        index, operation, effects = index + 1, 0, ()
                        continue
                    rule = rules[index].rule
                    key = (
                        host.name,
                        BACKEND,
                        table,
                        rule.chain,
                        rule.text,
                        operation,
                        state.packet.flow_key(),
                    )
                    known = state.asked.get(key) if state.asked else None
                    if known is None:
                        other = state.fork()
                        _ask(other, key, False, rule, why)
                        work.append(_Frame(other, chain, rules, index + 1, 0, stack, (), None))
                        _ask(state, key, True, rule, why)
                    elif known is False:
                        index, operation, effects = index + 1, 0, ()
                    continue
                outcome = cast("Action", one)(state, host, hook)
            code, data, effect, why = outcome
            outcome = None
            if code == ON_CODE:
                if effect:
                    effects = (*effects, effect)
                continue
            if code == NO_MATCH_CODE:
                _note_left(state, effects, base, hook, chain, rules[index])
                index, operation, effects = index + 1, 0, ()
                continue
            compiled = rules[index]
            if code == FORK:
                ways = cast("tuple[Way, ...]", data)
                chance = bool(ways[0].chance)
                for number in range(len(ways) - 1, -1, -1):
                    way = ways[number]
                    each = state.fork() if number else state
                    kind = RANDOM if chance else ASKED
                    mark: Hashable = (
                        compiled.rule
                        if chance
                        else (host.name, BACKEND, table, compiled.rule.text, "element")
                    )
                    share = way.chance if chance else 1.0
                    each.decide(Decision(kind, mark, number, share, compiled.rule.text, why, compiled.rule))
                    result = way.act(each, host, hook)
                    work.append(_Frame(each, chain, rules, index, operation, stack, effects, result))
                break
            if code == ASK:
                # It may not hold, or do anything at all.
                key = (
                    host.name,
                    BACKEND,
                    table,
                    compiled.rule.chain,
                    compiled.rule.text,
                    operation,
                    state.packet.flow_key(),
                )
                known = state.asked.get(key) if state.asked else None
                if known is None:
                    other = state.fork()
                    _ask(other, key, False, compiled.rule, data)
                    work.append(_Frame(other, chain, rules, index + 1, 0, stack, (), None))
                    _ask(state, key, True, compiled.rule, data)
                elif known is False:
                    index, operation, effects = index + 1, 0, ()
                    continue
                step = _note(state, (Unmodelled("?"),), base, hook, chain, compiled)
                out.append(Verdict(UNDECIDED, state, data, step))
                break
            step = _note(
                state, effects if effect is None else (*effects, effect), base, hook, chain, compiled
            )
            effects = ()
            if code == RETURN:
                if stack:
                    (chain, rules, index), stack = stack[-1], stack[:-1]
                    operation = 0
                    continue
                out.append(_policy(base, state, hook))
                break
            if code in (JUMP, GOTO):
                target = program.chain(data)
                if target is None:
                    out.append(Verdict(UNDECIDED, state, f"chain {data} is not in the listing", step))
                    break
                if code == JUMP:
                    stack = (*stack, (chain, rules, index + 1))
                    if len(stack) > _MAX_STACK:
                        out.append(Verdict(UNDECIDED, state, "the chains jump in a circle", step))
                        break
                chain, rules, index, operation = data, target, 0, 0
                continue
            if type(data) is int:
                out.append(Verdict(data, state, "", step))
                break
            verdict = cast("Verdict", data)
            ct = state.packet.ct
            if verdict.code == ACCEPT and ct is not None and ct.dst_done and hook in (PREROUTING, OUTPUT):
                state.nat_step = step
            out.append(verdict._replace(step=step))
            break
    return out


def _note(
    state: State,
    effects: tuple[Effect, ...],
    base: BaseChain,
    hook: str,
    chain: str,
    compiled: CompiledRule,
) -> StepRecord:
    return state.note(
        StepKind.RULE,
        *effects,
        hook=hook,
        table=base.table,
        chain=chain,
        rule=compiled.rule,
        backend=base.backend,
    )


def _note_left(
    state: State, effects: tuple[Effect, ...], base: BaseChain, hook: str, chain: str, compiled: CompiledRule
) -> None:
    """A rule is left in its middle: what it has changed stays changed."""
    if effects:
        _note(state, (*effects, Leave()), base, hook, chain, compiled)


def _policy(base: BaseChain, state: State, hook: str) -> Verdict:
    if base.source.policy != "drop":
        return Verdict(ACCEPT, state)
    step = state.note(
        StepKind.POLICY, Drop(), hook=hook, table=base.table, chain=base.name, backend=base.backend,
        text=f"policy drop of {base.name}",
    )  # fmt: skip
    return Verdict(DROP, state, "", step)


def _ask(state: State, key: Hashable, answer: bool, rule: RuleOfNft, why: str) -> None:
    state.asked = {**(state.asked or {}), key: answer}
    state.decide(Decision(ASKED, key, 0 if answer else 1, 1.0, rule.text, why, rule))
