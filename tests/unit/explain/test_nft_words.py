"""nftables rules in words: anybody's, and kube-proxy's of every generation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktp.explain.nft_kube import (
    NftGeneration,
    element_words,
    endpoint_of_chain,
    explain_nft_chain,
    explain_nft_rule,
    generation_of,
    kube_table,
    nft_node_ports,
    node_port_addresses,
    node_port_elements,
    owner_of,
    pod_network_of,
    service_of_chain,
)
from ktp.model.nftables import NftRule, NftRuleset, NftTable
from ktp.parse.nft import parse_nft_json, parse_nft_text
from ktp.parse.nft_text import parse_nft_statements

DATA = Path(__file__).resolve().parents[2] / "data"


def listing(name: str) -> NftRuleset:
    path = DATA / name
    if path.suffix == ".json":
        return parse_nft_json(path.read_bytes(), name)
    return parse_nft_text(path.read_text(), name)


def kube(name: str) -> NftTable:
    table = kube_table(listing(name), "ip")
    assert table is not None
    return table


SITE = NftTable(family="inet", name="site")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accept", "every packet: accepted (by this table: others may still stop it)"),
        ("ip saddr 10.0.0.0/8 drop", "from 10.0.0.0/8: dropped without an answer (the client times out)"),
        ("tcp dport { 22, 80 } reject with tcp reset",
         "tcp, to port 22 or 80: refused with a TCP reset (the client sees 'connection refused')"),
        ("ip6 daddr != fd00::/8 counter packets 3 bytes 180", "not to fd00::/8: only counted"),
        ("iifname \"eth0\" ct state new jump input-new", "in by eth0, in state new: on to input-new"),
        ("fib daddr type local meta l4proto . th dport vmap @ports",
         "to an address of this node: protocol, destination port looked up in map ports, whose element decides"),
        ("meta mark & 0x00004000 == 0x00000000 return", "not marked 0x4000: back to the chain before"),
        ("meta mark & 0x00030000 != 0x00000000 drop",
         "marked with any of 0x30000: dropped without an answer (the client times out)"),
        ("limit rate over 10/second log prefix \"flood: \" drop",
         "while above 10/second: logged as 'flood:'; dropped without an answer (the client times out)"),
        ("add @banned { ip saddr limit rate over 3/minute } drop",
         "while above 3/minute: source address noted in set banned; dropped without an answer (the client times out)"),
        ("dnat ip to 10.0.0.7:443", "every packet: sent to 10.0.0.7:443 instead (DNAT)"),
        ("dnat to numgen random mod 2 map { 0 : 10.0.0.7, 1 : 10.0.0.8 }",
         "every packet: sent to one of 2 (a number drawn out of 2) instead (DNAT)"),
        ("masquerade fully-random", "every packet: source replaced by this node's address (masquerading)"),
        ("notrack", "every packet: not tracked: no NAT rule sees it"),
        ("queue to 3", "every packet: handed to a program of this node, which decides (queue)"),
        ("ct state vmap { invalid : drop, established : accept }",
         "every packet: by connection state: invalid is dropped, established is accepted"),
    ],
)  # fmt: skip
def test_anybodys_rules(text: str, words: str) -> None:
    rule = NftRule(statements=parse_nft_statements(text, "inet"))
    assert explain_nft_rule(SITE, "input", rule) == words


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (DATA / "nft").iterdir() if p.suffix in (".nft", ".json"))
)
def test_every_rule_has_words(name: str) -> None:
    for table in listing(f"nft/{name}").tables:
        for chain in table.chains.values():
            assert explain_nft_chain(table, chain.name)
            for rule in chain.rules:
                words = explain_nft_rule(table, chain.name, rule)
                assert words
                assert "Immediate(" not in words
                assert "object at" not in words


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("explain/nft-1.29.nft", NftGeneration.V1_29),
        ("nft/kube-proxy-1.31.nft", NftGeneration.V1_30),
        ("explain/nft-1.33.nft", NftGeneration.V1_33),
        ("nft/kube-proxy-1.36.nft", NftGeneration.GE_1_36),
        ("nft/kube-proxy-1.36.json", NftGeneration.GE_1_36),
    ],
)
def test_generations(name: str, generation: NftGeneration) -> None:
    assert generation_of(kube(name)) is generation


@pytest.mark.parametrize(
    "name",
    ["explain/nft-1.29.nft", "nft/kube-proxy-1.31.nft", "explain/nft-1.33.nft", "nft/kube-proxy-1.36.nft"],
)
def test_kube_proxys_rules_are_known_one_by_one(name: str) -> None:
    """None of them is left to the words for anybody's rules, which quote names of sets and maps."""
    table = kube(name)
    for chain in table.chains.values():
        assert not explain_nft_chain(table, chain.name).startswith("a chain of"), chain.name
        for rule in chain.rules:
            words = explain_nft_rule(table, chain.name, rule)
            assert "looked up in map" not in words, rule.text
            assert "`" not in words, rule.text
            assert not words.startswith("every packet: on to") or chain.is_base, rule.text
    for item in (*table.sets.values(), *table.maps.values()):
        for element in item.elements:
            assert element_words(table, item.name, element)


def test_a_dump_tells_its_facts() -> None:
    table = kube("nft/kube-proxy-1.36.nft")
    assert node_port_addresses(table) == ("10.0.0.10",)
    assert node_port_addresses(kube("explain/nft-1.29.nft")) is None
    assert pod_network_of(table) == "10.244.0.0/16"
    assert (31015, "tcp", "test/nginx-externaltrafficpolicy:80-80-tcp") in nft_node_ports(table)
    found = node_port_elements(table, "tcp", 31015)
    assert found.nat is not None
    assert found.refusing is not None
    assert found.service == "test/nginx-externaltrafficpolicy:80-80-tcp"
    assert not node_port_elements(table, "udp", 31015)


def test_names_are_read_back() -> None:
    name = "endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80"
    assert service_of_chain(name) == "ns5/svc5:p80"
    assert endpoint_of_chain(name) == "10.180.0.3:80"
    assert endpoint_of_chain("endpoint-GTK6MW7G-ns5/svc5/tcp/p80__fd00..3/80") == "[fd00::3]:80"
    assert service_of_chain("service-ABCDEFGH-ns/web/tcp/") == "ns/web"
    assert service_of_chain("service-endpoints-check") is None
    assert service_of_chain("firewall-check") is None


def test_who_owns_a_table() -> None:
    assert owner_of(NftTable(family="inet", name="firewalld")) == "firewalld"
    assert owner_of(NftTable(family="ip", name="docker-bridges")) == "Docker"
    assert "table inet site" in owner_of(SITE)


def test_versions_differ_in_whom_a_local_service_drops() -> None:
    def refusal(name: str, item: str, port: int) -> str:
        table = kube(name)
        element = next(
            e for e in table.maps[item].elements if str(e.value) == "drop" and f"{port}" in str(e.key)
        )
        return element_words(table, item, element)

    assert "own processes are dropped too" in refusal("explain/nft-1.29.nft", "no-endpoint-nodeports", 30002)
    assert "Pods and this node's own processes do not get here" in refusal(
        "nft/kube-proxy-1.36.nft", "no-endpoint-nodeports", 31015
    )
