"""Nodes read over SSH, or in another way, by the commands as they are called: the answer, stderr, exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.cli import run
from ktp.collect import kube_config
from tests.integration.conftest import DEMO, TOKEN
from tests.support.api_server import ApiServer, Fault
from tests.support.exec_server import ExecServer, Program
from tests.support.node_netns import become_node, inside
from tests.support.processes import left_behind, processes_with, wait_for_processes
from tests.support.ssh_server import SshLab, why_no_sshd
from tests.support.terminal import Terminal

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(why_no_sshd() is not None, reason=f"a real sshd {why_no_sshd()}"),
]

LOCAL = "test/nginx-externaltrafficpolicy"
KTP = (sys.executable, "-m", "ktp")
Capsys = pytest.CaptureFixture[str]
NODE_B = DEMO / "nodes/node-b/iptables-legacy-save.txt"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The article's cluster, of which one node is real: a namespace with an sshd and a kube-proxy pod."""

    server: ApiServer
    netns: str
    lab: SshLab
    kubeconfig: Path
    commands: Path

    def environment(self) -> dict[str, str]:
        """As a user of this cluster has it."""
        path = f"{self.commands}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}


def kube_proxy_pod(node: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"kube-proxy-{node}",
            "namespace": "kube-system",
            "labels": {"k8s-app": "kube-proxy"},
        },
        "spec": {"nodeName": node, "hostNetwork": True, "containers": [{"name": "kube-proxy"}]},
        "status": {"phase": "Running"},
    }


@pytest.fixture(scope="module")
def cluster(lab: SshLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, netns = tmp_path_factory.mktemp("cluster"), f"ktp-cli-{uuid.uuid4().hex[:8]}"
    commands = folder / "bin"
    commands.mkdir()
    (commands / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {lab.config} "$@"\n')
    (commands / "ssh").chmod(0o755)

    def in_pod(command: Sequence[str], stdin: bytes) -> Program:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, check=False
        )
        return Program(stdout=done.stdout, stderr=done.stderr, status=done.returncode)

    execs = ExecServer(in_pod)
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
        become_node(netns, "10.0.0.10", NODE_B)
        lab.node("node-b", netns=netns)
        server = ApiServer(DEMO, token=TOKEN, execs=execs)
        server.objects["pods"].append(kube_proxy_pod("node-b"))
        kubeconfig = folder / "kubeconfig"
        context = {"cluster": "c", "user": "u", "namespace": "test"}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "current-context": "x",
                    "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                    "users": [{"name": "u", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "x", "context": context}],
                }
            )
        )
        with server.running():
            yield Cluster(server=server, netns=netns, lab=lab, kubeconfig=kubeconfig, commands=commands)
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=False)


@pytest.fixture(autouse=True)
def _as_a_user(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kube_config, "NODE_KUBECONFIGS", ())
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    with cluster.lab.more_hosts():
        yield


def on_the_node(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """ktp runs on node-b, with an API server there: a process's own loopback leads to it."""

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        with inside(cluster.netns):
            server = ApiServer(DEMO, token=TOKEN)
            config = yaml.safe_load(cluster.kubeconfig.read_text())
            config["clusters"][0]["cluster"]["server"] = server.url
            own = cluster.kubeconfig.with_name("on-the-node")
            own.write_text(yaml.safe_dump(config))
            with server.running(), pytest.MonkeyPatch.context() as patch:
                patch.setenv("KUBECONFIG", str(own))
                yield

    return there()


# --------------------------------------------------------------------------------------------- command and access


COMMANDS = {
    "diagnose svc": ("diagnose", "svc", LOCAL),
    "explain-rules": ("explain-rules", LOCAL),
    "explain-rules --node-port": ("explain-rules", "--node-port", "31015"),
    "trace": ("trace", "--from", "198.51.100.7", "--to", "10.0.0.10:31015"),
    "snapshot": ("snapshot", "OUT"),
}


@pytest.mark.parametrize(
    ("command", "access"),
    [
        *((c, a) for c in COMMANDS for a in ("local", "ssh", "kube-proxy")),
        ("diagnose svc", "auto"),
        ("snapshot", "auto"),
    ],
)
def test_every_command_reads_the_node_in_every_way(
    command: str, access: str, cluster: Cluster, capsys: Capsys, tmp_path: Path
) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in COMMANDS[command]]
    with on_the_node(cluster) if access in {"auto", "local"} else contextlib.nullcontext():
        status = run([*words, "--node", "node-b", "--node-access", access])
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress in a pipe
    if command == "snapshot":
        assert status == 0
        saved = (tmp_path / "out/nodes/node-b/iptables-legacy-save.txt").read_text()
        assert 'test/nginx-externaltrafficpolicy:80-80-tcp has no local endpoints" -j KUBE-MARK-DROP' in saved
        assert "1 node, 1 with rules" in captured.out
    else:
        assert status == 1
        assert "KUBE-FIREWALL" in captured.out  # the rule that drops: no API object tells of it
        assert "mark 0x8000/0x8000 -j DROP" in " ".join(captured.out.split()) or command == "trace"


