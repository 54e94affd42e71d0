"""Questions to an nftables ruleset alone: one node port of kube-proxy's nftables mode, or one chain."""

from __future__ import annotations

from collections.abc import Iterator

from ktp.dataplane.walk import Walker
from ktp.explain.explain import MOST_CALLERS, POD, Asked, AskedAddress, ask_rules, chain_alone
from ktp.explain.nft_kube import (
    NftNodePort,
    element_words,
    explain_nft_rule,
    generation_of,
    kube_table,
    nft_node_ports,
    node_port_addresses,
    node_port_elements,
    owner_of,
    pod_network_of,
)
from ktp.explain.nft_tree import nft_chain_tree, nft_rule_node
from ktp.kubeproxy.names import is_kube_table
from ktp.model.explanation import Explanation, RuleNode
from ktp.model.host import NodeState
from ktp.model.nftables import AnonymousSet, NftMap, NftRuleset, NftTable, Vmap, render_element
from ktp.model.nftables import Verdict as NftVerdict

FAMILIES = ("ip", "ip6")


def rules_of_nft(table: NftTable | None) -> str:
    """Who wrote the rules, and in which generation."""
    if table is None:
        return "no kube-proxy, nftables"
    generation = generation_of(table)
    words = (
        generation.value
        if generation is not None
        else "kube-proxy, nftables mode of a version that these rules do not tell"
    )
    return words + (", IPv6" if table.family == "ip6" else "")


def known_node_ports(ruleset: NftRuleset) -> list[tuple[int, str, str]]:
    """Every (port, protocol, Service or "") of kube-proxy's tables."""
    found = {
        p for family in FAMILIES if (t := kube_table(ruleset, family)) is not None for p in nft_node_ports(t)
    }
    return sorted(found)


def xtables_with_kube_proxy(ruleset: NftRuleset) -> str | None:
    """ "ip nat" where kube-proxy's rules are iptables-nft's, which nft cannot list in full; None where they are not."""
    for table in ruleset.tables:
        if "KUBE-SERVICES" in table.chains and any(map(table.is_of_xtables, table.base_chains)):
            return f"{table.family} {table.name}"
    return None


def ask_nft_dump(
    ruleset: NftRuleset,
    node: str,
    protocol: str,
    port: int,
    vantage: str,
    dialled: AskedAddress | None = None,
) -> list[tuple[Walker, Asked]]:
    """The question to an nftables ruleset alone, once for each address family that has the node port.

    With `dialled` that address is asked about, in its family alone.
    """
    out: list[tuple[Walker, Asked]] = []
    for family in FAMILIES:
        table = kube_table(ruleset, family)
        rules = node_port_elements(table, protocol, port) if table is not None else None
        if dialled is not None and (":" in dialled.address) is not (family == "ip6"):
            continue
        served = node_port_addresses(table) if table is not None else None
        if dialled is not None and dialled.is_own and served and dialled.address not in served:
            continue  # the rules name the node's addresses, and this is none
        if table is not None and rules is not None and (rules or dialled is not None):
            out.append(_ask(ruleset, table, rules, node, protocol, port, vantage, dialled))
    return out


def _ask(
    ruleset: NftRuleset,
    table: NftTable,
    rules: NftNodePort,
    node: str,
    protocol: str,
    port: int,
    vantage: str,
    dialled: AskedAddress | None,
) -> tuple[Walker, Asked]:
    addresses = node_port_addresses(table)
    notes = []
    if addresses is not None and dialled is None:
        notes.append(
            f"node ports are served on {', '.join(addresses) or 'no address'} only (set nodeport-ips)"
        )
    return ask_rules(
        NodeState(name=node, nft=ruleset),
        table.family,
        protocol,
        port,
        vantage,
        rules,
        dialled,
        addresses=addresses or (),
        pod_network=pod_network_of(table) if vantage == POD else None,
        source=ruleset.source,
        written_by=rules_of_nft(table),
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------- one chain


def explain_nft_chain_alone(
    ruleset: NftRuleset, node: str, name: str, *, every_rule: bool = False
) -> Explanation | None:
    """What a chain is, what leads to it, and its rules; None where no table of the ruleset has it."""
    tables = [t for t in ruleset.tables if name in t.chains]
    chains = [t.chains[name] for t in tables]
    if not tables:
        return None
    callers = [c for t in tables for c in _callers(t, name)]
    shown = callers if every_rule else callers[:MOST_CALLERS]
    kube = [t for t in tables if is_kube_table(t.family, t.name)]
    return chain_alone(
        name,
        node,
        ruleset.source,
        rules_of_nft(kube[0]) if kube else f"{owner_of(tables[0])}, nftables",
        [nft_chain_tree(t, t.chains[name], every_rule=every_rule) for t in tables],
        shown,
        len(callers) - len(shown),
        is_base=any(c.is_base for c in chains),
        what=("rule or element", "rules and elements"),
        emptied=" (kube-proxy empties chains that it does not need, and deletes them later)" if kube else "",
        notes=[
            f"the kernel calls it at hook {c.hook} of family {t.family} (type {c.type}, priority {c.priority})"
            for t, c in zip(tables, chains, strict=True)
            if c.is_base
        ],
    )


def _callers(table: NftTable, name: str) -> Iterator[RuleNode]:
    """The rules, draws and map elements that lead to a chain."""
    place = f"{table.family} {table.name}"
    for chain in table.chains.values():
        for rule in chain.rules:
            for statement in rule.statements:
                direct = isinstance(statement, NftVerdict) and statement.target == name
                drawn = (
                    isinstance(statement, Vmap)
                    and isinstance(statement.data, AnonymousSet)
                    and any(
                        isinstance(e.value, NftVerdict) and e.value.target == name
                        for e in statement.data.elements
                    )
                )
                if direct or drawn:
                    words = explain_nft_rule(table, chain.name, rule, brief=True)
                    yield nft_rule_node(rule, f"{place} {chain.name}, rule {rule.index + 1}: {words}")
                    break
    for item in table.maps.values():
        for element in item.elements:
            if isinstance(element.value, NftVerdict) and element.value.target == name:
                yield RuleNode(
                    position=0,
                    line=0,
                    text=render_element(element, item.key_types, item.value_types),
                    words=f"{place}, element of map {item.name}: {element_words(table, item.name, element)}",
                    goes_to=name,
                )


def near_nft_names(ruleset: NftRuleset, name: str) -> tuple[str, ...]:
    """Chains with names like `name`; a Service's own names are found by their readable part too."""
    from difflib import get_close_matches

    names = list(dict.fromkeys(n for t in ruleset.tables for n in t.chains))
    low = name.lower()
    inside = [n for n in names if low in n.lower()] if "/" in name or len(name) > 5 else []
    return tuple(inside[:3] or get_close_matches(name, names, n=3, cutoff=0.5))


def is_set_or_map(ruleset: NftRuleset, name: str) -> str | None:
    """`map service-ips of table ip kube-proxy` where `name` is that of a set or map."""
    for table in ruleset.tables:
        found = table.set_or_map(name)
        if found is not None:
            return (
                f"{'map' if isinstance(found, NftMap) else 'set'} {name} of table {table.family} {table.name}"
            )
    return None
