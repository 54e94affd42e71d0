"""`ktp probe` against real listeners, refusing ports and dropping rules, in network namespaces of its own.

One namespace is all nodes of the packaged snapshot: it has their addresses, and on each the node port behaves in its
own way. The other dials.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ktp.app.settings import demo_path

pytestmark = pytest.mark.kernel

SNAPSHOT = ("--snapshot", str(demo_path()))
NODES = {"node-a": "10.0.0.3", "node-b": "10.0.0.10", "node-c": "10.0.0.13"}
LOCAL = "test/nginx-externaltrafficpolicy"  # Local, its pod on node-a: predicted to answer there alone
SERVE = """
import socket, sys, threading
def serve(address, port, answer):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(64)
    def loop():
        while True:
            c, _ = s.accept()
            if answer:
                c.recv(4096); c.sendall(answer)
            c.close()
    threading.Thread(target=loop, daemon=True).start()
for word in sys.argv[1:]:
    address, port, answer = word.split("|")
    serve(address, int(port), answer.encode().decode("unicode_escape").encode())
print("ready", flush=True); sys.stdin.read()
"""
OK = r"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


@dataclass
class Net:
    """The two namespaces."""

    client: str
    nodes: str

    def ktp(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["ip", "netns", "exec", self.client, sys.executable, "-m", "ktp", *words],
            capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str) -> tuple[int, dict[str, Any]]:
        status, out, err = self.ktp(*words, "-o", "json")
        assert out, err
        return status, json.loads(out)

    def rule(self, *words: str) -> None:
        run("ip", "netns", "exec", self.nodes, "iptables-nft", *words)


def run(*argv: str, stdin: str | None = None) -> None:
    subprocess.run(argv, input=stdin, text=True, check=True, capture_output=True)


@pytest.fixture
def net(make_netns: Callable[[str], str]) -> Net:
    net = Net(make_netns("client"), make_netns("nodes"))
    run(
        "ip",
        "-n",
        net.nodes,
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        net.client,
    )
    for address in NODES.values():
        run("ip", "-n", net.nodes, "addr", "add", f"{address}/24", "dev", "eth0")
    run("ip", "-n", net.client, "addr", "add", "10.0.0.200/24", "dev", "eth0")
    for name in (net.client, net.nodes):
        run("ip", "-n", name, "link", "set", "eth0", "up")
    return net


@pytest.fixture
def serve(net: Net) -> Iterator[Callable[..., None]]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> None:
        child = subprocess.Popen(
            ["ip", "netns", "exec", net.nodes, sys.executable, "-c", SERVE, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

    yield start
    for child in started:
        child.kill()
        child.communicate()


def rows(answer: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """node → (predicted, observed, verdict)."""
    return {
        r["node"]: (r["predicted"]["symptom"], r["observed"]["symptom"], r["verdict"])
        for r in answer["probes"]
    }


QUICK = ("--tries", "2", "--wait", "0.4", "--dial-recorded")


def test_all_as_predicted(net: Net, serve: Callable[..., None]) -> None:
    serve("10.0.0.3|31015|")
    for address in ("10.0.0.10", "10.0.0.13"):
        net.rule("-A", "INPUT", "-d", address, "-p", "tcp", "--dport", "31015", "-j", "DROP")
    status, answer = net.json(*SNAPSHOT, "probe", LOCAL, *QUICK)
    assert rows(answer) == {
        "node-a": ("connects", "connects", "agrees"),
        "node-b": ("times_out", "times_out", "agrees"),
        "node-c": ("times_out", "times_out", "agrees"),
    }
    assert answer["findings"] == []
    assert {r["from"]["address"] for r in answer["probes"]} == {"10.0.0.200"}
    assert {r["predicted"]["vantage"] for r in answer["probes"]} == {"external"}
    assert status == 1, "two nodes do not answer, though that was predicted"
    status, answer = net.json(*SNAPSHOT, "probe", LOCAL, *QUICK, "--node", "node-a")
    assert status == 0


def test_each_difference_is_a_finding(net: Net, serve: Callable[..., None]) -> None:
    serve("10.0.0.10|31015|")  # node-b answers, though no pod is there; node-a refuses; node-c rejects
    net.rule(
        "-A", "INPUT", "-d", "10.0.0.13", "-p", "tcp", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"
    )
    status, answer = net.json(*SNAPSHOT, "probe", LOCAL, *QUICK)
    assert status == 1
    assert rows(answer) == {
        "node-a": ("connects", "refused", "differs"),
        "node-b": ("times_out", "connects", "differs"),
        "node-c": ("times_out", "unreachable", "differs"),
    }
    assert [(f["code"], f["nodes"]) for f in answer["findings"]] == [
        ("KTP902", ["node-a"]),
        ("KTP902", ["node-b"]),
        ("KTP902", ["node-c"]),
    ]
    assert all(f["evidence"][0]["kind"] == "probe" for f in answer["findings"])
    _, text, _ = net.ktp(*SNAPSHOT, "probe", LOCAL, *QUICK)
    assert "differ from what ktp predicts" in text.replace("\n", " ")
    assert "10.0.0.10:31015" in text


def test_http(net: Net, serve: Callable[..., None]) -> None:
    serve(f"10.0.0.3|31465|{OK}", "10.0.0.10|31465|", r"10.0.0.13|31465|HTTP/1.1 404 Not Found\r\n\r\n")
    status, answer = net.json(*SNAPSHOT, "probe", "test/nginx-log", *QUICK, "--http")
    seen = {r["node"]: r["observed"] for r in answer["probes"] if r["node"] is not None}
    assert {n: o["symptom"] for n, o in seen.items()} == dict.fromkeys(NODES, "connects")
    assert {n: o["http"] for n, o in seen.items()} == {
        "node-a": [200, 200],
        "node-b": [None, None],
        "node-c": [404, 404],
    }
    assert status == 1
    ingress = next(r for r in answer["probes"] if r["node"] is None)
    assert ingress["verdict"] == "skipped", "there is no route to the load balancer's address"


def test_a_node_dials_itself_and_sees_its_counters(net: Net) -> None:
    """The rules are the node's own, loaded into the namespace: what it dials is really translated."""
    dump = (demo_path() / "nodes" / "node-a" / "iptables-legacy-save.txt").read_text()
    run("ip", "netns", "exec", net.client, "iptables-legacy-restore", stdin=dump)
    run("ip", "-n", net.client, "addr", "flush", "dev", "eth0")
    run("ip", "-n", net.client, "addr", "add", "10.0.0.3/24", "dev", "eth0")
    run("ip", "-n", net.nodes, "addr", "del", "10.0.0.3/24", "dev", "eth0")
    run("ip", "-n", net.client, "route", "add", "10.244.0.0/16", "via", "10.0.0.10")
    run("ip", "-n", net.nodes, "addr", "add", "10.244.1.11/32", "dev", "lo")
    status, answer = net.json(*SNAPSHOT, "probe", LOCAL, *QUICK, "--node", "node-a", "--counters")
    assert status == 1, "nothing listens at the pod's address"
    by_vantage = {r["predicted"]["vantage"]: r for r in answer["probes"]}
    assert by_vantage["node"]["observed"]["symptom"] in ("refused", "times_out")
    assert "localhost" in by_vantage
    moved = answer["counters"]
    assert moved
    assert all("nginx-externaltrafficpolicy" in m["rule"] for m in moved)
    assert any("-j DNAT" in m["rule"] and m["packets"] >= 2 for m in moved)
    assert {m["backend"] for m in moved} == {"iptables-legacy"}


