"""What is said where evidence is missing: reports that once were answered with the opposite of the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.service import diagnose_service
from ktp.diagnose.topology import topology_of
from ktp.model.assumption import EvidenceKind
from ktp.model.capture import MemoryCapture
from ktp.model.diagnosis import Cell, ServiceDiagnosis, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow, Symptom
from ktp.parse.snapshot import parse_snapshot

REPORTS = Path(__file__).resolve().parents[2] / "data" / "reports"


def diagnosis(report: str, service: str) -> ServiceDiagnosis:
    snapshot = parse_snapshot(open_snapshot(REPORTS / report))
    return diagnose_service(snapshot, snapshot.cluster.services[service])


def cells(d: ServiceDiagnosis, node: str | None = None) -> Iterator[Cell]:
    for matrix in d.frontends:
        for row in matrix.nodes:
            if node is None or row.node == node:
                yield from row.cells.values()


@pytest.mark.parametrize("report", ["missing/flannel-one-node", "missing/flannel-one-node-addrs"])
def test_one_node_of_a_healthy_flannel_cluster(report: str) -> None:
    """The next hops behind flannel.1 are other nodes, of which nothing was read: an assumption, and no missing route."""
    found = diagnosis(report, "test/nginx-log")
    assert {c.symptom for c in cells(found)} == {Symptom.CONNECTS}
    assert not [f for f in found.findings if f.severity is not Severity.INFO]
    external = [c for c in cells(found, "node-b") if c.vantage == "external"]
    assert all(any(a.evidence is EvidenceKind.RULES for a in c.rests_on) for c in external)


def test_virtual_servers_that_were_not_read_are_not_none() -> None:
    found = diagnosis("ipvs/without-ipvsadm", "default/web")
    assert {c.symptom for c in cells(found)} == {Symptom.UNKNOWN}
    assert found.undetermined
    assert any("ipvsadm" in g.message for g in found.gaps)
    assert not [f for f in found.findings if f.code == "KTP409"]


def test_endpoints_of_virtual_servers_are_endpoints_of_the_rules() -> None:
    found = diagnosis("ipvs/healthy", "default/web")
    assert {c.symptom for c in cells(found) if c.vantage == "external"} == {Symptom.CONNECTS}
    assert not [f for f in found.findings if f.code == "KTP409"]


def test_kube_proxys_own_reject_in_ipvs_mode_is_not_foreign() -> None:
    found = diagnosis("ipvs/external-ip-local", "default/web")
    assert not [f for f in found.findings if f.code == "KTP410"]


def test_another_data_plane_known_by_its_pods_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report = str(REPORTS / "data-planes" / "cilium-api-only")
    found = diagnosis("data-planes/cilium-api-only", "edge/udp-local")
    assert {c.symptom for c in cells(found)} == {Symptom.UNKNOWN}
    assert found.findings[0].code == "KTP403"
    assert {c.intended for c in cells(found)} & {
        Symptom.CONNECTS,
        Symptom.TIMES_OUT,
    }  # what the API calls for
    assert run(["--snapshot", report, "diagnose", "svc", "edge/udp-local", "-o", "json"]) == 4
    assert json.loads(capsys.readouterr().out)


CASES = Path(__file__).resolve().parents[2] / "data/cases"


def changed(case: str, change: Callable[[str, bytes], bytes | None]) -> Snapshot:
    """A packaged case of which `change(name, content)` alters files, or takes them away."""
    whole = open_snapshot(CASES / case)
    files = {name: change(name, whole.read(name)) for name in whole.names()}
    return parse_snapshot(MemoryCapture(files={n: c for n, c in files.items() if c is not None}))


def answers(snapshot: Snapshot, service: str) -> list[tuple[object, ...]]:
    found = diagnose_service(snapshot, snapshot.cluster.services[service])
    return [
        (m.title, r.node, c.vantage, c.symptom)
        for m in found.frontends
        for r in m.nodes
        for c in r.cells.values()
    ]


@pytest.mark.parametrize("key", ["net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"])
def test_a_sysctl_that_is_not_among_those_read(key: str) -> None:
    """It is taken to be as promised, by name: neither 0 nor silently right."""

    def without(name: str, content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        return (
            b"".join(line for line in lines if not line.startswith(key.encode()))
            if "sysctl" in name
            else content
        )

    case, service = "core-1.20-iptables-legacy", "test/nginx-log"
    whole, part = changed(case, lambda _, content: content), changed(case, without)
    assert answers(part, service) == answers(whole, service)
    found = diagnose_service(part, part.cluster.services[service])
    taken = {a.taken for c in cells(found) for a in c.rests_on if a.evidence is EvidenceKind.SYSCTLS}
    assert any(words == f"{key} is 1, which sysctl.txt does not have" for words in taken)


@pytest.mark.parametrize("lost", ["ip-addr.json", "ip-route.json"])
@pytest.mark.parametrize("case", ["core-1.20-iptables-legacy", "core-1.36-iptables-nft"])
def test_a_node_without_its_addresses_or_without_its_routes(case: str, lost: str) -> None:
    """No rule of kube-proxy's own is accused, no route is missed, nothing else answers."""
    whole = changed(case, lambda _, content: content)
    part = changed(case, lambda name, content: None if name.endswith(lost) else content)
    for service in ("test/nginx-externaltrafficpolicy", "test/nginx-log"):
        assert answers(part, service) == answers(whole, service)
        codes = [
            sorted({f.code for f in diagnose_service(s, s.cluster.services[service]).findings})
            for s in (whole, part)
        ]
        assert codes[0] == codes[1]


