"""nftables base chains as programs: rules evaluated as nft_do_chain does (net/netfilter/nf_tables_core.c).

Every rule that is met and holds is recorded: the walk that decides is the trace that is shown. What is drawn
(`numgen`, hashes) forks with its chances, what is unknown forks into both answers, and what is taken for granted (a
limit not reached, no earlier packet of a client remembered in a dynamic set) is said with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from ktp.dataplane import packet as pk
from ktp.dataplane.hooks import FORWARD, INPUT, OUTPUT, POSTROUTING, PREROUTING, NftBaseChain
from ktp.dataplane.host import Host
from ktp.dataplane.nft_sets import Found, SetLookup
from ktp.dataplane.nft_values import (
    BREAK,
    UNKNOWN,
    Compiled,
    Draw,
    Getter,
    NamePrefix,
    Span,
    compile_value,
    constant,
    matches,
    unknown_value,
)
from ktp.dataplane.packet import RANDOM_PORTS, Packet, Port, endpoint_text, to_text
from ktp.dataplane.state import ACCEPT, ASKED, DROP, RANDOM, REJECT, Decision, State, Verdict
from ktp.dataplane.state import UNKNOWN as UNDECIDED
from ktp.dataplane.xtables import masquerade, redirect_address, translate_destination, translate_source
from ktp.model.nftables import (
    AnonymousSet,
    Concat,
    Counter,
    Ct,
    CtCount,
    CtObject,
    Dup,
    Expression,
    ExtensionHeader,
    Fib,
    FlowOffload,
    Fwd,
    Immediate,
    Last,
    Limit,
    Log,
    Mangle,
    MapLookup,
    Match,
    Meta,
    Meter,
    Nat,
    NftChain,
    NftMap,
    NftRule,
    NftSet,
    NftTable,
    Notrack,
    Payload,
    Queue,
    Quota,
    Reject,
    SetElement,
    SetReference,
    SetUpdate,
    Statement,
    Synproxy,
    Tproxy,
    UnsupportedExpression,
    UnsupportedStatement,
    Vmap,
    Xt,
    datatype_of,
    datatypes_of,
)
from ktp.model.nftables import Verdict as NftVerdict
from ktp.model.ruleset import Backend

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
# Addresses or ports of a range that are followed one by one; of a larger one the drawn is unknown.
_MAX_RANGE = 256

_BELOW_LIMIT = "the rate is below the rule's limit"
_FEW_CONNECTIONS = "the client has fewer connections open than the rule's `ct count` allows"
_NOT_USED_UP = "the quota is not used up meanwhile"


@dataclass(frozen=True, slots=True)
class RuleOfNft:
    """A rule in its place, as steps and findings name it."""

    table: str
    chain: str
    source: NftRule

    @property
    def text(self) -> str:
        """As `nft list ruleset` prints it."""
        return self.source.text

    @property
    def line(self) -> int:
        """Its line in a listing, 0 where it was read from JSON."""
        return self.source.line

    @property
    def position(self) -> int:
        """Its place in the chain, from 1 on."""
        return self.source.index + 1

    @property
    def comment(self) -> str | None:
        """Its comment."""
        return self.source.comment


# --------------------------------------------------------------------------------------------------- outcomes

# What an operation of a rule came to.
_ON, _NO_MATCH, _NEXT_RULE, _RETURN, _JUMP, _GOTO, _END, _ASK, _FORK = range(9)


class Outcome(NamedTuple):
    """`code` of the above; `data` the target chain, the Verdict, the reason to ask, or the ways of a fork."""

    code: int
    data: Any = None
    effect: str = ""


class Way(NamedTuple):
    """One way of a fork: its chance (1.0 where not a matter of chance), and what follows."""

    chance: float
    act: Callable[[State, Host, str], Outcome]


ON: Final = Outcome(_ON)
NO_MATCH: Final = Outcome(_NO_MATCH)

Action = Callable[[State, Host, str], Outcome]
Test = Callable[[State, Host, str], "bool | None"]


class Tests(NamedTuple):
    """Conditions that stand together: all must hold. `why` says why each may be unknown."""

    tests: tuple[Test, ...]
    why: tuple[str, ...]


Operation = Tests | Action


class CompiledRule(NamedTuple):
    """A rule ready to run."""

    rule: RuleOfNft
    operations: tuple[Operation, ...]


def _always(outcome: Outcome) -> Action:
    return lambda state, host, hook: outcome


def _undecided(state: State, why: str) -> Outcome:
    return Outcome(_END, Verdict(UNDECIDED, state, why))


# ----------------------------------------------------------------------------------------------------- tables


class TableProgram:
    """The chains and sets of one table, compiled when first met, for one node and address family."""

    def __init__(self, table: NftTable, host: Host, family: int) -> None:
        self.source = table
        self.name = f"{table.family} {table.name}"
        self.host = host
        self.family = family
        self._chains: dict[str, tuple[CompiledRule, ...] | None] = {}
        self._sets: dict[tuple[str, bool], SetLookup | None] = {}
        self._objects = {(item.kind, item.name): item for item in table.objects}
        self._dynamic: frozenset[str] | None = None

    def chain(self, name: str) -> tuple[CompiledRule, ...] | None:
        """The rules of a chain; None where the listing has no chain of that name."""
        if name not in self._chains:
            found = self.source.chains.get(name)
            self._chains[name] = (
                None if found is None else tuple(self._rule(found.name, rule) for rule in found.rules)
            )
        return self._chains[name]

    def is_dynamic(self, item: NftSet) -> bool:
        """Whether packets write to the set."""
        if "dynamic" in item.flags:
            return True
        if self._dynamic is None:
            self._dynamic = frozenset(
                statement.set
                for chain in self.source.chains.values()
                for rule in chain.rules
                for statement in rule.statements
                if isinstance(statement, SetUpdate)
            )
        return item.name in self._dynamic

    # -- rules

    def _rule(self, chain: str, rule: NftRule) -> CompiledRule:
        operations: list[Operation] = []
        tests: list[Test] = []
        why: list[str] = []
        for statement in rule.statements:
            compiled = self._statement(statement)
            if compiled is None:
                continue
            if isinstance(compiled, tuple):
                test, reason = compiled
                tests.append(test)
                why.append(reason)
                continue
            if tests:
                operations.append(Tests(tuple(tests), tuple(why)))
                tests, why = [], []
            operations.append(compiled)
        if tests:
            operations.append(Tests(tuple(tests), tuple(why)))
        return CompiledRule(RuleOfNft(self.name, chain, rule), tuple(operations))

    def _statement(self, statement: Statement) -> Action | tuple[Test, str] | None:
        """A statement as an action, as (test, why it may be unknown), or None where it changes nothing."""
        match statement:
            case Match():
                return self._match(statement)
            case NftVerdict():
                return _always(_verdict_outcome(statement))
            case Vmap():
                return self._vmap(statement)
            case Nat():
                return self._nat(statement)
            case Reject():
                return _reject(statement)
            case Mangle():
                return self._mangle(statement)
            case Limit():
                return self._limit(statement)
            case Quota():
                return self._quota(statement)
            case CtCount(_, over):
                return _assumed(not over, _FEW_CONNECTIONS)
            case SetUpdate():
                return self._set_update(statement)
            case Meter(_, _, inner):
                compiled = self._statement(inner)
                return compiled if isinstance(compiled, tuple) else None
            case Notrack():
                return _notrack
            case Queue():
                return lambda s, h, hook: _undecided(s, "`queue` hands the packet to a program of the node")
            case Synproxy():
                return lambda s, h, hook: _undecided(s, "`synproxy` answers in the server's place")
            case Tproxy():
                return lambda s, h, hook: _undecided(s, "`tproxy` hands the packet to a proxy of the node")
            case Fwd():
                return lambda s, h, hook: _undecided(s, "`fwd` sends the packet out by another device")
            case Xt("match", "comment"):
                return None
            case Xt(kind, name):
                why = f"of the x_tables {kind or 'extension'} {name!r} nft lists no more than the name"
                if kind == "match":
                    return (lambda s, h, hook: None), why
                return lambda s, h, hook: Outcome(_ASK, why)
            case UnsupportedStatement(raw):
                reason = f"ktp does not know the statement {raw!r}"
                return lambda s, h, hook: Outcome(_ASK, reason)
            case Counter() | Log() | Dup() | CtObject() | FlowOffload() | Last():
                return None

    # -- sets

    def _lookup(
        self, data: Expression, key: Expression, *, verdicts: bool
    ) -> tuple[SetLookup, NftSet | None] | None:
        """What the key is looked up in; None where it is not in the listing."""
        if isinstance(data, AnonymousSet):
            types = datatypes_of(key)
            return SetLookup(self._known(data.elements, types), types, self._payload_of(verdicts, ())), None
        if isinstance(data, SetReference):
            item = self.source.set_or_map(data.name)
            if item is None:
                return None
            found = self._sets.get((data.name, verdicts))
            if found is None:
                values = item.value_types if isinstance(item, NftMap) else ()
                payload = self._payload_of(verdicts, values)
                found = SetLookup(self._known(item.elements, item.key_types), item.key_types, payload)
                self._sets[data.name, verdicts] = found
            return found, item
        return None

    def _known(self, elements: Sequence[SetElement], types: Sequence[str | None]) -> Sequence[SetElement]:
        """The elements, interfaces given by number with their names."""
        if "iface_index" not in types:
            return elements
        return [SetElement(self._named(e.key, types), e.value) for e in elements]

    def _named(self, key: Expression, types: Sequence[str | None]) -> Expression:
        if isinstance(key, Concat):
            pairs = zip(key.parts, types, strict=False)
            return Concat(tuple(self._named(part, (datatype,)) for part, datatype in pairs))
        if types and types[0] == "iface_index" and isinstance(key, Immediate) and type(key.value) is int:
            return Immediate(self._interface_name(key.value))
        return key

    def _interface_name(self, index: int) -> str:
        if index == 0:
            return ""
        return next((i.name for i in self.host.interfaces.values() if i.index == index), f"#{index}")

    @staticmethod
    def _payload_of(verdicts: bool, value_types: Sequence[str | None]) -> Callable[[SetElement], Any]:
        def payload(element: SetElement) -> Any:
            value = element.value
            if value is None:
                return True
            if isinstance(value, NftVerdict):
                return value if verdicts else UNKNOWN
            try:
                if isinstance(value, Concat):
                    padded = (*value_types, *[None] * len(value.parts))
                    return tuple(constant(part, t) for part, t in zip(value.parts, padded, strict=False))
                return constant(value, value_types[0] if value_types else None)
            except (ValueError, KeyError, OSError):
                return UNKNOWN

        return payload

    def _not_remembered(self, state: State, item: NftSet, key: Any) -> bool:
        """Whether the packet's own walk has put `key` in a dynamic set; says what is assumed where it has not."""
        if _entry(self, item.name, key) in state.recent:
            return False
        state.assume(f"no earlier packet of the client is remembered in set {item.name}")
        return True

    # -- expressions

    def value(self, expression: Expression, datatype: str | None = None) -> Compiled:
        """The compiled expression, with lookups in this table's maps."""
        return compile_value(expression, datatype, self._map_value)

    def _map_value(self, expression: Expression) -> Compiled | None:
        if not isinstance(expression, MapLookup):
            return None
        key = self.value(expression.key)
        target = self._lookup(expression.data, expression.key, verdicts=False)
        if target is None:
            return unknown_value(f"the map of {expression} is not in the listing")
        lookup, _ = target

        def found(value: Any) -> Any:
            if value is BREAK:
                return BREAK
            answer = lookup.find(value)
            if answer.maybe:
                return UNKNOWN
            return BREAK if answer.element is None else answer.element

        def of(get: Getter) -> Getter:
            return lambda p, h, hook: found(get(p, h, hook))

        if key.draw is not None:
            drawer = key.given
            assert drawer is not None
            return Compiled(key.get, key.why, key.assumption, key.draw, lambda number: of(drawer(number)))
        return Compiled(of(key.get), key.why, key.assumption)

    # -- conditions

    def _match(self, statement: Match) -> Action | tuple[Test, str]:
        left, operator, right = statement.left, statement.operator, statement.right
        key = self.value(left)
        accepts = self._acceptor(left, operator, right)
        if accepts is None or isinstance(left, UnsupportedExpression):
            return (lambda s, h, hook: None), f"ktp cannot tell whether {statement} holds"
        if key.draw is not None:
            return self._drawn_match(key, accepts)
        get, assumption = key.get, key.assumption

        def test(state: State, host: Host, hook: str) -> bool | None:
            value = get(state.packet, host, hook)
            if value is BREAK:
                return False
            if assumption is not None and value is not UNKNOWN:
                state.assume(assumption)
            return accepts(state, value)

        return test, key.why

    def _acceptor(
        self, left: Expression, operator: str, right: Expression
    ) -> Callable[[State, Any], bool | None] | None:
        """Whether a value of the left side satisfies the right one; None where the right side is not understood."""
        types = datatypes_of(left)
        if isinstance(right, AnonymousSet | SetReference):
            return self._set_acceptor(left, operator, right)
        if isinstance(left, Fib | ExtensionHeader | Meta) and isinstance(right, Immediate):
            if isinstance(right.value, bool) and operator in ("==", "!="):
                wanted_presence = right.value == (operator == "==")
                return lambda state, v: None if v is UNKNOWN else bool(v) == wanted_presence
        try:
            if isinstance(left, Concat):
                if not isinstance(right, Concat) or len(right.parts) != len(types):
                    return None
                wanted: Any = tuple(
                    constant(self._named(part, (t,)), t) for part, t in zip(right.parts, types, strict=True)
                )
                return _negatable(operator, lambda v: _all_match(wanted, v))
            wanted = constant(self._named(right, types), types[0])
        except (ValueError, KeyError, OSError):
            return None
        if operator == "in":
            if isinstance(wanted, int):
                return lambda state, v: None if not isinstance(v, int) else bool(v & wanted)
            return None
        if operator == "!":
            if isinstance(wanted, int):
                return lambda state, v: None if not isinstance(v, int) else not v & wanted
            return None
        if operator in ("==", "!="):
            return _equality(wanted, operator == "==")
        return _ordering(operator, wanted)

    def _set_acceptor(
        self, left: Expression, operator: str, right: AnonymousSet | SetReference
    ) -> Callable[[State, Any], bool | None] | None:
        target = self._lookup(right, left, verdicts=False)
        if target is None or operator not in ("==", "!=", "in"):
            return None
        lookup, item = target
        wanted = operator != "!="
        dynamic = item is not None and self.is_dynamic(item)

        def accepts(state: State, value: Any) -> bool | None:
            found = lookup.find(value)
            if found.maybe:
                return None
            hit = found.element is not None
            if dynamic and not hit and item is not None:
                hit = not self._not_remembered(state, item, value)
            return hit == wanted

        return accepts

    def _drawn_match(self, key: Compiled, accepts: Callable[[State, Any], bool | None]) -> Action:
        draw, given = key.draw, key.given
        assert draw is not None
        assert given is not None

        def act(state: State, host: Host, hook: str) -> Outcome:
            p = state.packet
            good = 0
            for number in range(draw.offset, draw.offset + draw.count):
                value = given(number)(p, host, hook)
                if value is BREAK:
                    continue
                answer = accepts(state, value)
                if answer is None:
                    return Outcome(_ASK, key.why)
                good += answer
            _assume_draw(state, draw)
            if good == draw.count:
                return ON
            if not good:
                return NO_MATCH
            chance = good / draw.count
            return Outcome(_FORK, (Way(chance, _always(ON)), Way(1 - chance, _always(NO_MATCH))))

        return act

    def _limit(self, statement: Limit) -> tuple[Test, str]:
        if statement.name is not None:
            item = self._object("limit", statement.name)
            if not isinstance(item, Limit):
                return (lambda s, h, hook: None), "the limit is not in the listing"
            statement = item
        return _assumed(not statement.over, _BELOW_LIMIT)

    def _quota(self, statement: Quota) -> tuple[Test, str]:
        if statement.name is not None:
            item = self._object("quota", statement.name)
            if not isinstance(item, Quota):
                return (lambda s, h, hook: None), "the quota is not in the listing"
            statement = item
        # nft_overquota: consumed >= quota, told apart by the flag
        if statement.used >= statement.value:
            exceeded = statement.over
            return (lambda s, h, hook: exceeded), ""
        return _assumed(not statement.over, _NOT_USED_UP)

    def _object(self, kind: str, name: Expression) -> object | None:
        if isinstance(name, Immediate):
            item = self._objects.get((kind, str(name.value)))
            return item.statement if item is not None else None
        return None

    # -- verdicts

    def _vmap(self, statement: Vmap) -> Action:
        key = self.value(statement.key)
        target = self._lookup(statement.data, statement.key, verdicts=True)
        if target is None:
            return lambda s, h, hook: Outcome(_ASK, f"ktp cannot look up {statement}")
        lookup, item = target
        dynamic = item is not None and self.is_dynamic(item)
        if key.draw is not None:
            return self._drawn_vmap(key, lookup)
        get, assumption, why = key.get, key.assumption, key.why
        outcomes: dict[NftVerdict, Outcome] = {}

        def act(state: State, host: Host, hook: str) -> Outcome:
            value = get(state.packet, host, hook)
            if value is BREAK:
                return NO_MATCH
            if assumption is not None:
                state.assume(assumption)
            found = lookup.find(value)
            if found.maybe:
                return _maybe_verdicts(found, why)
            element = found.element
            if element is None:
                if dynamic and item is not None:
                    self._not_remembered(state, item, value)
                return NO_MATCH
            outcome = outcomes.get(element)
            if outcome is None:
                outcome = outcomes[element] = _verdict_outcome(element)
            return outcome

        return act

    @staticmethod
    def _drawn_vmap(key: Compiled, lookup: SetLookup) -> Action:
        draw, given = key.draw, key.given
        assert draw is not None
        assert given is not None

        def act(state: State, host: Host, hook: str) -> Outcome:
            p = state.packet
            weights: dict[NftVerdict | None, int] = {}
            for number in range(draw.offset, draw.offset + draw.count):
                value = given(number)(p, host, hook)
                found = lookup.find(value) if value is not BREAK else Found(None)
                if found.maybe:
                    return _maybe_verdicts(found, key.why)
                weights[found.element] = weights.get(found.element, 0) + 1
            _assume_draw(state, draw)
            ways = [
                Way(
                    weight / draw.count,
                    _always(NO_MATCH if verdict is None else _verdict_outcome(verdict)),
                )
                for verdict, weight in weights.items()
            ]
            return _fork(ways, state, host, hook)

        return act

    # -- changes

    def _mangle(self, statement: Mangle) -> Action | None:
        key = statement.key
        new = self.value(statement.value, datatype_of(key))
        change = _changer(key)
        if change is None:
            return None
        if new.draw is not None:
            draw, given = new.draw, new.given
            assert given is not None

            def drawn(state: State, host: Host, hook: str) -> Outcome:
                _assume_draw(state, draw)
                values: dict[Any, int] = {}
                for number in range(draw.offset, draw.offset + draw.count):
                    value = given(number)(state.packet, host, hook)
                    values[value] = values.get(value, 0) + 1
                ways = [Way(n / draw.count, _changing(change, value, new.why)) for value, n in values.items()]
                return _fork(ways, state, host, hook)

            return drawn
        get, assumption, why = new.get, new.assumption, new.why

        def act(state: State, host: Host, hook: str) -> Outcome:
            value = get(state.packet, host, hook)
            if assumption is not None:
                state.assume(assumption)
            return _changing(change, value, why)(state, host, hook)

        return act

    def _set_update(self, statement: SetUpdate) -> Action:
        element = statement.element
        key = self.value(element.key)
        conditions = [self._statement(inner) for inner in element.statements]
        tests = [compiled[0] for compiled in conditions if isinstance(compiled, tuple)]
        name, removes = statement.set, statement.operation == "delete"
        words = f"{statement.operation} @{name}"

        def act(state: State, host: Host, hook: str) -> Outcome:
            value = key.get(state.packet, host, hook)
            if value is BREAK:
                return NO_MATCH
            if value is not UNKNOWN:
                entry = _entry(self, name, value)
                state.recent = state.recent - {entry} if removes else state.recent | {entry}
            for test in tests:
                if test(state, host, hook) is False:
                    return NO_MATCH
            return Outcome(_ON, None, words)

        return act

    # -- NAT

    def _nat(self, statement: Nat) -> Action:
        kind = statement.kind
        if kind == "masquerade":
            return self._masquerade(statement)
        address = self._nat_value(
            statement.address, "ipv6_addr" if statement.family == "ip6" else "ipv4_addr"
        )
        port = self._nat_value(statement.port, "inet_service")
        family = {"ip": 4, "ip6": 6}.get(statement.family or "")
        netmap = "prefix" in statement.type_flags
        random = any(flag in ("random", "fully-random") for flag in statement.flags)

        def translate(a: Getter | None, b: Getter | None) -> Action:
            def act(state: State, host: Host, hook: str) -> Outcome:
                p = state.packet
                if p.ct is None or (family is not None and p.family != family):
                    return NO_MATCH
                target = a(p, host, hook) if a is not None else None
                ports = b(p, host, hook) if b is not None else None
                if target is BREAK or ports is BREAK:
                    return NO_MATCH
                if isinstance(target, tuple):
                    target, ports = target[0], target[1] if len(target) > 1 else ports
                if target is UNKNOWN or ports is UNKNOWN:
                    return _undecided(state, f"where {statement} leads is not known")
                if kind == "redirect":
                    return _redirected(state, host, hook, ports)
                if kind == "dnat":
                    return _translated_destination(state, host, hook, target, ports, netmap=netmap)
                return _translated_source(state, host, hook, target, ports, netmap=netmap, random=random)

            return act

        drawing = address if address is not None and address.draw is not None else port
        if drawing is None or drawing.draw is None:
            return translate(address.get if address else None, port.get if port else None)
        draw, given = drawing.draw, drawing.given
        assert given is not None
        other_address = address.get if address is not None and drawing is not address else None
        other_port = port.get if port is not None and drawing is not port else None

        def act(state: State, host: Host, hook: str) -> Outcome:
            p = state.packet
            if p.ct is None or (family is not None and p.family != family):
                return NO_MATCH
            _assume_draw(state, draw)
            weights: dict[Any, int] = {}
            for number in range(draw.offset, draw.offset + draw.count):
                value = given(number)(p, host, hook)
                weights[value] = weights.get(value, 0) + 1
            ways = []
            for value, weight in weights.items():
                fixed = _fixed(value)
                if drawing is address:
                    ways.append(Way(weight / draw.count, translate(fixed, other_port)))
                else:
                    ways.append(Way(weight / draw.count, translate(other_address, fixed)))
            return _fork(ways, state, host, hook)

        return act

    def _nat_value(self, expression: Expression | None, datatype: str) -> Compiled | None:
        return None if expression is None else self.value(expression, datatype)

    def _masquerade(self, statement: Nat) -> Action:
        sport: Port | None = None
        if any(flag in ("random", "fully-random") for flag in statement.flags):
            sport = RANDOM_PORTS
        if statement.port is not None:
            try:
                ports = constant(statement.port, "inet_service")
            except ValueError:
                ports = Span(*RANDOM_PORTS)
            sport = (ports.low, ports.high) if isinstance(ports, Span) else cast("int", ports)

        def act(state: State, host: Host, hook: str) -> Outcome:
            if state.packet.ct is None:
                return NO_MATCH
            verdict = masquerade(state, host, sport)
            p = verdict.state.packet
            return Outcome(_END, verdict, f"masquerade as {to_text(p.family, p.src)}")

        return act


