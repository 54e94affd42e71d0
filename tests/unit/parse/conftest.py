"""What the parser tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recordings import RECORDINGS


@pytest.fixture(scope="session")
def recorded_cases(repository: Path) -> tuple[Path, ...]:
    """The folders of recorded clusters: under KTP_CASES, or shared/cases beside the repository."""
    root = RECORDINGS
    folders = tuple(sorted(path.parent for path in root.glob("*/cluster"))) if root.is_dir() else ()
    if not folders:
        pytest.skip("needs the recorded clusters (KTP_CASES)")
    return folders
