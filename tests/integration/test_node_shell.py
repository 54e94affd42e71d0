"""`--node-shell`: commands that give a shell on a node, and all the ways in which they give none.

The stand-ins are what `docker exec -i`, `kubectl debug -i` and the like are to ktp: a process that runs a shell on pipes.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ktp.cli import run
from ktp.collect.node_shell import PRESETS, NodeShell, collect_by_shell
from ktp.errors import EvidenceError, UsageError
from ktp.model.capture import MemoryCapture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def read(command: str, *, timeout: float = 20.0, sudo: bool = False) -> MemoryCapture:
    return collect_by_shell(["node-b"], NodeShell(command=command, timeout=timeout, sudo=sudo))


def the_gap(capture: MemoryCapture) -> tuple[str, str]:
    (gap,) = [g for g in capture.gaps if g.kind == "node-rules"]
    assert gap.subject == "node-b"
    return gap.message, gap.remedy or ""


def test_a_node_is_read_as_over_ssh(tmp_path: Path) -> None:
    inside = script(
        tmp_path, "enter", 'test "$1" = node-b && exec unshare -n sh -c "ip link set lo up; exec sh"'
    )
    capture = read(f"{inside} {{node}}")
    addresses = json.loads(capture.read("nodes/node-b/ip-addr.json"))
    assert [a["ifname"] for a in addresses] == ["lo"]
    assert "nodes/node-b/sysctl.txt" in capture.names()
    assert not [g for g in capture.gaps if "node-b" in g.message and "broke off" in g.message]


def test_what_is_printed_before_the_answer_is_no_harm(tmp_path: Path) -> None:
    noisy = script(
        tmp_path, "noisy", 'echo "Creating debugging pod x"; echo "* Welcome *"; exec unshare -n sh'
    )
    assert "nodes/node-b/ip-addr.json" in read(f"{noisy} {{node}}").names()


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("exit 1", "ran no shell script (exit status 1: no output)", "echo id |"),
        ('echo "Error: No such container: node-b" >&2; exit 1', "No such container: node-b", "echo id |"),
        ('printf "Password: " >&2; read -r x; echo denied >&2; exit 1', "Password: denied", "echo id |"),
        ("sh | sed 's/$/\\r/'", "gives a terminal", "leave out the option"),
    ],
)
def test_why_a_command_gave_no_shell(tmp_path: Path, text: str, message: str, remedy: str) -> None:
    said, what_to_do = the_gap(read(f"{script(tmp_path, 'command', text)} {{node}}"))
    assert message in said
    assert remedy in what_to_do


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    said, _ = the_gap(read(f"{script(tmp_path, 'command', 'exec sleep 600')} {{node}}", timeout=1.5))
    assert "did not answer within 1.5 s" in said


def test_an_answer_that_breaks_off_counts_as_far_as_it_came_whole(tmp_path: Path) -> None:
    cut = script(tmp_path, "command", "unshare -n sh | head -c 3000")
    capture = read(f"{cut} {{node}}")
    assert "broke off" in the_gap(capture)[0]
    assert "nodes/node-b/ip-addr.json" in capture.names()


def test_a_shell_that_is_not_roots_says_so(tmp_path: Path) -> None:
    plain = script(tmp_path, "command", "exec setpriv --reuid 65534 --clear-groups sh")
    said = [g.message for g in read(f"{plain} {{node}}").gaps]
    assert any("is not root's" in words for words in said)


def test_a_command_that_is_not_here_is_an_error() -> None:
    with pytest.raises(EvidenceError, match="no-such-program"):
        read("no-such-program {node}")


@pytest.mark.parametrize("command", ["docker exec -i sh", "docker exec '{node} sh"])
def test_a_command_that_cannot_be_meant_is_refused(command: str) -> None:
    with pytest.raises(UsageError):
        NodeShell(command=command)


def test_what_a_preset_makes_is_taken_away_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    script(
        tmp_path,
        "kubectl",
        f'echo "$*" >>{log}\n[ "$1" = debug ] || exit 0\n'
        'echo "Creating debugging pod node-debugger-node-b-x7k2p with container debugger on node node-b."\n'
        "exec unshare -n sh",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "nodes/node-b/ip-addr.json" in read("debug").names()
    asked, deleted = log.read_text().splitlines()
    assert asked.startswith("debug node/node-b -i --profile=sysadmin")
    assert deleted == "delete pod node-debugger-node-b-x7k2p --wait=false"


def test_what_could_not_be_taken_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path,
        "kubectl",
        '[ "$1" = debug ] || { echo "Error: forbidden" >&2; exit 1; }\n'
        'echo "Creating debugging pod node-debugger-node-b-x7k2p with container debugger on node node-b."\n'
        "exec unshare -n sh",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gap,) = [g for g in read("debug").gaps if g.kind == "node-access"]
    assert "node-debugger-node-b-x7k2p" in gap.message
    assert "forbidden" in gap.message
    assert gap.remedy == "kubectl delete pod node-debugger-node-b-x7k2p --wait=false"


def test_every_preset_names_the_node_and_says_what_it_makes() -> None:
    for name, preset in PRESETS.items():
        assert NodeShell(command=name).words("node-b") != NodeShell(command=name).words("node-c")
        assert bool(preset.makes) == bool(preset.cleaning) == bool(preset.made)


def test_every_preset_is_in_the_help_and_the_documents(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagnose", "svc", "--help"]) == 0
    shown = capsys.readouterr().out
    of_option = shown[shown.index("--node-shell") : shown.index("--ssh-user")]
    reference = (repository / "docs/reference/cli.md").read_text()
    table = (repository / "docs/how-to/nodes-without-ssh.md").read_text()
    for name, preset in PRESETS.items():
        assert re.search(rf"\b{name}\b", of_option), name
        assert f"`{name}`" in reference
        assert re.search(rf"`{name}`.*\| `{re.escape(preset.command)}` \|", table), name


def test_two_ways_to_the_nodes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", "svc", "x", "--node-shell", "docker", "--node-access", "ssh"]) == 2
    assert "two ways to the nodes" in capsys.readouterr().err
