"""The tree of what a packet meets, asked of small rulesets: shares, what is left out, what is shown elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ktp.explain.explain import EXTERNAL, MOST_CALLERS, explain_chain_alone, explain_flow
from ktp.explain.nft_explain import ask_nft_dump, explain_nft_chain_alone
from ktp.model.explanation import ChainNode, Explanation, RuleNode
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.nft import parse_nft_text
from tests.unit.explain.small_rules import (
    CLUSTER,
    ENTER,
    EXTERNALLY,
    LEAD,
    SERVICE,
    endpoints,
    explained,
    save,
)

OTHER = "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30999 -j KUBE-EXT-OTHEROTHEROTHERO"


def rules_below(chain: ChainNode) -> Iterator[tuple[str, RuleNode]]:
    for rule in chain.rules:
        yield chain.name, rule
        behind = (rule.chain, *(e.chain for lookup in rule.lookups for e in lookup.elements))
        for further in behind:
            if further is not None:
                yield from rules_below(further)


def rules(told: Explanation, hook: str, table: str) -> dict[tuple[str, int], RuleNode]:
    (stage,) = [s for s in told.stages if (s.hook, s.chain.table) == (hook, table)]
    return {(chain, rule.position): rule for chain, rule in rules_below(stage.chain)}


def test_each_rule_has_the_share_that_takes_it() -> None:
    told = rules(explained(save((*ENTER, LEAD, *CLUSTER, *endpoints(0.25, 1)))), "PREROUTING", "nat")
    assert [told[SERVICE, n].share for n in (1, 2)] == pytest.approx([0.25, 0.75])
    assert told["KUBE-SEP-" + "B" * 16, 1].share == pytest.approx(0.75)
    assert told["KUBE-NODEPORTS", 1].share == 1


def test_rules_of_other_ports_are_counted_and_left_out_also_with_all_rules() -> None:
    dump = save((*ENTER, OTHER, LEAD, OTHER, *CLUSTER, *endpoints(1)))
    for every_rule in (False, True):
        told = rules(explained(dump, every_rule=every_rule), "PREROUTING", "nat")
        (chain,) = [r.chain for r in told.values() if r.goes_to == "KUBE-NODEPORTS"]
        assert chain is not None
        assert ([r.position for r in chain.rules], chain.left_out) == ([2], 2)
        assert chain.left_out_words == "rules of other ports, addresses and Services"


def test_a_long_chain_of_a_stranger_is_shown_as_far_as_it_is_taken() -> None:
    many = [f"-A FORWARD -s 192.0.2.{n}/32 -j DROP" for n in range(1, 100)]
    dump = save((*ENTER, LEAD, *CLUSTER, *endpoints(1)), [*many, "-A FORWARD -j ACCEPT"])
    (short,) = [s.chain for s in explained(dump).stages if s.hook == "FORWARD"]
    (long,) = [s.chain for s in explained(dump, every_rule=True).stages if s.hook == "FORWARD"]
    assert ([r.position for r in short.rules], short.left_out) == ([100], 99)
    assert "-v shows them" in short.left_out_words
    assert (len(long.rules), long.left_out, long.left_out_words) == (100, 0, "")
    assert [r.position for r in long.rules if r.share] == [100]


def test_a_chain_is_shown_once_where_the_packet_gets_to_it() -> None:
    """Two rules lead to the Service's chain: the first takes no packet, the second all."""
    external = (
        f"-A {EXTERNALLY} -s 10.244.0.0/16 -j {SERVICE}",
        f"-A {EXTERNALLY} -j {SERVICE}",
        f"-A {EXTERNALLY} -j {SERVICE}",
    )
    told = rules(explained(save((*ENTER, LEAD, *external, *endpoints(1)))), "PREROUTING", "nat")
    first, second, third = (told[EXTERNALLY, n] for n in (1, 2, 3))
    assert [bool(rule.chain) for rule in (first, second, third)] == [False, True, False]
    assert (first.shown, second.shown, third.shown) == ("below", "", "above")
    assert (first.share, second.share, third.share) == (0, 1, 0)


def test_chains_that_lead_to_each_other_end() -> None:
    """The kernel refuses such a loop; a text that was edited may have one."""
    rules = ["-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SVC-BBBBBBBBBBBBBBBB"]
    rules.append("-A KUBE-SVC-BBBBBBBBBBBBBBBB -j KUBE-SVC-AAAAAAAAAAAAAAAA")
    ruleset = open_ruleset(save(rules), source="dump")
    told = explain_chain_alone(ruleset, "node-a", "KUBE-SVC-AAAAAAAAAAAAAAAA")
    assert told is not None
    (top,) = told.chains
    below = [rule for _, rule in rules_below(top)]
    assert [(r.goes_to, r.shown) for r in below] == [
        ("KUBE-SVC-BBBBBBBBBBBBBBBB", ""),
        ("KUBE-SVC-AAAAAAAAAAAAAAAA", "above"),
    ]


