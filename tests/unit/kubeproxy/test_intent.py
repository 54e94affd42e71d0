"""The tables of intended outcomes: rows by source, columns by policy and endpoints, over versions and modes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind
from ktp.kubeproxy.intent import Intent, PortOnNode
from ktp.kubeproxy.node import ALL_DETECTORS, ALL_MODES, DetectLocal, ProxyMode, ProxyNode
from ktp.kubeproxy.outcome import Client, Vantage
from ktp.kubeproxy.version import ANY_VERSION, NEWEST, VersionRange
from ktp.model.assumption import EvidenceKind
from ktp.model.cluster import Service
from ktp.model.trace import Disposition, Symptom
from tests.unit.kubeproxy.objects import ENDPOINTS, LOCAL_IP, PORT, REMOTE_IP, index, node, ready, service

NODE_PORT, LOAD_BALANCER = FrontEndKind.NODE_PORT, FrontEndKind.LOAD_BALANCER
EXTERNAL_IP, CLUSTER_IP = FrontEndKind.EXTERNAL_IP, FrontEndKind.CLUSTER_IP
IPTABLES, NFTABLES, IPVS = ProxyMode.IPTABLES, ProxyMode.NFTABLES, ProxyMode.IPVS
ALL_IPTABLES = (18, 19, 20, 21, 23, 24, 25, 26, 29, 33, NEWEST[1])

DIALLED = {
    NODE_PORT: ("10.0.0.3", 30080),
    LOAD_BALANCER: ("10.99.0.10", 80),
    EXTERNAL_IP: ("10.99.0.20", 80),
    CLUSTER_IP: ("172.16.0.10", 80),
}
CLIENTS = {
    Vantage.EXTERNAL: "10.0.0.100",
    Vantage.NODE: "10.0.0.3",
    Vantage.LOCALHOST: "127.0.0.1",
    Vantage.POD_SAME_NODE: "10.244.1.50",
    Vantage.POD_OTHER_NODE: "10.244.3.50",
    Vantage.OTHER_NODE: "10.0.0.13",
}


def ask(
    vantage: Vantage,
    kind: FrontEndKind,
    endpoints: str,
    where: ProxyNode,
    *,
    client: str | None = "",
    address: str | None = None,
    of: Service | None = None,
    pods_masqueraded: bool | None = False,
    **changes: Any,
) -> Intent:
    ip, number = DIALLED[kind]
    if vantage is Vantage.LOCALHOST and kind is NODE_PORT:
        ip = "127.0.0.1"
    dialled = ip_address(address or ip)
    source = CLIENTS[vantage] if client == "" else client
    return PortOnNode(index(ENDPOINTS[endpoints]), of or service(**changes), PORT, where).outcome(
        FrontEnd(kind=kind, ip=dialled, port=number, protocol="TCP", ip_version=dialled.version),
        Client(vantage=vantage, ip=ip_address(source) if source else None),
        pods_masqueraded=pods_masqueraded,
    )


def cell(intent: Intent) -> str:
    """The answer as the tables of the reference spell it."""
    if intent.passes:
        return "pass"
    drawn = {e.ip for e in intent.endpoints if e.symptom is Symptom.CONNECTS}
    if intent.symptom in {Symptom.CONNECTS, Symptom.INTERMITTENT} and drawn:
        which = {frozenset({LOCAL_IP}): "loc", frozenset({REMOTE_IP}): "remote"}.get(frozenset(drawn), "any")
        kept = {True: "keep", False: "SNAT", None: "?"}[intent.source_kept]
        some = "some " if intent.symptom is Symptom.INTERMITTENT else ""
        return f"{some}{which} {kept}"
    return {
        Disposition.DROPPED: "DROP",
        Disposition.REJECTED: "REJ",
        Disposition.NO_LISTENER: "no listener",
        Disposition.LOST: "lost",
        Disposition.HOST_PROCESS: "held",
    }.get(intent.disposition, intent.symptom.value)


EXT, SELF, LO = Vantage.EXTERNAL, Vantage.NODE, Vantage.LOCALHOST
POD, POD2, NODE2 = Vantage.POD_SAME_NODE, Vantage.POD_OTHER_NODE, Vantage.OTHER_NODE
BOTH, REMOTE, NONE = "local and remote", "remote", "none"


@pytest.mark.parametrize(
    ("vantage", "cluster_both", "cluster_remote", "local_both", "local_remote"),
    [
        (EXT, "any SNAT", "remote SNAT", "loc keep", "DROP"),
        (SELF, "any SNAT", "remote SNAT", "any SNAT", "remote SNAT"),
        (LO, "any SNAT", "remote SNAT", "any SNAT", "remote SNAT"),
        (POD, "any SNAT", "remote SNAT", "any keep", "remote keep"),
        (POD2, "any SNAT", "remote SNAT", "some loc keep", "lost"),
        (NODE2, "any SNAT", "remote SNAT", "loc keep", "DROP"),
    ],
)
@pytest.mark.parametrize("minor", ALL_IPTABLES)
def test_node_port_in_iptables_mode(
    minor: int, vantage: Vantage, cluster_both: str, cluster_remote: str, local_both: str, local_remote: str
) -> None:
    for policy, endpoints, expected in (
        ("Cluster", BOTH, cluster_both),
        ("Cluster", REMOTE, cluster_remote),
        ("Cluster", NONE, "REJ"),
        ("Local", BOTH, local_both),
        ("Local", REMOTE, local_remote),
        ("Local", NONE, "REJ"),
        ("Local", "unready", "REJ"),
    ):
        intent = ask(vantage, NODE_PORT, endpoints, node(minor), external_traffic_policy=policy)
        assert cell(intent) == expected, (policy, endpoints, intent.decided_by)


@pytest.mark.parametrize(
    ("detector", "masqueraded", "pod", "pod2_both", "pod2_remote"),
    [
        (DetectLocal.NONE, False, "loc keep", "loc keep", "DROP"),
        (DetectLocal.NODE_CIDR, False, "any keep", "loc keep", "DROP"),
        (DetectLocal.BRIDGE_INTERFACE, False, "any keep", "loc keep", "DROP"),
        (DetectLocal.CLUSTER_CIDR, False, "any keep", "some loc keep", "lost"),
        # What the CNI masquerades arrives as another node's: connected, but not with the pod's address.
        (DetectLocal.CLUSTER_CIDR, True, "any keep", "loc SNAT", "DROP"),
    ],
)
def test_pods_under_local_by_detector(
    detector: DetectLocal, masqueraded: bool, pod: str, pod2_both: str, pod2_remote: str
) -> None:
    where = node(36, detectors=(detector,))
    for vantage, endpoints, expected in (
        (POD, BOTH, pod),
        (POD2, BOTH, pod2_both),
        (POD2, REMOTE, pod2_remote),
    ):
        intent = ask(
            vantage,
            NODE_PORT,
            endpoints,
            where,
            pods_masqueraded=masqueraded,
            external_traffic_policy="Local",
        )
        assert cell(intent) == expected


@pytest.mark.parametrize(
    ("minors", "vantage", "cluster", "local_both", "local_remote", "none"),
    [
        ((19, 23, 24), EXT, "any SNAT", "loc keep", "pass", "REJ"),
        ((25, 36), EXT, "any SNAT", "loc keep", "DROP", "REJ"),
        ((19, 23, 24, 25, 36), SELF, "any SNAT", "any SNAT", "remote SNAT", "pass"),
        ((19, 23, 24, 25, 36), POD, "any SNAT", "any keep", "remote keep", "REJ"),
    ],
)
def test_load_balancer_ip_in_iptables_mode(
    minors: tuple[int, ...], vantage: Vantage, cluster: str, local_both: str, local_remote: str, none: str
) -> None:
    for minor in minors:
        for policy, endpoints, expected in (
            ("Cluster", BOTH, cluster),
            ("Local", BOTH, local_both),
            ("Local", REMOTE, local_remote),
            ("Local", NONE, none),
        ):
            intent = ask(vantage, LOAD_BALANCER, endpoints, node(minor), external_traffic_policy=policy)
            assert cell(intent) == expected, (minor, policy, endpoints)


@pytest.mark.parametrize(
    ("minors", "vantage", "cluster", "local_both", "local_remote", "none"),
    [
        ((19, 20), SELF, "pass", "pass", "pass", "pass"),
        ((21, 24, 25, 36), SELF, "any SNAT", "any SNAT", "remote SNAT", "pass"),
        ((19, 20, 24, 36), POD, "any SNAT", "any keep", "remote keep", "REJ"),
        ((21, 22, 23), POD, "any keep", "any keep", "remote keep", "REJ"),
        ((19, 24), EXT, "any SNAT", "loc keep", "pass", "REJ"),
        ((25, 36), EXT, "any SNAT", "loc keep", "DROP", "REJ"),
        (
            (18,),
            EXT,
            "any SNAT",
            "any SNAT",
            "remote SNAT",
            "unknown",
        ),  # Local not honoured; 1.18.2 rejects less
    ],
)
def test_external_ip_in_iptables_mode(
    minors: tuple[int, ...], vantage: Vantage, cluster: str, local_both: str, local_remote: str, none: str
) -> None:
    for minor in minors:
        for policy, endpoints, expected in (
            ("Cluster", BOTH, cluster),
            ("Local", BOTH, local_both),
            ("Local", REMOTE, local_remote),
            ("Local", NONE, none),
        ):
            intent = ask(vantage, EXTERNAL_IP, endpoints, node(minor), external_traffic_policy=policy)
            assert cell(intent) == expected, (minor, policy, endpoints)


def test_external_ip_that_is_an_address_of_the_node() -> None:
    for minor, expected in ((20, "any SNAT"), (36, "any SNAT")):
        assert cell(ask(SELF, EXTERNAL_IP, BOTH, node(minor), address="10.0.0.103")) == expected
    local: dict[str, Any] = {"external_traffic_policy": "Local", "address": "10.0.0.103"}
    assert cell(ask(EXT, EXTERNAL_IP, REMOTE, node(24), **local)) == "DROP"
    assert cell(ask(SELF, EXTERNAL_IP, NONE, node(36), **local)) == "REJ"


@pytest.mark.parametrize(("minor", "honoured"), [(28, False), (29, True)])
def test_local_for_external_ips_of_a_cluster_ip_service(minor: int, honoured: bool) -> None:
    intent = ask(
        EXT, EXTERNAL_IP, BOTH, node(minor), type="ClusterIP", ingress=(), external_traffic_policy="Local"
    )
    assert cell(intent) == ("loc keep" if honoured else "any SNAT")


@pytest.mark.parametrize(
    ("minor", "vantage", "both", "remote"),
    [
        (21, POD, "any keep", "remote keep"),  # gate off
        (23, POD, "loc keep", "REJ"),
        (24, POD, "loc keep", "pass"),
        (25, POD, "loc keep", "DROP"),
        (36, POD, "loc keep", "DROP"),
        (23, SELF, "loc SNAT", "REJ"),
        (24, SELF, "loc SNAT", "DROP"),
        (36, SELF, "loc SNAT", "DROP"),
        (36, EXT, "loc SNAT", "DROP"),
    ],
)
def test_cluster_ip_in_iptables_mode(minor: int, vantage: Vantage, both: str, remote: str) -> None:
    assert cell(ask(vantage, CLUSTER_IP, BOTH, node(minor), internal_traffic_policy="Local")) == both
    assert cell(ask(vantage, CLUSTER_IP, REMOTE, node(minor), internal_traffic_policy="Local")) == remote
    assert cell(ask(vantage, CLUSTER_IP, NONE, node(minor))) == "REJ"
    assert cell(ask(vantage, CLUSTER_IP, BOTH, node(minor))) == ("any keep" if vantage is POD else "any SNAT")


def test_cluster_ip_without_detector_keeps_sources() -> None:
    blind = node(36, detectors=(DetectLocal.NONE,))
    assert cell(ask(POD, CLUSTER_IP, BOTH, blind)) == "any keep"
    assert cell(ask(SELF, CLUSTER_IP, BOTH, blind)) == "any keep"
    assert cell(ask(EXT, CLUSTER_IP, BOTH, blind)) == "some loc keep"
    everything = node(36, detectors=(DetectLocal.NONE,), masquerade_all=True)
    assert cell(ask(POD, CLUSTER_IP, BOTH, everything)) == "any SNAT"


@pytest.mark.parametrize(
    ("endpoints", "policy", "vantage", "to_1_25", "since_1_26"),
    [
        ("terminating local", "Cluster", EXT, "REJ", "loc SNAT"),
        ("terminating local", "Local", EXT, "REJ", "loc keep"),
        ("terminating local, ready remote", "Local", EXT, "DROP", "loc keep"),
        ("terminating remote", "Local", EXT, "REJ", "DROP"),
        ("terminating remote", "Local", SELF, "REJ", "remote SNAT"),
        ("terminating remote", "Local", POD, "REJ", "remote keep"),
        ("terminating not serving", "Local", EXT, "REJ", "REJ"),
    ],
)
def test_terminating_endpoints(
    endpoints: str, policy: str, vantage: Vantage, to_1_25: str, since_1_26: str
) -> None:
    for minor, expected in ((20, to_1_25), (25, to_1_25), (26, since_1_26), (36, since_1_26)):
        intent = ask(vantage, NODE_PORT, endpoints, node(minor), external_traffic_policy=policy)
        assert cell(intent) == expected, minor
    assert cell(ask(vantage, NODE_PORT, endpoints, node(36, NFTABLES), external_traffic_policy=policy)) == (
        since_1_26
    )


@pytest.mark.parametrize(
    ("vantage", "kind", "endpoints", "v29", "v30_32", "v33"),
    [
        (SELF, NODE_PORT, REMOTE, "DROP", "remote SNAT", "remote SNAT"),
        (SELF, LOAD_BALANCER, REMOTE, "DROP", "DROP", "remote SNAT"),
        (SELF, EXTERNAL_IP, REMOTE, "DROP", "DROP", "remote SNAT"),
        (SELF, LOAD_BALANCER, NONE, "REJ", "REJ", "REJ"),
        (LO, NODE_PORT, BOTH, "no listener", "no listener", "no listener"),
        (EXT, NODE_PORT, BOTH, "loc keep", "loc keep", "loc keep"),
        (EXT, NODE_PORT, REMOTE, "DROP", "DROP", "DROP"),
        (POD, NODE_PORT, REMOTE, "remote keep", "remote keep", "remote keep"),
        (EXT, LOAD_BALANCER, REMOTE, "DROP", "DROP", "DROP"),
    ],
)
def test_nftables_mode(
    vantage: Vantage, kind: FrontEndKind, endpoints: str, v29: str, v30_32: str, v33: str
) -> None:
    for minor, expected in ((29, v29), (30, v30_32), (32, v30_32), (33, v33), (36, v33)):
        intent = ask(vantage, kind, endpoints, node(minor, NFTABLES), external_traffic_policy="Local")
        assert cell(intent) == expected, minor


@pytest.mark.parametrize(
    ("vantage", "kind", "policy", "endpoints", "to_1_23", "since_1_24"),
    [
        (EXT, NODE_PORT, "Local", BOTH, "loc keep", "loc keep"),
        (SELF, NODE_PORT, "Local", BOTH, "loc keep", "loc keep"),
        (POD, NODE_PORT, "Local", BOTH, "loc keep", "loc keep"),
        (EXT, NODE_PORT, "Local", REMOTE, "REJ", "lost"),
        (SELF, NODE_PORT, "Local", REMOTE, "REJ", "remote keep"),
        (POD, NODE_PORT, "Local", REMOTE, "REJ", "remote keep"),
        (EXT, LOAD_BALANCER, "Cluster", BOTH, "any SNAT", "any SNAT"),
        (POD, NODE_PORT, "Cluster", BOTH, "any SNAT", "any SNAT"),
        (EXT, NODE_PORT, "Local", NONE, "REJ", "REJ"),
        (LO, NODE_PORT, "Cluster", BOTH, "held", "no listener"),
    ],
)
def test_ipvs_mode(
    vantage: Vantage, kind: FrontEndKind, policy: str, endpoints: str, to_1_23: str, since_1_24: str
) -> None:
    for minor, expected in ((19, to_1_23), (23, to_1_23), (24, since_1_24), (36, since_1_24)):
        intent = ask(vantage, kind, endpoints, node(minor, IPVS), external_traffic_policy=policy)
        assert cell(intent) == expected, minor


@pytest.mark.parametrize(
    ("where", "vantage", "client", "expected"),
    [
        (node(36), EXT, "10.0.0.100", "any SNAT"),
        (node(36), EXT, "10.0.0.200", "DROP"),
        (node(24), EXT, "10.0.0.200", "pass"),
        (node(24), SELF, "10.0.0.3", "DROP"),
        (node(36), POD, "10.244.1.50", "DROP"),
        (node(36), EXT, None, "unknown"),
        (node(36, NFTABLES), EXT, "10.0.0.200", "DROP"),
        (node(29, NFTABLES), EXT, "10.0.0.200", "any SNAT"),
        (node(36, IPVS), EXT, "10.0.0.200", "DROP"),
    ],
)
def test_source_ranges(where: ProxyNode, vantage: Vantage, client: str | None, expected: str) -> None:
    ranges = ("10.0.0.100/32", "fd00::/8")
    intent = ask(vantage, LOAD_BALANCER, BOTH, where, client=client, load_balancer_source_ranges=ranges)
    assert cell(intent) == expected
    # Node ports and external IPs are beside the ranges, and so is the other family's list.
    for kind in (NODE_PORT, EXTERNAL_IP):
        beside = ask(EXT, kind, BOTH, where, client="10.0.0.200", load_balancer_source_ranges=ranges)
        assert cell(beside) == "any SNAT"
    other = ask(vantage, LOAD_BALANCER, BOTH, where, client=client, load_balancer_source_ranges=("fd00::/8",))
    assert cell(other) == "any SNAT"


@pytest.mark.parametrize(("mode", "no_endpoints"), [(IPTABLES, "REJ"), (NFTABLES, "DROP")])
def test_source_ranges_without_endpoints(mode: ProxyMode, no_endpoints: str) -> None:
    intent = ask(EXT, LOAD_BALANCER, NONE, node(36, mode), load_balancer_source_ranges=("192.0.2.0/24",))
    assert cell(intent) == no_endpoints


@pytest.mark.parametrize(
    ("where", "policy", "endpoints", "expected"),
    [
        (node(36, localhost_node_ports=False), "Cluster", BOTH, "no listener"),
        (node(36, localhost_node_ports=False), "Cluster", NONE, "REJ"),
        (node(36, localhost_node_ports=False), "Local", REMOTE, "DROP"),
        (node(24, node_port_addresses=("10.0.0.0/24",)), "Local", REMOTE, "no listener"),
        (node(36, route_localnet=False), "Cluster", BOTH, "lost"),
        (node(36, route_localnet=True), "Cluster", BOTH, "any SNAT"),
    ],
)
def test_localhost(where: ProxyNode, policy: str, endpoints: str, expected: str) -> None:
    assert cell(ask(LO, NODE_PORT, endpoints, where, external_traffic_policy=policy)) == expected


def test_ipv6_localhost_never_connects() -> None:
    dual = service(cluster_ips=("172.16.0.10", "fd00:16::10"))
    six = (ready("fd00:244::10", "node-b"),)
    for minor, expected in ((25, "lost"), (26, "no listener")):
        asked = PortOnNode(index(six), dual, PORT, node(minor))
        front_end = FrontEnd(kind=NODE_PORT, ip=ip_address("::1"), port=30080, protocol="TCP", ip_version=6)
        assert cell(asked.outcome(front_end, Client(vantage=LO))) == expected


def test_endpoint_on_the_nodes_own_address_sees_the_client() -> None:
    asked = PortOnNode(index((ready("10.0.0.3", "node-a"),)), service(), PORT, node(36))
    front_end = FrontEnd(kind=NODE_PORT, ip=ip_address("10.0.0.3"), port=30080, protocol="TCP", ip_version=4)
    outside = asked.outcome(front_end, Client(vantage=EXT, ip=ip_address("10.0.0.100")))
    inside = asked.outcome(front_end, Client(vantage=SELF, ip=ip_address("10.0.0.3")))
    assert (outside.source_kept, inside.source_kept) == (True, False)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (node(36), Symptom.CONNECTS),
        (node(35, NFTABLES), Symptom.CONNECTS),
        (node(36, NFTABLES), Symptom.TIMES_OUT),
    ],
)
def test_pod_that_reaches_itself_by_way_of_another_node(where: ProxyNode, expected: Symptom) -> None:
    intent = ask(POD2, NODE_PORT, REMOTE, where, client=REMOTE_IP, external_traffic_policy="Local")
    assert intent.symptom is expected


def test_each_drawn_endpoint_has_its_fate() -> None:
    intent = ask(POD2, NODE_PORT, BOTH, node(36), external_traffic_policy="Local")
    assert intent.symptom is Symptom.INTERMITTENT
    assert [(e.ip, e.probability, e.symptom, e.disposition) for e in intent.endpoints] == [
        (LOCAL_IP, 0.5, Symptom.CONNECTS, Disposition.DELIVERED),
        (REMOTE_IP, 0.5, Symptom.TIMES_OUT, Disposition.LOST),
    ]
    assert "some of the replies do not come back through node-a" in intent.decided_by


def test_unready_endpoints_in_1_22_depend_on_the_patch_release() -> None:
    intent = ask(EXT, NODE_PORT, "unready", node(22))
    assert intent.symptom is Symptom.UNKNOWN
    assert "patch release" in intent.decided_by


def test_decided_by_names_the_field() -> None:
    intent = ask(EXT, NODE_PORT, REMOTE, node(24), external_traffic_policy="Local")
    assert intent.decided_by == "spec.externalTrafficPolicy=Local and no ready endpoint with nodeName=node-a"
    assert (
        ask(EXT, NODE_PORT, NONE, node(36)).decided_by == "no EndpointSlice lists an endpoint for port http"
    )
    assert "terminating endpoints are used since 1.26" in (
        ask(EXT, NODE_PORT, "terminating local", node(25)).decided_by
    )


# What is not known


def test_unknown_version_leaves_what_all_agree_on() -> None:
    any_version = node(36, versions=ANY_VERSION)
    agreed = ask(EXT, NODE_PORT, REMOTE, any_version, external_traffic_policy="Local")
    assert (agreed.symptom, agreed.disposition, agreed.depends_on) == (
        Symptom.TIMES_OUT,
        Disposition.DROPPED,
        (),
    )


def test_unknown_version_that_matters_is_said() -> None:
    around = node(36, versions=VersionRange(low=(1, 24), high=(1, 27), source=""))
    intent = ask(EXT, NODE_PORT, "terminating local", around, external_traffic_policy="Local")
    assert intent.symptom is Symptom.UNKNOWN
    assert intent.depends_on == ("the version of kube-proxy (1.24, 1.25: refused; 1.26, 1.27: connects)",)


def test_unknown_mode_that_matters_is_said() -> None:
    intent = ask(LO, NODE_PORT, BOTH, node(36, modes=ALL_MODES))
    assert intent.symptom is Symptom.UNKNOWN
    assert intent.depends_on == ("the mode of kube-proxy (iptables: connects; nftables, ipvs: refused)",)


def test_unknown_mode_with_the_same_symptom_leaves_the_disposition_open() -> None:
    unsure = node(36, modes=(IPTABLES, IPVS))
    intent = ask(EXT, NODE_PORT, REMOTE, unsure, external_traffic_policy="Local")
    assert (intent.symptom, intent.disposition) == (Symptom.TIMES_OUT, Disposition.UNDETERMINED)
    assert intent.depends_on == ("the mode of kube-proxy (iptables: dropped; ipvs: lost)",)


def test_unknown_detector_leaves_endpoints_open() -> None:
    unsure = node(36, detectors=ALL_DETECTORS, cluster_cidrs=())
    intent = ask(POD, NODE_PORT, BOTH, unsure, external_traffic_policy="Local")
    assert intent.symptom is Symptom.CONNECTS
    assert {(e.ip, e.probability) for e in intent.endpoints} == {(LOCAL_IP, None), (REMOTE_IP, None)}
    assert intent.depends_on == ("how kube-proxy tells pods (detectLocalMode, clusterCIDR)",)


def test_unknown_cni_matters_to_pods_of_other_nodes_only() -> None:
    local: dict[str, Any] = {"external_traffic_policy": "Local", "pods_masqueraded": None}
    assert ask(POD2, NODE_PORT, BOTH, node(36), **local).symptom is Symptom.UNKNOWN
    assert ask(POD, NODE_PORT, BOTH, node(36), **local).symptom is Symptom.CONNECTS


def test_endpoints_that_were_not_read() -> None:
    blind = replace(index(()), slices=None, endpoints=None)
    front_end = FrontEnd(kind=NODE_PORT, ip=ip_address("10.0.0.3"), port=30080, protocol="TCP", ip_version=4)
    intent = PortOnNode(blind, service(), PORT, node()).outcome(front_end, Client(vantage=EXT))
    assert (intent.symptom, intent.decided_by) == (
        Symptom.UNKNOWN,
        "neither EndpointSlices nor Endpoints of it were read",
    )


def test_versions_that_ktp_does_not_know_are_an_assumption() -> None:
    newer = node(36, versions=VersionRange(low=(1, 38), high=(1, 38), source=""))
    intent = ask(EXT, NODE_PORT, BOTH, newer)
    assert intent.symptom is Symptom.CONNECTS
    assert [a.taken for a in intent.assumptions] == [
        "kube-proxy 1.38 behaves as the nearest version that ktp knows"
    ]
    assert [a.evidence for a in intent.assumptions] == [EvidenceKind.VERSION]


@pytest.mark.parametrize("vantage", [POD2, NODE2])
def test_load_balancer_ip_is_captured_where_the_client_runs(vantage: Vantage) -> None:
    intent = ask(vantage, LOAD_BALANCER, BOTH, node(36))
    assert intent.symptom is Symptom.UNKNOWN
    assert "captured on the client's own node" in intent.decided_by


def test_ignored_service_passes() -> None:
    ignored = service(labels={"service.kubernetes.io/service-proxy-name": "other"})
    assert ask(EXT, NODE_PORT, BOTH, node(36), of=ignored).passes
