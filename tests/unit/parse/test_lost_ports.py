"""Ports that an old iptables-nft-save does not print come from nft's listing, where both list the same rules."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.model.capture import MemoryCapture
from ktp.model.ruleset import Ruleset, are_ports_lost
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot

DATA = Path(__file__).resolve().parents[2] / "data"
CASE = DATA / "cases/core-1.36-iptables-nft"
LISTING = gzip.decompress((DATA / "lost-ports/node-b-nft-ruleset.json.gz").read_bytes())
PORT = re.compile(rb"( -m (tcp|udp|sctp))? --dport \S+")


def files(listing: bytes | None = None) -> dict[str, bytes]:
    whole = open_snapshot(CASE)
    found = {name: whole.read(name) for name in whole.names()}
    for name, content in list(found.items()):
        if name.endswith("-save.txt"):
            found[name] = PORT.sub(b"", content)
    if listing is not None:
        found["nodes/node-b/nft-ruleset.json"] = listing
    return found


def read(content: dict[str, bytes]) -> Snapshot:
    return parse_snapshot(MemoryCapture(files=content))


def rules(ruleset: Ruleset) -> dict[tuple[str, str], list[tuple[frozenset[object], object]]]:
    return {
        (table, name): [(frozenset(rule.matches), rule.target) for rule in chain]
        for table in ruleset.tables()
        for name in ruleset.chain_names(table)
        if (chain := ruleset.chain(table, name)) is not None
    }


def test_the_ports_are_those_of_the_listing() -> None:
    found, whole = read(files(LISTING)), parse_snapshot(open_snapshot(CASE))
    state, same = found.nodes["node-b"], whole.nodes["node-b"]
    assert [rules(ruleset) for ruleset in state.rulesets] == [rules(ruleset) for ruleset in same.rulesets]
    assert "node-b" not in {gap.subject for gap in found.gaps if gap.kind == "node-rules"}


def test_without_the_listing_it_is_said_how_to_save() -> None:
    found = read(files())
    assert all(any(are_ports_lost(ruleset) for ruleset in state.rulesets) for state in found.nodes.values())
    gaps = [gap for gap in found.gaps if gap.kind == "node-rules"]
    assert [gap.subject for gap in gaps] == sorted(found.nodes)
    assert "KUBE-PROXY-POD -- iptables-save" in (gaps[0].remedy or "")


def test_a_listing_of_other_rules_tells_nothing() -> None:
    """One rule was added between the two dumps: the chain's ports cannot be told any more."""
    whole = json.loads(LISTING)
    at = next(
        i for i, entry in enumerate(whole["nftables"])
        if (rule := entry.get("rule")) and (rule["table"], rule["chain"], rule["family"]) == ("nat", "KUBE-NODEPORTS", "ip")
    )  # fmt: skip
    whole["nftables"].insert(at, whole["nftables"][at])
    state = read(files(json.dumps(whole).encode())).nodes["node-b"]
    assert are_ports_lost(state.rulesets[0])


def test_a_dump_without_ports_is_no_dump_without_node_ports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "save.txt").write_bytes(files()["nodes/node-b/iptables-nft-save.txt"])
    assert run(["explain-rules", "--node-port", "31015", "--rules", str(tmp_path / "save.txt")]) == 3
    assert "has no ports in it: the program that saved the rules is older" in capsys.readouterr().err
