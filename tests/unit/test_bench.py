"""The dump that `make bench` asks about is one that ktp understands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ktp.parse.iptables_save import open_ruleset


def test_the_big_dump_is_understood(repository: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump.txt"
    with dump.open("wb") as stream:
        subprocess.run(
            [sys.executable, "bench/big_rules.py", "12", "3"],
            cwd=repository,
            env={"PYTHONPATH": str(repository)},
            stdout=stream,
            check=True,
        )
    ruleset = open_ruleset(dump, source="dump.txt")
    assert set(ruleset.tables()) == {"mangle", "filter", "nat"}
    for table in ruleset.tables():
        names = set(ruleset.chain_names(table))
        for name in names:
            chain = ruleset.chain(table, name)
            assert chain is not None
            for rule in chain:
                assert rule.error is None, rule.text
                assert rule.target is not None
                assert not rule.target.name.startswith("KUBE-") or rule.target.name in names
    services = ruleset.chain("nat", "KUBE-SERVICES")
    ports = ruleset.chain("nat", "KUBE-NODEPORTS")
    assert services is not None
    assert ports is not None
    assert (len(services), len(ports)) == (13, 12)
