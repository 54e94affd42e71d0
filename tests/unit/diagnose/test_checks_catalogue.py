"""The catalogue: what each recorded fault is called, what is said of healthy clusters, and each cause's own words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktp.diagnose.checks.provider_annotations import CONFLICTS, KNOWN, direct_to_pods, selects
from ktp.diagnose.checks.rule_common import NOBODY, RuleInPlace, author_of, owner_of
from ktp.model.cluster import Cluster, Endpoint, EndpointSlice, Service, ServicePort
from ktp.model.diagnosis import Finding, Severity
from ktp.model.trace import Symptom
from tests.support import not_yet
from tests.support.changes import with_endpoint_ready
from tests.support.recordings import RECORDINGS, diagnosis_of, services_put_out_by_hand, snapshot_of
from tests.unit.diagnose.scenarios_catalogue import (
    CATALOGUE,
    LB,
    annotated,
    edited,
    endpoints_with,
    in_step,
    replaced,
    slices_with,
    with_device,
)
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    NFT,
    Asked,
    cell,
    demo,
    findings,
    first_rule,
    recorded,
    service_with,
    sysctl,
    with_objects,
    without_rules,
)

REPOSITORY = Path(__file__).resolve().parents[3]
CASES = RECORDINGS
PACKAGED = REPOSITORY / "tests" / "data" / "cases"

# Part of a case's name → (code, Services whose traffic the fault concerns). All faults are on node-b.
EVERY = (CLUSTER, LB, LOCAL)
FAULTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "flushed-prerouting": ("KTP404", EVERY),
    "forward-policy-drop": ("KTP302", EVERY),
    "fault-ufw": ("KTP302", EVERY),
    "no-mark-drop": ("KTP408", (LOCAL, "edge/local-mixed", "edge/hostnet-local", "edge/named-local")),
    "stale-proxy": ("KTP401", (LOCAL,)),
    "both-backends": ("KTP402", EVERY),
    "forward-reject": ("KTP301", (CLUSTER, LB, "edge/lb-local-ranges")),
    "hostport-hijack": ("KTP405", (CLUSTER,)),
    "input-drop": ("KTP603", (LB,)),
    "fault-ipset": ("KTP301", (CLUSTER, LB)),
    "mangle-drop": ("KTP301", (CLUSTER,)),
    "raw-drop": ("KTP301", (CLUSTER, LB)),
    "no-ip-forward": ("KTP201", EVERY),
    "wrong-node-name": ("KTP406", (CLUSTER, LB)),  # LOCAL has no pod there: the name changes nothing
}


def folders() -> list[Path]:
    found = {p.name: p for root in (PACKAGED, CASES) if root.is_dir() for p in sorted(root.glob("*/"))}
    return [p for p in found.values() if (p / "cluster").is_dir()]


def faults() -> list[object]:
    return [
        pytest.param(folder, key, code, id=f"{folder.name} {key}")
        for folder in folders()
        for part, (code, keys) in FAULTS.items()
        if part in folder.name
        for key in keys
    ] or [pytest.param(None, "", "", marks=pytest.mark.skip(reason="no recorded faults at hand"))]


def healthy() -> list[Any]:
    return [
        pytest.param(p, id=p.name, marks=not_yet.marks(p.name, not_yet.FINDINGS))
        for p in folders()
        if "fault" not in p.name
    ]


# ------------------------------------------------------------------------------------------------- recorded faults


@pytest.mark.parametrize(("folder", "key", "code"), faults())
def test_the_first_finding_names_the_fault_and_its_node(folder: Path, key: str, code: str) -> None:
    if key not in snapshot_of(folder).cluster.services:
        pytest.skip(f"{folder.name} has no {key}")
    first = diagnosis_of(folder, key).findings[0]
    assert (first.code, first.node) == (code, "node-b"), first.message
    assert "node-b" in first.message


def test_every_recorded_fault_is_in_the_table() -> None:
    for folder in folders():
        known = any(part in folder.name for part in FAULTS) or not_yet.reason(folder.name, not_yet.WALK)
        assert known or "fault" not in folder.name, folder.name


def recorded_fault(part: str, key: str) -> Finding:
    folder = next((f for f in folders() if part in f.name), None)
    if folder is None:
        pytest.skip(f"no recording of {part} at hand")
    return diagnosis_of(folder, key).findings[0]


def test_ufw_is_named() -> None:
    found = recorded_fault("fault-ufw", CLUSTER)
    assert "(set by ufw)" in found.message
    assert "DEFAULT_FORWARD_POLICY" in found.fixes[0].summary


def test_a_native_nft_rule_is_named_with_its_table() -> None:
    found = recorded_fault("nft-forward-reject", CLUSTER)
    assert "inet site" in found.message
    assert "rejects" in found.message
    assert found.evidence[0].source.startswith("node-b nftables inet site")


def test_a_port_that_connects_and_hangs_is_an_error() -> None:
    found = recorded_fault("no-mark-drop", LOCAL)
    assert found.severity is Severity.ERROR
    assert "never answers" in found.message
    assert any("KUBE-FIREWALL holds no rule" in e.text for e in found.evidence)
    assert found.fixes[0].verified


def test_rules_older_than_a_wrong_name_are_no_missing_endpoint() -> None:
    found = recorded_fault("wrong-node-name", LB)
    assert "no Node's name" in found.message
    folder = next(f for f in folders() if "wrong-node-name" in f.name)
    of_node_b = [f for f in diagnosis_of(folder, LB).findings if f.node == "node-b"]
    assert "KTP501" not in {f.code for f in of_node_b}


def test_a_blocked_health_check_says_what_the_load_balancer_makes_of_it() -> None:
    found = recorded_fault("input-drop", LB)
    assert "take node-b for down, though it holds 2 usable endpoints" in found.message
    assert found.fixes[0].verified


# ------------------------------------------------------------------------------------------------ healthy clusters

# Errors and warnings that stand on a field of the objects and concern no cell.
OF_FIELDS = frozenset(("KTP112", "KTP113", "KTP503"))


@pytest.mark.parametrize("folder", healthy())
def test_healthy_clusters_are_left_in_peace(folder: Path) -> None:
    """Whatever is an error or a warning explains cells that fail (and failed when they were tried), or a field."""
    for key in snapshot_of(folder).cluster.services.keys() - services_put_out_by_hand(snapshot_of(folder)):
        diagnosis = diagnosis_of(folder, key)
        failing = {
            (m.title, r.node, v)
            for m in diagnosis.frontends
            for r in m.nodes
            for v, c in r.cells.items()
            if c.cause is not None
        }
        for found in diagnosis.findings:
            if found.severity is Severity.INFO or found.code in OF_FIELDS:
                continue
            if found.code in {"KTP301", "KTP304"} and "polic" in folder.name:
                # Its policies are enforced, and stop probes.
                assert (
                    found.message.startswith(("NetworkPolicy ", "CiliumNetworkPolicy "))
                    or found.code == "KTP304"
                )
                assert failing.intersection(found.cells), found.message
                continue
            if found.code in {"KTP401", "KTP603"} and "byhand" in folder.name:
                continue  # no kube-proxy ran there to answer health checks, or to write a virtual server of itp-local
            known = {"KTP101", "KTP102", "KTP103", "KTP112", "KTP212", "KTP501", "KTP502", "KTP505"}
            assert found.code in known, found.message
            assert failing.intersection(found.cells), found.message


# ------------------------------------------------------------------------------------------ each cause's own words


def only(code: str) -> Finding:
    fires, _ = CATALOGUE[code]
    found = findings(fires().diagnosis(), code)
    assert found
    return found[0]


@pytest.mark.parametrize("code", ["KTP104", "KTP105", "KTP106", "KTP207", "KTP410"])
def test_it_explains_its_cells_and_its_cure_was_asked_for(code: str) -> None:
    found = only(code)
    assert found.severity is Severity.ERROR
    assert found.cells
    assert any(e.kind == "counterfactual" for e in found.evidence)
    fix = found.fixes[0]
    assert fix.verified or (fix.cures is not None and fix.cures.cured)  # other causes may be left (KTP505)


@pytest.mark.parametrize("code", ["KTP104", "KTP105", "KTP110", "KTP112"])
def test_a_port_without_endpoints_has_one_reason(code: str) -> None:
    fires, _ = CATALOGUE[code]
    assert not findings(fires().diagnosis(), "KTP101")


def test_a_protocol_that_differs_is_a_mismatch_too() -> None:
    def udp(s: EndpointSlice) -> EndpointSlice:
        return replace(s, ports=tuple(replace(p, protocol="UDP") for p in s.ports))

    found = findings(in_step(CLUSTER, slices_with(CLUSTER, udp))().diagnosis(), "KTP105")
    assert found[0].cells
    assert "80/UDP" in found[0].message


def test_an_endpoint_on_a_node_that_is_gone_costs_a_share_of_the_connections() -> None:
    ghost = Endpoint(addresses=("10.244.9.9",), ready=True, node_name="node-gone", target_kind="Pod",
                     target_namespace="test", target_name="gone")  # fmt: skip

    def more(s: EndpointSlice) -> EndpointSlice:
        return replace(s, endpoints=(*s.endpoints, ghost))

    found = findings(in_step(CLUSTER, slices_with(CLUSTER, more))().diagnosis(), "KTP107")[0]
    assert found.severity is Severity.ERROR
    assert found.cells
    assert "10.244.9.9" in found.message


def test_terminating_endpoints_before_1_26() -> None:
    """kube-proxy 1.20 refuses what a later one would still serve."""

    def leaving(e: Endpoint) -> Endpoint:
        return replace(e, ready=False, serving=True, terminating=True)

    def change(cluster: Cluster) -> Cluster:
        key, pods = LOCAL, cluster.pods or ()
        cluster = slices_with(key, endpoints_with(leaving), kinds="slices")(cluster)
        cluster = slices_with(key, lambda s: replace(s, endpoints=()), kinds="endpoints")(cluster)
        mine = dict(cluster.services[key].selector)
        gone = tuple(
            replace(p, deletion_timestamp="2026-01-01T00:00:00Z")
            if all(p.labels.get(k) == v for k, v in mine.items())
            else p
            for p in pods
        )
        return replace(cluster, pods=gone)

    diagnosis = in_step(LOCAL, change, demo)().diagnosis()
    found = findings(diagnosis, "KTP112")
    assert found[0].severity is Severity.ERROR
    assert "1.20" in found[0].message
    assert cell(diagnosis, "node-a").cause == "KTP112"


def test_a_label_is_proved_by_what_happens_without_it() -> None:
    found = only("KTP111")
    assert found.fixes[0].verified
    assert "reaches" in found.fixes[0].outcome


def test_a_host_port_is_told_from_any_other_translation() -> None:
    fires, _ = CATALOGUE["KTP206"]
    diagnosis = fires().diagnosis()
    assert "edge/ext-0" in findings(diagnosis, "KTP206")[0].message
    assert findings(diagnosis, "KTP206")[0].severity is Severity.ERROR
    assert not findings(diagnosis, "KTP405")


def test_another_data_plane_is_no_missing_kube_proxy() -> None:
    fires, _ = CATALOGUE["KTP403"]
    diagnosis = fires().diagnosis()
    assert "Cilium" in findings(diagnosis, "KTP403")[0].message
    assert not findings(diagnosis, "KTP407")
    assert cell(diagnosis, "node-b").symptom is Symptom.UNKNOWN
    assert diagnosis.verdict.endswith("KTP403 Cilium serves Services on node-b, and its tables were not read")


# What prints the Services of each, of their documentation.
LOOK = {
    "Cilium": "cilium-dbg bpf lb list",
    "Calico's eBPF data plane": "calico-node -bpf nat dump",
    "OVN-Kubernetes": "ovn-nbctl lb-list",
    "Antrea": "antctl get ovsflows -S ",
    "kube-router's service proxy": "ipvsadm -Ln",
}
_NO_KUBE_PROXY = "*filter\n:INPUT ACCEPT [0:0]\n{chain}COMMIT\n"


@pytest.mark.parametrize(
    ("name", "device", "chain"),
    [
        ("Cilium", "cilium_host", None),
        ("Cilium", None, "CILIUM_INPUT"),
        ("Calico's eBPF data plane", "bpfin.cali", None),
        ("OVN-Kubernetes", "ovn-k8s-mp0", None),
        ("OVN-Kubernetes", None, "OVN-KUBE-NODEPORT"),
        ("Antrea", "antrea-gw0", None),
        ("kube-router's service proxy", "kube-dummy-if", None),
        ("kube-router's service proxy", None, "KUBE-ROUTER-SERVICES"),
        (None, None, "KUBE-ROUTER-INPUT"),  # its policies
        (None, "cali1234567890a", "cali-INPUT"),  # Calico with kube-proxy's help
        (None, "flannel.1", "FLANNEL-FWD"),
    ],
)
def test_data_planes_are_known_by_their_devices_and_chains(
    name: str | None, device: str | None, chain: str | None
) -> None:
    """On a node without kube-proxy's rules, and on one that has them."""
    device_there = ("node-b", "ip-addr.json", with_device(device or "eth9"))
    chains = f":{chain} - [0:0]\n-A INPUT -j {chain}\n" if chain else ""
    alone = edited(CLUSTER, ("node-b", LEGACY, replaced(_NO_KUBE_PROXY.format(chain=chains))), device_there)()
    found = findings(alone.diagnosis(), "KTP403")
    assert [f.message.partition(" serves")[0] for f in found] == ([name] if name else [])
    if name:
        assert "what the API objects call for holds" in found[0].message
        by_hand = found[0].fixes[-1].command or ""
        assert by_hand.startswith(LOOK[name])
        assert ("--node-access agent" in found[0].fixes[0].summary) is (name == "Cilium")
        cells = [
            c
            for m in alone.diagnosis().frontends
            for r in m.nodes
            if r.node == "node-b"
            for c in r.cells.values()
        ]
        assert cells
        assert {c.symptom for c in cells} == {Symptom.UNKNOWN}
        beside = edited(CLUSTER, device_there)().diagnosis()
        # Cilium and Calico's eBPF programs meet packets before kube-proxy's rules do, wherever those are.
        assert bool(findings(beside, "KTP403")) is (device is not None and name.startswith("C"))


