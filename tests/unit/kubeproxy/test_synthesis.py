"""The rules that kube-proxy would write, against the rules that it wrote, and what packets make of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.topology import topology_of
from ktp.kubeproxy.changes import with_policy, with_ready_pod_on, with_service
from ktp.kubeproxy.endpoints import index_slices
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, front_ends
from ktp.kubeproxy.intent import Intent, PortOnNode
from ktp.kubeproxy.names import service_suffix, split_service_chain
from ktp.kubeproxy.node import DetectLocal, ProxyMode, ProxyNode, proxy_node
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.kubeproxy.synthesis import (
    SHARED_CHAINS,
    PortChange,
    overlay_ruleset,
    port_change,
    reprogram,
)
from ktp.kubeproxy.synthesis_iptables import (
    LocalMatch,
    RuleKnobs,
    ServiceRules,
    knobs_of,
    observed_knobs,
    shows_nfacct,
    synthesize_port,
)
from ktp.kubeproxy.version import NEWEST, OLDEST, exact
from ktp.model.cluster import LoadBalancerIngress, Service, ServicePort
from ktp.model.host import KubeProxyConfig, NodeState
from ktp.model.reading import TableReading
from ktp.model.ruleset import Backend, Chain, Ruleset
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.parse.iptables_save import open_ruleset, parse_rule
from ktp.parse.snapshot import parse_snapshot
from tests.support.recordings import RECORDINGS
from tests.unit.kubeproxy.objects import ENDPOINTS, index, node, ready, service

WHOLE = RECORDINGS
PACKAGED = Path(__file__).parents[2] / "data" / "cases"
CASES = {  # whether the CNI masquerades pods that dial a node
    "core-1.20-iptables-legacy": False,
    "core-1.27-iptables-nft-bridge": True,
    "core-1.30-iptables-legacy": False,
    "core-1.36-iptables-nft": False,
    "core-1.36-iptables-nft-dual": False,
}
EVERY_CASE = [
    *(pytest.param(PACKAGED / name, id=f"packaged {name}") for name in CASES if (PACKAGED / name).is_dir()),
    *(pytest.param(WHOLE / name, id=name) for name in CASES),
]


@cache
def recorded(case: Path) -> Snapshot:
    if not case.is_dir():
        pytest.skip("the recorded clusters are not here")
    return parse_snapshot(open_snapshot(case))


def bare(line: str) -> str:
    return re.sub(r"^\[\d+:\d+\] ", "", line)


def lines_of(ruleset: Ruleset, table: str, name: str) -> list[str] | None:
    chain = ruleset.chain(table, name)
    return None if chain is None else [bare(line) for line in chain.raw_lines()]


def programmed(state: NodeState) -> Iterator[Ruleset]:
    for ruleset in state.rulesets:
        if ruleset.chain("nat", "KUBE-SERVICES") is not None:
            yield ruleset


def ports_of(snapshot: Snapshot) -> Iterator[tuple[Service, ServicePort]]:
    for one in snapshot.cluster.services.values():
        for port in one.ports:
            yield one, port


# ------------------------------------------------------------------------------------------- what kube-proxy wrote


def without_order(lines: list[str] | tuple[str, ...]) -> Counter[str]:
    """Endpoints in any order: their probabilities by position, their names apart."""
    return Counter(re.sub(r'KUBE-SEP-\S+|-> \S+"', "", line) for line in lines)


def differences(snapshot: Snapshot) -> Iterator[str]:
    index_ = index_slices(snapshot.cluster)
    for name, state in snapshot.nodes.items():
        proxy = proxy_node(snapshot, name)
        for ruleset in programmed(state):
            knobs = replace(knobs_of(proxy, ruleset.family, state.kube_proxy), nfacct=shows_nfacct(ruleset))
            for one, port in ports_of(snapshot):
                rules = synthesize_port(
                    one,
                    port,
                    proxy,
                    index_,
                    family=ruleset.family,
                    minor=proxy.versions.minors()[-1],
                    knobs=knobs,
                )
                where = f"{name} {ruleset.family} {rules.name}"
                yield from (f"{where}: {what}" for what in port_differences(rules, ruleset))


def port_differences(rules: ServiceRules, ruleset: Ruleset) -> Iterator[str]:
    theirs = {f"KUBE-{kind}-{rules.suffix}" for kind in ("SVC", "SVL", "EXT", "XLB", "FW")}
    have = {name for name in theirs if ruleset.chain("nat", name) is not None}
    if (want := {name for name in rules.own if not name.startswith("KUBE-SEP-")}) != have:
        yield f"chains {want} but {have}"
    for name, lines in rules.own.items():
        found = lines_of(ruleset, "nat", name)
        if found is None or without_order(found) != without_order(lines):
            yield f"{name}: {lines} but {found}"
    for table, name in SHARED_CHAINS:
        found = [
            line
            for line in lines_of(ruleset, table, name) or ()
            if f'"{rules.name}"' in line or f'"{rules.name} ' in line
        ]
        if found != list(rules.shared.get((table, name), ())):
            yield f"{table} {name}: {rules.shared.get((table, name))} but {found}"


@pytest.mark.parametrize("case", EVERY_CASE)
def test_the_rules_are_those_that_kube_proxy_wrote(case: Path) -> None:
    assert list(differences(recorded(case))) == []


@pytest.mark.parametrize("case", EVERY_CASE)
def test_no_chain_of_a_service_is_left_over(case: Path) -> None:
    snapshot = recorded(case)
    if len(snapshot.cluster.services) < 20:
        pytest.skip("a reduced case: its rules name Services that its objects leave out")
    index_ = index_slices(snapshot.cluster)
    for name, state in snapshot.nodes.items():
        proxy = proxy_node(snapshot, name)
        for ruleset in programmed(state):
            written = {
                chain
                for one, port in ports_of(snapshot)
                for chain in synthesize_port(
                    one,
                    port,
                    proxy,
                    index_,
                    family=ruleset.family,
                    minor=proxy.versions.minors()[-1],
                ).own
            }
            have = {c for c in ruleset.chain_names("nat") if split_service_chain(c)}
            assert have == written


@pytest.mark.parametrize("case", EVERY_CASE)
def test_the_configuration_shows_in_the_rules(case: Path) -> None:
    snapshot = recorded(case)
    for name, state in snapshot.nodes.items():
        for ruleset in programmed(state):
            found = observed_knobs(ruleset)
            expected = knobs_of(proxy_node(snapshot, name), ruleset.family, state.kube_proxy)
            if found is not None:
                assert (found.local, found.masquerade_all) == (expected.local, expected.masquerade_all)


# --------------------------------------------------------------------------------------------- templates, by version


def rules_of(minor: int, endpoints: str = "local and remote", **changes: object) -> ServiceRules:
    knobs = changes.pop("knobs", None)
    family = str(changes.pop("family", "ip"))
    proxy = node(minor) if "proxy" not in changes else changes.pop("proxy")
    assert isinstance(proxy, ProxyNode)
    assert knobs is None or isinstance(knobs, RuleKnobs)
    one = service(**changes)
    return synthesize_port(
        one, one.ports[0], proxy, index(ENDPOINTS[endpoints]), family=family, minor=minor, knobs=knobs
    )


def kinds(rules: ServiceRules) -> set[str]:
    return {name.split("-")[1] for name in rules.own}


@pytest.mark.parametrize(
    ("minor", "changes", "expected"),
    [
        (18, {}, {"SVC", "FW", "SEP"}),
        (23, {"external_traffic_policy": "Local"}, {"SVC", "XLB", "FW", "SEP"}),
        (24, {}, {"SVC", "EXT", "SEP"}),
        (24, {"external_traffic_policy": "Local"}, {"SVC", "SVL", "EXT", "SEP"}),
        (36, {"external_traffic_policy": "Local"}, {"SVC", "SVL", "EXT", "SEP"}),
        (36, {"load_balancer_source_ranges": ("10.0.0.0/8",)}, {"SVC", "EXT", "FW", "SEP"}),
        (36, {"internal_traffic_policy": "Local"}, {"SVC", "SVL", "EXT", "SEP"}),
    ],
)
def test_chains_by_version(minor: int, changes: Mapping[str, Any], expected: set[str]) -> None:
    assert kinds(rules_of(minor, **changes)) == expected


def test_unnamed_ports_keep_their_colon_in_1_18() -> None:
    unnamed = (ServicePort(port=80, node_port=30080),)
    assert rules_of(18, "none", ports=unnamed).suffix == service_suffix("test/web:", "tcp")
    assert rules_of(19, "none", ports=unnamed).suffix == service_suffix("test/web", "tcp")


def where(rules: ServiceRules, text: str) -> set[str]:
    found = {f"{table} {name}" for (table, name), lines in rules.shared.items() if text in " ".join(lines)}
    return found | {name.split("-")[1] for name, lines in rules.own.items() if text in " ".join(lines)}


@pytest.mark.parametrize(("minor", "place"), [(21, "nat KUBE-SERVICES"), (22, "SVC"), (36, "SVC")])
def test_where_cluster_ips_are_masqueraded(minor: int, place: str) -> None:
    assert where(rules_of(minor), "! -s 10.244.0.0/16 -d 172.16.0.10/32") == {place}


@pytest.mark.parametrize(("minor", "place"), [(21, "nat KUBE-NODEPORTS"), (22, "SVC")])
def test_where_node_ports_are_masqueraded(minor: int, place: str) -> None:
    assert where(rules_of(minor), "--dport 30080 -j KUBE-MARK-MASQ") == {place}


@pytest.mark.parametrize(
    ("minor", "count", "masquerade"),
    [
        (20, 2, "-A KUBE-SERVICES -d 10.99.0.20/32"),
        (21, 1, "-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.99.0.20/32"),
        (23, 1, "-A KUBE-SVC-"),
        (24, 1, ""),
    ],
)
def test_external_ips(minor: int, count: int, masquerade: str) -> None:
    rules = rules_of(minor)
    every = [line for lines in (*rules.shared.values(), *rules.own.values()) for line in lines]
    external = [line for line in every if "external IP" in line]
    assert sum(not line.endswith("KUBE-MARK-MASQ") for line in external) == count
    found = [line for line in external if line.endswith("KUBE-MARK-MASQ")]
    assert [line.startswith(masquerade) for line in found] == ([True] if masquerade else [])


def test_without_local_endpoints_1_24_marks_and_1_25_drops() -> None:
    marks = rules_of(24, "remote", external_traffic_policy="Local")
    assert where(marks, "KUBE-MARK-DROP") == {"SVL"}
    drops = rules_of(25, "remote", external_traffic_policy="Local")
    assert where(drops, "has no local endpoints") == {"filter KUBE-EXTERNAL-SERVICES"}
    assert len(drops.shared["filter", "KUBE-EXTERNAL-SERVICES"]) == 3
    assert "KUBE-SVL" not in " ".join(line for lines in drops.own.values() for line in lines)


@pytest.mark.parametrize("minor", [18, 23, 24, 36])
def test_without_endpoints_everything_is_rejected(minor: int) -> None:
    rules = rules_of(minor, "none")
    assert len(rules.shared["filter", "KUBE-EXTERNAL-SERVICES"]) == 3
    assert rules.shared["filter", "KUBE-SERVICES"] == (
        '-A KUBE-SERVICES -d 172.16.0.10/32 -p tcp -m comment --comment "test/web:http has no endpoints" '
        "-m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
    )
    assert rules.own == {}


@pytest.mark.parametrize(
    ("minor", "endpoints", "expected"),
    [(25, "terminating local", 0), (26, "terminating local", 1), (26, "terminating not serving", 0)],
)
def test_terminating_endpoints(minor: int, endpoints: str, expected: int) -> None:
    assert sum(name.startswith("KUBE-SEP-") for name in rules_of(minor, endpoints).own) == expected


RANGES: dict[str, Any] = {"load_balancer_source_ranges": ("10.0.0.0/24", "fd00::/64")}


@pytest.mark.parametrize(("minor", "tail"), [(24, "-j KUBE-MARK-DROP"), (25, "KUBE-EXT"), (27, 'FIREWALL"')])
def test_source_ranges(minor: int, tail: str) -> None:
    rules = rules_of(minor, **RANGES)
    lines = next(lines for name, lines in rules.own.items() if name.startswith("KUBE-FW-"))
    assert "-s 10.0.0.0/24" in lines[0]
    assert "-s 10.99.0.10/32" in lines[1]  # the node's own address lies in the range
    assert tail in lines[-1]
    assert bool(rules.shared.get(("filter", "KUBE-PROXY-FIREWALL"))) == (minor >= 25)


@pytest.mark.parametrize(("minor", "restricts"), [(33, True), (34, False)])
def test_a_range_of_everything(minor: int, restricts: bool) -> None:
    rules = rules_of(minor, load_balancer_source_ranges=("0.0.0.0/0",))
    assert ("FW" in kinds(rules)) == restricts
    if restricts:
        lines = next(lines for name, lines in rules.own.items() if name.startswith("KUBE-FW-"))
        assert not any(" -s 0.0.0.0" in line for line in lines)


def test_ranges_of_the_other_family_restrict_nothing() -> None:
    assert "FW" not in kinds(rules_of(36, load_balancer_source_ranges=("fd00::/64",)))


@pytest.mark.parametrize(
    ("minor", "knobs", "counts"),
    [
        (36, RuleKnobs(nfacct=True), True),
        (30, RuleKnobs(nfacct=True), False),
        (36, RuleKnobs(nfacct=False), False),
    ],
)
def test_the_counting_node_port_rule(minor: int, knobs: RuleKnobs, counts: bool) -> None:
    lines = rules_of(minor, knobs=knobs).shared["nat", "KUBE-NODEPORTS"]
    assert any("localhost_nps_accepted_pkts" in line for line in lines) == counts
    assert len(lines) == 1 + counts


def test_large_clusters_leave_comments_of_endpoint_rules_out() -> None:
    rules = rules_of(36, knobs=RuleKnobs(comments=False))
    for name, lines in rules.own.items():
        for line in lines:
            if "KUBE-SEP-" in line:
                assert "--comment" not in line, name


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        (RuleKnobs(masquerade_all=True), "-A KUBE-SVC-{} -d 172.16.0.10/32 -p tcp"),
        (RuleKnobs(local=LocalMatch("-i", "cbr0")), "-A KUBE-SVC-{} -d 172.16.0.10/32 ! -i cbr0 -p tcp"),
        (RuleKnobs(local=LocalMatch("-s", "10.0.0.0/8")), "-A KUBE-SVC-{} ! -s 10.0.0.0/8 -d 172.16.0.10/32"),
        (RuleKnobs(), "-A KUBE-SVC-{} -m comment"),
    ],
)
def test_detectors(knobs: RuleKnobs, rule: str) -> None:
    rules = rules_of(36, knobs=knobs)
    assert rules.own[f"KUBE-SVC-{rules.suffix}"][0].startswith(rule.format(rules.suffix))


def test_detectors_of_the_configuration() -> None:
    config = KubeProxyConfig(bridge_interface="cni0", interface_name_prefix="veth")
    for detector, family, expected in (
        (DetectLocal.CLUSTER_CIDR, "ip", LocalMatch("-s", "10.244.0.0/16")),
        (DetectLocal.CLUSTER_CIDR, "ip6", None),
        (DetectLocal.NODE_CIDR, "ip", LocalMatch("-s", "10.244.1.0/24")),
        (DetectLocal.BRIDGE_INTERFACE, "ip6", LocalMatch("-i", "cni0")),
        (DetectLocal.INTERFACE_NAME_PREFIX, "ip", LocalMatch("-i", "veth+")),
        (DetectLocal.NONE, "ip", None),
    ):
        assert knobs_of(node(36, detectors=(detector,)), family, config).local == expected


def test_affinity_and_three_endpoints() -> None:
    one = service(session_affinity="ClientIP", session_affinity_timeout=600)
    three = [ready(f"10.244.2.{n}", "node-b") for n in (1, 2, 3)]
    rules = synthesize_port(one, one.ports[0], node(36), index(three), family="ip", minor=36)
    chain = rules.own[f"KUBE-SVC-{rules.suffix}"]
    assert sum("--rcheck --seconds 600 --reap" in line for line in chain) == 3
    assert [re.findall(r"probability (\S+)", line) for line in chain[-3:]] == [
        ["0.33333333349"],
        ["0.50000000000"],
        [],
    ]
    sep = next(lines for name, lines in rules.own.items() if name.startswith("KUBE-SEP-"))
    assert "-m recent --set --name KUBE-SEP-" in sep[1]


def test_ipv6() -> None:
    one = service(cluster_ips=("fd00:16::10",), external_ips=("fd00:99::1",), ingress=())
    rules = synthesize_port(one, one.ports[0], node(36), index(()), family="ip6", minor=36)
    assert "-d fd00:16::10/128" in rules.shared["filter", "KUBE-SERVICES"][0]
    assert "icmp6-port-unreachable" in rules.shared["filter", "KUBE-SERVICES"][0]
    assert synthesize_port(one, one.ports[0], node(36), index(()), family="ip", minor=36).shared == {}


def test_several_ingress_addresses_and_health_checks() -> None:
    rules = rules_of(
        30,
        external_traffic_policy="Local",
        health_check_node_port=32000,
        ingress=(LoadBalancerIngress(ip="10.99.0.10"), LoadBalancerIngress(ip="10.99.0.11")),
    )
    assert len(rules.shared["nat", "KUBE-SERVICES"]) == 4
    assert "--dport 32000 -j ACCEPT" in rules.shared["filter", "KUBE-NODEPORTS"][0]
    assert ("filter", "KUBE-NODEPORTS") not in rules_of(20, external_traffic_policy="Local").shared


# --------------------------------------------------------------------------------------------------------- overlay

LAST = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
OTHER = '-m comment --comment "test/webby:http'
DUMP = f"""# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-SERVICES - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-EXT-@ - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-@ - [0:0]
:KUBE-SVC-BBBBBBBBBBBBBBBB - [0:0]
[5:300] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A KUBE-EXT-@ -j KUBE-SVC-@
[0:0] -A KUBE-NODEPORTS -p tcp -m comment --comment "test/web:http" -m tcp --dport 30080 -j KUBE-EXT-@
[0:0] -A KUBE-NODEPORTS -p tcp {OTHER}" -m tcp --dport 30081 -j KUBE-SVC-BBBBBBBBBBBBBBBB
[0:0] -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 10.9.9.9:80
[1:60] -A KUBE-SERVICES -d 172.16.0.9/32 -p tcp {OTHER} cluster IP" -m tcp --dport 80 -j KUBE-SVC-BBBBBBBBBBBBBBBB
[0:0] -A KUBE-SERVICES -d 172.16.0.8/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-@
[0:0] -A KUBE-SERVICES -m comment --comment "{LAST}" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
[0:0] -A KUBE-SVC-@ -j KUBE-SEP-AAAAAAAAAAAAAAAA
COMMIT
"""
SUFFIX = service_suffix("test/web:http", "tcp")


def overlaid(rules: ServiceRules | None) -> tuple[Ruleset, Ruleset]:
    base = open_ruleset(DUMP.replace("@", SUFFIX).encode(), source="dump")
    one = service()
    return base, overlay_ruleset(base, [port_change(one, one.ports[0], rules)], parse_rule=parse_rule)


def test_overlay_replaces_one_service_port_alone() -> None:
    rules = rules_of(36)
    base, changed = overlaid(rules)
    services = lines_of(changed, "nat", "KUBE-SERVICES")
    assert services is not None
    assert "172.16.0.9" in services[0]
    assert services[1:4] == list(rules.shared["nat", "KUBE-SERVICES"])
    assert services[4].endswith("KUBE-NODEPORTS")
    assert not any("172.16.0.8" in line for line in services)  # told by its target: it has no comment
    for name, lines in rules.own.items():
        assert lines_of(changed, "nat", name) == list(lines)
    assert changed.chain("nat", "KUBE-SEP-AAAAAAAAAAAAAAAA") is None
    assert "KUBE-SEP-AAAAAAAAAAAAAAAA" not in set(changed.chain_names("nat"))
    assert set(rules.own) < set(changed.chain_names("nat"))
    assert changed.chain("nat", "PREROUTING") is base.chain("nat", "PREROUTING")
    assert changed.chain("nat", "KUBE-NOWHERE") is None
    assert tuple(changed.tables()) == ("filter", "nat")
    assert (changed.family, changed.backend) == ("ip", Backend.NFT)


def test_overlay_keeps_counters_and_line_numbers_of_what_it_keeps() -> None:
    _, changed = overlaid(rules_of(36))
    chain = changed.chain("nat", "KUBE-SERVICES")
    assert chain is not None
    kept, new = chain.rule(0), chain.rule(1)
    assert (kept.counters.packets if kept.counters else None) == 1
    assert kept.line > 0
    assert (new.line, new.counters, new.position) == (0, None, 2)
    assert all(rule.error is None for rule in chain)


def test_overlay_declares_a_missing_chain_only_where_something_goes_in() -> None:
    _, changed = overlaid(rules_of(36, **RANGES))
    assert lines_of(changed, "filter", "KUBE-PROXY-FIREWALL") is not None
    assert "KUBE-PROXY-FIREWALL" in set(changed.chain_names("filter"))
    _, changed = overlaid(rules_of(36))
    assert changed.chain("filter", "KUBE-PROXY-FIREWALL") is None


def test_overlay_of_nothing_removes_the_port() -> None:
    base, changed = overlaid(None)
    assert "KUBE-EXT" not in " ".join(lines_of(changed, "nat", "KUBE-NODEPORTS") or ())
    assert not any(SUFFIX in name for name in changed.chain_names("nat"))
    nothing = overlay_ruleset(
        base, [PortChange(names=frozenset({"a/b"}), suffixes=frozenset())], parse_rule=parse_rule
    )
    for table, name in SHARED_CHAINS:
        assert nothing.chain(table, name) is base.chain(table, name)


class Recording:
    """A ruleset that notes which chains it was asked for."""

    def __init__(self, base: Ruleset) -> None:
        self.family, self.backend, self.source = base.family, base.backend, base.source
        self.base = base
        self.asked: list[str] = []

    def tables(self) -> tuple[str, ...]:
        return tuple(self.base.tables())

    def reading(self, table: str) -> TableReading:
        return self.base.reading(table)

    def chain_names(self, table: str) -> tuple[str, ...]:
        self.asked.append("names")
        return tuple(self.base.chain_names(table))

    def chain(self, table: str, name: str) -> Chain | None:
        self.asked.append(name)
        return self.base.chain(table, name)


def test_overlay_reads_nothing_before_it_is_asked() -> None:
    base = Recording(open_ruleset(DUMP.replace("@", SUFFIX).encode(), source="dump"))
    one = service()
    changed = overlay_ruleset(base, [port_change(one, one.ports[0], rules_of(36))], parse_rule=parse_rule)
    assert base.asked == []
    changed.chain("nat", "PREROUTING")
    assert base.asked == ["PREROUTING"]


# ------------------------------------------------------------------------------------------------------- reprogram


def signature(answer: FlowAnswer) -> tuple[object, ...]:
    ways = (
        (p.endpoint_ip, p.endpoint_port, p.source_seen, round(p.probability, 4), p.symptom)
        for p in answer.paths
    )
    return (answer.disposition, answer.symptom, tuple(sorted(ways, key=str)))


EXTERNAL = {4: "10.0.0.100", 6: "fd00:10::100"}
VANTAGES = (Vantage.EXTERNAL, Vantage.NODE, Vantage.POD_SAME_NODE)


def questions(
    snapshot: Snapshot, key: str, proxies: Mapping[str, ProxyNode]
) -> Iterator[tuple[str, ServicePort, FrontEnd, Client, Flow]]:
    """Every front end of a Service dialled on every node from outside, from the node and from a pod there."""
    one = snapshot.cluster.services[key]
    for name, proxy in proxies.items():
        own = {ip.version: ip for ip in reversed(proxy.primary_ips)}
        pods = {
            ip_address(text).version: text
            for pod in snapshot.cluster.pods or ()
            if pod.node_name == name and pod.is_ready and not pod.host_network and "supposed" not in pod.name
            for text in pod.pod_ips
        }
        for port in one.ports:
            for front_end in front_ends(one, port, proxy).programmed:
                version: Any = front_end.ip_version
                at_node = front_end.kind is FrontEndKind.NODE_PORT
                if at_node and version not in own:
                    continue
                end = front_end.on(own[version]) if at_node else front_end
                for vantage in VANTAGES:
                    if vantage is Vantage.EXTERNAL and end.kind is FrontEndKind.CLUSTER_IP:
                        continue
                    source = {
                        Vantage.EXTERNAL: EXTERNAL[version],
                        Vantage.POD_SAME_NODE: pods.get(version),
                    }.get(vantage)
                    if source is None and vantage is Vantage.POD_SAME_NODE:
                        continue
                    outside = vantage is Vantage.EXTERNAL
                    flow = Flow(
                        dst=str(end.ip),
                        port=end.port,
                        protocol=end.protocol.lower(),
                        src=source,
                        from_node=None if outside else name,
                        via=name if outside and not at_node else None,
                    )
                    client = Client(vantage=vantage, ip=ip_address(source) if source else None)
                    yield name, port, end, client, flow


def disagreement(intent: Intent, answer: FlowAnswer, client: Client) -> str | None:
    if intent.passes or intent.symptom is Symptom.UNKNOWN:
        return None
    if intent.symptom is not answer.symptom:
        return f"{intent.symptom.value} ({intent.decided_by}) but {answer.symptom.value}: {answer.reason}"
    meant = {
        (e.ip, e.symptom, round(e.probability, 3)) for e in intent.endpoints if e.probability is not None
    }
    chances: dict[tuple[str, Symptom], float] = defaultdict(float)
    for path in answer.paths:
        if path.endpoint_ip is not None:
            chances[path.endpoint_ip, path.symptom] += path.probability
    found = {(ip, symptom, round(chance, 3)) for (ip, symptom), chance in chances.items()}
    if meant and meant != found:
        return f"{sorted(meant)} but {sorted(found)}"
    if client.ip is not None:
        for path in answer.paths:
            for endpoint in intent.endpoints:
                if endpoint.ip == path.endpoint_ip and path.symptom is Symptom.CONNECTS:
                    kept = path.source_seen == str(client.ip)
                    if endpoint.source_kept is not None and endpoint.source_kept != kept:
                        return f"source kept {endpoint.source_kept} but {path.source_seen}"
    return None


def disagreements(
    snapshot: Snapshot, key: str, *, masqueraded: bool, proxies: Mapping[str, ProxyNode] | None = None
) -> Iterator[str]:
    proxies = proxies or {name: proxy_node(snapshot, name) for name in snapshot.nodes}
    index_ = index_slices(snapshot.cluster)
    walker = Walker(topology_of(snapshot))
    one = snapshot.cluster.services[key]
    for name, port, front_end, client, flow in questions(snapshot, key, proxies):
        asked = PortOnNode(index_, one, port, proxies[name])
        intent = asked.outcome(front_end, client, pods_masqueraded=masqueraded)
        why = disagreement(intent, answer_flow(walker, flow, trace=False), client)
        if why is not None:
            yield f"{key} {name} {client.vantage.value} {front_end}: {why}"


def exposed(snapshot: Snapshot) -> list[str]:
    return [
        k
        for k, s in snapshot.cluster.services.items()
        if s.type != "ClusterIP" and "None" not in s.cluster_ips
    ]


@pytest.mark.parametrize("case", EVERY_CASE)
def test_unchanged_objects_leave_every_answer_the_same(case: Path) -> None:
    snapshot = recorded(case)
    again = reprogram(snapshot, snapshot.cluster)
    flipped = snapshot
    for key in exposed(snapshot):
        flipped = reprogram(
            flipped, with_policy(flipped.cluster, key, "Local"), services={key}, parse_rule=parse_rule
        )
    back = reprogram(flipped, snapshot.cluster, parse_rule=parse_rule)
    walkers = [Walker(topology_of(s)) for s in (snapshot, again, back)]
    proxies = {name: proxy_node(snapshot, name) for name in snapshot.nodes}
    asked = 0
    for key in exposed(snapshot):
        for *_, flow in questions(snapshot, key, proxies):
            first, *others = (signature(answer_flow(walker, flow, trace=False)) for walker in walkers)
            assert others == [first, first], flow
            asked += 1
    assert asked > 30


@pytest.mark.parametrize("case", EVERY_CASE)
def test_intent_agrees_with_the_walk_where_the_policy_is_flipped(case: Path) -> None:
    snapshot = recorded(case)
    wrong: list[str] = []
    for key in exposed(snapshot):
        policy = snapshot.cluster.services[key].external_traffic_policy
        changed = with_policy(snapshot.cluster, key, "Local" if policy == "Cluster" else "Cluster")
        flipped = reprogram(snapshot, changed, services={key}, parse_rule=parse_rule)
        wrong += disagreements(flipped, key, masqueraded=CASES[case.name])
    assert wrong == []


@pytest.mark.parametrize("case", EVERY_CASE)
def test_intent_agrees_with_the_walk_where_a_pod_is_added(case: Path) -> None:
    snapshot = recorded(case)
    wrong: list[str] = []
    for key in exposed(snapshot):
        more = with_ready_pod_on(snapshot, key, "node-b")
        programmed_ = reprogram(more, more.cluster, services={key}, parse_rule=parse_rule)
        wrong += disagreements(programmed_, key, masqueraded=CASES[case.name])
        proxies = {"node-b": proxy_node(snapshot, "node-b")}
        walker = Walker(topology_of(programmed_))
        assert any(
            client.vantage is Vantage.EXTERNAL
            and answer_flow(walker, flow, trace=False).symptom is Symptom.CONNECTS
            for *_, client, flow in questions(programmed_, key, proxies)
        )
    assert wrong == []


# Those in which something changed that many Services meet; `make bench` asks all.
_TURNS = (18, 20, 22, 23, 24, 25, 26, 28, 30, 36, NEWEST[1])


@pytest.mark.parametrize(
    "minor",
    [m if m in _TURNS else pytest.param(m, marks=pytest.mark.slow) for m in range(OLDEST[1], NEWEST[1] + 1)],
)
def test_intent_agrees_with_the_rules_of_every_version(minor: int) -> None:
    """Each version's rules in the static chains of the recorded version that is nearest before it."""
    name = "core-1.20-iptables-legacy" if minor <= 24 else "core-1.36-iptables-nft"
    snapshot = recorded(WHOLE / name if (WHOLE / name).is_dir() else PACKAGED / name)
    proxies = {n: replace(proxy_node(snapshot, n), versions=exact(minor)) for n in snapshot.nodes}
    wrong: list[str] = []
    for key in exposed(snapshot):
        policy = snapshot.cluster.services[key].external_traffic_policy
        for policy_ in (policy, "Local" if policy == "Cluster" else "Cluster"):
            cluster = with_policy(snapshot.cluster, key, policy_)
            wrong += disagreements(
                of_version(replace(snapshot, cluster=cluster), key, proxies, minor),
                key,
                masqueraded=False,
                proxies=proxies,
            )
    assert wrong == []


