"""What strangers wrote into a node's rules or a snapshot does nothing to the terminal of whoever looks at it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ktp.app.settings import demo_path
from ktp.cli import run

EVIL = "\x1b[31mEVIL\x1b]0;title\x07\x9b2J"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "snapshot"
    shutil.copytree(demo_path(), folder)
    rules = folder / "nodes" / "node-b" / "iptables-legacy-save.txt"
    rules.write_text(rules.read_text().replace("has no local endpoints", f"has no {EVIL} endpoints"))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["diagnose", "svc", "test/nginx-externaltrafficpolicy", "-v"],
        ["explain-rules", "--node-port", "31015", "--node", "node-b"],
        ["trace", "--from", "192.0.2.1", "--to", "10.0.0.10:31015"],
        ["check", "--node", "node-b", "-v"],
        ["what-if", "test/nginx-externaltrafficpolicy", "--policy", "Cluster"],
        ["diagnose", "svc", f"test/{EVIL}"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_control_character_gets_through(
    words: list[str], hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["--snapshot", str(hostile), *words])
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert shown
    assert not {c for c in shown if not c.isprintable()} - {"\n"}


def test_the_words_are_still_there(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--snapshot", str(hostile), "explain-rules", "--node-port", "31015", "--node", "node-b"])
    assert "\\x1b[31mEVIL\\x1b]0;title\\x07" in capsys.readouterr().out


def test_colours_are_ktps_own(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        [
            "--snapshot",
            str(hostile),
            "--color",
            "always",
            "diagnose",
            "svc",
            "test/nginx-externaltrafficpolicy",
        ]
    )
    out = capsys.readouterr().out
    assert "\x1b[1;31m" in out
    assert "\x1b]0;" not in out
    assert "\\x1b[31mEVIL" in out