@pytest.mark.parametrize("annotated", [True, False])
def test_flannels_devices_follow_from_its_annotation_on_the_node(annotated: bool) -> None:
    """Pods on another node see masqueraded clients from the address of flannel.1, as on the recorded cluster."""
    folder = open_snapshot(REPORTS / "missing/flannel-one-node")
    lost = ("ip-addr.json", "ip-route.json", "ip-neigh.json", "bridge-fdb.json")
    files = {n: folder.read(n) or b"" for n in folder.names() if not n.endswith(lost)}
    if not annotated:
        files["cluster/nodes.json"] = files["cluster/nodes.json"].replace(b"flannel.alpha", b"other.alpha")
    walker = Walker(topology_of(parse_snapshot(MemoryCapture(files=files))))
    asked = Flow(src="10.0.0.100", dst="10.0.0.10", port=31465, protocol="tcp")
    seen = {
        path.endpoint_node: path.source_seen
        for path in answer_flow(walker, asked).paths
        if path.symptom is Symptom.CONNECTS
    }
    other = "10.244.2.0" if annotated else "10.0.0.10"
    assert seen == {"node-a": other, "node-b": "10.244.2.1" if annotated else "10.0.0.10"}


CALICO = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:cali-FORWARD - [0:0]
:cali-from-wl - [0:0]
-A FORWARD -j cali-FORWARD
-A cali-FORWARD -i cali+ -j cali-from-wl
-A cali-from-wl -i calic8e94a3aba5 -m conntrack --ctstate NEW -j DROP
COMMIT
"""


def test_calico_names_the_device_of_a_pod_by_the_pod() -> None:
    """libcalico-go, VethNameForWorkload; seen at edge/deadport-0 of a recorded cluster. Without routes and addresses."""
    from ktp.diagnose.supposed import with_supposed_networks
    from ktp.model.cluster import Cluster, Node, Pod

    pods = [
        Pod(namespace="edge", name=f"deadport-{n}", node_name="a", pod_ips=(f"10.244.1.{n + 2}",))
        for n in (0, 1)
    ]
    node = Node(name="a", addresses=(("InternalIP", "10.0.0.3"),), pod_cidrs=("10.244.1.0/24",))
    files = {"nodes/a/iptables-legacy-save.txt": CALICO.encode(), "cluster/services.json": b'{"items": []}'}
    state = parse_snapshot(MemoryCapture(files=files)).nodes["a"]
    snapshot = Snapshot(cluster=Cluster(pods=tuple(pods), nodes={"a": node}), nodes={"a": state})
    routes = with_supposed_networks(snapshot).nodes["a"].routes or ()
    devices = {str(r.dst): r.dev for r in routes if r.dst.prefixlen == 32 and r.type == "unicast"}
    assert devices["10.244.1.2/32"] == "calic8e94a3aba5"
    walker = Walker(topology_of(snapshot))
    first, second = (pod.pod_ips[0] for pod in pods)
    answers = [
        answer_flow(walker, Flow(src=src, from_node="a", dst=dst, port=80, protocol="tcp"))
        for src, dst in ((first, second), (second, first))
    ]
    assert [answer.disposition.value for answer in answers] == ["dropped", "delivered"]
