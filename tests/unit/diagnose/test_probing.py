"""Predictions for whoever dials, and what is a difference; the witnesses and the one that disagrees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ktp.app.settings import demo_path
from ktp.diagnose.probing import (
    MOST_NODES,
    Predictor,
    Sender,
    compare,
    length_findings,
    moved_rules,
    probe_findings,
    sender_of,
    with_probes,
)
from ktp.diagnose.reconcile import health_targets
from ktp.diagnose.service import diagnose_service
from ktp.kubeproxy.changes import with_ready_pod_on
from ktp.model.cluster import LoadBalancerIngress, Node
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.probing import (
    Attempt,
    HealthAnswer,
    HealthTarget,
    LengthAttempt,
    LengthRow,
    Observation,
    ProbeTarget,
)
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    demo,
    of_service,
    programmed,
    recorded,
    service_with,
    with_objects,
)

C, T, R, U = Symptom.CONNECTS, Symptom.TIMES_OUT, Symptom.REFUSED, Symptom.UNREACHABLE
OUTSIDE = "10.0.0.200"


def predictor(snapshot: Snapshot, service: str, **words: object) -> Predictor:
    return Predictor(snapshot, of_service(snapshot, service), **words)  # type: ignore[arg-type]


def seen(target: ProbeTarget, *symptoms: Symptom, source: str | None = OUTSIDE) -> Observation:
    return Observation(
        target=target, source=source, attempts=tuple(Attempt(symptom=s, seconds=0.001) for s in symptoms)
    )


# -------------------------------------------------------------------------------------------------------- targets


def test_from_outside_cluster_ips_are_not_dialled() -> None:
    targets = predictor(demo(), CLUSTER).targets(Sender())
    assert {t.frontend.split()[0] for t in targets} == {"nodePort", "loadBalancer"}
    assert [t.node for t in targets if t.frontend.startswith("nodePort")] == ["node-a", "node-b", "node-c"]


def test_a_node_dials_its_loopback_address_and_the_cluster_ip_too() -> None:
    targets = predictor(demo(), CLUSTER).targets(Sender(node="node-b"))
    assert "127.0.0.1" in {t.host for t in targets if t.node == "node-b"}
    assert "clusterIP" in {t.frontend.split()[0] for t in targets}


def test_what_the_load_balancer_answers_for_alone_is_dialled_but_not_predicted() -> None:
    ingress = (LoadBalancerIngress(hostname="lb.example.com"),)
    world = with_objects(demo(), service_with(CLUSTER, ingress=ingress))
    p = predictor(world, CLUSTER)
    target = next(t for t in p.targets(Sender()) if t.host == "lb.example.com")
    (row,) = compare(p, [seen(target, T, T)])
    assert row.verdict == "unpredicted"
    assert row.fails


def test_of_a_large_cluster_some_nodes_of_each_kind_are_dialled() -> None:
    def grown(cluster: object) -> object:
        more = {
            f"n{i}": Node(name=f"n{i}", addresses=(("InternalIP", f"10.1.{i // 200}.{i % 200 + 1}"),))
            for i in range(300)
        }
        return replace(cluster, nodes={**cluster.nodes, **more})  # type: ignore[type-var,attr-defined]

    p = predictor(with_objects(demo(), grown), CLUSTER)  # type: ignore[arg-type]
    assert len(p.nodes) == MOST_NODES
    assert {"node-a", "node-b"} <= set(p.nodes)
    assert p.left_out == 303 - MOST_NODES
    assert predictor(demo(), CLUSTER, nodes=("node-c",)).nodes == ["node-c"]


def test_who_dials_is_told_by_its_address() -> None:
    world = demo()
    pod = next(p for p in world.cluster.pods or () if p.node_name == "node-a" and not p.host_network)
    assert sender_of(world, "10.0.0.10") == Sender(node="node-b")
    assert sender_of(world, pod.pod_ips[0]) == Sender(node="node-a", pod=pod.key)
    assert (
        sender_of(world, "203.0.113.9") == sender_of(world, None) == sender_of(world, "127.0.0.1") == Sender()
    )


# ---------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize(
    ("source", "vantages"),
    [
        (OUTSIDE, {"node-a": ("external", C), "node-b": ("external", T), "node-c": ("external", T)}),
        ("10.0.0.10", {"node-a": ("otherNode", C), "node-b": ("node", C), "node-c": ("otherNode", T)}),
    ],
    ids=["outside", "on node-b"],
)
def test_the_prediction_is_the_matrix_for_this_sender(
    source: str, vantages: dict[str, tuple[str, Symptom]]
) -> None:
    world = demo()
    p = predictor(world, LOCAL)
    targets = [t for t in p.targets(Sender()) if t.frontend.startswith("nodePort")]
    rows = compare(p, [seen(t, C, source=source) for t in targets])
    assert {r.observed.target.node: (r.predicted.vantage, r.predicted.of) for r in rows} == vantages


def test_a_virtual_address_may_come_to_any_node() -> None:
    world = programmed(
        recorded(), "edge/local-lb", service_with("edge/local-lb", load_balancer_source_ranges=())
    )
    p = predictor(world, "edge/local-lb")
    target = next(t for t in p.targets(Sender()) if t.node is None)
    predicted = p.predict(target, "203.0.113.9", Sender())
    assert predicted.of is Symptom.INTERMITTENT
    assert C in predicted.symptoms
    assert len(predicted.symptoms) > 1


def test_behind_a_clouds_translation_the_rules_see_the_nodes_own_address() -> None:
    def grown(cluster: object) -> object:
        node = cluster.nodes["node-a"]  # type: ignore[attr-defined]
        more = replace(node, addresses=(*node.addresses, ("ExternalIP", "198.51.100.3")))
        return replace(cluster, nodes={**cluster.nodes, "node-a": more})  # type: ignore[type-var,attr-defined]

    p = predictor(with_objects(demo(), grown), LOCAL)  # type: ignore[arg-type]
    target = next(t for t in p.targets(Sender()) if t.host == "198.51.100.3")
    predicted = p.predict(target, OUTSIDE, Sender())
    assert (predicted.of, predicted.basis) == (C, "rules")


# ---------------------------------------------------------------------------------------------------- differences


def local_target(protocol: str = "TCP", node: str = "node-a") -> tuple[Predictor, ProbeTarget]:
    world = demo()
    if protocol == "UDP":
        world = programmed(
            world,
            LOCAL,
            service_with(
                LOCAL,
                ports=tuple(replace(p, protocol="UDP") for p in of_service(world, LOCAL).ports),
            ),
        )
        slices = tuple(
            replace(s, ports=tuple(replace(p, protocol="UDP") for p in s.ports))
            if s.service_name == LOCAL.partition("/")[2]
            else s
            for s in world.cluster.slices or ()
        )
        world = replace(world, nodes={}, cluster=replace(world.cluster, slices=slices, endpoints=None))
    p = predictor(world, LOCAL)
    return p, next(t for t in p.targets(Sender()) if t.node == node)


@pytest.mark.parametrize(
    ("node", "symptoms", "verdict"),
    [
        ("node-a", (C, C, C), "agrees"),
        ("node-a", (C, T, C), "differs"),
        ("node-a", (R, R, R), "differs"),
        ("node-b", (T, T, T), "agrees"),
        ("node-b", (C, C, C), "differs"),
        ("node-b", (U, U, U), "differs"),
    ],
)
def test_a_difference(node: str, symptoms: tuple[Symptom, ...], verdict: str) -> None:
    p, target = local_target(node=node)
    (row,) = compare(p, [seen(target, *symptoms)])
    assert row.verdict == verdict
    assert row.fails == (symptoms != (C, C, C))
    assert len(probe_findings([row])) == (verdict == "differs")


def test_silence_of_udp_is_no_difference_and_no_agreement() -> None:
    p, target = local_target("UDP")
    rows = compare(p, [seen(target, T, T), seen(target, C, C), seen(target, R, R), seen(target, C, T)])
    assert [r.verdict for r in rows] == ["silent", "agrees", "differs", "differs"]
    assert "application" in rows[0].note
    assert not rows[0].fails


def test_a_refusal_may_be_silent_now_and_then() -> None:
    """The kernel sends about one ICMP error a second."""
    from ktp.diagnose.probing import _verdict
    from ktp.model.probing import Prediction

    predicted = Prediction(of=R, symptoms=frozenset((R,)), vantage="external", client="", basis="rules")
    target = ProbeTarget(frontend="f", host="10.0.0.3", port=1, protocol="TCP")
    assert _verdict(seen(target, R, R, T), predicted)[0] == "agrees"
    assert _verdict(seen(target, T, T, T), predicted)[0] == "differs"


def test_differences_of_one_kind_are_one_finding() -> None:
    world = demo()
    p = predictor(world, LOCAL)
    targets = [t for t in p.targets(Sender()) if t.node in ("node-b", "node-c")]
    rows = compare(p, [seen(t, C, C) for t in targets])
    (finding,) = probe_findings(rows)
    assert finding.code == "KTP902"
    assert finding.nodes == ("node-b", "node-c")
    assert "2 of 2 tries connect" in finding.message
    assert {e.kind for e in finding.evidence} == {"probe", "rule"}
    report = with_probes(diagnose_service(world, of_service(world, LOCAL)), rows)
    codes = [f.code for f in report.findings]
    assert codes[0] == "KTP501", "the gravest first"
    assert "KTP902" in codes
    assert report.probes == tuple(rows)


def test_only_nodes_with_a_pod_answer_though_all_should() -> None:
    """One finding for the pattern; what it does not explain stays a difference of its own."""
    from tests.unit.diagnose.scenarios import SCENARIOS

    report = SCENARIOS["KTP217"].fires().diagnosis()
    (pattern,) = [f for f in report.findings if f.code == "KTP217" and "nodePort" in f.message]
    assert pattern.nodes == ("node-c",)
    assert "only nodes that hold a pod answer nodePort" in pattern.message
    assert "(node-a and node-b)" in pattern.message
    assert ". Tried: KTP217 only nodes that hold a pod answer" in report.verdict
    # That node-a and node-b lose tries, too, is said as before.
    assert {n for f in report.findings if f.code == "KTP902" for n in f.nodes} == {"node-a", "node-b"}
    # Under policy Local such nodes are silent by design.
    world = demo()
    p = predictor(world, LOCAL)
    rows = compare(p, [seen(t, *((C, C) if t.node == "node-a" else (T, T))) for t in p.targets(Sender())])
    assert probe_findings(rows) == []


def test_pods_of_other_nodes_are_dialled_directly() -> None:
    world = recorded()
    p = predictor(world, CLUSTER)
    for node, pods in (
        ("node-a", ["test/nginx-log-0"]),
        ("node-b", ["test/nginx-log-1"]),
        ("node-c", ["test/nginx-log-1", "test/nginx-log-0"]),
    ):
        targets, lengths = p.pods(Sender(node=node))
        assert [t.frontend for t in targets] == ["pods, port 80/TCP"] * len(pods)
        assert [(x.pod, x.is_full) for x in lengths] == [
            (pod, full) for pod in pods for full in (False, True)
        ]
        for target in targets:
            assert target.node != node
            said = p.predict(target, None, Sender(node=node))
            assert (said.of, said.basis, [*said.holders]) == (C, "rules", [target.node])
        for symptom, code in ((T, "KTP217"), (R, "KTP902"), (C, None)):
            attempts = (Attempt(symptom=symptom, seconds=1.0),)
            observed = [Observation(target=t, sender=node, attempts=attempts) for t in targets]
            found = probe_findings(compare(p, observed))
            assert {f.code for f in found} == ({code} if code is not None else set())
            if code == "KTP217":
                assert [f.nodes for f in found] == [(node, t.node) for t in targets]
                assert "dialled directly" in found[0].message


def test_a_pod_in_its_nodes_network_is_sent_no_packets_of_some_length() -> None:
    targets, lengths = predictor(recorded(), "edge/hostnet-cluster").pods(Sender(node="node-a"))
    assert {t.node for t in targets} <= {"node-b", "node-c"}
    assert targets
    assert lengths == []


def test_paths_that_carry_short_packets_alone_are_one_finding_a_pair() -> None:
    yes, no = (LengthAttempt(answered=answered, size=size) for answered, size in ((True, 100), (False, 1450)))

    def row(sender: str, pod: str, node: str, full: LengthAttempt) -> LengthRow:
        return LengthRow(sender=sender, pod=pod, node=node, host="10.1.0.5", small=(yes,), full=(full, full))

    rows = [
        row("node-a", "shop/web-0", "node-b", no), row("node-a", "shop/web-1", "node-b", no),
        row("node-a", "shop/web-2", "node-c", yes), row("node-b", "shop/web-2", "node-c", no),
    ]  # fmt: skip
    found = length_findings(rows)
    assert [(f.code, f.nodes) for f in found] == [
        ("KTP220", ("node-a", "node-b")),
        ("KTP220", ("node-b", "node-c")),
    ]
    assert "shop/web-0 and shop/web-1 on node-b" in found[0].message
    assert "1450 bytes" in found[0].message


# --------------------------------------------------------------------------------------------------------- counters


def test_the_rules_of_the_service_that_moved() -> None:
    before = (demo_path() / "nodes" / "node-a" / LEGACY).read_text()
    lines = before.splitlines()
    touched = [
        i
        for i, line in enumerate(lines)
        if "nginx-externaltrafficpolicy" in line or line.endswith("-j KUBE-SERVICES")
    ]
    assert touched
    after = "\n".join(
        line.replace(line.partition("]")[0], f"[{int(line[1:].partition(':')[0]) + 3}:0", 1)
        if i in touched and line.startswith("[")
        else line
        for i, line in enumerate(lines)
    )
    world = demo()
    service = of_service(world, LOCAL)
    moved = moved_rules("node-a", service, {"legacy/ip": before.encode()}, {"legacy/ip": after.encode()})
    assert moved
    assert all("nginx-externaltrafficpolicy" in m.rule for m in moved)
    assert all(m.packets % 3 == 0 for m in moved)
    assert (
        moved_rules("node-a", service, {"legacy/ip": before.encode()}, {"legacy/ip": before.encode()}) == []
    )


# -------------------------------------------------------------------------------------------------------- witnesses

LB = "edge/local-lb"


def said(node: str, status: int | None, count: int | None, problem: str = "") -> HealthAnswer:
    return HealthAnswer(
        target=HealthTarget(node=node, address="192.0.2.1", port=32000),
        status=status,
        local_endpoints=count,
        problem=problem,
    )


def report_with(snapshot: Snapshot, **answers: HealthAnswer) -> ServiceDiagnosis:
    health = {name.replace("_", "-"): answer for name, answer in answers.items()}
    return diagnose_service(snapshot, of_service(snapshot, LB), health=health)


def odd(d: ServiceDiagnosis) -> dict[str, str]:
    return {r.node: r.odd for r in d.reconciliation}


def test_a_healthy_cluster_agrees_and_says_how_many() -> None:
    d = report_with(recorded())
    assert set(odd(d).values()) == {""}
    by_node = {r.node: r for r in d.reconciliation}
    held = {n: len(r.slices or ()) for n, r in by_node.items()}
    assert any(held.values())
    assert all(r.slices == r.rules for r in by_node.values())
    assert {n: r.local_ready for n, r in by_node.items()} == held


def test_the_health_check_is_named_where_it_stands_alone() -> None:
    d = report_with(recorded())
    holder = next(r for r in d.reconciliation if r.slices)
    empty = next(r for r in d.reconciliation if not r.slices)
    key = {r.node: r.node.replace("-", "_") for r in (holder, empty)}
    count = holder.local_ready
    good = report_with(
        recorded(),
        **{key[holder.node]: said(holder.node, 200, count), key[empty.node]: said(empty.node, 503, 0)},
    )
    assert set(odd(good).values()) == {""}
    assert not [f for f in good.findings if f.code == "KTP902"]
    bad = report_with(
        recorded(),
        **{
            key[holder.node]: said(holder.node, 503, 0),
            key[empty.node]: said(empty.node, None, None, "does not answer"),
        },
    )
    assert odd(bad)[holder.node] == odd(bad)[empty.node] == "health check"
    assert sorted(f.nodes for f in bad.findings if f.code == "KTP902") == sorted(
        [(holder.node,), (empty.node,)]
    )


def test_the_rules_are_named_where_a_node_did_not_sync() -> None:
    base = recorded()
    node = next(r.node for r in report_with(base).reconciliation if not r.slices)
    world = with_ready_pod_on(base, LB, node)
    behind = report_with(world)
    assert odd(behind)[node] == "rules"
    both = {node.replace("-", "_"): said(node, 503, 0)}
    assert odd(report_with(world, **both))[node] == "EndpointSlices"
    alone = {node.replace("-", "_"): said(node, 200, 1)}
    assert odd(report_with(world, **alone))[node] == "rules"
    none = {node.replace("-", "_"): said(node, 200, 7)}
    assert odd(report_with(world, **none))[node] == "all"


def test_health_is_asked_only_where_there_is_a_port_for_it() -> None:
    world = recorded()
    service = of_service(world, LB)
    assert {t.node for t in health_targets(world, service)} == set(world.cluster.nodes or {})
    assert {t.port for t in health_targets(world, service)} == {service.health_check_node_port}
    assert health_targets(demo(), of_service(demo(), LOCAL)) == []