def test_without_a_packet_nothing_has_a_share() -> None:
    ruleset = open_ruleset(save((*ENTER, LEAD, *CLUSTER, *endpoints(0.5, 1))), source="dump")
    told = explain_chain_alone(ruleset, "node-a", SERVICE)
    assert told is not None
    assert (told.verdict, told.stages) == (None, ())
    assert {rule.share for chain in told.chains for _, rule in rules_below(chain)} == {None}
    assert [rule.goes_to for rule in told.jumps_here] == [SERVICE]
    assert explain_chain_alone(ruleset, "node-a", "KUBE-SVC-NOSUCHCHAIN00000") is None


def test_callers_beyond_the_most_are_counted() -> None:
    jumps = [f"-A KUBE-SERVICES -d 10.96.0.{n}/32 -j {SERVICE}" for n in range(1, MOST_CALLERS + 4)]
    ruleset = open_ruleset(save((*jumps, *endpoints(1))), source="dump")
    told = explain_chain_alone(ruleset, "node-a", SERVICE)
    assert told is not None
    assert len(told.jumps_here) == MOST_CALLERS
    assert told.notes == ("3 more rules lead here (-v shows them)",)
    told = explain_chain_alone(ruleset, "node-a", SERVICE, every_rule=True)
    assert told is not None
    assert (len(told.jumps_here), told.notes) == (MOST_CALLERS + 3, ())


def test_a_chain_to_which_nothing_leads_and_an_empty_one_say_so() -> None:
    ruleset = open_ruleset(save([f"-A KUBE-SERVICES -j {SERVICE}"]), source="dump")
    alone, empty, base = (
        explain_chain_alone(ruleset, "node-a", n) for n in ("KUBE-SERVICES", SERVICE, "OUTPUT")
    )
    assert alone is not None
    assert empty is not None
    assert base is not None
    assert alone.notes == ("no rule leads here: no packet gets to this chain",)
    assert empty.notes == base.notes == ("the chain is empty",)


# ------------------------------------------------------------------------------------------------------ nftables

NFT = """table ip kube-proxy {
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto external-ULMVA6XW-test/web/tcp/http, tcp . 30081 : goto external-OTHEROTH-test/other/tcp/http }
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain services {
		meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @service-nodeports
	}
	chain external-ULMVA6XW-test/web/tcp/http {
		goto service-ULMVA6XW-test/web/tcp/http
	}
	chain service-ULMVA6XW-test/web/tcp/http {
		numgen random mod 2 vmap { 0 : goto endpoint-A-test/web/tcp/http__10.244.0.10/8080, 1 : goto endpoint-B-test/web/tcp/http__10.244.1.10/8080 }
	}
	chain endpoint-A-test/web/tcp/http__10.244.0.10/8080 {
		meta l4proto tcp dnat to 10.244.0.10:8080
	}
	chain endpoint-B-test/web/tcp/http__10.244.1.10/8080 {
		meta l4proto tcp dnat to 10.244.1.10:8080
	}
	chain external-OTHEROTH-test/other/tcp/http {
	}
}
"""


def test_nft_shows_the_packets_element_and_counts_the_others() -> None:
    (question,) = ask_nft_dump(parse_nft_text(NFT, "ruleset"), "node-a", "tcp", 30080, EXTERNAL)
    told = explain_flow(*question)
    assert told.verdict is not None
    assert [e.share for e in told.verdict.endpoints] == [0.5, 0.5]
    lookups = {
        lookup.name or lookup.kind: lookup
        for stage in told.stages
        for _, rule in rules_below(stage.chain)
        for lookup in rule.lookups
    }
    ports = lookups["service-nodeports"]
    assert ([e.share for e in ports.elements], ports.left_out) == ([1], 1)
    draws = [lookup for lookup in lookups.values() if lookup.kind == "draw"]
    assert [[e.share for e in draw.elements] for draw in draws] == [[0.5, 0.5]]


def test_nft_tells_which_rules_and_elements_lead_to_a_chain() -> None:
    ruleset = parse_nft_text(NFT, "ruleset")
    told = explain_nft_chain_alone(ruleset, "node-a", "external-ULMVA6XW-test/web/tcp/http")
    assert told is not None
    assert len(told.jumps_here) == 1
    assert "tcp . 30080" in told.jumps_here[0].text
    empty = explain_nft_chain_alone(ruleset, "node-a", "external-OTHEROTH-test/other/tcp/http")
    assert empty is not None
    assert "the chain is empty" in empty.notes