def of_version(snapshot: Snapshot, key: str, proxies: Mapping[str, ProxyNode], minor: int) -> Snapshot:
    index_ = index_slices(snapshot.cluster)
    one = snapshot.cluster.services[key]
    nodes = {}
    for name, state in snapshot.nodes.items():
        rulesets = []
        for ruleset in state.rulesets:
            knobs = knobs_of(proxies[name], ruleset.family, state.kube_proxy)
            changes = [
                port_change(
                    one,
                    port,
                    synthesize_port(
                        one, port, proxies[name], index_, family=ruleset.family, minor=minor, knobs=knobs
                    ),
                )
                for port in one.ports
            ]
            rulesets.append(overlay_ruleset(ruleset, changes, parse_rule=parse_rule))
        nodes[name] = replace(state, rulesets=tuple(rulesets))
    return replace(snapshot, nodes=nodes)


def packaged() -> Snapshot:
    return recorded(PACKAGED / "core-1.36-iptables-nft")


def test_services_added_renamed_and_removed() -> None:
    snapshot = packaged()
    key = "edge/local-mixed"
    gone = replace(
        snapshot.cluster, services={k: s for k, s in snapshot.cluster.services.items() if k != key}
    )
    without = reprogram(snapshot, gone, services={key}, parse_rule=parse_rule)
    ruleset = without.nodes["node-b"].rulesets_of("ip")[0]
    assert not any(service_suffix("edge/local-mixed:http", "tcp") in c for c in ruleset.chain_names("nat"))
    assert "edge/local-mixed:" not in " ".join(lines_of(ruleset, "filter", "KUBE-EXTERNAL-SERVICES") or ())
    back = reprogram(without, snapshot.cluster, services={key}, parse_rule=parse_rule)
    ruleset = back.nodes["node-b"].rulesets_of("ip")[0]
    original = snapshot.nodes["node-b"].rulesets_of("ip")[0]
    for table, name in SHARED_CHAINS:
        assert sorted(lines_of(ruleset, table, name) or ()) == sorted(lines_of(original, table, name) or ())
    services = lines_of(ruleset, "nat", "KUBE-SERVICES") or [""]
    assert services[-1].endswith("-j KUBE-NODEPORTS")


