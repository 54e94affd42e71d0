"""Nodes that are taken to be alike: examined together they get the answers that each gets when it is examined itself."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.alike import alike_nodes
from ktp.diagnose.examine import Examiner
from ktp.diagnose.service import diagnose_service
from ktp.model.diagnosis import Finding, Fix, ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot

NEVER = 10**9
"""More nodes than there are: each is examined itself."""


class Cluster:
    """The objects of a cluster of which no node was read, with odd nodes among many that are alike."""

    def __init__(self, seed: int, nodes: int) -> None:
        r = self.random = random.Random(seed)
        self.count = nodes
        self.nodes = [self.node(n) for n in range(self.count)]
        self.pods: list[dict[str, Any]] = []
        if r.random() < 0.5:
            self.pods += [self.pod(f"any-{n}", n, f"10.244.{n}.200") for n in range(self.count)]
        if r.random() < 0.3:
            self.pods += [
                self.pod(f"cilium-{n}", n, self.ip(n), app="cilium") for n in r.sample(range(self.count), 9)
            ]
        if r.random() < 0.3:
            taker = self.pod("taker", 3, "10.244.3.99")
            taker["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 31000}]
            self.pods.append(taker)
        self.endpoints = self.drawn_endpoints()
        self.service = self.drawn_service()

    def ip(self, n: int) -> str:
        return f"10.0.{n // 10}.{n % 10 + 1}"

    def node(self, n: int) -> dict[str, Any]:
        r = self.random
        labels = {"topology.kubernetes.io/zone": f"zone-{n % 2}"}
        if r.random() < 0.1:
            labels["node.kubernetes.io/exclude-from-external-load-balancers"] = ""
        addresses = [{"type": "InternalIP", "address": self.ip(n)}]
        if r.random() < 0.2:
            addresses.append({"type": "ExternalIP", "address": f"198.51.100.{n + 1}"})
        return {
            "metadata": {"name": f"node-{n}", "labels": labels},
            "spec": {"podCIDR": f"10.244.{n}.0/24", "podCIDRs": [f"10.244.{n}.0/24"] if r.random() < 0.95 else []},
            "status": {
                "addresses": addresses,
                "conditions": [{"type": "Ready", "status": "False" if r.random() < 0.1 else "True"}],
                "nodeInfo": {"kubeletVersion": "v1.33.1" if r.random() < 0.9 else "v1.24.3"},
            },
        }  # fmt: skip

    def pod(self, name: str, n: int, ip: str, app: str = "web") -> dict[str, Any]:
        return {
            "metadata": {"namespace": "test", "name": name, "labels": {"app": app, "k8s-app": app}},
            "spec": {
                "nodeName": f"node-{n}", "hostNetwork": ip == self.ip(n),
                "containers": [{"name": "main", "ports": [{"containerPort": 8080}]}],
            },
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        }  # fmt: skip

    def drawn_endpoints(self) -> list[dict[str, Any]]:
        r = self.random
        shape = r.choice(["few", "few", "every node", "two on many", "none"])
        on_host = r.random() < 0.25
        homes = {
            "few": r.sample(range(self.count), 4),
            "every node": list(range(self.count)),
            "two on many": [n for n in r.sample(range(self.count), self.count // 2) for _ in range(2)],
            "none": [],
        }[shape]
        hinted = r.random() < 0.3
        out: list[dict[str, Any]] = []
        for number, n in enumerate(homes):
            ip = self.ip(n) if on_host else f"10.244.{n}.{10 + number % 100}"
            if any(e["addresses"] == [ip] for e in out):
                continue
            name = f"web-{number}"
            self.pods.append(self.pod(name, n, ip))
            ready = r.random() < 0.9
            leaves = not ready and r.random() < 0.5
            endpoint = {
                "addresses": [ip],
                "conditions": {"ready": ready, "serving": ready or leaves, "terminating": leaves},
                "nodeName": f"node-{n}",
                "targetRef": {"kind": "Pod", "name": name, "namespace": "test"},
            }
            if hinted:
                endpoint["hints"] = {"forZones": [{"name": f"zone-{n % 2}"}]}
            out.append(endpoint)
        if r.random() < 0.2:
            out.append({"addresses": [self.ip(7)], "conditions": {"ready": True}})
        return out

    def drawn_service(self) -> dict[str, Any]:
        r = self.random
        kind = r.choice(["NodePort", "LoadBalancer"])
        spec: dict[str, Any] = {
            "type": kind, "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "externalTrafficPolicy": r.choice(["Local", "Local", "Cluster"]),
            "internalTrafficPolicy": r.choice(["Cluster", "Cluster", "Local"]),
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 31000},
                {"name": "other", "port": 81, "protocol": "UDP", "targetPort": 8081, "nodePort": 31001},
            ],
        }  # fmt: skip
        status: dict[str, Any] = {}
        if kind == "LoadBalancer":
            status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}
            if spec["externalTrafficPolicy"] == "Local":
                spec["healthCheckNodePort"] = 32000
            if r.random() < 0.5:
                spec["loadBalancerSourceRanges"] = ["10.0.1.0/24", "203.0.113.0/24"]
        if r.random() < 0.4:
            spec["externalIPs"] = ["192.0.2.77", self.ip(11)]
        return {"metadata": {"namespace": "test", "name": "web"}, "spec": spec, "status": status}

    def written(self, folder: Path) -> Path:
        """As a snapshot."""
        ports = [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "other", "port": 8081, "protocol": "UDP"},
        ]
        slices = [{
            "metadata": {
                "namespace": "test", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4", "ports": ports, "endpoints": self.endpoints,
        }]  # fmt: skip
        (folder / "cluster").mkdir(parents=True)
        for name, items in (
            ("nodes", self.nodes), ("pods", self.pods), ("services", [self.service]), ("endpointslices", slices),
        ):  # fmt: skip
            (folder / "cluster" / f"{name}.json").write_text(json.dumps({"kind": "List", "items": items}))
        return folder


@pytest.mark.parametrize(
    ("nodes", "seeds"), [(14, range(3)), pytest.param(30, range(100, 140), marks=pytest.mark.slow)]
)
def test_examined_together_and_one_by_one_they_get_the_same_answers(
    tmp_path: Path, nodes: int, seeds: range
) -> None:
    joined = 0
    for seed in seeds:
        snapshot = parse_snapshot(open_snapshot(Cluster(seed, nodes).written(tmp_path / str(seed))))
        service = snapshot.cluster.services["test/web"]
        together = diagnose_service(snapshot, service, few=2)
        one_by_one = diagnose_service(snapshot, service, few=NEVER)
        joined += _examined(snapshot) < nodes
        for matrix, expected in zip(together.frontends, one_by_one.frontends, strict=True):
            for row, wanted in zip(matrix.nodes, expected.nodes, strict=True):
                assert row == wanted, (seed, matrix.title)
        assert _facts(together) == _facts(one_by_one), seed
        assert together.verdict == one_by_one.verdict, seed
    assert joined > len(seeds) / 2


def _examined(snapshot: Snapshot) -> int:
    service = snapshot.cluster.services["test/web"]
    examiner = Examiner(snapshot)
    front_ends = [f for p in service.ports for f in examiner.front_ends(service, p).programmed]
    questions = {
        name: [q for f in front_ends for q in examiner.questions(service, f, name)]
        for name in examiner.node_names()
    }
    return len(questions) - len(alike_nodes(examiner, service, questions, 2).twin_of)


def _facts(d: ServiceDiagnosis) -> dict[str, Any]:
    """Everything that a diagnosis concludes, in no order: of nodes together or each for itself."""
    return {
        "headline": {
            (g.frontend, node, g.symptom, g.cause) for g in d.headline for node in g.nodes
        },
        "findings": {(f.code, f.severity, node) for f in d.findings for node in f.nodes or ("",)},
        "cells": {(f.code, f.severity, cell) for f in d.findings for cell in f.cells},
        "cures": {
            (f.code, cell, _without(fix.summary, f.node), _cures(f, fix))
            for f in d.findings for cell in f.cells for fix in f.fixes
        },
        "shares": d.shares,
        "witnesses": d.reconciliation,
        "undetermined": d.undetermined,
        "gaps": d.gaps,
    }  # fmt: skip


def _without(words: str, node: str | None) -> str:
    return re.sub(rf"\b{re.escape(node)}\b(?!-)", "", words) if node is not None else words


def _cures(finding: Finding, fix: Fix) -> object:
    """What a fix does: where a finding is of one node, without the counts, which hold for all alike."""
    if fix.cures is None:
        return None
    if finding.node is not None:
        return fix.cures.is_whole
    return fix.cures.tried, fix.cures.cured, frozenset(fix.cures.left), frozenset(fix.cures.lost)


@pytest.mark.parametrize("nodes", [12])
def test_the_nodes_that_are_not_examined_are_named_all_the_same(tmp_path: Path, nodes: int) -> None:
    cluster = Cluster(0, nodes)
    cluster.nodes = [
        {
            "metadata": {"name": f"node-{n}"},
            "spec": {"podCIDR": f"10.244.{n}.0/24", "podCIDRs": [f"10.244.{n}.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": f"10.0.9.{n + 1}"}]},
        }
        for n in range(nodes)
    ]
    cluster.service["spec"] |= {"type": "NodePort", "externalTrafficPolicy": "Local", "externalIPs": []}
    cluster.endpoints = [
        {"addresses": ["10.244.0.9"], "conditions": {"ready": True}, "nodeName": "node-0"},
    ]
    snapshot = parse_snapshot(open_snapshot(cluster.written(tmp_path / "snapshot")))
    diagnosis = diagnose_service(snapshot, snapshot.cluster.services["test/web"])
    found = [f for f in diagnosis.findings if f.code == "KTP501"]
    assert {n for f in found for n in f.nodes} == {f"node-{n}" for n in range(1, nodes)}
    assert {f.node for f in found} == {"node-1", "node-2"}
    groups = [g for g in diagnosis.headline if g.frontend == "nodePort 31000/TCP"]
    assert [(len(g.nodes), g.cause) for g in groups] == [(nodes - 1, "KTP501")]


def test_many_nodes_are_not_all_named_in_a_reason() -> None:
    from ktp.dataplane.packet import some

    names = [f"node-{n}" for n in range(1000)]
    assert some(names) == "node-0, node-1, node-2, node-3, node-4, node-5 and 994 more"
    assert some(names[:2]) == "node-0, node-1"
