"""`ktp diagnose WHAT`: an address, a URL, a name: what it is, and the diagnosis of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.errors import UsageError
from ktp.parse.dialled import parse_what

LOCAL, CLUSTER = "test/nginx-externaltrafficpolicy", "test/nginx-log"
CASE = Path(__file__).resolve().parents[2] / "data/cases/core-1.36-iptables-nft"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.10:31015", {"host": "10.0.0.10", "port": 31015}),
        ("10.0.0.10:53/udp", {"host": "10.0.0.10", "port": 53, "protocol": "udp"}),
        ("10.0.0.10", {"host": "10.0.0.10", "port": None}),
        ("[fd00::1]:80/sctp", {"host": "fd00::1", "port": 80, "protocol": "sctp"}),
        ("fd00::1", {"host": "fd00::1", "port": None}),
        (":31015", {"host": "", "port": 31015}),
        ("31015", {"host": "", "port": 31015}),
        ("31015/UDP", {"host": "", "port": 31015, "protocol": "udp"}),
        ("http://node-b:31015/a/b?c", {"host": "node-b", "port": 31015}),
        ("https://shop.example.com/", {"host": "shop.example.com", "port": 443}),
        ("http://user:pass@[fd00::1]/", {"host": "fd00::1", "port": 80}),
        ("node-b:80", {"host": "node-b", "port": 80}),
        ("svc/web", {"service": (None, "web")}),
        ("service/shop/web", {"service": ("shop", "web")}),
        ("shop/web", {"service": ("shop", "web")}),
        ("web.shop.svc.cluster.local:8080", {"service": ("shop", "web"), "port": 8080}),
        ("web.shop.svc", {"service": ("shop", "web")}),
        ("pod-0.web.shop.svc.cluster.local", {"service": ("shop", "web")}),
    ],
)
def test_forms(text: str, expected: dict[str, Any]) -> None:
    found = parse_what(text)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1:x", "10.0.0.1:70000", "[fd00::1", "ftp://x", "a//b", "svc/", "x:0"]
)
def test_what_is_no_form(text: str) -> None:
    with pytest.raises(UsageError):
        parse_what(text)


@pytest.fixture(autouse=True)
def _resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No question leaves this machine: one name is known, and no other."""
    known = {"shop.example.com": ("10.0.0.10",), "else.example.com": ("192.0.2.9",)}
    monkeypatch.setattr("ktp.collect.resolve.resolve", lambda name: known.get(name, ()))