def test_a_foreign_rule_in_a_chain_of_kube_proxys() -> None:
    rule = "-A KUBE-FORWARD -p tcp -m tcp --dport 80 -j DROP"
    found = findings(edited(CLUSTER, ("node-a", LEGACY, first_rule("filter", rule)))().diagnosis(), "KTP410")
    assert "is not kube-proxy's" in found[0].message
    assert rule in found[0].evidence[0].text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-A KUBE-SERVICES", "no jump to KUBE-NODEPORTS"),
        ("-A KUBE-POSTROUTING", "KUBE-POSTROUTING"),
    ],
)
def test_a_flushed_chain_is_named(line: str, said: str) -> None:
    words = (line, "KUBE-NODEPORTS") if line == "-A KUBE-SERVICES" else (line,)
    found = findings(edited(CLUSTER, ("node-a", LEGACY, without_rules(*words)))().diagnosis(), "KTP410")
    assert any(said in e.text for e in found[0].evidence)


def test_what_a_comment_names_is_no_jump() -> None:
    """A rule whose comment has the words of the jump that is gone."""
    gone = without_rules("-A KUBE-SERVICES", "KUBE-NODEPORTS")
    said = first_rule("nat", '-A KUBE-SERVICES -m comment --comment "-j KUBE-NODEPORTS"')
    found = findings(
        edited(CLUSTER, ("node-a", LEGACY, lambda text: said(gone(text))))().diagnosis(), "KTP410"
    )
    assert any("no jump to KUBE-NODEPORTS" in e.text for e in found[0].evidence)