# ------------------------------------------------------------------------------------------------- conditions


def _entry(program: TableProgram, name: str, key: Any) -> tuple[str, int]:
    """A key in a dynamic set, as State.recent holds it."""
    return f"{program.host.name} {program.name} @{name}", cast("int", key)


def _all_match(wanted: tuple[Any, ...], value: Any) -> bool | None:
    if not isinstance(value, tuple):
        return None
    answer: bool | None = True
    for w, v in zip(wanted, value, strict=False):
        one = matches(w, v)
        if one is False:
            return False
        if one is None:
            answer = None
    return answer


def _negatable(
    operator: str, accepts: Callable[[Any], bool | None]
) -> Callable[[State, Any], bool | None] | None:
    if operator == "==":
        return lambda state, v: accepts(v)
    if operator == "!=":

        def differs(state: State, v: Any) -> bool | None:
            answer = accepts(v)
            return None if answer is None else not answer

        return differs
    return None


def _equality(wanted: Any, equal: bool) -> Callable[[State, Any], bool | None]:
    if isinstance(wanted, Span | NamePrefix) or not isinstance(wanted, int | str):
        return cast(
            "Callable[[State, Any], bool | None]",
            _negatable("==" if equal else "!=", lambda v: matches(wanted, v)),
        )

    def same(state: State, v: Any) -> bool | None:
        if v is UNKNOWN:
            return None
        if isinstance(v, Span):
            answer = matches(wanted, v)
            return None if answer is None else answer == equal
        return bool(v == wanted) == equal

    return same


