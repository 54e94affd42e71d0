"""Names and roles of chains, against worked examples of real clusters."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ktp.kubeproxy import names
from ktp.kubeproxy.names import ChainRole, RuleFamily, detect_family, role_of_chain
from ktp.model.ruleset import Backend, Chain, DictRuleset, Rule


def parse(table: str, chain: str, text: str, line: int, position: int) -> Rule:
    return Rule(table=table, chain=chain, text=text, line=line, position=position)


def ruleset(tables: Mapping[str, Mapping[str, list[str]]]) -> DictRuleset:
    chains = {
        table: {name: Chain(table, name, raw, parse) for name, raw in of_table.items()}
        for table, of_table in tables.items()
    }
    return DictRuleset("ip", Backend.LEGACY, "test", chains)


@pytest.mark.parametrize(
    ("service_port", "protocol", "suffix"),
    [
        ("test/nginx-log:80-80-tcp", "tcp", "4MORCIL57YHWCCJM"),
        ("test/nginx-externaltrafficpolicy:80-80-tcp", "TCP", "3LS5F4HE6J2O753K"),
        ("default/kubernetes:https", "tcp", "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns:dns", "udp", "TCOU7JCQXEZGVUNU"),
        ("kube-system/kube-dns:dns-tcp", "tcp", "ERIFXISQEP7F7OF4"),
        ("kube-system/kube-dns:metrics", "tcp", "JD5MR3NA4I4DYORP"),
        ("ns1/svc1:p80", "tcp", "XPGD46QRK7WJZT7O"),
        ("default/foo:", "tcp", "PUDHWSP3TSDG63YK"),
        ("default/foo", "tcp", "2ET4SOZOXOH76MUL"),
    ],
)
def test_service_suffix(service_port: str, protocol: str, suffix: str) -> None:
    chains = names.service_chains(service_port, protocol)
    assert chains.svc == f"KUBE-SVC-{suffix}"
    assert chains.svl == f"KUBE-SVL-{suffix}"
    assert chains.ext == f"KUBE-EXT-{suffix}"
    assert chains.xlb == f"KUBE-XLB-{suffix}"
    assert chains.fw == f"KUBE-FW-{suffix}"


@pytest.mark.parametrize(
    ("ip", "chain"),
    [("10.180.0.1", "KUBE-SEP-SXIVWICOYRO3J4NJ"), ("fd00::1", "KUBE-SEP-T5UNFIPVCZXM3U7X")],
)
def test_endpoint_chain(ip: str, chain: str) -> None:
    assert names.endpoint_chain("ns1/svc1:p80", "tcp", ip, 80) == chain


def test_service_port_string_of_unnamed_port() -> None:
    assert names.service_port_string("default", "foo", "") == "default/foo"
    assert names.service_port_string("default", "foo", "", legacy_unnamed=True) == "default/foo:"
    assert names.service_port_string("default", "foo", "web", legacy_unnamed=True) == "default/foo:web"


@pytest.mark.parametrize(
    ("namespace", "service", "port_name", "chain"),
    [
        ("ns1", "svc1", "p80", "service-ULMVA6XW-ns1/svc1/tcp/p80"),
        ("ns2", "svc2", "p80", "service-42NFTM6N-ns2/svc2/tcp/p80"),
        ("test", "nginx-log", "80-80-tcp", "service-4KA357DV-test/nginx-log/tcp/80-80-tcp"),
    ],
)
def test_nft_service_chains(namespace: str, service: str, port_name: str, chain: str) -> None:
    found = names.nft_service_chains(namespace, service, "TCP", port_name)
    base = chain.removeprefix("service-")
    assert (found.service, found.local) == (chain, f"local-{base}")
    assert (found.external, found.firewall) == (f"external-{base}", f"firewall-{base}")


@pytest.mark.parametrize(
    ("args", "chain"),
    [
        (
            ("ns5", "svc5", "TCP", "p80", "10.180.0.3", 80),
            "endpoint-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80",
        ),
        # The sets of a recorded kube-proxy 1.36.
        (
            ("edge", "affinity-local", "TCP", "http", "10.244.2.27", 80),
            "endpoint-5KFIZU7H-edge/affinity-local/tcp/http__10.244.2.27/80",
        ),
    ],
)
def test_nft_endpoint_names(args: tuple[str, str, str, str, str, int], chain: str) -> None:
    found = names.nft_endpoint_names(*args)
    assert found.chain == chain
    assert found.affinity_set == chain.replace("endpoint-", "affinity-", 1)


def test_nft_names_are_cut_and_have_no_colons() -> None:
    found = names.nft_endpoint_names("n" * 63, "s" * 63, "tcp", "p" * 130, "fd00::1", 80)
    assert len(found.chain) == len("endpoint-") + 240
    assert found.chain.endswith("...")
    assert names.nft_endpoint_names("n", "s", "tcp", "p", "fd00::1", 80).chain.endswith(
        "n/s/tcp/p__fd00..1/80"
    )


@pytest.mark.parametrize(
    ("table", "chain", "role"),
    [
        ("nat", "KUBE-NODEPORTS", ChainRole.NODEPORTS_NAT),
        ("filter", "KUBE-NODEPORTS", ChainRole.NODEPORTS_FILTER),
        ("nat", "KUBE-SERVICES", ChainRole.SERVICES_NAT),
        ("filter", "KUBE-SERVICES", ChainRole.SERVICES_FILTER),
        ("filter", "KUBE-FIREWALL", ChainRole.FIREWALL_FILTER),
        ("nat", "KUBE-FIREWALL", ChainRole.FIREWALL_IPVS),
        ("nat", "KUBE-XLB-3LS5F4HE6J2O753K", ChainRole.EXTERNAL_LOCAL_OLD),
        ("nat", "KUBE-SEP-SXIVWICOYRO3J4NJ", ChainRole.ENDPOINT),
        ("mangle", "KUBE-PROXY-CANARY", ChainRole.CANARY),
        ("nat", "KUBE-SVC-SHORT", None),
        ("filter", "cali-FORWARD", None),
    ],
)
def test_role_of_chain(table: str, chain: str, role: ChainRole | None) -> None:
    assert role_of_chain(table, chain) is role


def test_every_role_has_words_of_its_own() -> None:
    assert len({role.words for role in ChainRole}) == len(ChainRole.__members__)


S = "4MORCIL57YHWCCJM"
FILTER_1_24: dict[str, dict[str, list[str]]] = {"filter": {"KUBE-EXTERNAL-SERVICES": []}}
FILTER_1_25: dict[str, dict[str, list[str]]] = {
    "filter": {"KUBE-EXTERNAL-SERVICES": [], "KUBE-PROXY-FIREWALL": []}
}


@pytest.mark.parametrize(
    ("chains", "tables", "family"),
    [
        ([f"KUBE-SVC-{S}", f"KUBE-XLB-{S}"], None, RuleFamily.LE_1_23),
        ([f"KUBE-SVC-{S}", f"KUBE-EXT-{S}"], FILTER_1_24, RuleFamily.V1_24),
        ([f"KUBE-EXT-{S}"], FILTER_1_25, RuleFamily.GE_1_25),
        ([f"KUBE-XLB-{S}", f"KUBE-EXT-{S}"], FILTER_1_25, RuleFamily.GE_1_25),
        ([f"KUBE-SVC-{S}"], FILTER_1_25, RuleFamily.GE_1_25),
        ([f"KUBE-SVC-{S}"], FILTER_1_24, None),
        ([f"KUBE-EXT-{S}"], None, None),
        ([f"KUBE-EXT-{S}"], {"nat": {}}, None),
        ([f"KUBE-EXT-{S}", "KUBE-PROXY-FIREWALL"], None, RuleFamily.GE_1_25),
        ([], None, None),
    ],
)
def test_detect_family(
    chains: list[str], tables: dict[str, dict[str, list[str]]] | None, family: RuleFamily | None
) -> None:
    assert detect_family(chains, ruleset(tables) if tables is not None else None) is family
