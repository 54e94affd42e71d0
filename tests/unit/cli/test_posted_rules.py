"""`ktp explain-rules --rules` on rules as people post them: what is said of each, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run

POSTED = Path(__file__).resolve().parents[2] / "data" / "posted"


def explained(
    capsys: pytest.CaptureFixture[str], file: str, port: str
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the explanations, and what went to standard error."""
    arguments = ["explain-rules", "--rules", str(POSTED / file), "--node-port", port, "-o", "json"]
    code = run(arguments)
    out = capsys.readouterr()
    found = json.loads(out.out) if out.out else {}
    return code, found.get("items", [found]) if found else [], out.err


@pytest.mark.parametrize(
    ("file", "port", "status", "disposition", "words"),
    [
        (
            "missing/natonly2.txt",
            "30443",
            4,
            "undetermined",
            ["192.168.1.5:6443", "table filter was not read"],
        ),
        ("missing/incompatible.txt", "30443", 4, "undetermined", ["iptables-save does not print it"]),
        ("missing/warn-legacy.txt", "31015", 1, "dropped", ["Local, and no usable endpoint"]),
        (
            "missing/nat-fragment.txt",
            "32204",
            4,
            "undetermined",
            ["no usable endpoint", "the text is a fragment"],
        ),
        ("missing/filter-fragment.txt", "30100", 4, "undetermined", ["dropped", "the text is a fragment"]),
        ("missing/nft-one-map.txt", "30000", 4, "undetermined", ["service-nodeports", "a fragment"]),
        ("missing/nft-noep.txt", "30100", 4, "undetermined", ["Local, and no usable endpoint", "a fragment"]),
        ("misprints/dnat-misprint.txt", "30080", 4, "undetermined", ["10.225.0.9", "was not printed"]),
        (
            "misprints/dnat-unsupported-revision.txt",
            "30080",
            4,
            "undetermined",
            ["10.225.0.9", "was not printed"],
        ),
        ("ports/hostport-only.txt", "30999", 0, "delivered", ["10.89.0.2:80", "not kube-proxy's"]),
        ("partial-text/wrap.txt", "30080", 4, "undetermined", ["KUBE-EXT-T3FFAFQYD6HUPJPG"]),
        ("partial-text/v-fold.txt", "31015", 1, "dropped", ["Local, and no usable endpoint"]),
        ("partial-text/v-emdash.txt", "31015", 1, "dropped", ["Local, and no usable endpoint"]),
        ("partial-text/v-nbsp.txt", "31015", 1, "dropped", ["Local, and no usable endpoint"]),
    ],
)
def test_posted(
    capsys: pytest.CaptureFixture[str], file: str, port: str, status: int, disposition: str, words: list[str]
) -> None:
    code, found, _ = explained(capsys, file, port)
    assert code == status
    assert [e["verdict"]["disposition"] for e in found] == [disposition]
    for each in words:
        assert each in found[0]["verdict"]["why"]


@pytest.mark.parametrize("file", ["partial-text/two-ab.txt", "partial-text/two-ba.txt"])
def test_two_dumps_are_two_nodes(capsys: pytest.CaptureFixture[str], file: str) -> None:
    code, found, _ = explained(capsys, file, "31015")
    assert code == 1
    assert sorted(e["verdict"]["disposition"] for e in found) == ["delivered", "dropped"]
    assert len({e["node"] for e in found}) == 2


def test_the_other_back_end_is_an_assumption(capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = explained(capsys, "missing/warn-legacy.txt", "31015")
    assert any("other back end" in a["taken"] for a in found[0]["verdict"]["assumptions"])


@pytest.mark.parametrize(
    ("file", "port", "chains"),
    [
        ("ports/hostport-only.txt", "30999", {"CNI-DN-0a1b2c3d4e5f60718293a", "CNI-HOSTPORT-DNAT"}),
        (
            "ports/ovn-kubernetes.txt",
            "31746",
            {"OVN-KUBE-ETP", "OVN-KUBE-NODEPORT", "OVN-KUBE-SNAT-MGMTPORT"},
        ),
        ("listings/save.txt", "30206", {"KUBE-NODEPORTS"}),
    ],
)
def test_a_port_of_somebody_else_is_told_with_every_rule_that_names_it(
    capsys: pytest.CaptureFixture[str], file: str, port: str, chains: set[str]
) -> None:
    _, found, _ = explained(capsys, file, port)
    notes = found[0]["notes"]
    assert any("no node port of kube-proxy's" in note for note in notes)
    assert chains <= {word for note in notes for word in note.split()}


def test_a_claim_of_a_version_rests_on_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = explained(capsys, "missing/natonly2.txt", "30443")
    assert found[0]["rulesOf"].startswith("kube-proxy 1.24 or newer (KUBE-EXT chains)")
    _, found, _ = explained(capsys, "missing/filter-fragment.txt", "30100")
    assert found[0]["rulesOf"].startswith("kube-proxy 1.25 or newer (KUBE-EXTERNAL-SERVICES drops)")
