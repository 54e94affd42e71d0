"""Options that say nothing where they stand."""

from __future__ import annotations

import pytest

from ktp.cli import run


@pytest.mark.parametrize(
    "words", [["--ssh-user", "root"], ["--ssh-option", "Port=22"], ["--sudo"]], ids=lambda w: w[0]
)
@pytest.mark.parametrize("access", [[], ["--node-access", "kube-proxy"]], ids=["auto", "kube-proxy"])
def test_a_way_to_log_in_without_logging_in(
    words: list[str], access: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagnose", "svc", "test/web", *access, *words]) == 2
    told = capsys.readouterr().err
    assert f"{words[0]} is about logging in to nodes" in told
    assert "add --node-access ssh" in told
