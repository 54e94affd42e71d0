"""The screens in the README's picture and the tutorial are what ktp prints; the Chinese README has the English one's facts.

KTP_UPDATE_GOLDEN=1 writes the screens anew.
"""

from __future__ import annotations

import html
import os
import re
import shlex
from pathlib import Path

import pytest

from ktp.cli import run

REPOSITORY = Path(__file__).resolve().parent.parent
READMES = [REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md"]
TUTORIAL = REPOSITORY / "docs/tutorial/first-diagnosis.md"
DEMO = ["--demo", "diagnose", "svc", "test/nginx-externaltrafficpolicy"]
COMMAND = re.compile(r"```console\n\$ ktp (--demo [^\n]*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    # Common options may stand before the command, as in `ktp --demo diagnose`; `run` takes them as the program does.
    assert run(arguments) in (0, 1)
    return capsys.readouterr().out


def same(path: Path, text: str, wanted: str) -> None:
    if os.environ.get("KTP_UPDATE_GOLDEN"):
        path.write_text(wanted, encoding="utf-8")
    else:
        assert text == wanted


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_picture_is_what_the_demo_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Its text: how it is drawn is the library's business."""
    screen = printed(DEMO, capsys)
    assert screen.count("\n") <= 40, "the demo is to fit on a screen: 40 lines"
    svg = (REPOSITORY / "docs" / "screen.svg").read_text(encoding="utf-8")
    assert "@font-face" not in svg
    drawn = "".join(html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)).replace(
        "\xa0", " "
    )
    # Blanks are places in a picture, and no text.
    words = "".join(drawn.removeprefix("ktp").split())
    command = "$ktpdiagnosesvctest/nginx-externaltrafficpolicy"
    assert words.startswith(command)
    said = words.removeprefix(command)
    assert len(said) > 600
    assert "".join(screen.split()).startswith(said), "make pages"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_a_readme_is_two_screens(readme: Path) -> None:
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 80


def test_the_commands_of_the_tutorial_print_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    assert len(COMMAND.findall(text)) >= 3

    def block(match: re.Match[str]) -> str:
        return f"```console\n$ ktp {match[1]}\n{printed(shlex.split(match[1]), capsys)}```"

    same(TUTORIAL, text, COMMAND.sub(block, text))


def test_both_readmes_have_the_same_facts() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    for facts in (r"^\| `(ktp [a-z-]+[^`]*)`", r"^\$ (\S.*?)(?:  +#.*)?$", r"\*\*", r"^- "):
        found = [re.findall(facts, text, re.MULTILINE) for text in (english, chinese)]
        assert found[0] == found[1]
        assert found[0]


@pytest.mark.parametrize("path", [*READMES, TUTORIAL, *sorted((REPOSITORY / "docs").rglob("*.md"))], ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link
