"""The packaged snapshot's rules are still rules: the kernel takes them and gives them back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.app.settings import demo_path

pytestmark = pytest.mark.kernel

NODES = sorted(path.name for path in (demo_path() / "nodes").iterdir())


def _rules(dump: str) -> list[str]:
    """Tables, chains and rules without comments and counters, tables in the order of their names."""
    tables: dict[str, list[str]] = {}
    table = ""
    for line in dump.splitlines():
        if line.startswith("*"):
            table = line
        elif not line.startswith("#"):
            tables.setdefault(table, []).append(line.split(" [")[0] if line.startswith(":") else line)
    return [line for name in sorted(tables) for line in (name, *tables[name])]


@pytest.mark.parametrize("family", ["iptables", "ip6tables"])
@pytest.mark.parametrize("node", NODES)
def test_the_kernel_takes_the_rules_and_gives_them_back(
    node: str, family: str, make_netns: Callable[[str], str]
) -> None:
    if shutil.which(f"{family}-legacy-restore") is None:
        pytest.skip(f"{family}-legacy-restore is not installed")
    namespace = make_netns("demo")
    dump = Path(demo_path() / "nodes" / node / f"{family}-legacy-save.txt").read_text()
    within = ["ip", "netns", "exec", namespace]
    subprocess.run([*within, f"{family}-legacy-restore", "-c"], input=dump, text=True, check=True)
    answer = subprocess.run(
        [*within, f"{family}-legacy-save", "-c"], capture_output=True, text=True, check=True
    )
    assert _rules(answer.stdout) == _rules(dump)
