"""A real OpenSSH server for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ssh_server import SshLab


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def lab(lab_folder: Path) -> Iterator[SshLab]:
    made = SshLab(lab_folder)
    with made.daemon():
        yield made


@pytest.fixture(autouse=True)
def _right_keys(lab: SshLab) -> None:
    lab.write_known_hosts("host")
