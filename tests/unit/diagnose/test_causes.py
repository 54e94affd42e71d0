"""Neighbouring causes are told apart, and a cause is named only where taking it away helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ktp.kubeproxy.changes import with_ready_pod_on
from ktp.model.cluster import Cluster
from ktp.model.diagnosis import Severity
from ktp.model.trace import Symptom
from tests.unit.diagnose.scenarios import SCENARIOS
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    LOCAL_POD,
    Asked,
    both,
    causes,
    cell,
    codes,
    demo,
    findings,
    first_rule,
    in_order,
    not_ready,
    only_nodes,
    policy,
    programmed,
    recorded,
    routes,
    service_with,
    sysctl,
    with_objects,
    without_endpoints,
    without_rules,
)


def local(change: Callable[..., object], *, api_alone: bool) -> Asked:
    if api_alone:
        return Asked(with_objects(only_nodes(demo()), change), LOCAL)  # type: ignore[arg-type]
    return Asked(programmed(demo(), LOCAL, change), LOCAL)  # type: ignore[arg-type]


NEIGHBOURS = {
    "no pod on this node": (
        lambda c: c,
        {"node-a": None, "node-b": "KTP501", "node-c": "KTP501"},
    ),
    "no selector and no endpoint": (
        both(service_with(LOCAL, selector={}), without_endpoints(LOCAL)),
        dict.fromkeys(("node-a", "node-b", "node-c"), "KTP101"),
    ),
    "the only pod is not ready": (
        not_ready(LOCAL, LOCAL_POD),
        dict.fromkeys(("node-a", "node-b", "node-c"), "KTP102"),
    ),
    "the selector matches nothing": (
        both(service_with(LOCAL, selector={"app": "ept"}), without_endpoints(LOCAL)),
        dict.fromkeys(("node-a", "node-b", "node-c"), "KTP103"),
    ),
    "ready pods that no slice lists": (
        without_endpoints(LOCAL),
        dict.fromkeys(("node-a", "node-b", "node-c"), "KTP101"),
    ),
}


@pytest.mark.parametrize("api_alone", [False, True], ids=["rules", "API alone"])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_told_apart(name: str, api_alone: bool) -> None:
    change, expected = NEIGHBOURS[name]
    diagnosis = local(change, api_alone=api_alone).diagnosis()
    assert causes(diagnosis) == expected
    # of the five that look alike from outside, only the one
    assert codes(diagnosis) & {"KTP101", "KTP102", "KTP103", "KTP401", "KTP501"} == set(expected.values()) - {
        None
    }


def test_rules_that_are_behind_are_not_taken_for_a_missing_pod() -> None:
    diagnosis = Asked(with_ready_pod_on(demo(), LOCAL, "node-b"), LOCAL).diagnosis()
    assert causes(diagnosis) == {"node-a": None, "node-b": "KTP401", "node-c": "KTP501"}
    finding = next(f for f in findings(diagnosis, "KTP401") if f.node == "node-b")
    assert finding.severity is Severity.ERROR
    cures = finding.fixes[0].cures
    assert cures is not None
    assert (cures.tried, cures.cured, cures.better) == (3, 2, 1)  # pods elsewhere: one endpoint of two


def test_a_pod_that_is_not_ready_on_this_node_is_said_so() -> None:
    ready_there = with_ready_pod_on(demo(), LOCAL, "node-b")
    pod = next(p.key for p in ready_there.cluster.pods or () if p.node_name == "node-b" and p.key not in
               {q.key for q in demo().cluster.pods or ()})  # fmt: skip
    diagnosis = Asked(
        programmed(demo(), LOCAL, lambda _: not_ready(LOCAL, pod)(ready_there.cluster)), LOCAL
    ).diagnosis()
    finding = next(f for f in findings(diagnosis, "KTP501") if f.node == "node-b")
    assert any("1 there not ready" in e.text for e in finding.evidence)


# --------------------------------------------------------------------------------------------- counterfactuals


def test_the_policy_is_the_first_of_two_obstacles() -> None:
    """node-b neither has a pod nor forwards: with a pod there the policy's drop goes, and forwarding ends the packet."""
    snapshot = demo({("node-b", "sysctl.txt"): sysctl("net.ipv4.ip_forward", "0")})
    diagnosis = Asked(snapshot, LOCAL).diagnosis()
    assert causes(diagnosis)["node-b"] == causes(diagnosis)["node-c"] == "KTP501"
    of_b = next(f for f in findings(diagnosis, "KTP501") if f.node == "node-b")
    assert any("does not forward packets" in e.text for e in of_b.evidence)
    assert not any(fix.verified for fix in of_b.fixes if "DaemonSet" in fix.summary)


