"""Completion: what shells are offered, in the shells that are here, and with an API server that does not answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVICES = [
    "test/go-test",
    "test/nginx",
    "test/nginx-externaltrafficpolicy",
    "test/nginx-log",
    "test/springboot",
]
BIN = Path(sys.executable).parent


def offered(*words: str, environment: dict[str, str] | None = None) -> list[str]:
    """What ktp offers for the last of the words, in the protocol of bash."""
    env = {
        **os.environ,
        "_KTP_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("ktp", *words)),
        **(environment or {}),
    }
    env["COMP_CWORD"] = str(len(words))
    done = subprocess.run([sys.executable, "-m", "ktp"], env=env, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--demo", "diagnose", "svc", ""), SERVICES),
        (
            ("diagnose", "svc", "--demo", "test/nginx-"),
            ["test/nginx-externaltrafficpolicy", "test/nginx-log"],
        ),
        (("--demo", "explain-rules", "-n", "test", "spring"), ["springboot"]),
        (("--demo", "what-if", "-n", "te"), ["test"]),
        (("--demo", "diagnose", "svc", "x", "--node", "node-"), ["node-a", "node-b", "node-c"]),
        (("codes", "ktp50"), [f"KTP50{n}" for n in range(1, 8)]),
        (("exp",), ["explain-rules"]),
    ],
)
def test_names_are_offered_where_they_belong(words: tuple[str, ...], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_a_server_that_does_not_answer_costs_two_seconds_and_no_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tmp_path / "config"
        config.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
            f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{silent.getsockname()[1]}'}}}}]\n"
            "users: [{name: c, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: c}}]\n"
        )
        start = time.monotonic()
        assert offered("diagnose", "svc", "", environment={"KUBECONFIG": str(config)}) == []
        assert time.monotonic() - start < 20  # not the minute that a command would wait


def test_kubectl_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    program = "from ktp.cli.complete import kubectl_complete; kubectl_complete()"
    words = ["--demo", "diagnose", "svc", "-n", "test", "nginx-e"]
    subprocess.run([sys.executable, "-c", program, *words], check=True)
    assert capfd.readouterr().out.splitlines() == ["nginx-externaltrafficpolicy", ":4"]


@pytest.mark.skipif(
    shutil.which("bash") is None or not (BIN / "ktp").exists(), reason="needs bash and ktp installed"
)
def test_in_bash() -> None:
    script = """
eval "$(_KTP_COMPLETE=bash_source ktp)"
COMP_WORDS=(ktp --demo diagnose svc test/nginx-e); COMP_CWORD=4
_ktp_completion ktp
printf '%s\\n' "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["test/nginx-externaltrafficpolicy"]


@pytest.mark.skipif(
    shutil.which("fish") is None or not (BIN / "ktp").exists(), reason="needs fish and ktp installed"
)
def test_in_fish() -> None:
    script = "_KTP_COMPLETE=fish_source ktp | source; complete -C 'ktp --demo diagnose svc test/nginx-e'"
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["fish", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert "test/nginx-externaltrafficpolicy" in done.stdout.split()


@pytest.mark.skipif(
    shutil.which("zsh") is None or not (BIN / "ktp").exists(), reason="needs zsh and ktp installed"
)
def test_zsh_takes_the_script() -> None:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "_KTP_COMPLETE": "zsh_source"}
    source = subprocess.run(
        ["ktp"], env=env, capture_output=True, text=True, check=True, executable=BIN / "ktp"
    ).stdout
    subprocess.run(["zsh", "-n"], input=source, text=True, check=True)
    assert "_KTP_COMPLETE=zsh_complete" in source
