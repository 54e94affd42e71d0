"""One laboratory for all tests of a module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.kernel.lab import COMMANDS, Lab, LabError


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Where the kernel is required, a machine that cannot build it is a failure, else a reason to skip."""
    required = bool(os.environ.get("KTP_REQUIRE_KERNEL"))
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        why = f"the laboratory needs the commands {', '.join(missing)}"
        if required:
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    try:
        built = Lab()
    except (LabError, OSError) as error:
        if required:
            raise
        pytest.skip(f"the laboratory cannot be built here: {error}")
    yield built
    built.close()
