"""The rules that a request took on a node, of iptables and nftables alike: what each is there for, and its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktp.explain.kube import explain_rule, purpose_of
from ktp.explain.purpose import Purpose
from ktp.kubeproxy.names import ChainRole, is_kube_table, role_of_chain, role_of_nft_chain
from ktp.model.trace import Path, Step

if TYPE_CHECKING:
    from ktp.model.nftables import NftRuleset, NftTable


def request_steps(path: Path, node: str) -> list[Step]:
    """Every rule that the request took on `node`, in order."""
    return [
        step
        for hop in path.hops
        if hop.is_of(node) and hop.direction == "request"
        for step in hop.steps
        if is_of_rule(step)
    ]


def is_of_rule(step: Step) -> bool:
    """Whether a step is of a rule in a chain."""
    return step.rule is not None or step.nft_rule is not None


def role_of_step(step: Step) -> ChainRole | None:
    """What the chain of a step's rule is for; None where neither kube-proxy nor the kubelet owns it."""
    if step.nft_rule is None:
        return role_of_chain(step.table, step.chain)
    return role_of_nft_chain(step.chain) if is_kube_table(*step.table.partition(" ")[::2]) else None


def table_of(nft: NftRuleset | None, step: Step) -> NftTable | None:
    """The nftables table of a step's rule."""
    family, _, name = step.table.partition(" ")
    return nft.table(family, name) if nft is not None and step.nft_rule is not None else None


def purpose_of_step(step: Step, nft: NftRuleset | None) -> Purpose | None:
    """What a step's rule is there for, where it is kube-proxy's or the kubelet's. `nft` is its node's ruleset."""
    if step.rule is not None:
        return purpose_of(step.rule)
    table = table_of(nft, step)
    if table is None or step.nft_rule is None:
        return None
    from ktp.explain.nft_kube import purpose_of_nft

    return purpose_of_nft(table, step.chain, step.nft_rule)


def rule_words(step: Step, nft: NftRuleset | None) -> str:
    """The sentence of a step's rule."""
    if step.rule is not None:
        return explain_rule(step.rule)
    table = table_of(nft, step)
    if table is None or step.nft_rule is None:
        return step.text
    from ktp.explain.nft_kube import explain_nft_rule

    return explain_nft_rule(table, step.chain, step.nft_rule)


def owner_words(step: Step, nft: NftRuleset | None) -> str:
    """` (firewalld)`: whose table a step's rule is in, where its name tells; "" otherwise."""
    table = table_of(nft, step)
    if table is None:
        return ""
    from ktp.explain.nft_kube import owner_of

    owner = owner_of(table)
    return "" if owner.startswith("table ") else f" ({owner})"