def _ordering(operator: str, wanted: Any) -> Callable[[State, Any], bool | None] | None:
    if not isinstance(wanted, int):
        return None
    every = (1 << 128) - 1
    span = {
        "<": Span(0, wanted - 1),
        "<=": Span(0, wanted),
        ">": Span(wanted + 1, every),
        ">=": Span(wanted, every),
    }.get(operator)
    if span is None:
        return None
    return lambda state, v: matches(span, v)


def _assumed(answer: bool, sentence: str) -> tuple[Test, str]:
    def test(state: State, host: Host, hook: str) -> bool | None:
        state.assume(sentence)
        return answer

    return test, ""


def _assume_draw(state: State, draw: Draw) -> None:
    if draw.assumption is not None:
        state.assume(draw.assumption)


# --------------------------------------------------------------------------------------------------- verdicts


def _verdict_outcome(verdict: NftVerdict) -> Outcome:
    kind, target = verdict.kind, verdict.target
    if kind == "jump":
        return Outcome(_JUMP, target, f"jump {target}")
    if kind == "goto":
        return Outcome(_GOTO, target, f"goto {target}")
    if kind == "accept":
        return Outcome(_END, ACCEPT, "accept")
    if kind == "drop":
        return Outcome(_END, DROP, "drop")
    if kind == "return":
        return Outcome(_RETURN, None, "return")
    return Outcome(_NEXT_RULE, None, "continue")