def test_a_masquerading_rule_under_local_is_named() -> None:
    found = only("KTP506")
    assert found.node == "node-a"
    assert "MASQUERADE" in found.evidence[0].text
    assert found.fixes[0].verified


def test_banned_clients_are_no_error() -> None:
    """What fail2ban keeps out is kept out on purpose."""
    ban = "-A f2b-nodeports -s 198.51.100.9/32 -j REJECT --reject-with icmp-port-unreachable"
    jump = "-A FORWARD -j f2b-nodeports"

    def banned(text: str) -> str:
        head, mark, tail = text.partition("*filter\n")
        return head + mark + tail.replace("COMMIT\n", f":f2b-nodeports - [0:0]\n{jump}\n{ban}\nCOMMIT\n", 1)

    found = findings(edited(LOCAL, ("node-a", NFT, banned), base=recorded)().diagnosis(), "KTP301")
    assert [f.severity for f in found] == [Severity.INFO]
    assert "fail2ban" in found[0].message


def test_all_endpoints_on_excluded_nodes() -> None:
    def exclude(cluster: Cluster) -> Cluster:
        label = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
        nodes = {n: replace(v, labels=label) for n, v in (cluster.nodes or {}).items()}
        return replace(cluster, nodes=nodes)

    found = findings(Asked(with_objects(recorded(), exclude), LB).diagnosis(), "KTP604")
    assert found[0].severity is Severity.ERROR


