"""What the counters of a node's kernel say, where they were read twice."""

from __future__ import annotations

from collections.abc import Iterable

from ktp.explain.kube import purpose_of
from ktp.explain.purpose import Aim
from ktp.kubeproxy.names import ChainRole, role_of_nft_chain
from ktp.model.diagnosis import Evidence
from ktp.model.host import NodeState

INVALID = "nf_conntrack.invalid"
LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"


def growth(state: NodeState | None, names: Iterable[str]) -> dict[str, int]:
    """By how much each counter grew between the readings; what stood still or was not read is left out."""
    counters = state.counters if state is not None else None
    if counters is None:
        return {}
    return {name: by for name in names if (by := counters.moved(name))}


def growing(state: NodeState | None, *names: str) -> list[Evidence]:
    """A line of evidence for each counter that grew: of the whole node, so no proof for one connection."""
    if state is None or state.counters is None:
        return []
    seconds = state.counters.seconds
    within = f" in {seconds:.0f} s" if seconds is not None and seconds >= 1 else " between two readings"
    return [
        Evidence("counter", state.name, f"{name} grew by {by}{within}, of the whole node")
        for name, by in growth(state, names).items()
    ]


def strict_drop(state: NodeState | None) -> Evidence | None:
    """kube-proxy's rule that drops INVALID packets on a node that asks every TCP segment; None where one is lacking."""
    if state is None or (state.sysctls or {}).get(LIBERAL) != "0":
        return None
    for ruleset in state.rulesets:
        for rule in ruleset.chain("filter", "KUBE-FORWARD") or ():
            purpose = purpose_of(rule, ruleset)
            if purpose is not None and purpose.aim is Aim.DROP_INVALID:
                source = f"{state.name} {ruleset.backend.value} filter line {rule.line}"
                return Evidence("rule", source, rule.text)
    if state.nft is None:
        return None
    from ktp.explain.nft_kube import purpose_of_nft

    for table in state.nft.tables:
        for name in (name for name in table.chains if role_of_nft_chain(name) is ChainRole.INVALID):
            for nft_rule in table.chains[name].rules:
                found = purpose_of_nft(table, name, nft_rule)
                if found is not None and found.aim is Aim.DROP_INVALID:
                    where = f"{state.name} nftables {table.family} {table.name} {name}"
                    return Evidence("rule", where, nft_rule.text)
    return None
