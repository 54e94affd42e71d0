"""Reports on hundreds of nodes and dozens of ports: what is alike is said once, and fits on two screens."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.parse.snapshot import parse_snapshot
from ktp.render.diagnosis_text import print_diagnosis
from ktp.render.terminal import make_console

GOLDEN = Path(__file__).parents[2] / "golden" / "large"


def written(folder: Path, nodes: int, ports: int) -> Path:
    """A Service with policy Local and so many ports, of which four nodes hold a pod; no node was read."""
    service = {
        "metadata": {"namespace": "shop", "name": "ftp"},
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "externalTrafficPolicy": "Local", "selector": {"app": "ftp"},
            "ports": [
                {"name": f"data-{n}", "port": 2000 + n, "protocol": "TCP", "targetPort": 2000 + n, "nodePort": 30000 + n}
                for n in range(ports)
            ],
        },
    }  # fmt: skip
    items: dict[str, list[dict[str, Any]]] = {
        "services": [service],
        "nodes": [
            {
                "metadata": {"name": f"ip-10-20-{n // 250}-{n % 250}.eu-central-1.compute.internal"},
                "spec": {"podCIDR": f"10.{100 + n // 250}.{n % 250}.0/24"},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": f"10.20.{n // 250}.{n % 250}"}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "nodeInfo": {"kubeletVersion": "v1.33.1"},
                },
            }
            for n in range(1, nodes + 1)
        ],
        "pods": [],
        "endpointslices": [],
    }  # fmt: skip
    endpoints = [
        {
            "addresses": [f"10.100.{n}.7"], "nodeName": f"ip-10-20-0-{n}.eu-central-1.compute.internal",
            "conditions": {"ready": True},
        }
        for n in (3, 30, 31, 37)
    ]  # fmt: skip
    items["endpointslices"].append({
        "metadata": {"namespace": "shop", "name": "ftp-1", "labels": {"kubernetes.io/service-name": "ftp"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": f"data-{n}", "port": 2000 + n, "protocol": "TCP"} for n in range(ports)],
    })  # fmt: skip
    (folder / "cluster").mkdir(parents=True)
    for name, found in items.items():
        (folder / "cluster" / f"{name}.json").write_text(json.dumps({"kind": "List", "items": found}))
    return folder


def screen(d: ServiceDiagnosis, width: int) -> str:
    out = io.StringIO()
    print_diagnosis(d, make_console("never", out, width=width))
    text = out.getvalue()
    assert len(text.splitlines()) <= 2 * 35
    assert all(len(line) <= width or "kubectl " in line for line in text.splitlines())
    return text


@pytest.mark.parametrize("nodes", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_thirty_ports_fit_on_two_screens(tmp_path: Path, nodes: int) -> None:
    snapshot = parse_snapshot(open_snapshot(written(tmp_path / "snapshot", nodes, 30)))
    diagnosis = diagnose_service(snapshot, snapshot.cluster.services["shop/ftp"])
    for width in (80, 160):
        text = screen(diagnosis, width)
        golden = GOLDEN / f"ports-{nodes}-{width}.txt"
        if os.environ.get("KTP_UPDATE_GOLDEN"):
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(text)
        assert text == golden.read_text()


def test_data_has_every_node_and_every_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = written(tmp_path / "snapshot", 40, 3)
    run(["--snapshot", str(snapshot), "diagnose", "svc", "shop/ftp", "-o", "json"])
    data = json.loads(capsys.readouterr().out)
    outside = [f for f in data["frontends"] if f["kind"] == "nodePort"]
    assert [len(f["nodes"]) for f in outside] == [40] * 3
    causes = [row["external"]["cause"] for f in outside for row in f["nodes"]]
    assert causes.count("KTP501") == 3 * 36
    assert {n for g in data["headline"]["groups"] for n in g["nodes"]} == {
        row["node"] for row in outside[0]["nodes"] if row["external"]["symptom"] != "connects"
    }
    named = {n for f in data["findings"] if f["code"] == "KTP501" for n in f["nodes"]}
    assert len(named) == 36


def test_every_node_is_listed_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = written(tmp_path / "snapshot", 40, 2)
    run(["--snapshot", str(snapshot), "diagnose", "svc", "shop/ftp", "-v"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum("ip-10-20-0-17" in line.partition(" ")[0] for line in lines) == 4
    )  # of two node ports, two cluster IPs
