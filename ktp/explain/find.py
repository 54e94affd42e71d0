"""Where the chain that was asked for is; and what to say where a chain or node port is nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ktp.errors import EvidenceError, NotFoundError
from ktp.explain.explain import explain_chain_alone, near_chains
from ktp.explain.front_end import is_ipvs, near_node_ports, node_ports
from ktp.model.explanation import Explanation
from ktp.model.host import NodeState
from ktp.model.reading import HOW_TO_SAVE, WITH_ITS_WRITER
from ktp.model.ruleset import are_ports_lost

if TYPE_CHECKING:
    from ktp.model.nftables import NftRuleset
    from ktp.model.ruleset import Ruleset


def no_such_node_port(
    states: Sequence[NodeState], protocol: str, port: int, known: tuple[tuple[int, str, str], ...] = ()
) -> Exception:
    """Why there is nothing to explain, and which node ports one may have meant."""
    rulesets = [r for s in states for r in s.rulesets]
    found = {*known, *(p for r in rulesets for p in node_ports(r))}
    kube = any(r.chain("nat", "KUBE-SERVICES") for r in rulesets)
    source = next((r.source for r in rulesets), "this listing")
    lost = next((r.source for r in rulesets if are_ports_lost(r)), None)
    if lost is not None:
        words = f"{lost} has no ports in it: the program that saved the rules is older than the one that wrote them"
        return EvidenceError(words, hint=HOW_TO_SAVE)
    for state in states:
        if state.nft is not None:
            from ktp.explain.nft_explain import known_node_ports, xtables_with_kube_proxy

            source = state.nft.source or source
            found.update(known_node_ports(state.nft))
            kube = kube or bool(found) or any(t.name == "kube-proxy" for t in state.nft.tables)
            table = xtables_with_kube_proxy(state.nft)
            if table is not None and not kube:
                return EvidenceError(
                    f"kube-proxy's rules in {source} are those of iptables-nft (table {table}), of which nft does "
                    "not list all",
                    hint=WITH_ITS_WRITER,
                )
        if state.ipvs is not None and state.ipvs.services:
            from ktp.explain.ipvs import ipvs_node_ports

            kube = True
            found.update(ipvs_node_ports(state.ipvs))
    if not known and not kube:
        return EvidenceError(
            f"{source} holds no rules of kube-proxy at all",
            hint="a node may have rules in several places: try iptables-nft-save, iptables-legacy-save and "
            "`nft list ruleset` (both back ends count); from a machine that is no node, --node-access ssh or "
            "kube-proxy asks the nodes",
        )
    if not known and any(is_ipvs(r) for r in rulesets) and all(s.ipvs is None for s in states):
        return EvidenceError(
            "kube-proxy runs in IPVS mode here: node ports are in ipsets and IPVS, not in rules",
            hint="ask `ipvsadm -Sn` with --rules, or use a snapshot that has ipset-save.txt and ipvsadm.txt",
        )
    near = [
        f"{n}/{its}" + (f" ({service})" if service else "")
        for n, its, service in near_node_ports(sorted(found), protocol, port)
    ]
    words = f"; near it there are {', '.join(near)}" if near else "; there are no node ports at all"
    return NotFoundError(f"no rule names node port {port}/{protocol}{words}")


def explain_chains(
    places: Iterable[tuple[str, Ruleset | None, NftRuleset | None]], name: str, *, every_rule: bool = False
) -> list[Explanation]:
    """A chain wherever it is. `places`: (node, xtables ruleset, nftables ruleset). NotFoundError where nowhere."""
    places = list(places)
    found: list[Explanation] = []
    for node, ruleset, nft in places:
        if ruleset is not None:
            one = explain_chain_alone(ruleset, node, name, every_rule=every_rule)
            found += [one] if one is not None else []
        if nft is not None:
            from ktp.explain.nft_explain import explain_nft_chain_alone

            one = explain_nft_chain_alone(nft, node, name, every_rule=every_rule)
            found += [one] if one is not None else []
    if not found:
        raise _no_such_chain(places, name)
    with_rules = [e for e in found if any(c.rules or c.left_out for c in e.chains)]
    return with_rules or found


def _no_such_chain(places: list[tuple[str, Ruleset | None, NftRuleset | None]], name: str) -> NotFoundError:
    near: dict[str, None] = {}
    sources: list[str] = []
    for _, ruleset, nft in places:
        if ruleset is not None:
            sources.append(ruleset.source)
            near.update(dict.fromkeys(near_chains(ruleset, name)))
        if nft is not None:
            from ktp.explain.nft_explain import is_set_or_map, near_nft_names

            sources.append(nft.source)
            if (what := is_set_or_map(nft, name)) is not None:
                return NotFoundError(f"{name!r} is no chain, but {what}")
            near.update(dict.fromkeys(near_nft_names(nft, name)))
    words = f"; did you mean {' or '.join(list(near)[:3])}?" if near else ""
    where = sources[0] if len(sources) == 1 else "these rules"
    return NotFoundError(f"there is no chain {name!r} in {where}{words}")