@pytest.mark.parametrize(
    ("command", "access"),
    # explain-rules --node-port asks this machine by itself, whatever it is
    [(c, a) for c in COMMANDS for a in ("auto", "none") if (c, a) != ("explain-rules --node-port", "auto")],
)
def test_what_is_not_read_is_said_and_how_to_have_it(
    command: str, access: str, cluster: Cluster, capsys: Capsys, tmp_path: Path
) -> None:
    """From a machine that is no node of the cluster."""
    words = [str(tmp_path / "out") if word == "OUT" else word for word in COMMANDS[command]]
    status = run([*words, "--node", "node-b", "--node-access", access])
    captured = capsys.readouterr()
    assert status == {"diagnose svc": 1, "snapshot": 0}.get(command, 3)
    said = " ".join((captured.out + captured.err).split())
    assert "--node-access ssh" in said
    assert "--node-access agent" in said or "ssh or agent" in said
    assert ("this machine is no node of the question" in said) == (access == "auto")


def test_the_same_gaps_whatever_the_way(cluster: Cluster, capsys: Capsys) -> None:
    """A node with legacy rules alone is read without a gap: nothing in nf_tables is no failed save."""
    found = []
    for access in ("ssh", "kube-proxy"):
        assert run(["diagnose", "svc", LOCAL, "--node", "node-b", "--node-access", access, "-o", "json"]) == 1
        answer = json.loads(capsys.readouterr().out)
        assert answer["evidence"]["nodes"] == {"node-b": ["iptables-legacy"]}
        found.append([gap for gap in answer["gaps"] if "node-b" in gap["subject"]])
    assert found == [[], []]