def _maybe_verdicts(found: Found, why: str) -> Outcome:
    """A lookup that may find one of several elements, or none: all are followed."""
    ways: list[Way] = []
    for verdict in dict.fromkeys(found.maybe):
        if verdict is UNKNOWN:
            return Outcome(_ASK, why)
        ways.append(Way(0.0, _always(NO_MATCH if verdict is None else _verdict_outcome(verdict))))
    return Outcome(_FORK, tuple(ways), why)


def _fork(ways: Sequence[Way], state: State, host: Host, hook: str) -> Outcome:
    if len(ways) == 1:
        return ways[0].act(state, host, hook)
    return Outcome(_FORK, tuple(ways))


_REJECT: Final = {
    ("icmp", "port-unreachable"): "icmp-port-unreachable",
    ("icmp", "net-unreachable"): "icmp-net-unreachable",
    ("icmp", "host-unreachable"): "icmp-host-unreachable",
    ("icmp", "prot-unreachable"): "icmp-proto-unreachable",
    ("icmp", "net-prohibited"): "icmp-net-prohibited",
    ("icmp", "host-prohibited"): "icmp-host-prohibited",
    ("icmp", "admin-prohibited"): "icmp-admin-prohibited",
    ("icmpv6", "no-route"): "icmp6-no-route",
    ("icmpv6", "admin-prohibited"): "icmp6-adm-prohibited",
    ("icmpv6", "addr-unreachable"): "icmp6-addr-unreachable",
    ("icmpv6", "port-unreachable"): "icmp6-port-unreachable",
    ("icmpv6", "policy-fail"): "icmp6-policy-fail",
    ("icmpv6", "reject-route"): "icmp6-reject-route",
}
# nft_reject_icmp_code, nft_reject_icmpv6_code
_REJECT_ANY: Final = {
    "port-unreachable": ("icmp-port-unreachable", "icmp6-port-unreachable"),
    "admin-prohibited": ("icmp-admin-prohibited", "icmp6-adm-prohibited"),
    "no-route": ("icmp-net-unreachable", "icmp6-no-route"),
    "host-unreachable": ("icmp-host-unreachable", "icmp6-addr-unreachable"),
}


