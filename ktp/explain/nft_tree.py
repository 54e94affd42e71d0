"""The chains of nftables as a tree, with what their rules find in sets and maps.

Of a map only the element that concerns the packet is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ktp.dataplane.nft import BACKEND
from ktp.dataplane.nft_outcome import verdict_outcome
from ktp.dataplane.nft_sets import SetLookup
from ktp.dataplane.nft_values import compile_value
from ktp.explain.nft_kube import (
    element_words,
    endpoint_of_value,
    explain_nft_chain,
    explain_nft_rule,
    set_words,
    target_of_value,
    verdict_in,
)
from ktp.explain.tree import LARGE, Tree, Way
from ktp.explain.words import percent
from ktp.kubeproxy.names import NFT_AFFINITY_PREFIX, ChainRole, is_kube_table, role_of_nft_chain
from ktp.model import nftables as nft
from ktp.model.explanation import ChainNode, ElementNode, LookupNode, RuleNode


def nft_chain_tree(table: nft.NftTable, chain: nft.NftChain, *, every_rule: bool = False) -> ChainNode:
    """A chain and all that it leads to, without a packet."""
    return NftTree(table, every_rule=every_rule).chain(chain)


def nft_rule_node(rule: nft.NftRule, words: str) -> RuleNode:
    """A rule without what lies behind it."""
    counter = next((s for s in rule.statements if isinstance(s, nft.Counter) and s.name is None), None)
    verdict = verdict_in(rule)
    return RuleNode(
        position=rule.index + 1,
        line=rule.line,
        text=rule.text,
        words=words,
        packets=counter.packets if counter is not None else None,
        bytes=counter.bytes if counter is not None else None,
        goes_to=verdict.target if verdict is not None else None,
        handle=rule.handle,
    )


class _Place(NamedTuple):
    """The rule that looks something up, the part of the packets that take it, and how deep it is in the tree."""

    chain: str
    rule: nft.NftRule
    share: float | None
    depth: int


class NftTree(Tree[nft.NftChain, nft.NftRule]):
    """The tree behind a chain of one table."""

    backend = BACKEND

    def __init__(self, table: nft.NftTable, way: Way | None = None, *, every_rule: bool = False) -> None:
        """Show `table`, as the packets of `way` meet it."""
        self._table = table
        self._is_kube = is_kube_table(table.family, table.name)
        super().__init__(f"{table.family} {table.name}", way, every_rule=every_rule)

    def find(self, name: str) -> nft.NftChain | None:
        """The chain of that name."""
        return self._table.chains.get(name)

    def role(self, name: str) -> ChainRole | None:
        """By name, in kube-proxy's table."""
        return role_of_nft_chain(name) if self._is_kube else None

    def chain_node(self, chain: nft.NftChain) -> tuple[ChainNode, int]:
        """With what it is for."""
        words = explain_nft_chain(self._table, chain.name)
        node = ChainNode(table=self.table, name=chain.name, words=words, policy=chain.policy)
        return node, len(chain.rules)

    def rules_of(self, chain: nft.NftChain) -> Sequence[nft.NftRule]:
        """All, of a long chain those that the packets take."""
        if self.every_rule:
            return chain.rules
        if self.way is None:
            return chain.rules[:LARGE]
        if (self._is_kube or chain.is_base) and len(chain.rules) <= LARGE:
            return chain.rules
        return [rule for rule in chain.rules if self.share(chain.name, rule.index + 1)]

    def rule_node(self, chain: str, rule: nft.NftRule, *, brief: bool = False) -> RuleNode:
        """With its words and counter."""
        return nft_rule_node(rule, explain_nft_rule(self._table, chain, rule, brief=brief))

    def lookups(
        self, chain: str, rule: nft.NftRule, share: float | None, depth: int
    ) -> tuple[LookupNode, ...]:
        """What it finds in sets, maps and draws."""
        at = _Place(chain, rule, share, depth)
        found: list[LookupNode] = []
        for key, data in _looked_up(rule.statements):
            if isinstance(data, nft.SetReference):
                node = self._named(at, key, data.name)
                # Of the clients that an endpoint keeps, only the asked one is worth a line.
                if node.elements or not (self._is_kube and data.name.startswith(NFT_AFFINITY_PREFIX)):
                    found.append(node)
            elif isinstance(key, nft.Numgen | nft.Jhash | nft.Symhash):
                # Of one endpoint that is translated to, the rule's words name it.
                if (
                    not self._is_kube
                    or len(data.elements) != 1
                    or isinstance(data.elements[0].value, nft.Verdict)
                ):
                    found.append(self._draw(at, data, key))
            elif any(isinstance(e.value, nft.Verdict) and e.value.target is not None for e in data.elements):
                types = nft.datatypes_of(key)
                hits = self._hits(key, data.elements, types)
                shown = hits if hits is not None else data.elements[:LARGE]
                nodes = [self._element(at, e, str(e.value), types) for e in shown]
                left = _left_out(len(data.elements), len(nodes), asked=hits is not None)
                found.append(_lookup("map", "", "", nodes, len(data.elements), left))
        return tuple(found)

    def _named(self, at: _Place, key: nft.Expression, name: str) -> LookupNode:
        item = self._table.set_or_map(name)
        words = set_words(self._table, name)
        if item is None:
            return LookupNode(kind="set", name=name, words=words)
        values = item.value_types if isinstance(item, nft.NftMap) else ()
        hits = self._hits(key, item.elements, item.key_types)
        nodes = [
            self._element(at, e, element_words(self._table, name, e), item.key_types, values)
            for e in hits or ()
        ]
        left = _left_out(len(item.elements), len(nodes), asked=hits is not None)
        kind = "map" if isinstance(item, nft.NftMap) else "set"
        return _lookup(kind, name, words, nodes, len(item.elements), left)

    def _draw(
        self, at: _Place, data: nft.AnonymousSet, key: nft.Numgen | nft.Jhash | nft.Symhash
    ) -> LookupNode:
        elements = data.elements if self.every_rule else data.elements[:LARGE]
        count = len(data.elements)
        how = "at random" if isinstance(key, nft.Numgen) and key.mode == "random" else "in turn or by a hash"
        nodes = []
        for element in elements:
            endpoint = endpoint_of_value(element.value)
            nodes.append(
                self._element(at, element, f"endpoint {endpoint}" if endpoint else str(element.value))
            )
        words = f"drawn {how}, {percent(1 / count)} each" if count > 1 else "drawn"
        return _lookup("draw", "", words, nodes, count, "more (-v shows them)")

    def _element(
        self,
        at: _Place,
        element: nft.SetElement,
        words: str,
        types: tuple[str | None, ...] = (),
        values: tuple[str | None, ...] = (),
    ) -> ElementNode:
        value = element.value
        effect = verdict_outcome(value).effect if isinstance(value, nft.Verdict) else target_of_value(value)
        share = at.share if value is None else None
        if value is not None and self.way is not None:
            share = self.share(at.chain, at.rule.index + 1, effect) if effect is not None else 0.0
        node = ElementNode(text=nft.render_element(element, types, values), words=words, share=share)
        if not isinstance(value, nft.Verdict) or value.target is None:
            return node
        behind, shown = self.behind(value.target, share, at.depth)
        return replace(node, goes_to=value.target, chain=behind, shown=shown)

    def _hits(
        self, key: nft.Expression, elements: Sequence[nft.SetElement], types: Sequence[str | None]
    ) -> list[nft.SetElement] | None:
        """The elements for the packets; None where there is no packet, or the key is more than headers tell."""
        way = self.way
        if way is None or way.host is None or not way.packets or not _is_told(key):
            return None
        lookup = SetLookup(elements, types, lambda element: element)
        get = compile_value(key).get
        hits: dict[int, nft.SetElement] = {}
        for packet in way.packets:
            found = lookup.find(get(packet, way.host, way.hook)).element
            if isinstance(found, nft.SetElement):
                hits.setdefault(id(found), found)
        return list(hits.values())


