"""`ktp diagnose svc --node-access exporter`: what each node's own pod says, through the API server's proxy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.fleet import merge_reports
from ktp.diagnose.node_check import NodeChecker
from ktp.errors import EvidenceError
from ktp.parse.node_reports import parse_node_report
from ktp.parse.snapshot import parse_snapshot
from ktp.render.node_check import check_object
from tests.support.api_server import ApiServer, Fault

CASE = Path(__file__).resolve().parents[1] / "data" / "cases" / "core-1.36-iptables-nft"
NODES = ("node-a", "node-b", "node-c")
LOCAL = "test/nginx-externaltrafficpolicy"
Kubeconfig = Callable[..., Path]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """What each node of a recorded cluster says of itself."""
    snapshot = parse_snapshot(open_snapshot(CASE))
    return {node: check_object(NodeChecker(node).check(snapshot)) for node in ("node-a", "node-b")}


@pytest.fixture
def fleet(server: ApiServer, reports: dict[str, dict[str, Any]]) -> ApiServer:
    """A pod on each node; that of node-c is not there yet."""
    for node, report in reports.items():
        add(server, node, {**copy.deepcopy(report), "age": 30.0})
    return server


def path_of(node: str) -> str:
    return f"/api/v1/namespaces/ktp/pods/ktp-{node}:9497/proxy/report"


def add(server: ApiServer, node: str, report: dict[str, Any], phase: str = "Running") -> None:
    server.objects["pods"].append(
        {
            "metadata": {
                "namespace": "ktp",
                "name": f"ktp-{node}",
                "labels": {"app.kubernetes.io/name": "ktp"},
            },
            "spec": {
                "nodeName": node,
                "containers": [{"ports": [{"name": "metrics", "containerPort": 9497}]}],
            },
            "status": {"phase": phase},
        }
    )
    server.pages[path_of(node)] = report


def diagnose(config: Path, *arguments: str) -> int:
    return run(["diagnose", "svc", *arguments, "--node-access", "exporter", "--kubeconfig", str(config)])


def test_all_services(fleet: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "-A") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("3 Services fail for outside clients on 2 of 3 nodes; 1 of 3 nodes did not tell")
    assert "edge/local-notready nodePort 30003/TCP: fails on node-a, node-b (KTP102)" in out
    assert "not told: no pod of ktp runs on node-c" in out
    # Neither the rules of nodes nor lists of Services and endpoints are read.
    assert not [p for p in fleet.paths() if p.endswith(("/services", "/endpointslices", "/exec"))]


def test_as_data(fleet: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "-A", "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["nodes"]["told"], found["nodes"]["silent"]) == ("FleetReport", 2, ["node-c"])
    assert found["frontends"]["fails"] == 6
    rows = {(r["service"]["name"], r["frontend"]): r for r in found["items"]}
    row = rows["local-none", "nodePort 30001/TCP"]
    assert row["nodes"] == {"fails": ["node-a", "node-b"], "deviates": [], "unknown": []}
    assert row["causes"] == {"KTP103": 2}
    assert [g["subject"] for g in found["gaps"]] == ["node-c"]


def test_one_service_that_is_well_where_it_is_told(
    fleet: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that does not tell leaves the answer open."""
    assert diagnose(kubeconfig(), LOCAL) == 4
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(
        f"{LOCAL} does what the API objects call for on 2 of 3 nodes; 1 of 3 nodes did not tell"
    )
    assert diagnose(kubeconfig(), LOCAL, "--node", "node-a", "--node", "node-b") == 0
    assert "did not tell" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=503), "gave no report"),
        (Fault(body=b"<html>"), "gave no report"),
        (Fault(body=b'{"kind": "Status"}'), "is no report of ktp check"),
        (Fault(body=b'{"kind": "NodeCheck", "node": "node-b"}'), "is no report of ktp check"),
    ],
)
def test_a_pod_that_does_not_answer_is_a_gap(
    fault: Fault, said: str, fleet: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.misbehave("ktp-node-b.*proxy", *[fault] * 8)
    assert diagnose(kubeconfig(), LOCAL) == 4
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 nodes did not tell" in out
    assert said in out


@pytest.mark.parametrize("how", ["no look for long", "no word of the API server"])
def test_what_is_old_says_nothing_of_now(
    how: str, fleet: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the node's own clock: those of two machines may differ by hours."""
    fleet.pages[path_of("node-a")]["at"] = fleet.pages[path_of("node-a")]["objectsAt"] = 1e9
    report = fleet.pages[path_of("node-b")]
    if how == "no look for long":
        report["age"] = 4000.0
    else:
        report["at"], report["objectsAt"] = 5000.0, 1000.0
    assert diagnose(kubeconfig(), LOCAL) == 4
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 nodes did not tell" in out
    assert "what ktp on node-b says is 40" in out
    assert "node-a" not in out


def test_what_cannot_be_asked(
    server: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose(kubeconfig(), "-A") == 3
    assert "no pod of ktp check --serve runs in the cluster" in capsys.readouterr().err
    add(server, "node-a", {}, phase="Pending")
    assert diagnose(kubeconfig(), "-A") == 3
    assert diagnose(kubeconfig(), "test/nginx-externaltrafficpolcy") == 2
    assert f'did you mean "{LOCAL.partition("/")[2]}"' in capsys.readouterr().err
    assert diagnose(kubeconfig(), "-n", "tset") == 2
    assert 'there is no namespace "tset"' in capsys.readouterr().err
    (inner,) = [s for s in server.objects["services"] if s["metadata"]["name"] == "nginx-log"]
    inner["spec"]["type"], inner["spec"]["ports"][0]["nodePort"], inner["status"] = "ClusterIP", 0, {}
    assert diagnose(kubeconfig(), "test/nginx-log") == 2
    assert "has no front end for clients outside" in capsys.readouterr().err
    for words in (["-A", "-o", "html"], [LOCAL, "--client", "192.0.2.1"], ["-A", "--demo"]):
        assert diagnose(kubeconfig(), *words) == 2
    assert (
        run(
            [
                "trace",
                "--from",
                "192.0.2.1",
                "--to",
                "10.0.0.10:80",
                "--node-access",
                "exporter",
                "--kubeconfig",
                str(kubeconfig()),
            ]
        )
        == 2
    )
    assert "is for ktp diagnose svc" in capsys.readouterr().err


def test_a_later_ktp_may_say_more(reports: dict[str, dict[str, Any]]) -> None:
    later = copy.deepcopy(reports["node-b"])
    later["news"], later["age"] = {"a": 1}, 5.0
    later["items"][0]["state"] = "sleeps"
    later["items"][1]["symptom"] = "yawns"
    found = merge_reports([parse_node_report(later, "it")], [])
    assert len(found.rows) == len(later["items"])
    assert {s.value for row in found.rows for s in row.nodes} == {"fails", "unknown"}
    with pytest.raises(EvidenceError, match="what it answers is no report of ktp check"):
        parse_node_report([], "it")
