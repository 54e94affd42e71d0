"""One fate has one sentence, and one tree its form, whichever back end the rules are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.explain.explain import EXTERNAL, NODE, POD, ask_dump, explain_flow
from ktp.explain.front_end import node_port_rules
from ktp.explain.nft_explain import ask_nft_dump
from ktp.model.explanation import ChainNode, Explanation
from ktp.model.host import NodeState
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.nft import parse_nft_text

DATA = Path(__file__).resolve().parents[2] / "data"
PORT = 31015


def of_iptables(vantage: str, dump: bytes | None = None) -> Explanation:
    source = "explain/1.36-node-b.txt"
    ruleset = open_ruleset(dump if dump is not None else DATA / source, source=source)
    state = NodeState(name="node-b", rulesets=(ruleset,))
    return explain_flow(
        *ask_dump(state, ruleset, "tcp", PORT, vantage, node_port_rules(ruleset, "tcp", PORT))
    )


def of_nft(vantage: str) -> Explanation:
    name = "nft/kube-proxy-1.36.nft"
    (question,) = ask_nft_dump(
        parse_nft_text((DATA / name).read_text(), name), "node-b", "tcp", PORT, vantage
    )
    return explain_flow(*question)


def chains_of(chain: ChainNode) -> Iterator[ChainNode]:
    yield chain
    for rule in chain.rules:
        for behind in (rule.chain, *(e.chain for lookup in rule.lookups for e in lookup.elements)):
            if behind is not None:
                yield from chains_of(behind)


@pytest.mark.parametrize("vantage", [EXTERNAL, POD, NODE])
def test_a_verdict_is_the_same_in_both_back_ends(vantage: str) -> None:
    xt, nft = of_iptables(vantage).verdict, of_nft(vantage).verdict
    assert xt is not None
    assert nft is not None
    assert (xt.disposition, xt.symptom, xt.why) == (nft.disposition, nft.symptom, nft.why)


def test_what_decided_is_told_with_its_place() -> None:
    xt, nft = of_iptables(EXTERNAL).verdict, of_nft(EXTERNAL).verdict
    assert xt is not None
    assert nft is not None
    assert (xt.table, xt.chain, xt.position, xt.line) == ("filter", "KUBE-EXTERNAL-SERVICES", 3, 36)
    assert (nft.table, nft.chain, nft.position) == ("ip kube-proxy", "nodeport-endpoints-check", 1)
    assert nft.lookup == "no-endpoint-nodeports"
    assert not xt.lookup


@pytest.mark.parametrize("explain", [of_iptables, of_nft])
def test_a_tree_shows_what_the_packet_takes_and_each_chain_once(
    explain: Callable[[str], Explanation],
) -> None:
    trees = [list(chains_of(stage.chain)) for stage in explain(POD).stages]
    rules = [rule for chains in trees for chain in chains for rule in chain.rules]
    assert all(rule.share is not None and 0 <= rule.share <= 1 for rule in rules)
    assert any(
        rule.share == 1 and rule.words.startswith("destination becomes 10.244.1.10:80") for rule in rules
    )
    for chains in trees:
        assert len({chain.name for chain in chains}) == len(chains)


def test_a_drop_by_hand_in_kube_proxys_chain_is_said_to_be_a_strangers() -> None:
    dump = (DATA / "explain/1.36-node-b.txt").read_bytes()
    at = dump.index(b"-A KUBE-EXTERNAL-SERVICES")
    at = dump.rindex(b"\n", 0, at) + 1
    mine = b'-A KUBE-EXTERNAL-SERVICES -s 198.51.100.0/24 -m comment --comment "has no local endpoints" -j DROP\n'
    told = of_iptables(EXTERNAL, dump[:at] + mine + dump[at:]).verdict
    assert told is not None
    assert told.why == (
        "a rule that is not kube-proxy's, in chain KUBE-EXTERNAL-SERVICES of table filter: from 198.51.100.0/24: "
        "dropped without an answer (the client times out)"
    )