def test_a_node_that_fails_costs_its_own_evidence_only(cluster: Cluster, capsys: Capsys) -> None:
    """node-a has another host key, node-c refuses the connection; node-b answers."""
    cluster.lab.add_host("node-a", "HostKeyAlias ktp-nobody")
    cluster.lab.add_host("node-c", "Port 1")
    assert run(["diagnose", "svc", LOCAL, "--node-access", "ssh", "-o", "json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    answer = json.loads(captured.out)
    assert {node: bool(read) for node, read in answer["evidence"]["nodes"].items()} == {
        "node-a": False, "node-b": True, "node-c": False,
    }  # fmt: skip
    said = {
        gap["subject"]: gap["message"]
        for gap in answer["gaps"]
        if "SSH" in gap["message"] or "key" in gap["message"]
    }
    assert said == {
        "node-a": "the host key of node node-a is not known, and ktp accepts none by itself",
        "node-c": "node node-c refuses connections to its SSH port",
    }
    rows = {row["node"]: row["external"] for row in answer["frontends"][0]["nodes"]}
    assert (rows["node-b"]["symptom"], rows["node-b"]["basis"]) == ("times_out", "rules")
    assert rows["node-a"]["basis"] == "api"


# ------------------------------------------------------------------------------------------------ what OpenSSH does


def test_through_a_jump_host(cluster: Cluster, make_netns: Callable[[str], str], capsys: Capsys) -> None:
    """The second sshd listens where the first one runs, and nowhere else."""
    netns = make_netns("jump")
    become_node(netns, "10.0.0.13", NODE_B)
    lab = cluster.lab
    lab.node("jump", netns=netns)
    lab.add_host("node-c", "HostName 127.0.0.1", f"Port {lab.port}", "ProxyJump jump")
    with subprocess.Popen(
        ["ip", "netns", "exec", netns, "/usr/sbin/sshd", "-D", "-e", "-f", str(lab.folder / "sshd_config")],
        stderr=subprocess.DEVNULL,
    ) as inner:
        try:
            time.sleep(0.2)
            status = run(["diagnose", "svc", LOCAL, "--node", "node-c", "--node-access", "ssh", "-o", "json"])
        finally:
            inner.terminate()
    answer = json.loads(capsys.readouterr().out)
    assert (status, answer["evidence"]["nodes"]) == (1, {"node-c": ["iptables-legacy"]})
    assert left_behind("ProxyJump") == left_behind(f"-W [127.0.0.1]:{lab.port}") == []


def test_a_shared_connection_is_used_and_left_open(cluster: Cluster, capsys: Capsys) -> None:
    """ControlMaster: the user's own master serves ktp, and one that ktp's ssh began stays as long as was asked for."""
    lab, path = cluster.lab, Path("/tmp") / f"ktp-{uuid.uuid4().hex[:8]}"
    shared = (
        "--ssh-option",
        f"ControlPath={path}",
        "--ssh-option",
        "ControlMaster=auto",
        "--ssh-option",
        "ControlPersist=30",
    )
    ask = ["snapshot", "--node", "node-b", "--node-access", "ssh", *shared]
    try:
        logins = lab.log.read_text().count("Accepted publickey")
        for number in range(2):
            assert run([*ask, str(lab.folder / f"shared-{number}")]) == 0
            assert "1 with rules" in capsys.readouterr().out
        assert lab.log.read_text().count("Accepted publickey") == logins + 1
        done = subprocess.run(
            ["/usr/bin/ssh", "-F", str(lab.config), "-o", f"ControlPath={path}", "-O", "check", "node-b"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Master running" in done.stderr
    finally:
        subprocess.run(
            ["/usr/bin/ssh", "-F", str(lab.config), "-o", f"ControlPath={path}", "-O", "exit", "node-b"],
            capture_output=True, check=False,
        )  # fmt: skip


def test_options_that_ssh_would_take_for_others(cluster: Cluster, capsys: Capsys) -> None:
    for words in (("--ssh-user", "-oProxyCommand=x"), ("--ssh-option", "-F/etc/passwd")):
        assert run(["diagnose", "svc", LOCAL, "--node-access", "ssh", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"ktp: {words[0]} ")


# ----------------------------------------------------------------------------------------------------- the end


def many_nodes(cluster: Cluster, tmp_path: Path, number: int) -> tuple[ApiServer, Path]:
    server = ApiServer(DEMO, token=TOKEN, execs=ExecServer(lambda command, stdin: Program(hang=True)))
    template = server.objects["nodes"][0]
    server.objects["nodes"] = [
        {**template, "metadata": {"name": f"far-{n}"}, "status": {"nodeInfo": template["status"]["nodeInfo"]}}
        for n in range(number)
    ]
    server.objects["pods"] += [kube_proxy_pod(f"far-{n}") for n in range(number)]
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = server.url
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return server, path


@pytest.mark.parametrize(
    ("number", "nodes", "status", "words"),
    [
        (signal.SIGINT, 50, 130, "\nktp: interrupted\n"),
        (signal.SIGTERM, 3, 143, "ktp: ended by signal 15\n"),
        pytest.param(signal.SIGHUP, 3, 129, "ktp: ended by signal 1\n", marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_an_end_by_signal_leaves_no_process(
    number: signal.Signals,
    nodes: int,
    status: int,
    words: str,
    cluster: Cluster,
    tmp_path: Path,
    repository: Path,
) -> None:
    token = f"ktp-test-{uuid.uuid4().hex}"
    server, config = many_nodes(cluster, tmp_path, nodes)
    arguments = (
        "diagnose",
        "svc",
        LOCAL,
        "--node-access",
        "ssh",
        "--parallel",
        "50",
        "--kubeconfig",
        str(config),
    )
    option = ("--ssh-option", f"ProxyCommand=sh -c 'sleep 300; : {token}'")
    with server.running():
        child = subprocess.Popen(
            [*KTP, *arguments, *option],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        )
        sleeping = wait_for_processes(f"sleep 300; : {token}", 2 * nodes)
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert sleeping >= 2 * nodes  # of each node ssh and its ProxyCommand
    assert (child.returncode, out, err) == (status, "", words)
    assert left_behind(token) == []


@pytest.mark.parametrize("where", ["exec", "second page", "credential plugin"])
def test_ctrl_c_while_the_api_server_or_a_plugin_is_waited_for(
    where: str, cluster: Cluster, tmp_path: Path, repository: Path
) -> None:
    server, config = many_nodes(cluster, tmp_path, 600 if where == "second page" else 5)
    arguments = ["diagnose", "svc", LOCAL, "--node-access", "kube-proxy", "--kubeconfig", str(config)]
    token = f"ktp-test-{uuid.uuid4().hex}"
    if where == "second page":
        server.misbehave("/nodes.*continue", Fault(delay=2))
    if where == "credential plugin":
        content = yaml.safe_load(config.read_text())
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "sh",
            "args": ["-c", f"sleep 300; : {token}"],
        }
        content["users"][0]["user"] = {"exec": plugin}
        config.write_text(yaml.safe_dump(content))

    def waits() -> bool:
        if where == "credential plugin":
            return bool(processes_with(token))
        wanted = "/exec" if where == "exec" else "continue"
        return any(wanted in request.path or wanted in request.query for request in server.requests)

    with server.running():
        child = subprocess.Popen(
            [*KTP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=repository
        )
        until = time.monotonic() + 20
        while not waits() and time.monotonic() < until:
            time.sleep(0.01)
        assert waits()
        before = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        assert time.monotonic() - before < 2
        if server.execs is not None:
            server.execs.hanging.set()
    assert (child.returncode, out, err.strip()) == (130, "", "ktp: interrupted")
    assert left_behind(token) == []


# --------------------------------------------------------------------------------------------------- a terminal


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_a_terminal_shows_progress_and_has_its_cursor_back(cluster: Cluster, repository: Path) -> None:
    with Terminal(
        [*KTP, "diagnose", "svc", LOCAL, "--node", "node-b", "--node-access", "ssh"], cwd=repository
    ) as ran:
        status = ran.wait()
    assert status == 1
    assert "reading nodes" in ran.shown
    assert ran.shown.rfind(SHOW) > ran.shown.rfind(HIDE) > -1
    # the bar is gone before the answer comes, which starts a line
    assert "nodePort 31015/TCP times out" in ran.shown[ran.shown.rfind(SHOW) :]
    assert "reading nodes" not in ran.shown[ran.shown.rfind(SHOW) :]


def test_ctrl_c_in_a_terminal_gives_the_cursor_back(cluster: Cluster, repository: Path) -> None:
    token = f"ktp-test-{uuid.uuid4().hex}"
    option = f"ProxyCommand=sh -c 'sleep 300; : {token}'"
    words = ["diagnose", "svc", LOCAL, "--node", "node-a", "--node-access", "ssh", "--ssh-option", option]
    with Terminal([*KTP, *words], cwd=repository) as ran:
        ran.until("reading nodes")
        assert wait_for_processes(f"sleep 300; : {token}", 2) >= 2
        ran.press("\x03")
        status = ran.wait()
    assert status == 130
    assert "ktp: interrupted" in ran.shown
    assert ran.shown.rfind(SHOW) > ran.shown.rfind(HIDE) > -1
    assert "Traceback" not in ran.shown
    assert left_behind(token) == []


def test_a_credential_plugin_may_ask_in_a_terminal(
    cluster: Cluster, tmp_path: Path, repository: Path
) -> None:
    answer = (
        '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}'
    )
    script = f"printf 'Code: ' >&2; read code; [ \"$code\" = 42 ] || {{ echo wrong >&2; exit 1; }}; printf '{answer}' {TOKEN}"
    content = yaml.safe_load(cluster.kubeconfig.read_text())
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script]}
    content["users"][0]["user"] = {"exec": plugin}
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(content))
    words = [*KTP, "auth", "--kubeconfig", str(config)]
    for code, status, said in (("42", 0, "Nothing is missing"), ("7", 3, "failed with exit status 1")):
        with Terminal(words, cwd=repository) as ran:
            ran.until("Code: ")
            ran.press(f"{code}\n")
            assert ran.wait() == status
        assert said in re.sub(r"\s+", " ", ran.shown)


# ---------------------------------------------------------------------------------------------------- ktp probe


@pytest.fixture
def pod(cluster: Cluster) -> Iterator[str]:
    """The one endpoint of the Service answers, on node-b itself: the backlog takes connections without an accept."""
    (found,) = set(
        re.findall(
            r"-A KUBE-SEP-\w+ .*nginx-externaltrafficpolicy.*--to-destination (\S+):80", NODE_B.read_text()
        )
    )
    ip = ("ip", "-n", cluster.netns, "address")
    subprocess.run([*ip, "add", f"{found}/32", "dev", "lo"], check=True)
    with inside(cluster.netns):
        listener = socket.create_server((found, 80))
    with listener:
        yield found
    subprocess.run([*ip, "del", f"{found}/32", "dev", "lo"], check=True)


def probe(capsys: Capsys, *words: str) -> tuple[int, dict[str, Any]]:
    asked = [
        "probe",
        LOCAL,
        "--from-nodes",
        "--node-access",
        "ssh",
        "--tries",
        "2",
        "--wait",
        "0.3",
        "-o",
        "json",
    ]
    status = run([*asked, *words])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, json.loads(captured.out)


def test_a_node_dials_over_a_real_ssh(cluster: Cluster, pod: str, capsys: Capsys) -> None:
    """node-b dials its own node port, which KUBE-XLB sends to the pod for a process of the node itself."""
    _, answer = probe(capsys, "--node", "node-b")
    seen = {
        row["address"]: (row["from"]["node"], row["observed"]["symptom"], row["verdict"])
        for row in answer["probes"]
    }
    assert seen["10.0.0.10"] == seen["127.0.0.1"] == ("node-b", "connects", "agrees")
    assert {row["observed"]["tries"] for row in answer["probes"]} == {2}


def test_a_node_that_cannot_be_logged_in_to_does_not_dial(cluster: Cluster, pod: str, capsys: Capsys) -> None:
    cluster.lab.add_host("node-c", "Port 1")
    cluster.lab.add_host("node-a", "HostKeyAlias ktp-nobody")
    _, answer = probe(capsys)
    assert {row["from"]["node"] for row in answer["probes"] if row["verdict"] != "skipped"} == {"node-b"}
    notes = " ".join(answer["notes"])
    assert "node node-c refuses connections to its SSH port" in notes
    assert "the host key of node node-a is not known, and ktp accepts none by itself" in notes


# ----------------------------------------------------------------------------------------------- the page on-a-node


@pytest.mark.slow
def test_the_lines_of_the_page_on_a_node(cluster: Cluster, repository: Path) -> None:
    """`make pyz` comes first, as the page says."""
    if not (repository / "dist/ktp.pyz").exists():
        pytest.skip("needs dist/ktp.pyz: make pyz")
    page = (repository / "docs/how-to/on-a-node.md").read_text()
    copied, passing = re.findall(r"^((?:scp|ssh) .*)$", page, re.MULTILINE)
    sudo = cluster.lab.folder / "bin-on-a-node"
    sudo.mkdir()
    # This login is root's; what sudo does with VARIABLE=value is done by env.
    (sudo / "sudo").write_text('#!/bin/sh\nexec env "$@"\n')
    (sudo / "sudo").chmod(0o755)
    scratch = cluster.lab.node("on-a-node", netns=cluster.netns, path_first=sudo)
    with inside(cluster.netns):
        server = ApiServer(DEMO, token=TOKEN)
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = server.url
    (scratch / ".kube").mkdir()
    (scratch / ".kube/config").write_text(yaml.safe_dump(config))
    environment = cluster.environment()
    (cluster.commands / "scp").write_text(f'#!/bin/sh\nexec /usr/bin/scp -F {cluster.lab.config} "$@"\n')
    (cluster.commands / "scp").chmod(0o755)

    def line(text: str) -> subprocess.CompletedProcess[str]:
        text = text.replace("NODE", "on-a-node").replace("shop/web", LOCAL)
        return subprocess.run(
            ["bash", "-c", text], cwd=repository, env=environment, capture_output=True, text=True, check=False
        )

    with server.running():
        done = line(copied)
        assert (done.returncode, "rules of node-b (iptables-legacy)" in " ".join(done.stdout.split())) == (
            1,
            True,
        ), done
        (scratch / "ktp.pyz").unlink()
        shutil.rmtree(scratch / ".shiv")
        before = sorted(scratch.rglob("*"))
        done = line(passing)
        assert "DROPPED: the client's connection attempts time out" in done.stdout, done
    assert sorted(scratch.rglob("*")) == before