def _lookup(
    kind: str, name: str, words: str, nodes: Sequence[ElementNode], total: int, left_words: str
) -> LookupNode:
    left = total - len(nodes)
    return LookupNode(
        kind=kind,
        name=name,
        words=words,
        elements=tuple(nodes),
        left_out=left,
        left_out_words=left_words if left else "",
    )


def _looked_up(
    statements: Sequence[nft.Statement],
) -> list[tuple[nft.Expression, nft.SetReference | nft.AnonymousSet]]:
    """(key, set or map) of everything that the statements look up."""
    found: list[tuple[nft.Expression, nft.SetReference | nft.AnonymousSet]] = []
    for statement in statements:
        match statement:
            case nft.Match(_, left, nft.SetReference() as right):
                found.append((left, right))
            case nft.Vmap(key, nft.SetReference() | nft.AnonymousSet() as data):
                found.append((key, data))
            case nft.Nat(address=nft.MapLookup(key, data)) | nft.Mangle(value=nft.MapLookup(key, data)):
                found.append((key, data))
            case _:
                pass
    return found


def _is_told(key: nft.Expression) -> bool:
    """Whether addresses, protocol and ports alone tell the key."""
    if isinstance(key, nft.Concat):
        return all(_is_told(part) for part in key.parts)
    if isinstance(key, nft.Payload):
        return (
            key.field in ("saddr", "daddr", "sport", "dport", "protocol", "nexthdr")
            and key.protocol != "ether"
        )
    return isinstance(key, nft.Meta) and key.key in ("l4proto", "nfproto", "protocol")


def _left_out(total: int, shown: int, *, asked: bool) -> str:
    if total == shown:
        return ""
    if not asked:
        return "element" if total == 1 else "elements"
    left = total - shown
    if shown:
        return "other element" if left == 1 else "other elements"
    return "element, not for this packet" if total == 1 else "elements, none for this packet"
