"""The manual pages, which come from the commands themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = REPOSITORY / "docs" / "man"


def test_they_are_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, REPOSITORY / "tools" / "gen_man.py", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in PAGES.iterdir()}
    assert kept == made, "make pages"
    assert {"ktp.1", "ktp-diagnose-svc.1", "ktp-check.1", "ktp-fleet-manifest.1"} <= made.keys()


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.iterdir()))
def test_roff_finds_no_fault(page: str) -> None:
    done = subprocess.run(
        ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-z", PAGES / page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