def _reject(statement: Reject) -> Action:
    code = str(statement.code) if statement.code is not None else ""

    def act(state: State, host: Host, hook: str) -> Outcome:
        p = state.packet
        if statement.type == "tcp reset":
            if p.proto != pk.TCP:
                return NO_MATCH
            kind: str | None = "tcp-reset"
        elif statement.type == "icmpx":
            pair = _REJECT_ANY.get(code)
            kind = None if pair is None else pair[0] if p.family == 4 else pair[1]
        else:
            if (statement.type == "icmp") != (p.family == 4):
                return NO_MATCH
            kind = _REJECT.get((statement.type, code))
        if kind is None:
            return _undecided(state, f"ktp does not know the type of `{statement}`")
        return Outcome(_END, Verdict(REJECT, state, kind), f"reject with {kind}")

    return act


# ---------------------------------------------------------------------------------------------------- changes

Changer = Callable[[State, Any], "str | None"]


def _changing(change: Changer, value: Any, why: str) -> Action:
    def act(state: State, host: Host, hook: str) -> Outcome:
        if value is BREAK:
            return NO_MATCH
        if not isinstance(value, int):
            return _undecided(state, f"the value that the rule sets is not known: {why}")
        effect = change(state, value)
        if effect is None:
            return _undecided(state, "the rule rewrites a header of a connection that is already tracked")
        return Outcome(_ON, None, effect)

    return act


