"""Where a packet ends and why, asked of small rulesets that hold just what decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ktp.explain.explain import EXTERNAL, LOCALHOST, explain_flow
from ktp.explain.nft_explain import ask_nft_dump
from ktp.explain.verdict import is_fine
from ktp.model.explanation import Verdict
from ktp.parse.nft import parse_nft_text
from tests.unit.explain.small_rules import (
    CLUSTER,
    ENTER,
    EXTERNALLY,
    LEAD,
    NAMED,
    PORT,
    SERVICE,
    endpoints,
    explained,
    save,
)

DATA = Path(__file__).resolve().parents[2] / "data"


def verdict(nat: Sequence[str], filter_: Sequence[str] = (), policy: str = "ACCEPT") -> Verdict:
    told = explained(save(nat, filter_, policy)).verdict
    assert told is not None
    return told


# ----------------------------------------------------------------------------------------------------- delivered


@pytest.mark.parametrize(
    ("chances", "shares", "words"),
    [
        ((1.0,), [1.0], "all connections go to 10.244.0.10:8080"),
        ((0.5, 1.0), [0.5, 0.5], "balanced over 2 endpoints, 50% each"),
        ((0.25, 1.0), [0.25, 0.75], "balanced over 2 endpoints"),
    ],
)
def test_endpoints_have_their_shares(chances: tuple[float, ...], shares: list[float], words: str) -> None:
    told = verdict((*ENTER, LEAD, *CLUSTER, *endpoints(*chances)))
    assert is_fine(told)
    assert told.headline == "delivered: the client connects"
    assert [e.share for e in told.endpoints] == pytest.approx(shares)
    assert told.why == f"{words}; the client's address is replaced: the endpoint sees an address of this node"
    assert told.client_source == "replaced"


def test_a_source_that_nothing_replaces_is_kept() -> None:
    told = verdict((*ENTER, LEAD, f"-A {EXTERNALLY} -j {SERVICE}", *endpoints(1)))
    assert (told.client_source, told.symptom) == ("kept", "connects")
    assert told.why.endswith("; the endpoint sees the client's own address")


def test_who_translates_before_kube_proxy_is_told() -> None:
    mine = f"-A PREROUTING -p tcp -m tcp --dport {PORT} -j DNAT --to-destination 10.9.9.9:80"
    told = verdict((mine, *ENTER, LEAD, *CLUSTER, *endpoints(1)))
    assert [e.address for e in told.endpoints] == ["10.9.9.9:80"]
    assert "by a rule that is not kube-proxy's, in chain PREROUTING of table nat" in told.why


# ----------------------------------------------------------------------------------------------------- stopped

NO_ENDPOINT = (
    "-A INPUT -j KUBE-EXTERNAL-SERVICES",
    f"-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport {PORT} -j REJECT",
)
NO_LOCAL = (NO_ENDPOINT[0], NO_ENDPOINT[1].replace("REJECT", "DROP"))
MARKED = ("-A OUTPUT -j ACCEPT", "-A INPUT -j KUBE-FIREWALL")
DROPS_MARKED = "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP"
LOCAL_1_20 = (
    *ENTER,
    f"-A KUBE-NODEPORTS -p tcp {NAMED} -m tcp --dport {PORT} -j KUBE-XLB-3LS5F4HE6J2O753K",
    '-A KUBE-XLB-3LS5F4HE6J2O753K -m comment --comment "test/web:http has no local endpoints" -j KUBE-MARK-DROP',
    "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000",
)


@pytest.mark.parametrize(
    ("filter_", "disposition", "symptom", "words"),
    [
        (NO_ENDPOINT, "rejected", "refused", "no usable endpoint on any node"),
        (NO_LOCAL, "dropped", "times_out", "no usable endpoint of it runs on this node"),
    ],
)
def test_kube_proxys_own_stop_says_what_it_is_for(
    filter_: tuple[str, ...], disposition: str, symptom: str, words: str
) -> None:
    told = verdict(ENTER, filter_)
    assert (told.disposition, told.symptom) == (disposition, symptom)
    assert words in told.why
    assert (told.table, told.chain, told.position) == ("filter", "KUBE-EXTERNAL-SERVICES", 1)
    assert not is_fine(told)


def test_of_a_marked_packet_both_the_mark_and_the_drop_are_told() -> None:
    told = verdict(LOCAL_1_20, (*MARKED, DROPS_MARKED))
    assert (told.disposition, told.chain) == ("dropped", "KUBE-FIREWALL")
    assert told.why.endswith("KUBE-XLB-3LS5F4HE6J2O753K marks the packet, KUBE-FIREWALL drops it")


def test_a_mark_that_nothing_drops_is_told() -> None:
    told = verdict(LOCAL_1_20)
    assert told.disposition != "dropped"
    assert "no rule drops marked packets" in told.why


def test_a_policy_that_drops_is_no_rule() -> None:
    told = verdict((*ENTER, LEAD, *CLUSTER, *endpoints(1)), policy="DROP")
    assert (told.disposition, told.symptom, told.table, told.chain) == (
        "dropped",
        "times_out",
        "filter",
        "FORWARD",
    )
    assert told.why.startswith("no rule of table filter accepts the packet")


def test_one_endpoint_of_two_that_is_stopped_makes_it_intermittent() -> None:
    mine = "-A FORWARD -d 10.244.1.10/32 -j DROP"
    told = verdict((*ENTER, LEAD, *CLUSTER, *endpoints(0.5, 1)), [mine])
    assert (told.symptom, told.headline) == (
        "intermittent",
        "sometimes dropped: some connections work and some do not",
    )
    assert {e.address: e.symptom for e in told.endpoints} == {
        "10.244.0.10:8080": "connects",
        "10.244.1.10:8080": "times_out",
    }
    assert told.why.startswith("connects in 50% of tries; those that draw 10.244.1.10 fail: ")
    assert "a rule that is not kube-proxy's, in chain FORWARD of table filter" in told.why


def test_a_match_that_is_not_known_decides_nothing() -> None:
    told = verdict((*ENTER, LEAD, *CLUSTER, *endpoints(1)), ["-A FORWARD -m no_such_match --what 1 -j DROP"])
    assert (told.disposition, told.symptom) == ("undetermined", "unknown")
    assert "no_such_match" in told.why


# ----------------------------------------------------------------------------------------- stays with the node


@pytest.mark.parametrize(
    ("nat", "words"),
    [
        (
            (ENTER[1], LEAD, *CLUSTER, *endpoints(1)),
            "no packet gets to them: the built-in nat chain does not jump to KUBE-SERVICES",
        ),
        (
            (ENTER[0], "-A KUBE-SERVICES -d 10.96.0.1/32 -j ACCEPT", LEAD, *CLUSTER, *endpoints(1)),
            "KUBE-SERVICES does not lead this packet to KUBE-NODEPORTS",
        ),
        ((*ENTER, LEAD, *CLUSTER), "the chains of test/web:http lead to no endpoint"),
    ],
)
def test_why_no_rule_sends_it_to_an_endpoint(nat: tuple[str, ...], words: str) -> None:
    told = verdict(nat)
    assert not told.endpoints
    assert not is_fine(told)
    assert words in told.why


# ------------------------------------------------------------------------------------------------------ nftables


def nft_verdict(text: str, port: int, vantage: str = EXTERNAL) -> Verdict:
    (question,) = ask_nft_dump(parse_nft_text(text, "ruleset"), "node-b", "tcp", port, vantage)
    told = explain_flow(*question).verdict
    assert told is not None
    return told


@pytest.fixture(scope="module")
def nft_1_36() -> str:
    return (DATA / "nft/kube-proxy-1.36.nft").read_text()


def test_nft_tells_the_element_that_decided(nft_1_36: str) -> None:
    told = nft_verdict(nft_1_36, 31015)
    assert (told.disposition, told.lookup) == ("dropped", "no-endpoint-nodeports")
    assert told.element.startswith("tcp . 31015")
    assert "no usable endpoint of it runs on this node" in told.why


def test_nft_serves_no_loopback(nft_1_36: str) -> None:
    told = nft_verdict(nft_1_36, 31015, LOCALHOST)
    assert not told.endpoints
    assert told.why.startswith("kube-proxy's nftables mode serves node ports on no loopback address")


FRAGMENT = """table ip kube-proxy {
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto external-ULMVA6XW-test/web/tcp/http }
	}
	%s
	chain external-ULMVA6XW-test/web/tcp/http {
	}
}
"""
REFUSED = """map no-endpoint-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : drop }
	}"""


@pytest.mark.parametrize(("more", "lookup"), [("", "service-nodeports"), (REFUSED, "no-endpoint-nodeports")])
def test_of_a_fragment_only_what_its_maps_have_is_told(more: str, lookup: str) -> None:
    told = nft_verdict(FRAGMENT % more, PORT)
    assert (told.disposition, told.symptom) == ("undetermined", "unknown")
    assert f"map {lookup} has it" in told.why
    assert told.why.endswith("table ip kube-proxy was not read whole: the text is a fragment")
    assert told.element.startswith("tcp . 30080 : ")


def test_nft_whose_base_chains_lead_nowhere(nft_1_36: str) -> None:
    begin = nft_1_36.index("\tchain nat-prerouting {")
    end = nft_1_36.index("}", begin)
    emptied = "".join(
        line for line in nft_1_36[begin:end].splitlines(keepends=True) if "jump services" not in line
    )
    told = nft_verdict(nft_1_36[:begin] + emptied + nft_1_36[end:], 31465)
    assert not told.endpoints
    assert "no packet gets to chain services" in told.why