def test_forwarding_is_not_blamed_where_the_packet_needs_none() -> None:
    """All endpoints are elsewhere, and the policy drops before anything is forwarded."""
    snapshot = demo({("node-c", "sysctl.txt"): sysctl("net.ipv4.ip_forward", "0")})
    diagnosis = Asked(snapshot, CLUSTER).diagnosis()
    assert causes(diagnosis)["node-c"] == "KTP201"
    on_c = Asked(snapshot, LOCAL).diagnosis()
    assert cell(on_c, "node-a").symptom is Symptom.CONNECTS


def test_a_rule_that_drops_something_else_is_not_blamed() -> None:
    rule = "-A FORWARD -s 192.0.2.0/24 -j DROP"
    diagnosis = Asked(demo({("node-b", LEGACY): first_rule("filter", rule)}), LOCAL).diagnosis()
    assert causes(diagnosis)["node-b"] == "KTP501"
    assert Severity.ERROR not in {f.severity for f in findings(diagnosis, "KTP301")}


def test_two_faults_on_two_nodes_each_have_their_own_cause() -> None:
    snapshot = demo(
        {
            ("node-a", "sysctl.txt"): sysctl("net.ipv4.ip_forward", "0"),
            ("node-b", LEGACY): without_rules("-A PREROUTING", "KUBE-SERVICES"),
        }
    )
    diagnosis = Asked(snapshot, CLUSTER).diagnosis()
    # node-c sends half of its connections to the pod on node-a, which does not forward them
    assert causes(diagnosis, kind="loadBalancer") == {
        "node-a": "KTP201",
        "node-b": "KTP404",
        "node-c": "KTP201",
    }


def test_two_drops_behind_one_another_leave_neither_alone_to_blame() -> None:
    """Taking the first away lets the packet get further, to the second: it is named, and not as all there is."""
    rules = in_order(
        first_rule("filter", "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"),
        first_rule("mangle", "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"),
    )
    snapshot = demo({(node, LEGACY): rules for node in ("node-a", "node-b", "node-c")})
    diagnosis = Asked(snapshot, CLUSTER).diagnosis()
    assert causes(diagnosis)["node-a"] == "KTP301"
    finding = next(f for f in findings(diagnosis, "KTP301") if f.node == "node-a")
    assert finding.message.endswith("it is not the only thing in the way")
    assert any(e.kind == "counterfactual" and "filter -A FORWARD" in e.text for e in finding.evidence)
    assert not any(fix.verified for fix in finding.fixes)


def test_forward_policy_drop_spares_what_is_masqueraded() -> None:
    """ "Cluster works, Local does not": kube-proxy accepts what it marked."""
    dropping = {("node-a", LEGACY): policy("filter", "FORWARD", "DROP")}
    assert causes(Asked(demo(dropping), LOCAL).diagnosis())["node-a"] == "KTP302"
    assert cell(Asked(demo(dropping), CLUSTER).diagnosis(), "node-a").symptom is Symptom.CONNECTS


def test_clients_of_one_kind_that_differ_are_told_apart() -> None:
    """Pods of node-a cannot get out, those of node-c can: the one that was asked does not stand for both."""
    dropping = {("node-a", LEGACY): policy("filter", "FORWARD", "DROP")}
    diagnosis = Asked(demo(dropping), CLUSTER).diagnosis()
    seen = {
        (row.node, cell.symptom, other.who, other.symptom)
        for matrix in diagnosis.frontends
        for row in matrix.nodes
        for vantage, cell in row.cells.items()
        if vantage == "podOtherNode"
        for other in cell.others
    }
    assert seen
    assert all(symptom is not other for _, symptom, _, other in seen)
    assert {who for _, _, who, _ in seen} <= {"pods of node-a", "pods of node-b", "pods of node-c"}
    healthy = Asked(demo(), CLUSTER).diagnosis()
    assert not any(c.others for m in healthy.frontends for r in m.nodes for c in r.cells.values())


def test_an_answer_that_is_lost_underway_is_not_blamed_on_its_way() -> None:
    diagnosis = SCENARIOS["KTP901"].fires().diagnosis()
    assert "KTP505" not in codes(diagnosis)
    assert causes(diagnosis)["node-b"] == "KTP901"


# ------------------------------------------------------------------------------------------------- the main case


