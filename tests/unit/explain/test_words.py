"""Rules in words: never nothing, never a crash, and right about the rules that are misread most."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.explain.kube import explain_chain, explain_rule
from ktp.explain.words import rule_words
from ktp.model.ruleset import Rule, Ruleset
from ktp.parse.iptables_save import open_ruleset, parse_rule

DATA = Path(__file__).resolve().parents[2] / "data" / "explain"
DUMPS = sorted(DATA.glob("1.*.txt"))


def ruleset(name: str) -> Ruleset:
    return open_ruleset(DATA / name, source=name)


def every_rule() -> list[tuple[Rule, Ruleset]]:
    return [
        (rule, dump)
        for path in DUMPS
        for dump in [ruleset(path.name)]
        for table in dump.tables()
        for name in dump.chain_names(table)
        for rule in dump.chain(table, name) or ()
    ]


EVERY_RULE = every_rule()


def test_every_recorded_rule_has_words() -> None:
    assert len(EVERY_RULE) > 1000
    for rule, dump in EVERY_RULE:
        for words in (explain_rule(rule), explain_rule(rule, dump), explain_rule(rule, dump, brief=True)):
            assert words.strip(), rule.text
            assert "?" not in words, (rule.text, words)


def test_every_kubernetes_rule_is_recognised() -> None:
    """No rule of kube-proxy's own chains falls back to a bare list of its matches."""
    for rule, _ in EVERY_RULE:
        if rule.chain.startswith("KUBE-"):
            assert explain_rule(rule) != rule_words(rule), rule.text


@given(st.sampled_from([rule.text for rule, _ in EVERY_RULE]), st.data())
def test_a_mangled_rule_has_words_too(text: str, data: st.DataObject) -> None:
    words = text.split(" ")
    at = data.draw(st.integers(2, len(words)))
    mangled = data.draw(
        st.sampled_from(
            [
                words[:at],
                words[:at] + words[at + 1 :],
                [*words[:at], "!", *words[at:]],
                [*words[:at], "-m", "foo", "--bar", *words[at:]],
            ]
        )
    )
    for table in ("nat", "filter", "mangle"):
        assert explain_rule(parse_rule(table, words[1], " ".join(mangled))).strip()


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    assert explain_rule(parse_rule("nat", "X", f"-A X {text}")).strip()


@pytest.mark.parametrize(
    ("table", "text", "expected"),
    [
        (
            "nat",
            "-A KUBE-NODEPORTS -s 127.0.0.0/8 -p tcp -m tcp --dport 31015 -j KUBE-MARK-MASQ",
            "grants and denies nothing",
        ),
        (
            "nat",
            "-A KUBE-XLB-3LS5F4HE6J2O753K -s 10.244.0.0/16 -j KUBE-SVC-3LS5F4HE6J2O753K",
            "from pods (10.244.0.0/16): the policy does not hold for them",
        ),
        (
            "nat",
            "-A KUBE-EXT-3LS5F4HE6J2O753K -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            "from this node's own processes: masquerade",
        ),
        (
            "nat",
            "-A KUBE-XLB-3LS5F4HE6J2O753K -j KUBE-MARK-DROP",
            "no usable endpoint of the Service runs on this node: marked to be dropped",
        ),
        (
            "nat",
            "-A KUBE-SVC-3LS5F4HE6J2O753K ! -s 10.244.0.0/16 -d 10.96.0.9/32 -p tcp -m tcp --dport 80 "
            "-j KUBE-MARK-MASQ",
            "concerns the cluster IP only, not node ports",
        ),
        (
            "nat",
            "-A KUBE-SVC-3LS5F4HE6J2O753K -m statistic --mode random --probability 0.33333333349 "
            "-j KUBE-SEP-7T5SE2276DBOED2F",
            "33.3% of what gets here",
        ),
        (
            "nat",
            "-A KUBE-SEP-7T5SE2276DBOED2F -s 10.244.1.10/32 -j KUBE-MARK-MASQ",
            "the endpoint's connections to itself",
        ),
        ("nat", "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "keeps its source address"),
        (
            "filter",
            "-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 31015 -j DROP",
            "externalTrafficPolicy Local, and no usable endpoint runs on this node",
        ),
        (
            "filter",
            "-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 31015 -j REJECT "
            "--reject-with icmp-port-unreachable",
            "no usable endpoint on any node",
        ),
        ("filter", "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP", "KUBE-MARK-DROP marked"),
        (
            "filter",
            "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
            "in by docker0, not out by docker0: accepted",
        ),
        (
            "filter",
            "-A f2b-sshd -s 192.0.2.9/32 -j REJECT --reject-with icmp-port-unreachable",
            "from 192.0.2.9: refused with icmp-port-unreachable",
        ),
        (
            "filter",
            "-A X -m set --match-set bad src,dst -j DROP",
            "source and destination in ipset bad: dropped",
        ),
        ("filter", "-A X -m frob --level 3 -j DROP", "frob matches (--level 3): dropped"),
        ("nat", "-A X -j FROB --level 3", "every packet: FROB (--level 3)"),
        ("filter", "-A X -g Y", "every packet: on to Y, not to come back here"),
    ],
)
def test_words(table: str, text: str, expected: str) -> None:
    assert expected in explain_rule(parse_rule(table, text.split(" ")[1], text))


def test_an_endpoint_chain_is_called_by_its_address() -> None:
    dump = ruleset("1.20-node-b.txt")
    rule = next(iter(dump.chain("nat", "KUBE-SVC-3LS5F4HE6J2O753K") or ()))
    assert "endpoint 10.244.1.10:80" in explain_rule(rule, dump)


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ("nat", "KUBE-XLB-3LS5F4HE6J2O753K", "Local (up to 1.23)"),
        ("nat", "KUBE-EXT-3LS5F4HE6J2O753K", "applies its externalTrafficPolicy"),
        ("mangle", "KUBE-PROXY-CANARY", "holds nothing"),
        ("mangle", "KUBE-IPTABLES-HINT", "which back end"),
        ("filter", "ufw-before-input", "ufw"),
        ("nat", "DOCKER", "Docker"),
        ("filter", "cali-FORWARD", "Calico"),
        ("filter", "my-chain", "not Kubernetes'"),
    ],
)
def test_chains(table: str, name: str, expected: str) -> None:
    assert expected in explain_chain(table, name)
