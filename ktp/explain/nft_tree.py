"""The nftables rules that a packet meets, as a tree: base chains, their rules, what these find in sets and maps.

As in `ktp.explain.tree` the walker decides what is taken. Of a map only the element that concerns the packet is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ktp.dataplane.host import Host
from ktp.dataplane.nft import BaseChain
from ktp.dataplane.nft_outcome import verdict_outcome
from ktp.dataplane.nft_sets import SetLookup
from ktp.dataplane.nft_values import compile_value
from ktp.dataplane.packet import Packet
from ktp.explain.nft_kube import (
    element_words,
    endpoint_of_value,
    explain_nft_chain,
    explain_nft_rule,
    is_kube_table,
    is_service_chain,
    set_words,
    target_of_value,
    verdict_in,
)
from ktp.explain.words import percent
from ktp.kubeproxy.names import NFT_AFFINITY_PREFIX
from ktp.model.effect import Effect, Endpoint, Goto, Jump, Keep, Translate
from ktp.model.explanation import ChainNode, ElementNode, LookupNode, RuleNode, StageNode
from ktp.model.nftables import (
    AnonymousSet,
    Concat,
    Counter,
    Expression,
    Jhash,
    Mangle,
    MapLookup,
    Match,
    Meta,
    Nat,
    NftChain,
    NftMap,
    NftRule,
    NftTable,
    Numgen,
    Payload,
    SetElement,
    SetReference,
    Statement,
    Symhash,
    Verdict,
    Vmap,
    datatypes_of,
    render_element,
)
from ktp.model.trace import FlowAnswer, Path, Step, StepKind

_LARGE = 64  # rules, or lots; a longer chain is shown as far as the packet takes it
_DEPTH = 24


def nft_steps(path: Path, node: str) -> list[Step]:
    """Every nftables rule that the request took on `node`, in order."""
    return [
        step
        for hop in path.hops
        if hop.is_of(node) and hop.direction == "request"
        for step in hop.steps
        if step.backend == "nftables" and step.kind is StepKind.RULE
    ]


@dataclass(frozen=True, slots=True)
class NftTaken:
    """Which part of the packets takes a rule (hook, table, chain, position), and with which effect."""

    rules: dict[tuple[str, str, str, int], float]
    effects: dict[tuple[str, str, str, int, Effect | Endpoint], float]

    @classmethod
    def of(cls, answer: FlowAnswer, node: str) -> NftTaken:
        """What the answer's request took on `node`."""
        rules: dict[tuple[str, str, str, int], float] = {}
        effects: dict[tuple[str, str, str, int, Effect | Endpoint], float] = {}
        for path in answer.paths:
            steps = nft_steps(path, node)
            for rule in dict.fromkeys((s.hook, s.table, s.chain, s.position) for s in steps):
                rules[rule] = rules.get(rule, 0.0) + path.probability
            for effect in dict.fromkeys(
                (s.hook, s.table, s.chain, s.position, _outcome_of(s)) for s in steps
            ):
                effects[effect] = effects.get(effect, 0.0) + path.probability
        return cls(rules, effects)

    def chains(self, hook: str, table: str) -> set[str]:
        """The chains that the packet gets to in a table at a hook."""
        return {e[4].chain for e in self.effects if e[:2] == (hook, table) and isinstance(e[4], Jump | Goto)}


def _outcome_of(step: Step) -> Effect | Endpoint:
    """What a rule came to: of one that translates the endpoint, as an element of a map names it."""
    last = step.effects[-1]
    return last.after if isinstance(last, Translate) else last.at if isinstance(last, Keep) else last


class NftStages:
    """Makes the stages of one flow's nftables base chains."""

    def __init__(
        self,
        answer: FlowAnswer,
        node: str,
        before: Sequence[Packet],
        after: Sequence[Packet],
        *,
        every_rule: bool = False,
    ) -> None:
        """`before` and `after` are the packets before and behind the translation of their destination."""
        self._taken = NftTaken.of(answer, node)
        self._before = before
        self._after = after
        self._every_rule = every_rule

    def stage(
        self, program: object, host: Host, hook: str, words: str, *, translated: bool
    ) -> StageNode | None:
        """The tree of one base chain; None for what is no IP base chain (rules of a bridge)."""
        if not isinstance(program, BaseChain):
            return None
        packets = self._after if translated or program.priority > -100 else self._before
        builder = _Builder(
            program.program.source,
            self._every_rule,
            taken=self._taken,
            hook=hook,
            host=host,
            packets=packets or self._before,
        )
        return StageNode(
            hook=hook,
            words=words,
            backend=program.backend,
            chain=builder.chain(program.source, 0),
            priority=program.priority,
            type=program.chain_type,
        )


def nft_chain_tree(table: NftTable, chain: NftChain, *, every_rule: bool = False) -> ChainNode:
    """A chain and all that it leads to, without a packet."""
    return _Builder(table, every_rule).chain(chain, 0)


