"""The rules that a request took on a node, of iptables and nftables alike: what each is there for, and its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktp.explain.kube import explain_rule, purpose_of
from ktp.explain.purpose import Aim, Purpose
from ktp.kubeproxy.names import ChainRole, is_kube_table, role_of_chain, role_of_nft_chain
from ktp.kubeproxy.owners import owner_of_table
from ktp.model.effect import Refuse
from ktp.model.host import NodeState
from ktp.model.trace import Path, Step

if TYPE_CHECKING:
    from ktp.model.nftables import NftTable


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


def table_of(state: NodeState | None, step: Step) -> NftTable | None:
    """The nftables table of a step's rule."""
    family, _, name = step.table.partition(" ")
    nft = state.nft if state is not None and step.nft_rule is not None else None
    return nft.table(family, name) if nft is not None else None


def purpose_of_step(step: Step, state: NodeState | None) -> Purpose | None:
    """What a step's rule, virtual server or front end is there for; None for a stranger's. `state` is its node's."""
    if step.rule is not None:
        return purpose_of(step.rule)
    if step.backend == "ipvs" and any(isinstance(e, Refuse) for e in step.effects):
        return Purpose(aim=Aim.NO_REAL_SERVER)
    if step.backend == "cilium" and state is not None and state.cilium is not None:
        from ktp.explain.cilium import purpose_of_front_end

        front_end = next((f for f in state.cilium.frontends or () if f.text == step.text), None)
        return purpose_of_front_end(front_end) if front_end is not None else None
    table = table_of(state, step)
    if table is None or step.nft_rule is None:
        return None
    from ktp.explain.nft_kube import purpose_of_nft

    return purpose_of_nft(table, step.chain, step.nft_rule)


def is_kube_proxys_stop(step: Step | None) -> bool:
    """Whether kube-proxy (or the kubelet for it) drops or refuses at a step: in iptables by the rule's purpose.

    Its nftables tables are its own, and nobody else writes there.
    """
    if step is None or step.rule is None:
        return step is not None and role_of_step(step) is not None
    purpose = purpose_of(step.rule)
    return purpose is not None and purpose.aim.stops


def rule_words(step: Step, state: NodeState | None) -> str:
    """The sentence of a step's rule."""
    if step.rule is not None:
        return explain_rule(step.rule)
    table = table_of(state, step)
    if table is None or step.nft_rule is None:
        return step.text
    from ktp.explain.nft_kube import explain_nft_rule

    return explain_nft_rule(table, step.chain, step.nft_rule)


def owner_words(step: Step, state: NodeState | None) -> str:
    """` (firewalld)`: whose table a step's rule is in, where its name tells; "" otherwise."""
    owner = owner_of_table(step.table) if table_of(state, step) is not None else None
    return f" ({owner.name})" if owner is not None else ""
