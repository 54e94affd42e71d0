"""IPVS beside a kernel that has it, in user-mode Linux: a few cases here, some 400 pairs by `make test-vm`."""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.user_mode_linux import NoGuestError, missing, run

pytestmark = pytest.mark.kernel


def test_virtual_servers_in_a_guest(capfd: pytest.CaptureFixture[str]) -> None:
    required = bool(os.environ.get("KTP_REQUIRE_KERNEL"))
    if os.geteuid() != 0 or (missing() and not required):
        pytest.skip(f"a guest needs root and the packages {' '.join(missing())}")
    tests = ["-q", "-p", "no:cacheprovider", "-m", "kernel", "tests/kernel/test_ipvs.py"]
    environment = {"KTP_REQUIRE_KERNEL": "1", "KTP_KERNEL_CASES": "2"}
    try:
        status = run([sys.executable, "-m", "pytest", *tests], environment=environment, timeout=300)
    except NoGuestError:
        if required:
            raise
        pytest.skip("user-mode Linux does not start on this machine")
    assert status == 0, capfd.readouterr().out[-8000:]