def test_other_nodes_keep_their_rules() -> None:
    snapshot = packaged()
    cluster = with_policy(snapshot.cluster, "edge/local-mixed", "Cluster")
    changed = reprogram(
        snapshot, cluster, services={"edge/local-mixed"}, nodes={"node-b"}, parse_rule=parse_rule
    )
    assert changed.nodes["node-a"] is snapshot.nodes["node-a"]
    assert changed.nodes["node-b"] is not snapshot.nodes["node-b"]
    assert changed.cluster is cluster


def test_nodes_without_rules_stay_without() -> None:
    snapshot = packaged()
    bare_ = replace(snapshot, nodes={**snapshot.nodes, "node-b": NodeState(name="node-b")})
    changed = reprogram(bare_, snapshot.cluster, parse_rule=parse_rule)
    assert changed.nodes["node-b"] == NodeState(name="node-b")


def test_without_a_configuration_the_rules_tell_it() -> None:
    snapshot = packaged()
    nodes = {name: replace(state, kube_proxy=None) for name, state in snapshot.nodes.items()}
    unknown = replace(snapshot, nodes=nodes)
    cluster = with_policy(snapshot.cluster, "edge/local-mixed", "Cluster")
    for key, objects in (("edge/local-mixed", cluster), ("edge/local-mixed", snapshot.cluster)):
        told = reprogram(snapshot, objects, services={key}, parse_rule=parse_rule)
        guessed = reprogram(unknown, objects, services={key}, parse_rule=parse_rule)
        for name in snapshot.nodes:
            for one, other in zip(told.nodes[name].rulesets, guessed.nodes[name].rulesets, strict=True):
                for chain in one.chain_names("nat"):
                    assert lines_of(one, "nat", chain) == lines_of(other, "nat", chain), chain


