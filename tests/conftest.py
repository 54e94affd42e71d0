"""Fixtures and rules that every test shares."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
KERNEL_COMMANDS = ("ip", "ss", "iptables-save", "iptables-restore", "nft")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and all programs that are started then inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ktp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("ktp"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "ktp")


def pytest_configure(config: pytest.Config) -> None:
    """Compiles each module once: hundreds of tests start ktp, also where PYTHONDONTWRITEBYTECODE keeps the tree clean."""
    if hasattr(config, "workerinput") or "PYTHONPYCACHEPREFIX" in os.environ:
        return
    cache = tempfile.TemporaryDirectory(prefix="ktp-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["PYTHONPYCACHEPREFIX"] = cache.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@functools.cache
def why_no_kernel() -> str | None:
    """Says why kernel tests cannot run here, or None where they can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    if missing := [command for command in KERNEL_COMMANDS if shutil.which(command) is None]:
        return f"needs the commands {', '.join(missing)}"
    probe = f"ktp-probe-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"needs network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one recording run one after another, so that it is read and diagnosed once (tests/support/recordings.py).

    They come first: none of the longest is left to the end, when the other workers have nothing to do any more.
    """
    items.sort(key=_recording)


def _recording(item: pytest.Item) -> tuple[bool, str]:
    parameters = (
        item.callspec.params.values()
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else ()
    )
    names = (value.name if isinstance(value, Path) else value for value in parameters)
    found = next((name for name in names if isinstance(name, str) and name in _recordings()), "")
    return not found, found


@functools.cache
def _recordings() -> frozenset[str]:
    return frozenset(path.name for path in (REPOSITORY / "tests" / "data" / "cases").glob("*/"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is None or (reason := why_no_kernel()) is None:
        return
    if os.environ.get("KTP_REQUIRE_KERNEL"):
        pytest.fail(f"kernel test {reason}", pytrace=False)
    pytest.skip(f"kernel test {reason}")


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps every test away from the developer's clusters and from the look of his terminal."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KUBECONFIG", str(home / "no-kubeconfig"))
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _described_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever data a test makes ktp print follows the schema that ktp brings along."""
    from ktp.render import structured
    from tests.support.schema import validate

    write = structured.dump

    def dump(data: Any, fmt: str, stream: TextIO) -> None:
        if isinstance(data, dict) and {"kind", "flow"} & data.keys():
            validate(json.loads(json.dumps(data)))
        write(data, fmt, stream)

    monkeypatch.setattr(structured, "dump", dump)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def demo_snapshot() -> Path:
    return REPOSITORY / "ktp" / "demo"


@pytest.fixture
def make_netns() -> Iterator[Callable[[str], str]]:
    """Makes network namespaces with names of their own, loopback up, and deletes them after the test."""
    names: list[str] = []

    def make(role: str) -> str:
        name = f"ktp-{role}-{uuid.uuid4().hex[:8]}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        names.append(name)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        return name

    yield make
    for name in reversed(names):
        subprocess.run(["ip", "netns", "delete", name], check=False)