def test_the_article() -> None:
    diagnosis = Asked(demo(), LOCAL).diagnosis()
    assert diagnosis.verdict.startswith("nodePort 31015/TCP answers outside clients on node-a")
    assert [(g.frontend, g.nodes, g.vantage, g.symptom, g.cause) for g in diagnosis.headline] == [
        ("nodePort 31015/TCP", ("node-b", "node-c"), "external", Symptom.TIMES_OUT, "KTP501")
    ]
    assert [(f.code, f.node) for f in diagnosis.findings if f.severity is Severity.ERROR] == [
        ("KTP501", "node-b"),
        ("KTP501", "node-c"),
    ]
    finding = diagnosis.findings[0]
    texts = {(e.kind, e.text) for e in finding.evidence}
    assert ("field", "spec.externalTrafficPolicy: Local") in texts
    assert any(kind == "rule" and "has no local endpoints" in text for kind, text in texts)
    assert any(kind == "rule" and "0x8000/0x8000 -j DROP" in text for kind, text in texts)
    assert sum(kind == "counterfactual" for kind, _ in texts) == 2
    assert len(finding.fixes) == 3
    # A pod on the node cures what kube-proxy drops there; pods of other nodes still lose some answers (KTP505).
    assert [fix.verified for fix in finding.fixes] == [True, False, True]
    pod, policy = (fix.cures for fix in finding.fixes[1:])
    assert pod is not None
    assert policy is not None
    assert (pod.tried, pod.cured, pod.better) == (3, 2, 1)
    assert {vantage for _, _, vantage in pod.left} == {"podOtherNode"}
    assert (policy.tried, policy.cured) == (3, 3)
    assert finding.fixes[2].patch == {"spec": {"externalTrafficPolicy": "Cluster"}}
    assert cell(diagnosis, "node-b").source_kept is None
    assert cell(diagnosis, "node-a").source_kept is True


def test_a_healthy_service_has_no_finding() -> None:
    diagnosis = Asked(demo(), CLUSTER).diagnosis()
    assert diagnosis.findings == ()
    assert not diagnosis.undetermined
    assert "answer outside clients on all 3 nodes" in diagnosis.verdict
    assert [row.cells["external"].source_kept for row in diagnosis.frontends[0].nodes] == [False] * 3


@pytest.mark.parametrize("node", ["node-b", "node-c"])
def test_a_route_to_pods_that_is_gone_is_told_with_the_route_of_another_node(node: str) -> None:
    diagnosis = Asked(demo({(node, "ip-route.json"): routes(without="10.244.1.0/24")}), CLUSTER).diagnosis()
    (found,) = findings(diagnosis, "KTP209")
    assert found.node == node
    assert "the pods of node-a" in found.message
    assert any(e.kind == "route" and "10.244.1.0/24 via 10.0.0.3 dev eth0" in e.text for e in found.evidence)
    assert all(fix.verified for fix in found.fixes)
    assert cell(diagnosis, node).cause == "KTP209"


def test_a_comment_that_says_notrack_is_no_such_rule() -> None:
    rule = '-A FORWARD -p tcp -m tcp --dport 80 -m comment --comment "after NOTRACK" -j DROP'
    found = codes(Asked(demo({("node-a", LEGACY): first_rule("filter", rule)}), CLUSTER).diagnosis())
    assert "KTP301" in found
    assert "KTP303" not in found


def test_a_route_that_others_lack_too_is_not_shown() -> None:
    gone = routes(without="10.244.1.0/24")
    edits = {(node, "ip-route.json"): gone for node in ("node-b", "node-c")}
    found = findings(Asked(demo(edits), CLUSTER).diagnosis(), "KTP209")
    assert {f.node for f in found} == {"node-b", "node-c"}
    assert not any("via 10.0.0.3" in e.text for f in found for e in f.evidence)


def test_a_node_that_is_no_neighbour_is_not_made_a_gateway() -> None:
    """What way there should be, an overlay or a router's, cannot be made up, and so nothing is proved."""

    def moved(cluster: Cluster) -> Cluster:
        nodes = dict(cluster.nodes or {})
        nodes["node-a"] = replace(nodes["node-a"], addresses=(("InternalIP", "192.168.77.3"),))
        return replace(cluster, nodes=nodes)

    snapshot = with_objects(demo({("node-b", "ip-route.json"): routes(without="10.244.1.0/24")}), moved)
    assert "KTP209" not in codes(Asked(snapshot, CLUSTER).diagnosis())


@pytest.mark.parametrize(("waiting", "expected"), [(101, True), (100, False)])
def test_the_full_queue_of_a_process_in_the_nodes_own_network(waiting: int, expected: bool) -> None:
    """A pod with hostNetwork: its socket is among the node's own."""

    def full(text: str) -> str:
        line = next(line for line in text.splitlines() if ":18080" in line and "LISTEN" in line)
        return text.replace(line, f"tcp LISTEN {waiting} 100 *:18080 *:*")

    diagnosis = Asked(recorded({("node-c", "ss.txt"): full}), "edge/hostnet-local").diagnosis()
    assert ("KTP215" in codes(diagnosis)) is expected
