"""A redacted snapshot of a cluster that Cilium serves: no address is left, and every answer is the same."""

from __future__ import annotations

import json
from pathlib import Path

from ktp.app.trace import FlowBatch
from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.parse.snapshot import parse_snapshot

CASE = Path(__file__).resolve().parents[2] / "data" / "cases" / "cilium-1.19.4-policy"


def test_maps_are_redacted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    mapped = tmp_path / "map.json"
    assert run(["--snapshot", str(CASE), "snapshot", str(out), "--redact", "--redact-map", str(mapped)]) == 0
    text = "\n".join(path.read_text() for path in out.rglob("*") if path.is_file())
    assert "10.244." not in text
    assert "10.0.0.3" not in text
    assert "etp-one-client" not in text
    full, redacted = parse_snapshot(open_snapshot(CASE)), parse_snapshot(open_snapshot(out))
    before, after = FlowBatch(full), FlowBatch(redacted)
    node = next(n for n, s in redacted.nodes.items() if s.cilium is not None)
    assert node
    names = json.loads(mapped.read_text())
    assert names
    addresses = {
        kind: [
            a for n in (snapshot.cluster.nodes or {}).values() for k, a in n.addresses if k == "InternalIP"
        ]
        for kind, snapshot in (("full", full), ("redacted", redacted))
    }
    for old, new in zip(addresses["full"], addresses["redacted"], strict=True):
        asked = [
            json.dumps({"id": 1, "from": "203.0.113.77", "to": ip, "port": 31015, "protocol": "tcp"}).encode()
            for ip in (old, new)
        ]
        one, other = json.loads(before.answer(asked[0])), json.loads(after.answer(asked[1]))
        assert (one["symptom"], one["disposition"]) == (other["symptom"], other["disposition"])
        assert one["symptom"] != "unknown"