def _changer(key: Expression) -> Changer | None:
    """What a `set` statement changes of what ktp models; None where nothing."""
    match key:
        case Meta("mark"):
            return _set_mark
        case Ct("mark"):
            return _set_connection_mark
        case Payload("ip" | "ip6", "dscp"):
            return _set_dscp
        case Payload("ip", "ttl") | Payload("ip6", "hoplimit"):
            return _set_ttl
        case Payload("ip" | "ip6", "saddr" | "daddr") | Payload(
            "tcp" | "udp" | "sctp" | "th", "sport" | "dport"
        ):
            return _header_setter(key.field)
        case Ct("zone"):
            return lambda state, value: None
        case _:
            return None


def _set_mark(state: State, value: int) -> str:
    state.packet.mark = value & 0xFFFFFFFF
    return f"mark set to {value & 0xFFFFFFFF:#x}"


def _set_connection_mark(state: State, value: int) -> str:
    ct = state.packet.ct
    if ct is not None:
        ct.mark = value & 0xFFFFFFFF
    return f"connection mark set to {value & 0xFFFFFFFF:#x}"


def _set_dscp(state: State, value: int) -> str:
    p = state.packet
    p.tos = (p.tos & 3) | (value & 0x3F) << 2
    return f"DSCP set to {value}"