def nft_rule_node(rule: NftRule, words: str, share: float | None = None) -> RuleNode:
    """A rule without what lies behind it."""
    counter = next((s for s in rule.statements if isinstance(s, Counter) and s.name is None), None)
    verdict = verdict_in(rule)
    return RuleNode(
        position=rule.index + 1,
        line=rule.line,
        text=rule.text,
        words=words,
        packets=counter.packets if counter is not None else None,
        bytes=counter.bytes if counter is not None else None,
        share=share,
        goes_to=verdict.target if verdict is not None else None,
        handle=rule.handle,
    )


class _Builder:
    """The tree behind one chain, with a packet or (`taken` None) without."""

    def __init__(
        self,
        table: NftTable,
        every_rule: bool,
        *,
        taken: NftTaken | None = None,
        hook: str = "",
        host: Host | None = None,
        packets: Sequence[Packet] = (),
    ) -> None:
        self._table = table
        self._name = f"{table.family} {table.name}"
        self._is_kube = is_kube_table(table.family, table.name)
        self._every_rule = every_rule
        self._taken = taken
        self._hook = hook
        self._host = host
        self._packets = packets
        self._shown: set[str] = set()
        self._reached = taken.chains(hook, self._name) if taken is not None else set()

    def chain(self, chain: NftChain, depth: int) -> ChainNode:
        """`chain` with its rules, each with what lies behind it."""
        self._shown.add(chain.name)
        rules = self._rules_of(chain)
        nodes = tuple(self._rule(chain.name, rule, depth) for rule in rules)
        left_out = len(chain.rules) - len(rules)
        words = "more rules (-v shows them)"
        if self._taken is not None:
            words = "rules that this packet does not take (-v shows them)"
        return ChainNode(
            table=self._name,
            name=chain.name,
            words=explain_nft_chain(self._table, chain.name),
            policy=chain.policy,
            rules=nodes,
            left_out=left_out,
            left_out_words=words if left_out else "",
        )

    def _rules_of(self, chain: NftChain) -> Sequence[NftRule]:
        if self._every_rule:
            return chain.rules
        if self._taken is None:
            return chain.rules[:_LARGE]
        if (self._is_kube or chain.is_base) and len(chain.rules) <= _LARGE:
            return chain.rules
        return [rule for rule in chain.rules if self._share(chain.name, rule)]

    def _share(self, chain: str, rule: NftRule) -> float | None:
        if self._taken is None:
            return None
        return min(1.0, self._taken.rules.get((self._hook, self._name, chain, rule.index + 1), 0.0))

    def _effect_share(self, chain: str, rule: NftRule, effect: Effect | Endpoint | None) -> float | None:
        if self._taken is None:
            return None
        if effect is None:
            return 0.0
        key = (self._hook, self._name, chain, rule.index + 1, effect)
        return min(1.0, self._taken.effects.get(key, 0.0))

    def _rule(self, chain: str, rule: NftRule, depth: int) -> RuleNode:
        share = self._share(chain, rule)
        node = nft_rule_node(rule, explain_nft_rule(self._table, chain, rule), share)
        node = replace(node, lookups=tuple(self._lookups(chain, rule, share, depth)))
        if node.goes_to is None:
            return node
        behind, shown = self._behind(node.goes_to, share, depth)
        if behind is None:
            return replace(node, shown=shown)
        return replace(node, words=explain_nft_rule(self._table, chain, rule, brief=True), chain=behind)

    def _behind(self, name: str, share: float | None, depth: int) -> tuple[ChainNode | None, str]:
        """The chain that a rule or element leads to, where the tree shows it here; else where it does."""
        found = self._table.chains.get(name)
        if found is None:
            return None, ""
        service = self._is_kube and is_service_chain(name)
        expands = share is None or share > 0 or (service and name not in self._reached)
        if expands and name not in self._shown and depth < _DEPTH:
            return self.chain(found, depth + 1), ""
        if not service and not expands:
            return None, ""
        return None, "above" if name in self._shown else "below"

    # -- sets and maps

    def _lookups(self, chain: str, rule: NftRule, share: float | None, depth: int) -> list[LookupNode]:
        found: list[LookupNode] = []
        for key, data in _looked_up(rule.statements):
            if isinstance(data, SetReference):
                node = self._named(chain, rule, key, data.name, share, depth)
                # Of the clients that an endpoint keeps, only the asked one is worth a line.
                if node.elements or not (self._is_kube and data.name.startswith(NFT_AFFINITY_PREFIX)):
                    found.append(node)
            elif isinstance(key, Numgen | Jhash | Symhash):
                if (
                    self._is_kube
                    and len(data.elements) == 1
                    and not isinstance(data.elements[0].value, Verdict)
                ):
                    continue  # the rule's words name the only endpoint
                found.append(self._draw(chain, rule, data, key, depth))
            elif any(isinstance(e.value, Verdict) and e.value.target is not None for e in data.elements):
                found.append(self._anonymous(chain, rule, key, data, depth))
        return found

    def _named(
        self, chain: str, rule: NftRule, key: Expression, name: str, share: float | None, depth: int
    ) -> LookupNode:
        item = self._table.set_or_map(name)
        kind = "map" if isinstance(item, NftMap) else "set"
        words = set_words(self._table, name)
        if item is None:
            return LookupNode(kind="set", name=name, words=words)
        values = item.value_types if isinstance(item, NftMap) else ()
        hits = self._hits(key, item.elements, item.key_types)
        nodes = []
        for element in hits or ():
            node = self._element(
                chain, rule, element, element_words(self._table, name, element), share, depth
            )
            nodes.append(replace(node, text=render_element(element, item.key_types, values)))
        return LookupNode(
            kind=kind,
            name=name,
            words=words,
            elements=tuple(nodes),
            left_out=len(item.elements) - len(nodes),
            left_out_words=_left_out(len(item.elements), len(nodes), asked=hits is not None),
        )

    def _anonymous(
        self, chain: str, rule: NftRule, key: Expression, data: AnonymousSet, depth: int
    ) -> LookupNode:
        types = datatypes_of(key)
        hits = self._hits(key, data.elements, types)
        nodes = [
            replace(
                self._element(chain, rule, e, str(e.value), None, depth), text=render_element(e, types, ())
            )
            for e in (hits if hits is not None else data.elements[:_LARGE])
        ]
        return LookupNode(
            kind="map",
            name="",
            words="",
            elements=tuple(nodes),
            left_out=len(data.elements) - len(nodes),
            left_out_words=_left_out(len(data.elements), len(nodes), asked=hits is not None),
        )

    def _draw(
        self, chain: str, rule: NftRule, data: AnonymousSet, key: Numgen | Jhash | Symhash, depth: int
    ) -> LookupNode:
        elements = data.elements if self._every_rule else data.elements[:_LARGE]
        count = len(data.elements)
        how = "at random" if isinstance(key, Numgen) and key.mode == "random" else "in turn or by a hash"
        nodes = []
        for element in elements:
            endpoint = endpoint_of_value(element.value)
            words = f"endpoint {endpoint}" if endpoint else str(element.value)
            node = self._element(chain, rule, element, words, None, depth)
            nodes.append(replace(node, text=render_element(element, (), ())))
        return LookupNode(
            kind="draw",
            name="",
            words=f"drawn {how}, {percent(1 / count)} each" if count > 1 else "drawn",
            elements=tuple(nodes),
            left_out=count - len(nodes),
            left_out_words="more (-v shows them)" if count > len(nodes) else "",
        )

    def _element(
        self, chain: str, rule: NftRule, element: SetElement, words: str, share: float | None, depth: int
    ) -> ElementNode:
        value = element.value
        effect = verdict_outcome(value).effect if isinstance(value, Verdict) else target_of_value(value)
        own = share if value is None else self._effect_share(chain, rule, effect)
        node = ElementNode(text="", words=words, share=own)
        if not isinstance(value, Verdict) or value.target is None:
            return node
        behind, shown = self._behind(value.target, own, depth)
        return replace(node, goes_to=value.target, chain=behind, shown=shown)

    def _hits(
        self, key: Expression, elements: Sequence[SetElement], types: Sequence[str | None]
    ) -> list[SetElement] | None:
        """The elements for the packets; None where there is no packet, or the key is more than headers tell."""
        if self._host is None or not self._packets or not _is_told(key):
            return None
        lookup = SetLookup(elements, types, lambda element: element)
        get = compile_value(key).get
        hits: dict[int, SetElement] = {}
        for packet in self._packets:
            found = lookup.find(get(packet, self._host, self._hook)).element
            if isinstance(found, SetElement):
                hits.setdefault(id(found), found)
        return list(hits.values())