def test_a_pod_that_is_published_although_not_ready_is_named_with_its_reason() -> None:
    change: Callable[[Cluster], Cluster] = service_with(CLUSTER, publish_not_ready_addresses=True)
    pod = "test/nginx-log-0"
    snapshot = with_objects(recorded(), lambda c: with_endpoint_ready(change(c), CLUSTER, pod, ready=False))
    # the controller lists it as ready all the same
    snapshot = with_objects(snapshot, slices_with(CLUSTER, endpoints_with(lambda e: replace(e, ready=True))))
    found = findings(Asked(snapshot, CLUSTER).diagnosis(), "KTP109")
    assert "nginx-log-0" in found[0].message


# ------------------------------------------------------------------------------------------------------ annotations


def of_606(**annotations: str) -> list[Finding]:
    return findings(annotated(LB, **annotations)().diagnosis(), "KTP606")


@pytest.mark.parametrize(
    ("annotations", "severity", "said"),
    [
        ({"service_cloud_tencent_com__local_svc_weighted_balance": "yes"}, "warning", "takes true and false"),
        ({"service_cloud_tencent_com__local_svc_weighted_balance": "true"}, "warning", "only together with"),
        (
            {"service_kubernetes_io__local_svc_only_bind_node_with_pod": "true"},
            "info",
            "nodes that hold a pod",
        ),
        (
            {"service_kubernetes_io__qcloud_loadbalancer_backends_label": "group=none"},
            "error",
            "matches no node",
        ),
        (
            {
                "service_kubernetes_io__qcloud_loadbalancer_backends_label": "kubernetes.io/hostname in (node-b)"
            },
            "warning",
            "leaves out node-c",
        ),
        (
            {"service_beta_kubernetes_io__alibaba_cloud_loadbalancer_scheduler": "WRR"},
            "warning",
            "does not know",
        ),
        (
            {"service_beta_kubernetes_io__alicloud_loadbalancer_scheduler": "rr"},
            "info",
            "whatever their weights",
        ),
        ({"service_beta_kubernetes_io__aws_load_balancer_nlb_target_type": "ip"}, "warning", "does not take"),
        (
            {"networking_gke_io__weighted_load_balancing": "pods-per-node"},
            "info",
            "number of its serving pods",
        ),
        ({"cloud_google_com__neg": "ingress"}, "warning", "no JSON object"),
        (
            {"service_beta_kubernetes_io__azure_load_balancer_internal": "True"},
            "warning",
            "takes true and false",
        ),
        ({"metallb_io__address_pool": "main"}, "info", "node-b and node-c"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_the_annotations_say(annotations: dict[str, str], severity: str, said: str) -> None:
    found = of_606(**annotations)
    assert any(f.severity.value == severity and said in f.message for f in found), [f.message for f in found]
    assert all(f.evidence for f in found)


def test_annotations_of_nobody_are_left_alone() -> None:
    assert not of_606(example_com__anything="x")


def test_the_table_of_annotations_is_sound() -> None:
    assert len({a.key for a in KNOWN}) == len(KNOWN)
    for annotation in KNOWN:
        assert not annotation.values or set(annotation.says) <= {*annotation.values, "*"}, annotation.key
    assert {c.key for c in CONFLICTS} <= {a.key for a in KNOWN}


@pytest.mark.parametrize(
    ("selector", "labels", "answer"),
    [
        ("a=1", {"a": "1"}, True),
        ("a=1,b=2", {"a": "1"}, False),
        ("a==1", {"a": "1"}, True),
        ("a!=1", {"a": "1"}, False),
        ("a", {"a": ""}, True),
        ("!a", {"a": ""}, False),
        ("a in (1, 2),b", {"a": "2", "b": ""}, True),
        ("a notin (1,2)", {"a": "2"}, False),
        ("a notin (1,2)", {}, True),
        ("what is this", {"a": "1"}, None),
        ("", {}, True),
    ],
)
def test_selectors(selector: str, labels: dict[str, str], answer: bool | None) -> None:
    assert selects(selector, labels) is answer


@pytest.mark.parametrize(
    ("annotations", "direct"),
    [
        ({"service.cloud.tencent.com/direct-access": "true"}, True),
        ({"service.cloud.tencent.com/direct-access": "false"}, False),
        ({"service.beta.kubernetes.io/backend-type": "eni"}, True),
        ({"service.beta.kubernetes.io/aws-load-balancer-type": "nlb-ip"}, True),
        ({"service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "ip"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_who_talks_to_pods_directly(annotations: dict[str, str], direct: bool) -> None:
    service = Service(namespace="a", name="b", ports=(ServicePort(port=80),), annotations=annotations)
    assert (direct_to_pods(service) is not None) is direct


# ----------------------------------------------------------------------------------------------------------- authors


@pytest.mark.parametrize(
    ("chain", "target", "comment", "table", "author"),
    [
        ("KUBE-FORWARD", "", None, "", "kube-proxy or kubelet"),
        ("KUBE-ROUTER-INPUT", "", None, "", "kube-router"),
        ("KUBE-NWPLCY-X", "", None, "", "kube-router"),
        ("ufw-reject-forward", "", None, "", "ufw"),
        ("DOCKER-USER", "", None, "", "Docker"),
        ("FORWARD", "DOCKER-USER", None, "", "Docker"),
        ("FORWARD", "DROP", "cali:abc", "", "Calico"),
        ("FORWARD", "DROP", None, "", NOBODY),
        ("FWDI_public", "", None, "", "firewalld"),
        ("filter_FORWARD", "reject", None, "inet firewalld", "firewalld"),
        ("service-X", "", None, "ip kube-proxy", "kube-proxy or kubelet"),
        ("forward", "drop", None, "inet site", NOBODY),
        ("f2b-sshd", "", None, "", "fail2ban"),
        ("FLANNEL-FWD", "", "flanneld forward", "", "flannel"),
    ],
)
def test_who_wrote_a_rule(chain: str, target: str, comment: str | None, table: str, author: str) -> None:
    assert author_of(owner_of(chain, target, table), comment) == author


def test_a_comment_makes_no_rule_kube_proxys_and_no_ban() -> None:
    def rule(chain: str, table: str, comment: str, backend: str = "iptables-nft") -> RuleInPlace:
        return RuleInPlace(
            node="node-a", backend=backend, table=table, chain=chain, position=1, text="", comment=comment
        )

    told = rule("PREROUTING", "nat", "for kubernetes ingress")
    assert not told.is_kube
    assert told.author == NOBODY
    banned = rule("INPUT", "filter", "as fail2ban would")
    assert banned.owner is None  # which decides whether it is a ban
    assert banned.author == "fail2ban"  # where to look first, and no more
    assert rule("KUBE-SERVICES", "nat", "").is_kube
    assert rule("KUBE-HOSTPORTS", "nat", "").is_kube
    assert not rule("KUBE-ROUTER-FORWARD", "filter", "").is_kube
    assert rule("services", "ip kube-proxy", "", "nftables").is_kube
    assert not rule("forward", "inet site", "kube-proxy", "nftables").is_kube


HOSTNET = "edge/hostnet-local"  # node port 30015, a host-network pod on node-c that listens on 18080


def _queue(port: int, waiting: int, address: str = "*") -> tuple[str, str, Callable[[str], str]]:
    line = f"tcp LISTEN {waiting} 5 {address}:{port} *:*\n"
    return (
        "node-c",
        "ss.txt",
        lambda text: "".join(t for t in text.splitlines(True) if f":{port} " not in t) + line,
    )


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([_queue(18080, 6)], "accepts no connections on port 18080: 6 wait, 5 may, and the kernel drops new ones"),
        ([_queue(18080, 5)], None),
        ([_queue(18080, 6, "127.0.0.1")], None),  # nobody's connections come to that one
    ],
    ids=["full", "at its limit", "another socket of that port"],
)  # fmt: skip
def test_the_full_accept_queue_of_a_host_network_pod(edits: list[Any], message: str | None) -> None:
    found = findings(edited(HOSTNET, *edits, base=recorded)().diagnosis(), "KTP215")
    if message is None:
        assert found == []
        return
    (finding,) = found
    assert finding.message.endswith(message)
    assert "hostnet" in finding.message
    assert "(in the network of node-c)" in finding.message
    assert ("nodePort 30015/TCP", "node-c", "external") in finding.cells


def test_the_full_accept_queue_of_a_port_that_nothing_translates() -> None:
    """The program's port is the node port: the packet arrives as it was sent."""
    change = slices_with(HOSTNET, lambda s: replace(s, ports=tuple(replace(p, port=30015) for p in s.ports)))
    base = functools.partial(recorded, {_queue(30015, 6)[:2]: _queue(30015, 6)[2]})
    (finding,) = findings(in_step(HOSTNET, change, base)().diagnosis(), "KTP215")
    assert ("nodePort 30015/TCP", "node-c", "external") in finding.cells


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (("0", 3, True), {"KTP221"}),
        (("0", 0, True), set()),  # they stand still
        (("1", 3, True), {"KTP219"}),
        (("0", 3, False), {"KTP219"}),  # nothing drops them
        ((None, 3, True), {"KTP219"}),  # the sysctl was not read
        (("0", None, True), set()),  # the counters were not read
    ],
)
def test_packets_that_fit_no_connection(
    node: tuple[str | None, int | None, bool], expected: set[str]
) -> None:
    liberal, grown, drops = node
    edits: list[Any] = []
    if liberal is not None:
        edits.append(("node-b", "sysctl.txt", sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", liberal)))
    if grown is not None:
        table = "entries  clashres invalid\n0000000a 00000000 {:08x}\n"
        edits.append(
            (
                "node-b",
                "netstat.txt",
                replaced(f"1.00 1.00\n{table.format(9)}6.00 1.00\n{table.format(9 + grown)}"),
            )
        )
    if not drops:
        edits.append(("node-b", LEGACY, without_rules("-A KUBE-FORWARD", "INVALID")))
    said = edited(CLUSTER, *edits)().diagnosis()
    assert {f.code for f in said.findings} & {"KTP219", "KTP221"} == expected