def _set_ttl(state: State, value: int) -> str:
    state.packet.ttl = value
    return f"TTL set to {value}"


def _header_setter(field: str) -> Changer:
    def change(state: State, value: int) -> str | None:
        p = state.packet
        if p.ct is not None:
            return None
        if field == "saddr":
            p.src = value
        elif field == "daddr":
            p.dst = value
        elif field == "sport":
            p.sport = value
        else:
            p.dport = value
        return f"{field} rewritten, outside connection tracking: {p.words()}"

    return change


def _notrack(state: State, host: Host, hook: str) -> Outcome:
    p = state.packet
    if p.ct is None:
        p.ctstate = pk.UNTRACKED
    return Outcome(_ON, None, "not tracked")


# -------------------------------------------------------------------------------------------------------- NAT


def _fixed(value: Any) -> Getter:
    return lambda p, h, hook: value


def _choices(value: Any, now: int, *, netmap: bool, keep: bool) -> list[int] | None:
    """The numbers that a NAT value may give; None where they are too many. `keep`: a number inside stays."""
    if value is None:
        return [now]
    if not isinstance(value, Span):
        return [value]
    if netmap and value.prefix is not None:
        return [value.low | now & (value.high ^ value.low)]
    if keep and value.low <= now <= value.high:
        return [now]
    if value.high - value.low >= _MAX_RANGE:
        return None
    return list(range(value.low, value.high + 1))


_DRAWN_ADDRESS = "of a range of addresses the kernel takes one by a hash of the client's: each is as likely"


def _translated_destination(
    state: State, host: Host, hook: str, target: Any, ports: Any, *, netmap: bool
) -> Outcome:
    p = state.packet
    addresses = _choices(target, p.dst, netmap=netmap, keep=False)
    if isinstance(p.dport, int):
        numbers: Sequence[Port] | None = _choices(ports, p.dport, netmap=False, keep=True)
    else:
        numbers = [p.dport] if ports is None else [ports] if isinstance(ports, int) else None
    if addresses is None or numbers is None or len(addresses) * len(numbers) > _MAX_RANGE:
        return _undecided(state, "which address or port of the range is drawn is not known")
    if len(addresses) > 1:
        state.assume(_DRAWN_ADDRESS)
    share = 1 / (len(addresses) * len(numbers))
    ways = [Way(share, _destination(address, number)) for address in addresses for number in numbers]
    return _fork(ways, state, host, hook)


def _destination(address: int, port: Port) -> Action:
    def act(state: State, host: Host, hook: str) -> Outcome:
        translate_destination(state, address, port)
        words = f"dnat to {endpoint_text(state.packet.family, address, port)}"
        return Outcome(_END, Verdict(ACCEPT, state), words)

    return act


def _redirected(state: State, host: Host, hook: str, ports: Any) -> Outcome:
    address = redirect_address(state, host, hook)
    if address is None:
        if not host.has_network:
            return _undecided(state, "`redirect`: the addresses of the interface were not read")
        return Outcome(_END, Verdict(DROP, state, "`redirect` finds no address on the interface"), "drop")
    return _translated_destination(state, host, hook, address, ports, netmap=False)


def _translated_source(
    state: State, host: Host, hook: str, target: Any, ports: Any, *, netmap: bool, random: bool
) -> Outcome:
    p = state.packet
    addresses = _choices(target, p.src, netmap=netmap, keep=not random)
    if addresses is None:
        return _undecided(state, "which address of the range is drawn is not known")
    sport: Port = p.sport
    if isinstance(ports, Span):
        sport = (ports.low, ports.high)
    elif isinstance(ports, int):
        sport = ports
    elif random:
        sport = RANDOM_PORTS
    if len(addresses) > 1:
        state.assume(_DRAWN_ADDRESS)
    ways = [Way(1 / len(addresses), _source(address, sport)) for address in addresses]
    return _fork(ways, state, host, hook)