def test_of_two_back_ends_the_one_that_agrees_with_the_api_is_live() -> None:
    snapshot = packaged()
    state = snapshot.nodes["node-b"]
    live = state.rulesets_of("ip")[0]
    key = "edge/local-mixed"
    one = snapshot.cluster.services[key]
    other = with_policy(snapshot.cluster, "test/nginx-log", "Local").services["test/nginx-log"]
    stale_rules = synthesize_port(
        other,
        other.ports[0],
        proxy_node(snapshot, "node-b"),
        index_slices(with_service(snapshot.cluster, other)),
        family="ip",
        minor=36,
    )
    stale = overlay_ruleset(live, [port_change(other, other.ports[0], stale_rules)], parse_rule=parse_rule)
    stale.backend = Backend.LEGACY
    both = replace(snapshot, nodes={"node-b": replace(state, rulesets=(stale, live))})
    changed = reprogram(
        both, with_policy(snapshot.cluster, key, "Cluster"), services={key}, parse_rule=parse_rule
    )
    after = changed.nodes["node-b"].rulesets
    assert after[0] is stale
    assert after[1] is not live
    name = f"KUBE-EXT-{service_suffix(f'{key}:{one.ports[0].name}', 'tcp')}"
    assert "masquerade traffic for" in " ".join(lines_of(after[1], "nat", name) or ())


def test_the_node_description_defaults() -> None:
    proxy = node(36, ProxyMode.IPTABLES, cluster_cidrs=(ip_network("fd00::/48"), ip_network("10.0.0.0/8")))
    assert knobs_of(proxy, "ip").local == LocalMatch("-s", "10.0.0.0/8")
    assert knobs_of(proxy, "ip6").local == LocalMatch("-s", "fd00::/48")