def test_in_a_diagnosis(net: Net, serve: Callable[..., None]) -> None:
    serve("10.0.0.3|31015|", "10.0.0.10|31015|", "10.0.0.13|31015|")
    status, answer = net.json(*SNAPSHOT, "diagnose", "svc", LOCAL, "--probe", *QUICK)
    assert status == 1
    assert answer["kind"] == "ServiceDiagnosis"
    assert rows(answer)["node-b"] == ("times_out", "connects", "differs")
    assert [f["nodes"] for f in answer["findings"] if f["code"] == "KTP902"] == [["node-b", "node-c"]]
    _, text, _ = net.ktp(*SNAPSHOT, "diagnose", "svc", LOCAL, "--probe", *QUICK)
    assert "dialled from here (10.0.0.200)" in text
    assert "KTP902 warning" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--http", LOCAL), "is no path"),
        ((LOCAL, "-o", "html"), "no html form"),
        ((LOCAL, "--demo"), "not dialled"),
        ((LOCAL, "--from-nodes", "--dial-recorded"), "--node-access ssh"),
        ((LOCAL, "--from-nodes", "--counters"), "leave out"),
        ((LOCAL, "--to-pods", "--dial-recorded"), "add --from-nodes"),
        ((LOCAL,), "--dial-recorded"),
    ],
    ids=[
        "the name taken for a path",
        "html",
        "demo",
        "no ssh",
        "whose counters",
        "whose packets",
        "addresses of a snapshot",
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], says: str, net: Net) -> None:
    status, out, err = net.ktp(*(SNAPSHOT if "--demo" not in words else ()), "probe", *words)
    assert status == 2
    assert out == ""
    assert says in err or "Missing argument" in err
