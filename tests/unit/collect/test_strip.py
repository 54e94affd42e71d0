"""What never gets into a snapshot, whoever collected it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktp.collect.strip import strip_capture
from ktp.errors import SnapshotError
from ktp.model.capture import EvidenceGap, MemoryCapture

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": '{"env": "s3cret"}',
            "vault.example/token": "s3cret",
            "prometheus.io/port": "9090",
        },
        "managedFields": [{"manager": "s3cret"}],
    },
    "spec": {
        "nodeName": "node-a",
        "serviceAccountName": "s3cret",
        "volumes": [{"secret": {"secretName": "s3cret"}}],
        "containers": [
            {
                "name": "web",
                "image": "nginx",
                "args": ["--password=s3cret"],
                "command": ["run", "s3cret"],
                "env": [{"name": "PASSWORD", "value": "s3cret"}],
                "envFrom": [{"secretRef": {"name": "s3cret"}}],
                "lifecycle": {"preStop": {"exec": {"command": ["s3cret"]}}},
                "livenessProbe": {"exec": {"command": ["s3cret"]}},
                "readinessProbe": {
                    "httpGet": {"port": 80, "httpHeaders": [{"name": "Authorization", "value": "s3cret"}]}
                },
            },
            {"name": "db", "readinessProbe": {"exec": {"command": ["mysqladmin", "-ps3cret", "ping"]}}},
        ],
        "initContainers": [{"name": "init", "env": [{"value": "s3cret"}]}],
    },
}
SECRET = {"kind": "Secret", "metadata": {"name": "x", "namespace": "shop"}, "data": {"password": "s3cret"}}


def as_list(*items: dict[str, Any]) -> bytes:
    return json.dumps({"kind": "List", "items": items}).encode()


def items(capture: MemoryCapture, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(capture.read(f"cluster/{kind}.json"))["items"]
    return found


def test_a_pod_keeps_what_answers_need_and_loses_its_secrets() -> None:
    capture = strip_capture(MemoryCapture(files={"cluster/pods.json": as_list(POD, SECRET)}))
    assert b"s3cret" not in capture.read("cluster/pods.json")
    (pod,) = items(capture, "pods")
    assert pod["metadata"]["annotations"] == {"prometheus.io/port": "9090"}
    web, database = pod["spec"]["containers"]
    assert web["readinessProbe"] == {"httpGet": {"port": 80}}
    assert database["readinessProbe"]["exec"]["command"] == ["mysqladmin", "…"]


def test_kube_proxy_keeps_its_command_line() -> None:
    labels = {"k8s-app": "kube-proxy"}
    pod = {
        "kind": "Pod",
        "metadata": {"name": "kube-proxy-1", "namespace": "kube-system", "labels": labels},
        "spec": {"containers": [{"name": "kube-proxy", "command": ["kube-proxy", "--proxy-mode=ipvs"]}]},
    }
    capture = strip_capture(MemoryCapture(files={"cluster/pods.json": as_list(pod)}))
    assert items(capture, "pods")[0]["spec"]["containers"][0]["command"] == [
        "kube-proxy",
        "--proxy-mode=ipvs",
    ]


def test_files_of_other_kinds_are_left_out() -> None:
    files = {
        "cluster/secrets.json": as_list(SECRET),
        "nodes/node-a/shadow.txt": b"s3cret",
        "nodes/node-a/again/shadow.txt": b"s3cret",
        "nodes/node-a/again/nft-ruleset.json": b"{}",
        "nodes/node-a/ss.txt": b"",
    }
    capture = strip_capture(MemoryCapture(files=files))
    assert capture.names() == ("nodes/node-a/again/nft-ruleset.json", "nodes/node-a/ss.txt")
    (gap,) = capture.gaps
    assert gap.kind == "left-out"
    assert "cluster/secrets.json" in gap.message


def test_a_config_map_is_reduced_to_kube_proxys_configuration() -> None:
    text = (
        "kind: ConfigMap\ndata:\n  config.conf: |\n    kind: KubeProxyConfiguration\n    mode: ipvs\n"
        "  kubeconfig.conf: s3cret\n"
    )
    name = "nodes/node-a/kube-proxy-config.yaml"
    capture = strip_capture(MemoryCapture(files={name: text.encode()}))
    assert capture.read(name) == b"kind: KubeProxyConfiguration\nmode: ipvs\n"


def test_a_namespace_and_some_nodes_can_be_chosen() -> None:
    files = {
        "cluster/services.json": as_list(
            {"kind": "Service", "metadata": {"name": "a", "namespace": "shop"}},
            {"kind": "Service", "metadata": {"name": "b", "namespace": "other"}},
        ),
        "nodes/node-a/ss.txt": b"",
        "nodes/node-b/ss.txt": b"",
    }
    gaps = tuple(EvidenceGap("node-rules", f"node-{each}", "…") for each in "ab")
    capture = strip_capture(MemoryCapture(files=files, gaps=gaps), namespace="shop", nodes=("node-a",))
    assert [item["metadata"]["name"] for item in items(capture, "services")] == ["a"]
    assert capture.node_names() == ("node-a",)
    assert [gap.subject for gap in capture.gaps] == ["node-a"]


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b"12"], ids=str)
def test_what_cannot_be_read_cannot_be_cleaned(content: bytes) -> None:
    with pytest.raises(SnapshotError):
        strip_capture(MemoryCapture(files={"cluster/pods.json": content}))
