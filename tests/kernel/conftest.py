"""One laboratory for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    built = Lab()
    yield built
    built.close()
