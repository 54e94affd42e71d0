"""--help: a command's own options first, the common ones once and by section, only those that mean something to it."""

from __future__ import annotations

import re

import pytest

from ktp.cli import cli, run
from ktp.cli.options import _COMMON

COMMANDS = [[name] for name in cli.list_commands(None)] + [["diagnose", "svc"], ["fleet", "manifest"], []]  # type: ignore[arg-type]


def sections(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Heading → the options or commands under it, in order."""
    assert run([*words, "--help"]) == 0
    found: dict[str, list[str]] = {}
    heading = ""
    for line in capsys.readouterr().out.splitlines():
        if re.fullmatch(r"[A-Z][A-Za-z ]+:", line):
            found[heading := line.rstrip(":")] = []
        elif (name := re.match(r"  (?:-\w, )?(--?[\w-]+|[a-z][\w-]*)", line)) and heading:
            found[heading].append(name[1])
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_own_options_first_and_each_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = sections(words, capsys)
    headings = [h for h in found if h not in ("Commands",)]
    assert headings == [h for h in ("Options", "Evidence", "Ways to the nodes", "Output") if h in found]
    every = [name for names in found.values() for name in names]
    assert len(every) == len(set(every))
    common = {max(option.names, key=len) for option in _COMMON}
    assert not common & set(found["Options"])
    assert found["Options"][-1] == "--help"


def test_only_what_means_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(sections(["codes"], capsys)) == {"Options", "Output"}
    assert sections(["node-script"], capsys)["Ways to the nodes"] == ["--sudo", "--timeout"]
    assert "Ways to the nodes" not in sections(["check"], capsys)
    assert "--ssh-user" in sections(["trace"], capsys)["Ways to the nodes"]
    # What is not shown is taken all the same, as before.
    assert run(["--demo", "codes", "KTP501"]) == 0
    capsys.readouterr()


def test_the_forms_are_those_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    for words, forms in (
        (["trace"], "text|json|yaml|markdown|html"),
        (["codes"], "text|json|yaml|markdown"),
        (["diagnose", "svc"], "text|json|yaml|markdown|html|junit"),
    ):
        assert run([*words, "--help"]) == 0
        assert f"--output [{forms}]" in " ".join(capsys.readouterr().out.split())
