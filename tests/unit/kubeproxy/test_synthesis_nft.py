"""What kube-proxy would write into its nftables tables, against what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.kubeproxy.changes import with_policy, with_ready_pod_on
from ktp.kubeproxy.endpoints import index_slices
from ktp.kubeproxy.node import ProxyMode, proxy_node
from ktp.kubeproxy.synthesis import reprogram
from ktp.kubeproxy.synthesis_iptables import LocalMatch, RuleKnobs
from ktp.kubeproxy.synthesis_nft import (
    NftServiceRules,
    observed_knobs_nft,
    replace_ports,
    synthesize_port_nft,
    table_minor,
)
from ktp.model.cluster import (
    Cluster,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    Service,
    ServicePort,
)
from ktp.model.host import KubeProxyConfig, NodeState
from ktp.model.nftables import NftRuleset, NftTable
from ktp.model.snapshot import Snapshot
from ktp.parse.nft import parse_nft_text
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import RECORDINGS
from tests.unit.kubeproxy.objects import ENDPOINTS, index, node, service

RECORDED = RECORDINGS / "core-1.36-nftables"
TEXTS = Path(__file__).parents[2] / "data" / "nft"


@cache
def recorded() -> Snapshot:
    if not RECORDED.is_dir():
        pytest.skip("the recorded clusters are not here")
    return parse_snapshot(open_snapshot(RECORDED))


def text(name: str) -> NftRuleset:
    return parse_nft_text((TEXTS / name).read_text(), source=name)


def table_of(name: str) -> NftTable:
    table = text(name).table("ip", "kube-proxy")
    assert table is not None
    return table


def contents(nft: NftRuleset | None) -> list[object]:
    """Everything that decides, elements in any order."""
    assert nft is not None
    return [
        (
            table.family,
            table.name,
            {name: chain.rules for name, chain in table.chains.items()},
            {
                name: (frozenset(one.elements), one.timeout)
                for name, one in {**table.sets, **table.maps}.items()
            },
        )
        for table in nft.tables
    ]


# ------------------------------------------------------------------------------------------- what kube-proxy wrote


def test_the_table_is_that_which_kube_proxy_wrote() -> None:
    snapshot = recorded()
    index_ = index_slices(snapshot.cluster)
    for name, state in snapshot.nodes.items():
        proxy = proxy_node(snapshot, name)
        assert state.nft is not None
        for table in state.nft.tables:
            written = [
                synthesize_port_nft(one, port, proxy, index_, family=table.family, minor=36)
                for one in snapshot.cluster.services.values()
                for port in one.ports
            ]
            chains = {n: rules for found in written for n, rules in found.chains.items()}
            assert {n: chain.rules for n, chain in table.chains.items() if "/" in n} == chains
            affinity = {n: seconds for found in written for n, seconds in found.affinity.items()}
            assert {n: s.timeout for n, s in table.sets.items() if n.startswith("affinity-")} == affinity
            for n, one in {**table.sets, **table.maps}.items():
                elements = {e for found in written for e in found.elements.get(n, ())}
                if n != "nodeport-ips" and n not in affinity:
                    assert set(one.elements) == elements, n


def test_unchanged_objects_change_nothing_and_what_is_undone_leaves_nothing() -> None:
    snapshot = recorded()
    again = reprogram(snapshot, snapshot.cluster)
    before = {name: contents(state.nft) for name, state in snapshot.nodes.items()}
    assert {name: contents(state.nft) for name, state in again.nodes.items()} == before
    for key, one in snapshot.cluster.services.items():
        if "None" in one.cluster_ips:
            continue
        without = {k: s for k, s in snapshot.cluster.services.items() if k != key}
        for changed in (
            with_policy(snapshot.cluster, key, "Local"),
            with_policy(snapshot.cluster, key, "Cluster"),
            with_ready_pod_on(snapshot, key, "node-b").cluster,
            replace(snapshot.cluster, services=without),
        ):
            there = reprogram(snapshot, changed, services={key})
            back = reprogram(there, snapshot.cluster, services={key})
            assert {name: contents(state.nft) for name, state in back.nodes.items()} == before, key


# ---------------------------------------------------------------------------------- the tables of tests/data/nft

PROXY = node(
    31,
    ProxyMode.NFTABLES,
    cluster_cidrs=(ip_network("10.0.0.0/8"),),
    addresses=frozenset({ip_address("192.168.0.2")}),
    primary_ips=(ip_address("192.168.0.2"),),
)


def slice_of(name: str, *addresses: str, on: str = "node-b") -> EndpointSlice:
    return EndpointSlice(
        namespace=name.replace("svc", "ns"),
        name=f"{name}-1",
        service_name=name,
        ports=(EndpointPort(name="p80", port=80),),
        endpoints=tuple(Endpoint(addresses=(a,), ready=True, node_name=on) for a in addresses),
    )


SVC1 = Service(
    namespace="ns1",
    name="svc1",
    cluster_ips=("172.30.0.41",),
    ports=(ServicePort(name="p80", port=80),),
)
SVC5 = Service(
    namespace="ns5",
    name="svc5",
    type="LoadBalancer",
    cluster_ips=("172.30.0.45",),
    ports=(ServicePort(name="p80", port=80, node_port=3002),),
    external_traffic_policy="Local",
    session_affinity="ClientIP",
    ingress=(LoadBalancerIngress(ip="5.6.7.8"),),
    load_balancer_source_ranges=("203.0.113.0/25",),
)
SLICES = (slice_of("svc1", "10.180.0.1"), slice_of("svc5", "10.180.0.3"))
INDEX = index_slices(Cluster(slices=SLICES))


def test_the_table_of_1_31() -> None:
    table = table_of("kube-proxy-1.31.nft")
    one = synthesize_port_nft(SVC1, SVC1.ports[0], PROXY, INDEX, family="ip", minor=31)
    for name, rules in one.chains.items():
        assert [str(rule) for rule in rules] == [str(rule) for rule in table.chains[name].rules]
    five = synthesize_port_nft(SVC5, SVC5.ports[0], PROXY, INDEX, family="ip", minor=31)
    for name, rules in five.chains.items():
        if name.startswith("firewall-"):
            assert [str(rule) for rule in rules] == ["ip saddr != 203.0.113.0/25 drop"]
            continue
        # The listing was written by hand, without the rule for the cluster IP.
        written = [str(rule) for rule in rules if "172.30.0.45" not in str(rule)]
        assert written == [str(rule) for rule in table.chains[name].rules]
    assert set(table.maps["service-nodeports"].elements) == set(five.elements["service-nodeports"])
    assert five.affinity == {"affinity-GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80": 10800}


def test_the_style_tells_the_version() -> None:
    assert table_minor(table_of("kube-proxy-1.31.nft"), 36) == 35
    assert table_minor(table_of("kube-proxy-1.31.nft"), 31) == 31
    assert table_minor(table_of("kube-proxy-1.36.nft"), 33) == 36
    old = table_of("kube-proxy-1.31.nft")
    assert (
        table_minor(replace(old, maps={n: m for n, m in old.maps.items() if n != "firewall-ips"}), 31) == 29
    )


@pytest.mark.parametrize("name", ["kube-proxy-1.31.nft", "kube-proxy-1.36.nft"])
def test_the_detector_shows_in_the_rules(name: str) -> None:
    expected = "10.0.0.0/8" if "1.31" in name else "10.244.0.0/16"
    assert observed_knobs_nft(table_of(name)) == RuleKnobs(local=LocalMatch("-s", expected))


def test_replacing_a_port_leaves_the_others() -> None:
    table = table_of("kube-proxy-1.31.nft")
    gone = replace_ports(table, [(SVC5, SVC5.ports[0])], [], INDEX)
    assert not any("svc5" in name for name in (*gone.chains, *gone.sets))
    assert [str(e.key) for e in gone.maps["service-ips"].elements] == ["172.30.0.41 . tcp . 80"]
    assert gone.maps["service-nodeports"].elements == ()
    assert gone.maps["firewall-ips"].elements == ()
    assert gone.maps["no-endpoint-services"] is table.maps["no-endpoint-services"]
    assert (
        gone.chains["service-ULMVA6XW-ns1/svc1/tcp/p80"] is table.chains["service-ULMVA6XW-ns1/svc1/tcp/p80"]
    )


def test_a_cluster_ip_goes_with_its_service() -> None:
    table = table_of("kube-proxy-1.31.nft")
    gone = replace_ports(table, [(SVC1, SVC1.ports[0])], [], INDEX)
    assert [str(e.key) for e in gone.sets["cluster-ips"].elements] == ["172.30.0.42"]


def test_a_hairpin_element_stays_while_a_service_lists_the_endpoint() -> None:
    table = table_of("kube-proxy-1.36.nft")
    one = Service(namespace="edge", name="local-mixed", cluster_ips=("172.16.254.169",))
    port = ServicePort(name="http", port=80)
    drawn = Service(namespace="edge", name="local-extip", cluster_ips=("172.16.158.22",))
    nobody = index_slices(Cluster(slices=()))
    listed = index_slices(
        Cluster(slices=(replace(slice_of("svc9", "10.244.2.26"), ports=(EndpointPort(port=80),)),))
    )

    def hairpins(table: NftTable) -> set[str]:
        return {str(e.key).split(" . ")[0] for e in table.sets["hairpin-connections"].elements}

    assert "10.244.2.26" in hairpins(replace_ports(table, [(one, port)], [], nobody))
    assert "10.244.2.26" not in hairpins(replace_ports(table, [(drawn, port)], [], nobody))
    assert "10.244.2.26" in hairpins(replace_ports(table, [(drawn, port)], [], listed))


# --------------------------------------------------------------------------------------------- templates, by version


def rules_of(minor: int, endpoints: str = "local and remote", **changes: object) -> NftServiceRules:
    one = service(**changes)
    return synthesize_port_nft(
        one,
        one.ports[0],
        node(minor, ProxyMode.NFTABLES),
        index(ENDPOINTS[endpoints]),
        family="ip",
        minor=minor,
    )


def chain(rules: NftServiceRules, prefix: str) -> list[str]:
    return [str(rule) for name, found in rules.chains.items() if name.startswith(prefix) for rule in found]


@pytest.mark.parametrize(
    ("minor", "first"),
    [
        (30, "ip daddr 172.16.0.10 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade"),
        (33, "ip daddr 172.16.0.10 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade"),
        (34, "ip daddr 172.16.0.10 ip saddr != 10.244.0.0/16 jump mark-for-masquerade"),
        (36, "meta l4proto tcp dnat ip addr . port to numgen random mod 2 map"),
    ],
)
def test_service_chains_by_version(minor: int, first: str) -> None:
    assert chain(rules_of(minor), "service-")[0].startswith(first)


@pytest.mark.parametrize(
    ("minor", "affinity", "count"), [(35, "None", 2), (36, "None", 0), (36, "ClientIP", 2)]
)
def test_endpoint_chains_by_version(minor: int, affinity: str, count: int) -> None:
    rules = rules_of(minor, session_affinity=affinity)
    assert sum(name.startswith("endpoint-") for name in rules.chains) == count
    assert ("ip saddr 10.244.1.10 jump mark-for-masquerade" in chain(rules, "endpoint-")) == (minor <= 35)
    hairpins = [str(e.key) for e in rules.elements.get("hairpin-connections", ())]
    assert hairpins == (["10.244.1.10 . 10.244.1.10 . tcp . 8080"] if minor >= 36 else [])


@pytest.mark.parametrize("minor", [31, 36])
def test_local_policy(minor: int) -> None:
    here = chain(rules_of(minor, external_traffic_policy="Local"), "external-")
    assert len(here) == 4
    assert "goto local-" in here[-1]
    elsewhere = rules_of(minor, "remote", external_traffic_policy="Local")
    assert len(chain(elsewhere, "external-")) == 3
    assert [str(e) for e in elsewhere.elements["no-endpoint-nodeports"]] == [
        'tcp . 30080 comment "test/web:http" : drop'
    ]
    assert len(elsewhere.elements["no-endpoint-services"]) == 2
    assert len(elsewhere.elements["service-ips"]) == 3


def test_cluster_policy_masquerades() -> None:
    assert chain(rules_of(35), "external-")[0] == "jump mark-for-masquerade"
    assert chain(rules_of(36), "external-")[0] == 'meta mark set meta mark | 0x00004000 comment "masquerade"'


def test_internal_policy_without_local_endpoints() -> None:
    rules = rules_of(36, "remote", internal_traffic_policy="Local")
    assert [str(e) for e in rules.elements["no-endpoint-services"]] == [
        '172.16.0.10 . tcp . 80 comment "test/web:http" : drop'
    ]


@pytest.mark.parametrize("minor", [29, 36])
def test_without_endpoints_everything_is_rejected(minor: int) -> None:
    rules = rules_of(minor, "none")
    assert rules.chains == {}
    assert {str(e.value) for e in rules.elements["no-endpoint-services"]} == {"goto reject-chain"}
    assert "service-ips" not in rules.elements
    assert ("cluster-ips" in rules.elements) == (minor >= 30)


@pytest.mark.parametrize(
    ("ranges", "drops"),
    [
        (("10.1.0.0/16",), ["ip saddr != 10.1.0.0/16 drop"]),
        (("10.1.0.7/32",), ["ip saddr != 10.1.0.7 drop"]),
        (("10.0.0.0/24", "10.1.0.0/16"), ["ip saddr != { 10.0.0.0/24, 10.1.0.0/16, 10.99.0.10 } drop"]),
        (("0.0.0.0/0",), []),
        (("fd00::/64",), []),
    ],
)
def test_source_ranges(ranges: tuple[str, ...], drops: list[str]) -> None:
    for endpoints in ("local and remote", "none"):
        rules = rules_of(36, endpoints, load_balancer_source_ranges=ranges)
        assert chain(rules, "firewall-") == drops
        assert len(rules.elements.get("firewall-ips", ())) == len(drops)


def test_source_ranges_in_1_29() -> None:
    rules = rules_of(29, load_balancer_source_ranges=("10.1.0.0/16",))
    assert [str(e) for e in rules.elements["firewall-allow"]] == ["10.99.0.10 . tcp . 80 . 10.1.0.0/16"]
    assert not any(name.startswith("firewall-") for name in rules.chains)


def test_ipv6() -> None:
    one = service(cluster_ips=("fd00:16::10",), external_ips=(), ingress=())
    endpoint = Endpoint(addresses=("fd00:244::1",), ready=True, node_name="node-a")
    slices = (
        EndpointSlice(
            namespace="test",
            name="web-1",
            service_name="web",
            address_type="IPv6",
            ports=(EndpointPort(name="http", port=80),),
            endpoints=(endpoint,),
        ),
    )
    rules = synthesize_port_nft(
        one, one.ports[0], node(35), index_slices(Cluster(slices=slices)), family="ip6", minor=35
    )
    assert chain(rules, "endpoint-")[1] == "meta l4proto tcp dnat to [fd00:244::1]:80"
    assert rules.chains.keys() >= {n for n in rules.chains if "fd00.244..1/80" in n}


@pytest.mark.parametrize(
    ("knobs", "condition"),
    [
        (RuleKnobs(local=LocalMatch("-i", "veth+")), 'iifname "veth*" goto'),
        (RuleKnobs(local=LocalMatch("-s", "10.0.0.0/8")), "ip saddr 10.0.0.0/8 goto"),
        (RuleKnobs(), "fib saddr type local"),
    ],
)
def test_detectors(knobs: RuleKnobs, condition: str) -> None:
    one = service(external_traffic_policy="Local")
    rules = synthesize_port_nft(
        one, one.ports[0], node(36), index(ENDPOINTS["remote"]), family="ip", minor=36, knobs=knobs
    )
    assert chain(rules, "external-")[0].startswith(condition)


# ------------------------------------------------------------------------------------------------------- reprogram


def snapshot_of(services: Mapping[str, Service], config: KubeProxyConfig | None) -> Snapshot:
    state = NodeState(name="node-a", nft=text("kube-proxy-1.31.nft"), kube_proxy=config)
    return Snapshot(cluster=Cluster(services=services, slices=SLICES), nodes={"node-a": state})


@pytest.mark.parametrize("config", [None, KubeProxyConfig(mode="nftables", cluster_cidr="10.0.0.0/8")])
def test_reprogram(config: KubeProxyConfig | None) -> None:
    snapshot = snapshot_of({"ns1/svc1": SVC1, "ns5/svc5": SVC5}, config)
    changed = with_policy(snapshot.cluster, "ns5/svc5", "Cluster")
    after = reprogram(snapshot, changed, services={"ns5/svc5"}).nodes["node-a"].nft
    assert after is not None
    table = after.table("ip", "kube-proxy")
    assert table is not None
    external = table.chains["external-HVFWP5L3-ns5/svc5/tcp/p80"]
    assert [str(r) for r in external.rules] == [
        "jump mark-for-masquerade",
        "goto service-HVFWP5L3-ns5/svc5/tcp/p80",
    ]
    service_chain = table.chains["service-HVFWP5L3-ns5/svc5/tcp/p80"]
    assert str(service_chain.rules[0]).endswith("ip saddr != 10.0.0.0/8 jump mark-for-masquerade")
