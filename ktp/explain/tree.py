"""The rules that a packet meets, as a tree: which chains, which rules, whom each concerns, which the packet takes.

The walker decides what is taken; the chains show what else is there and why it does not matter to this packet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Generic, NamedTuple, TypeVar

from ktp.dataplane.host import Host
from ktp.dataplane.packet import Packet
from ktp.kubeproxy.names import ChainRole
from ktp.model.effect import Effect, Endpoint, Goto, Jump, Keep, Translate
from ktp.model.explanation import ChainNode, LookupNode, RuleNode
from ktp.model.trace import FlowAnswer, Step, StepKind

LARGE = 64  # rules, or lots; a longer chain is shown as far as the packet takes it
_DEPTH = 24
_MARKS = (ChainRole.MARK_MASQ, ChainRole.MARK_DROP)

RuleKey = tuple[str, str, str, str, int]  # hook, back end, table, chain, position


class Taken(NamedTuple):
    """Which part of the packets takes a rule, and with which effect."""

    rules: dict[RuleKey, float]
    effects: dict[tuple[RuleKey, Effect | Endpoint], float]

    @classmethod
    def of(cls, answer: FlowAnswer, node: str, pod: str = "") -> Taken:
        """What the answer's request took on `node` or in a pod there, a virtual server of IPVS as well."""
        taken = cls({}, {})
        for path in answer.paths:
            met = [
                (_key(step), _outcome_of(step))
                for hop in path.hops
                if hop.is_of(node, pod) and hop.direction == "request"
                for step in hop.steps
                if step.kind is StepKind.RULE
            ]
            for key in dict.fromkeys(key for key, _ in met):
                taken.rules[key] = taken.rules.get(key, 0.0) + path.probability
            for effect in dict.fromkeys(met):
                taken.effects[effect] = taken.effects.get(effect, 0.0) + path.probability
        return taken

    def share(self, key: RuleKey, effect: Effect | Endpoint | None = None) -> float:
        """The part of the packets that take a rule, or that it does `effect` to."""
        return min(1.0, self.rules.get(key, 0.0) if effect is None else self.effects.get((key, effect), 0.0))

    def chains(self, hook: str, backend: str, table: str) -> set[str]:
        """The chains that the packet gets to in a table at a hook."""
        return {
            effect.chain
            for key, effect in self.effects
            if key[:3] == (hook, backend, table) and isinstance(effect, Jump | Goto)
        }


def _key(step: Step) -> RuleKey:
    return step.hook, step.backend, step.table, step.chain, step.position


def _outcome_of(step: Step) -> Effect | Endpoint:
    """What a rule came to: of one that translates the endpoint, as an element of a map names it."""
    last = step.effects[-1]
    return last.after if isinstance(last, Translate) else last.at if isinstance(last, Keep) else last


class Way(NamedTuple):
    """The packets that meet a table at a hook of a host, and what they take."""

    hook: str
    host: Host | None
    packets: Sequence[Packet]
    taken: Taken


_Chain = TypeVar("_Chain")
_Rule = TypeVar("_Rule")


class Tree(ABC, Generic[_Chain, _Rule]):
    """The tree behind the chains of one table, with packets or without. Each back end says what its chains are."""

    backend = ""
    dispatch: ClassVar[frozenset[ChainRole]] = frozenset()
    """Chains that hold rules of every Service: only those that may concern the packet are shown."""

    def __init__(self, table: str, way: Way | None, *, every_rule: bool = False) -> None:
        """Show the chains of `table`, as the packets of `way` meet them."""
        self.table = table
        self.way = way
        self.every_rule = every_rule
        self._shown: set[str] = set()
        self._reached = way.taken.chains(way.hook, self.backend, table) if way is not None else set()

    @abstractmethod
    def find(self, name: str) -> _Chain | None:
        """The chain of that name."""

    @abstractmethod
    def rules_of(self, chain: _Chain) -> Sequence[_Rule]:
        """Those rules of the chain that the tree shows."""

    @abstractmethod
    def chain_node(self, chain: _Chain) -> tuple[ChainNode, int]:
        """The chain without its rules, and how many it has."""

    @abstractmethod
    def rule_node(self, chain: str, rule: _Rule, *, brief: bool = False) -> RuleNode:
        """The rule without what lies behind it."""

    @abstractmethod
    def role(self, name: str) -> ChainRole | None:
        """What kube-proxy's chain of that name is for."""

    @abstractmethod
    def lookups(self, chain: str, rule: _Rule, share: float | None, depth: int) -> tuple[LookupNode, ...]:
        """What the rule finds in sets and maps."""

    def chain(self, chain: _Chain, depth: int = 0) -> ChainNode:
        """`chain` with its rules, each with what lies behind it."""
        node, size = self.chain_node(chain)
        self._shown.add(node.name)
        rules = self.rules_of(chain)
        is_list = self.role(node.name) in self.dispatch
        words = "rules that this packet does not take (-v shows them)"
        if self.way is None:
            words = "more rules (-v shows them)"
        elif is_list:
            words = "rules of other ports, addresses and Services"
        # Without a packet what lies behind each rule of such a list is asked for by its own name.
        deeper = self.way is not None or not is_list
        return replace(
            node,
            rules=tuple(self._rule(node.name, rule, depth, deeper=deeper) for rule in rules),
            left_out=size - len(rules),
            left_out_words=words if size > len(rules) else "",
        )

    def share(self, chain: str, position: int, effect: Effect | Endpoint | None = None) -> float | None:
        """The part of the packets that take a rule, or that it does `effect` to; None without packets."""
        if self.way is None:
            return None
        return self.way.taken.share((self.way.hook, self.backend, self.table, chain, position), effect)

    def _rule(self, chain: str, rule: _Rule, depth: int, *, deeper: bool) -> RuleNode:
        node = self.rule_node(chain, rule)
        share = self.share(chain, node.position)
        node = replace(node, share=share, lookups=self.lookups(chain, rule, share, depth))
        if node.goes_to is None or not deeper:
            return node
        behind, shown = self.behind(node.goes_to, share, depth)
        if behind is None:
            return replace(node, shown=shown)
        return replace(node, words=self.rule_node(chain, rule, brief=True).words, chain=behind)

    def behind(self, name: str, share: float | None, depth: int) -> tuple[ChainNode | None, str]:
        """The chain that a rule or element leads to, where the tree shows it here; else where it does."""
        role = self.role(name)
        own = role is not None and role.is_per_service
        expands = share is None or share > 0 or (own and name not in self._reached)
        if (not expands and not own) or (self.way is None and role in self.dispatch):
            return None, ""
        found = self.find(name)
        if found is None:
            return None, ""
        if expands and name not in self._shown and depth < _DEPTH:
            return self.chain(found, depth + 1), ""
        # The one rule of the marking chains needs no pointer.
        return None, "" if role in _MARKS else "above" if name in self._shown else "below"
