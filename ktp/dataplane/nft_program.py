"""nft tables compiled: rules as tests and actions over the table's sets, maps and objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ktp.dataplane.host import Host
from ktp.dataplane.nft_actions import (
    changer,
    changing,
    fixed,
    has_header,
    notrack,
    redirected,
    reject,
    translated_destination,
    translated_source,
)
from ktp.dataplane.nft_outcome import (
    ASK,
    END,
    FORK,
    NO_MATCH,
    ON,
    ON_CODE,
    Action,
    CompiledRule,
    Operation,
    Outcome,
    Test,
    Tests,
    Way,
    always,
    assume_draw,
    fork,
    maybe_verdicts,
    undecided,
    verdict_outcome,
)
from ktp.dataplane.nft_sets import Found, SetLookup
from ktp.dataplane.nft_values import (
    BREAK,
    UNKNOWN,
    Compiled,
    Getter,
    NamePrefix,
    Span,
    compile_value,
    constant,
    matches,
    unknown_value,
)
from ktp.dataplane.packet import RANDOM_PORTS, Port
from ktp.dataplane.state import RuleOfNft, State
from ktp.dataplane.xtables import masquerade
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.effect import Count
from ktp.model.nftables import (
    AnonymousSet,
    Concat,
    Counter,
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
    NftMap,
    NftRule,
    NftSet,
    NftTable,
    Notrack,
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

_BELOW_LIMIT = Assumption("the rate is below the rule's limit")
_FEW_CONNECTIONS = Assumption("the client has fewer connections open than the rule's `ct count` allows")
_NOT_USED_UP = Assumption("the quota is not used up meanwhile")


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
        self._makers: list[tuple[Test, ...]] = []  # what the elements carry that a rule makes

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
                return always(verdict_outcome(statement))
            case Vmap():
                return self._vmap(statement)
            case Nat():
                return self._nat(statement)
            case Reject():
                return reject(statement)
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
                return notrack
            case Queue():
                return lambda s, h, hook: undecided(s, "`queue` hands the packet to a program of the node")
            case Synproxy():
                return lambda s, h, hook: undecided(s, "`synproxy` answers in the server's place")
            case Tproxy():
                # NFT_BREAK where no transparent socket takes the packet, as any other rule that does not match
                return lambda s, h, hook: Outcome(
                    ASK, "`tproxy` hands the packet to a proxy of the node, if it runs"
                )
            case Fwd():
                return lambda s, h, hook: undecided(s, "`fwd` sends the packet out by another device")
            case Xt("match", "comment"):
                return None
            case Xt(kind, name):
                why = f"of the x_tables {kind or 'extension'} {name!r} nft lists no more than the name"
                if kind == "match":
                    return (lambda s, h, hook: None), why
                return lambda s, h, hook: Outcome(ASK, why)
            case UnsupportedStatement(raw):
                reason = f"ktp does not know the statement {raw!r}"
                return lambda s, h, hook: Outcome(ASK, reason)
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

    def _remembered(self, state: State, item: NftSet, key: Any) -> tuple[Test, ...] | None:
        """What the element carries that the packet's own walk has put in a dynamic set; None where there is none.

        Says what is assumed then.
        """
        made = _made(state, _entry(self, item.name, key))
        if made:
            return self._makers[cast("int", made[0][2])]
        state.assume(
            Assumption(
                f"no earlier packet of the client is remembered in set {item.name}",
                EvidenceKind.CONNTRACK,
                self.host.name,
            )
        )
        return None

    def _carried(self, item: NftSet) -> Callable[[Any], tuple[Test, ...]]:
        """What the listed element for a key carries that may not hold: a limit, a quota, a count."""
        by_element = {id(e): self._conditions(e.statements) for e in item.elements if e.statements}
        if any(by_element.values()):
            some = [e for e in item.elements if by_element.get(id(e))]
            lookup = SetLookup(
                self._known(some, item.key_types), item.key_types, lambda e: self._conditions(e.statements)
            )
            return lambda key: lookup.find(key).element or ()
        return lambda key: ()

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

        carried = self._carried(item) if item is not None else None

        def accepts(state: State, value: Any) -> bool | None:
            found = lookup.find(value)
            if found.maybe:
                return None
            hit = found.element is not None
            tests: tuple[Test, ...] | None = ()
            if hit and carried is not None:
                tests = carried(value)
            elif dynamic and item is not None:
                tests = self._remembered(state, item, value)
                hit = tests is not None
            if hit and wanted and tests:
                # nft_set_elem_update_expr: an element that is found is asked what it carries.
                return all(test(state, self.host, "") is not False for test in tests)
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
                    return Outcome(ASK, key.why)
                good += answer
            assume_draw(state, draw)
            if good == draw.count:
                return ON
            if not good:
                return NO_MATCH
            chance = good / draw.count
            return Outcome(FORK, (Way(chance, always(ON)), Way(1 - chance, always(NO_MATCH))))

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
            return lambda s, h, hook: Outcome(ASK, f"ktp cannot look up {statement}")
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
                return maybe_verdicts(found, why)
            element = found.element
            if element is None:
                if dynamic and item is not None:
                    self._remembered(state, item, value)
                return NO_MATCH
            outcome = outcomes.get(element)
            if outcome is None:
                outcome = outcomes[element] = verdict_outcome(element)
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
                    return maybe_verdicts(found, key.why)
                weights[found.element] = weights.get(found.element, 0) + 1
            assume_draw(state, draw)
            ways = [
                Way(
                    weight / draw.count,
                    always(NO_MATCH if verdict is None else verdict_outcome(verdict)),
                )
                for verdict, weight in weights.items()
            ]
            return fork(ways, state, host, hook)

        return act

    # -- changes

    def _mangle(self, statement: Mangle) -> Action | None:
        key = statement.key
        new = self.value(statement.value, datatype_of(key))
        change = changer(key)
        if change is None:
            return None
        if new.draw is not None:
            draw, given = new.draw, new.given
            assert given is not None

            def drawn(state: State, host: Host, hook: str) -> Outcome:
                if not has_header(state.packet, key):
                    return NO_MATCH
                assume_draw(state, draw)
                values: dict[Any, int] = {}
                for number in range(draw.offset, draw.offset + draw.count):
                    value = given(number)(state.packet, host, hook)
                    values[value] = values.get(value, 0) + 1
                ways = [Way(n / draw.count, changing(change, value, new.why)) for value, n in values.items()]
                return fork(ways, state, host, hook)

            return drawn
        get, assumption, why = new.get, new.assumption, new.why

        def act(state: State, host: Host, hook: str) -> Outcome:
            if not has_header(state.packet, key):
                return NO_MATCH
            value = get(state.packet, host, hook)
            if assumption is not None:
                state.assume(assumption)
            return changing(change, value, why)(state, host, hook)

        return act

    def _set_update(self, statement: SetUpdate) -> Action:
        """`add`, `update`, `delete`: what an element carries is set when it is made (nft_dynset_eval).

        A limit in the statement therefore tells nothing of an element that another rule, or the set itself, has made
        without one.
        """
        element = statement.element
        key = self.value(element.key)
        name, removes = statement.set, statement.operation == "delete"
        item = self.source.set_or_map(name)
        target = self._lookup(SetReference(name), element.key, verdicts=False)
        tests = self._conditions(element.statements or (item.statements if item is not None else ()))
        of_listed = self._carried(item) if item is not None else None
        effect = Count(f"{statement.operation} @{name}")
        number = len(self._makers)
        self._makers.append(tests)

        def act(state: State, host: Host, hook: str) -> Outcome:
            value = key.get(state.packet, host, hook)
            if value is BREAK:
                return NO_MATCH
            carried = tests
            if value is not UNKNOWN:
                entry = _entry(self, name, value)
                made = _made(state, entry)
                if removes:
                    state.recent = state.recent - set(made)
                    return Outcome(ON_CODE, None, effect)
                if made:
                    carried = self._makers[made[0][2]]
                elif of_listed is not None and target is not None and target[0].find(value) == (True, ()):
                    carried = of_listed(value)
                else:
                    state.recent = state.recent | {(*entry, number)}
            for test in carried:
                if test(state, host, hook) is False:
                    return NO_MATCH
            return Outcome(ON_CODE, None, effect)

        return act

    def _conditions(self, statements: Sequence[Statement]) -> tuple[Test, ...]:
        """What of the statements of an element may not hold."""
        compiled = (self._statement(statement) for statement in statements)
        return tuple(each[0] for each in compiled if isinstance(each, tuple))

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
                    return undecided(state, f"where {statement} leads is not known")
                if kind == "redirect":
                    return redirected(state, host, hook, ports)
                if kind == "dnat":
                    return translated_destination(state, host, hook, target, ports, netmap=netmap)
                return translated_source(state, host, hook, target, ports, netmap=netmap, random=random)

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
            assume_draw(state, draw)
            weights: dict[Any, int] = {}
            for number in range(draw.offset, draw.offset + draw.count):
                value = given(number)(p, host, hook)
                weights[value] = weights.get(value, 0) + 1
            ways = []
            for value, weight in weights.items():
                drawn = fixed(value)
                if drawing is address:
                    ways.append(Way(weight / draw.count, translate(drawn, other_port)))
                else:
                    ways.append(Way(weight / draw.count, translate(other_address, drawn)))
            return fork(ways, state, host, hook)

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
            verdict, effect = masquerade(state, host, sport)
            return Outcome(END, verdict, effect)

        return act


# ------------------------------------------------------------------------------------------------- conditions


def _entry(program: TableProgram, name: str, key: Any) -> tuple[str, Any]:
    """A key in a dynamic set, as State.recent holds it: before the number of the rule that made it."""
    return f"{program.host.name} {program.name} @{name}", key


def _made(state: State, entry: tuple[str, Any]) -> list[tuple[Any, ...]]:
    return [e for e in state.recent if e[:2] == entry]


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


def _assumed(answer: bool, assumption: Assumption) -> tuple[Test, str]:
    def test(state: State, host: Host, hook: str) -> bool | None:
        state.assume(assumption)
        return answer

    return test, ""