def _source(address: int, port: Port) -> Action:
    def act(state: State, host: Host, hook: str) -> Outcome:
        translate_source(state, address, port)
        return Outcome(_END, Verdict(ACCEPT, state), f"snat to {to_text(state.packet.family, address)}")

    return act


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
        self._of_device = source.hook in ("ingress", "egress")
        self._flags = program.source.flags

    def is_idle(self, hook: str) -> bool:
        """Whether it has no rules and accepts."""
        return not self.source.rules and self.source.policy != "drop"

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
        if not self.source.devices or name == "?" or p.physin is not None:
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
        self._harmless = not _may_stop(table, source, set())

    def is_idle(self, hook: str) -> bool:
        """Whether it lets all pass."""
        return self._harmless

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

    Tables that are iptables-nft's and were read as such are left to their own rulesets: nft lists their matches by
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
    found: list[NftBaseChain] = []
    for table in ruleset.tables:
        if table.is_dormant:
            continue
        if table.family == "bridge":
            found += [BridgeChain(table, c) for c in table.base_chains if c.hook in _HOOKS]
            continue
        if table.family not in (word, "inet", "netdev"):
            continue
        if table.is_xtables and table.name in elsewhere:
            continue
        program = TableProgram(table, host, family)
        for chain in table.base_chains:
            if chain.hook not in _HOOKS:
                continue
            priority = chain.priority or 0
            if chain.hook == "ingress":
                priority += _BEFORE_ALL
            elif chain.hook == "egress":
                priority += _AFTER_ALL
            found.append(BaseChain(program, chain, priority))
    return found


# --------------------------------------------------------------------------------------------------- the walk


class _Frame(NamedTuple):
    """Where one state stands: `operation` of rule `at` of `rules` comes next, or `outcome` is to be acted on."""

    state: State
    chain: str
    rules: tuple[CompiledRule, ...]
    at: int
    operation: int
    stack: tuple[Any, ...]
    effects: tuple[str, ...]
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
                    effect = ", ".join(effects) if effects else "counted"
                    _note(state, effect, base, hook, chain, rules[index])
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
            code, data, effect = outcome
            outcome = None
            if code == _ON:
                if effect:
                    effects = (*effects, effect)
                continue
            if code == _NO_MATCH:
                if effects:
                    _note(state, ", ".join(effects), base, hook, chain, rules[index])
                index, operation, effects = index + 1, 0, ()
                continue
            compiled = rules[index]
            if code == _FORK:
                ways = cast("tuple[Way, ...]", data)
                chance = bool(ways[0].chance)
                for number in range(len(ways) - 1, -1, -1):
                    way = ways[number]
                    each = state.fork() if number else state
                    kind = RANDOM if chance else ASKED
                    mark: Any = (
                        compiled.rule
                        if chance
                        else (host.name, BACKEND, table, compiled.rule.text, "element")
                    )
                    share = way.chance if chance else 1.0
                    each.decide(
                        Decision(kind, mark, number, share, compiled.rule.text, effect, compiled.rule)
                    )
                    result = way.act(each, host, hook)
                    work.append(_Frame(each, chain, rules, index, operation, stack, effects, result))
                break
            if code == _ASK:
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
                step = _note(state, "?", base, hook, chain, compiled)
                out.append(Verdict(UNDECIDED, state, data, step))
                break
            step = _note(state, ", ".join((*effects, effect)), base, hook, chain, compiled)
            effects = ()
            if code == _NEXT_RULE:
                index, operation = index + 1, 0
                continue
            if code == _RETURN:
                if stack:
                    (chain, rules, index), stack = stack[-1], stack[:-1]
                    operation = 0
                    continue
                out.append(_policy(base, state, hook))
                break
            if code in (_JUMP, _GOTO):
                target = program.chain(data)
                if target is None:
                    out.append(Verdict(UNDECIDED, state, f"chain {data} is not in the listing", step))
                    break
                if code == _JUMP:
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


def _note(state: State, effect: str, base: BaseChain, hook: str, chain: str, compiled: CompiledRule) -> Any:
    return state.note(
        "rule", effect, hook=hook, table=base.table, chain=chain, rule=compiled.rule, backend=base.backend
    )


def _policy(base: BaseChain, state: State, hook: str) -> Verdict:
    if base.source.policy != "drop":
        return Verdict(ACCEPT, state)
    step = state.note(
        "policy", "drop", hook=hook, table=base.table, chain=base.name, backend=base.backend,
        text=f"policy drop of {base.name}",
    )  # fmt: skip
    return Verdict(DROP, state, "", step)


def _ask(state: State, key: Any, answer: bool, rule: RuleOfNft, why: str) -> None:
    state.asked = {**(state.asked or {}), key: answer}
    state.decide(Decision(ASKED, key, 0 if answer else 1, 1.0, rule.text, why, rule))
