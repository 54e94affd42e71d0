"""The files of pods' network namespaces in a snapshot: kept, redacted, and left out with the namespace of others."""

from __future__ import annotations

from ktp.app.settings import demo_path
from ktp.app.snapshot import chain_naming
from ktp.collect.redact import redact_capture
from ktp.collect.snapshot import open_snapshot
from ktp.collect.strip import strip_capture
from ktp.model.capture import MemoryCapture
from ktp.parse.snapshot import parse_snapshot

FOLDER = "nodes/node-a/pods/test_nginx-externaltrafficpolicy-6654865c87-25cnq"
FILES = {
    f"{FOLDER}/ss.txt": b'tcp LISTEN 0 511 10.244.1.10:80 0.0.0.0:* users:(("nginx",pid=7,fd=6))\n',
    f"{FOLDER}/iptables-save.txt": b"*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.244.1.10/32 -j ACCEPT\nCOMMIT\n",
    f"{FOLDER}/environ": b"PASSWORD=secret\n",
    "nodes/node-a/pods/other_secret-0/ss.txt": b"tcp LISTEN 0 511 *:80 *:*\n",
}


def with_pods() -> MemoryCapture:
    demo = open_snapshot(demo_path())
    return MemoryCapture(files={**{name: demo.read(name) for name in demo.names()}, **FILES})


def test_what_a_snapshot_keeps_of_pods() -> None:
    kept = strip_capture(with_pods())
    assert {n for n in kept.names() if "/pods/" in n} == {n for n in FILES if not n.endswith("environ")}
    of_test = strip_capture(with_pods(), namespace="test")
    assert not any("other_secret" in name for name in of_test.names())
    assert of_test.has(f"{FOLDER}/ss.txt")


def test_no_name_and_no_address_is_left() -> None:
    redacted = redact_capture(strip_capture(with_pods()), chain_naming(), key=b"k" * 32).capture
    names = [name for name in redacted.names() if "/pods/" in name]
    assert len(names) == 3
    for name in names:
        text = name + redacted.read(name).decode()
        assert not any(word in text for word in ("10.244.", "nginx", "test_", "secret", "node-a")), text
    (state,) = [s for s in parse_snapshot(redacted).nodes.values() if s.pods]
    pods = {p.key for p in parse_snapshot(redacted).cluster.pods or ()}
    assert len(pods.intersection(state.pods)) >= 1, "the folder has the pod's new name"