def ask(capsys: pytest.CaptureFixture[str], *words: str, folder: Path | None = None) -> tuple[int, Any]:
    whence = ["--snapshot", str(folder)] if folder is not None else ["--demo"]
    status = run(["diagnose", *words, *whence, "-o", "json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("what", "service", "nodes", "says", "status"),
    [
        ("10.0.0.10:31015", LOCAL, ["node-b"], f"10.0.0.10 is node-b, and 31015 is the node port of {LOCAL}", 1),
        ("10.0.0.3:31015", LOCAL, ["node-a"], "10.0.0.3 is node-a", 0),
        (":31015", LOCAL, ["node-a", "node-b", "node-c"], "31015 is the node port of", 1),
        ("http://node-a:31015/", LOCAL, ["node-a"], "node-a is a node, and 31015", 0),
        ("10.99.0.12:80", CLUSTER, ["node-a", "node-b", "node-c"], f"10.99.0.12 is the load-balancer IP of {CLUSTER}", 0),
        ("10.99.0.12:81", CLUSTER, ["node-a", "node-b", "node-c"], "it has no port 81, but 80/TCP", 0),
        ("10.99.0.12:31465", CLUSTER, ["node-a", "node-b", "node-c"], "31465 is its node port, which nodes have: here it is 80", 0),
        ("10.244.1.10:8080", LOCAL, ["node-a", "node-b", "node-c"], "declare no port 8080, but 80/TCP", 1),
        ("nginx-log.test", CLUSTER, ["node-a", "node-b", "node-c"], "is Service test/nginx-log", 0),
        ("nginx-log", CLUSTER, ["node-a", "node-b", "node-c"], "is Service test/nginx-log", 0),
        ("nginx-log.test.svc.cluster.local", CLUSTER, ["node-a", "node-b", "node-c"], "is test/nginx-log", 0),
        ("test/nginx-log", CLUSTER, ["node-a", "node-b", "node-c"], "is test/nginx-log", 0),
        ("10.0.0.99:31015", LOCAL, ["node-a", "node-b", "node-c"], "no node, Service or pod has the address 10.0.0.99 (nodes: node-a 10.0.0.3", 1),
    ],
)  # fmt: skip
def test_what_a_service_has(
    what: str, service: str, nodes: list[str], says: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found, answer = ask(capsys, what)
    assert found == status
    assert f"{answer['service']['namespace']}/{answer['service']['name']}" == service
    assert says in answer["dialled"]
    assert [row["node"] for row in answer["frontends"][0]["nodes"]] == nodes


def test_the_services_own_port_is_not_its_node_port(capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = ask(capsys, "10.0.0.10:80")
    items = answer.get("items", [answer])
    assert all("80 is the Service's own port of" in item["dialled"] for item in items)
    assert any("its node port is 31015" in item["dialled"] for item in items)


@pytest.mark.parametrize(
    ("what", "says", "symptom", "status"),
    [
        ("10.0.0.10:31016", "31016 is no node port; near it there are 31015/TCP", "refused", 1),
        ("10.0.0.10:31015/udp", "31015 is no node port; near it there are 31015/TCP", "refused", 1),
        ("node-b", "node-b is a node; say which port", "unknown", 4),
    ],
)
def test_what_no_service_has(
    what: str, says: str, symptom: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found, answer = ask(capsys, what)
    assert (found, answer["kind"], answer["symptom"]) == (status, "Dialled", symptom)
    assert says in answer["dialled"]


def test_health_checks_and_ports_of_pods(capsys: pytest.CaptureFixture[str]) -> None:
    service = next(
        s for s in json.loads((CASE / "cluster/services.json").read_bytes())["items"]
        if s["spec"].get("healthCheckNodePort")
    )  # fmt: skip
    port = service["spec"]["healthCheckNodePort"]
    _, answer = ask(capsys, f"10.0.0.10:{port}", folder=CASE)
    assert f"the health check of {service['metadata']['namespace']}/" in answer["dialled"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("10.77.0.1:9", "no node, Service or pod has the address 10.77.0.1"),
        ("svc/nginx-log", "there is test/nginx-log"),
        ("no-such-host.invalid:80", "is no node and no Service"),
        ("else.example.com:80", "is no node and no Service"),
        (":9", "9 is no node port of any Service; near it there are"),
    ],
)
def test_what_nothing_is(what: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", what, "--demo"]) == 2
    assert says in capsys.readouterr().err


def test_a_hosts_name_is_resolved_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = ask(capsys, "http://shop.example.com:31015/")
    assert status == 1
    assert answer["dialled"].startswith(
        "shop.example.com is 10.0.0.10 by this machine's resolver; 10.0.0.10 is node-b, and 31015 is the node port"
    )


def test_a_node_that_was_not_dialled(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", "10.0.0.10:31015", "--demo", "--node", "node-a"]) == 2
    assert "--node names another one" in capsys.readouterr().err


def test_text_says_what_was_dialled_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", "10.0.0.10:31015", "10.0.0.10:1", "--demo"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(
        "10.0.0.10 is node-b, and 31015 is the node port of test/nginx-externaltrafficpolicy"
    )
    assert "and 1 is no node port" in out


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"provider_id": "kind://docker/kind/kind-worker"}, "extraPortMappings"),
        ({"labels": {"minikube.k8s.io/name": "minikube"}}, "minikube service"),
        ({"labels": {"k3d.io/cluster": "x"}}, "k3d node edit"),
        ({"name": "docker-desktop"}, "localhost:NODE-PORT"),
        ({"provider_id": "aws:///eu-1a/i-1"}, ""),
    ],
)
def test_clusters_on_ones_own_machine(fields: dict[str, Any], says: str) -> None:
    from ktp.diagnose.dialled import local_cluster_words
    from ktp.model.cluster import Node

    words = local_cluster_words(Node(**{"name": "n", **fields}))
    assert says in words
    assert bool(words) == bool(says)