def _looked_up(statements: Sequence[Statement]) -> list[tuple[Expression, SetReference | AnonymousSet]]:
    """(key, set or map) of everything that the statements look up."""
    found: list[tuple[Expression, SetReference | AnonymousSet]] = []
    for statement in statements:
        match statement:
            case Match(_, left, SetReference() as right):
                found.append((left, right))
            case Vmap(key, SetReference() | AnonymousSet() as data):
                found.append((key, data))
            case Nat(address=MapLookup(key, data)) | Mangle(value=MapLookup(key, data)):
                found.append((key, data))
            case _:
                pass
    return found


def _is_told(key: Expression) -> bool:
    """Whether addresses, protocol and ports alone tell the key."""
    if isinstance(key, Concat):
        return all(_is_told(part) for part in key.parts)
    if isinstance(key, Payload):
        return (
            key.field in ("saddr", "daddr", "sport", "dport", "protocol", "nexthdr")
            and key.protocol != "ether"
        )
    return isinstance(key, Meta) and key.key in ("l4proto", "nfproto", "protocol")


def _left_out(total: int, shown: int, *, asked: bool) -> str:
    if total == shown:
        return ""
    if not asked:
        return "element" if total == 1 else "elements"
    left = total - shown
    if shown:
        return "other element" if left == 1 else "other elements"
    return "element, not for this packet" if total == 1 else "elements, none for this packet"
