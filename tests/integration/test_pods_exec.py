"""--pods exec: what pods listen on, read in their own containers through the API server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.cli import run
from ktp.collect.pod_sockets import READ
from tests.support.api_server import ApiServer, Pki
from tests.support.exec_server import ExecServer, Program

DEMO = Path(__file__).resolve().parents[2] / "ktp" / "demo" / "article"
TOKEN = "good-token"
LOCAL = "test/nginx-externaltrafficpolicy"
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  sl  local_address                         remote_address                        st tx_queue rx_queue tr drops
"""


@pytest.fixture
def execs() -> ExecServer:
    return ExecServer(lambda _command, _stdin: Program(stdout=TCP.encode()))


@pytest.fixture
def server(pki: Pki, execs: ExecServer) -> Iterator[ApiServer]:
    with ApiServer(DEMO, token=TOKEN, pki=pki, execs=execs).running() as running:
        for pod in running.objects["pods"]:
            names = [each["name"] for each in pod["spec"].get("containers", [])]
            pod.setdefault("status", {})["containerStatuses"] = [
                {"name": name, "ready": True, "state": {"running": {}}} for name in names
            ]
        yield running


def read(kubeconfig: Path, tmp_path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What a snapshot has of pods, and the gaps about them."""
    out = tmp_path / "out"
    words = ["snapshot", str(out), "--kubeconfig", str(kubeconfig), "--node-access", "none", "--pods", "exec"]
    assert run(words) == 0
    files = {str(p.relative_to(out / "nodes")): p.read_text() for p in sorted(out.glob("nodes/*/pods/*/*"))}
    gaps = json.loads((out / "gaps.json").read_text()) if (out / "gaps.json").exists() else []
    gaps = gaps["gaps"] if isinstance(gaps, dict) else gaps
    return files, [gap for gap in gaps if gap["kind"] == "pod-namespace"]


def test_what_pods_listen_on_is_read_in_their_containers(
    execs: ExecServer, kubeconfig: Callable[[], Path], tmp_path: Path
) -> None:
    """One command in one container of each endpoint's pod, and it only reads."""
    files, gaps = read(kubeconfig(), tmp_path)
    assert files
    assert set(files.values()) == {"tcp LISTEN 0 0 0.0.0.0:8080 0.0.0.0:*\n"}
    assert not gaps
    assert {each.command for each in execs.execs} == {READ}
    assert len(execs.execs) == len(files)
    status = run(["--snapshot", str(tmp_path / "out"), "diagnose", "svc", LOCAL])
    assert status in (0, 1)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (Program(status=None), "none of its containers has the command cat"),
        (Program(stdout=TCP.encode()[:300]), "it is not all that the kernel prints of its sockets"),
        (Program(stdout=b"hello\n"), "it is not what the kernel prints of its sockets"),
        (Program(stdout=TCP.encode(), break_off=True), "the answer did not come to its end"),
    ],
)
def test_a_pod_that_cannot_be_read_is_a_gap(
    program: Program, why: str, execs: ExecServer, kubeconfig: Callable[[], Path], tmp_path: Path
) -> None:
    execs.program = lambda _command, _stdin: program
    files, gaps = read(kubeconfig(), tmp_path)
    assert files == {}
    assert gaps
    assert all(why in gap["message"] for gap in gaps)


def test_who_may_not_exec_is_told(
    execs: ExecServer, kubeconfig: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    execs.refuse = (403, "pods/exec is forbidden")
    files, gaps = read(kubeconfig(), tmp_path)
    assert files == {}
    assert all("could not be read in its container" in gap["message"] for gap in gaps)
    assert gaps
    capsys.readouterr()


def test_without_the_option_no_container_is_entered(
    execs: ExecServer, kubeconfig: Callable[[], Path], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert run(["snapshot", out, "--kubeconfig", str(kubeconfig()), "--node-access", "none"]) == 0
    assert execs.execs == []
