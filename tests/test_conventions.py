"""What holds for the project as a whole: who may import what, and when."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ktp

HEAVY = {"kubernetes", "iptc", "rich"}
RUN_AND_LIST_MODULES = """
import contextlib, io, json, runpy, sys
sys.argv = ["ktp", *sys.argv[1:]]
status = 0
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        runpy.run_module("ktp", run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
print(json.dumps({"status": status, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def run_and_list_modules(*arguments: str) -> tuple[int, set[str]]:
    """Runs ktp in an interpreter of its own; its exit status and the top-level modules it had loaded."""
    answer = subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST_MODULES, *arguments], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    return found["status"], set(found["modules"])


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("diagnose", "--help"), ("trace", "--help"), ("snapshot", "--help")],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    status, modules = run_and_list_modules(*arguments)
    assert status == 0
    assert not modules & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [("codes",), ("--demo", "diagnose", "svc", "test/nginx-externaltrafficpolicy")],
    ids=" ".join,
)
def test_without_a_cluster_no_client_is_imported(arguments: tuple[str, ...]) -> None:
    status, modules = run_and_list_modules(*arguments)
    assert status in {0, 1}
    assert not modules & {"kubernetes", "iptc"}


def test_the_changelog_knows_the_version(repository: Path) -> None:
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{ktp.__version__}]" in changelog


def test_every_relative_link_in_the_documentation_leads_somewhere(repository: Path) -> None:
    pages = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(repository)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not broken


def test_no_file_is_long_but_the_reader_of_nfts_text(repository: Path) -> None:
    """A file is for one thing; one that grows over this has come to be for two."""
    long = {
        path.relative_to(repository).as_posix()
        for path in (repository / "ktp").rglob("*.py")
        if len(path.read_text().splitlines()) > 900
    }
    assert long == {"ktp/parse/nft_text.py"}
