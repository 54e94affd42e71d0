"""`ktp check`: its words, its data, its metrics, its exit status, and the pages that it serves."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from ktp.app import check
from ktp.app.check import Looker, _page
from ktp.app.serving import Page, serving
from ktp.cli import run
from ktp.errors import EvidenceError, UsageError
from ktp.model.capture import EvidenceGap, MemoryCapture
from ktp.model.diagnosis import Finding, Severity
from ktp.model.node_check import CheckedFrontEnd, FrontEndState, NodeCheck
from ktp.model.trace import Symptom
from ktp.render.node_check import check_object, metrics_text, summary

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
CASE = str(CASES / "core-1.36-iptables-nft")

FAILING = CheckedFrontEnd(
    namespace="shop", name="web", policy="Cluster", title="nodePort 31000/TCP", state=FrontEndState.FAILS,
    symptom=Symptom.TIMES_OUT, intended=Symptom.CONNECTS, reason="dropped", cause="KTP302",
)  # fmt: skip
FOUND = Finding(code="KTP302", name="ForwardPolicyDrop", severity=Severity.ERROR, message="FORWARD drops it")
CHECK = NodeCheck(
    node="node-b",
    counts={FrontEndState.FAILS: 1, FrontEndState.UNKNOWN: 1, FrontEndState.ANSWERS: 3},
    not_well=(
        FAILING,
        replace(FAILING, name="api", cause=None),
        replace(FAILING, name="new", state=FrontEndState.UNKNOWN, symptom=Symptom.UNKNOWN, cause=None),
    ),
    findings={"shop/web": (FOUND,)},
    undiagnosed=1,
    at=1000.0,
    objects_at=990.0,
)


def test_the_first_line_says_how_the_node_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--snapshot", CASE, "--node", "node-b"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "node-b: of 30 front ends 3 fail, 11 silent as configured, 16 answer"
    assert len(out[0]) <= 80  # what node-problem-detector keeps of it
    assert "fail  edge/cluster-none nodePort 30002/TCP: refused (KTP103)" in out
    assert out[-1] == "ktp diagnose svc edge/cluster-none tells why and what to do"


def test_a_node_that_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--demo", "check", "--node", "node-b"]) == 0
    assert capsys.readouterr().out.startswith("node-b: of 3 front ends 1 silent as configured, 2 answer\n")


def test_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--snapshot", CASE, "--node", "node-b", "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["apiVersion"], found["kind"], found["node"]) == ("ktp.dev/v1", "NodeCheck", "node-b")
    assert found["frontends"] == {"fails": 3, "deviates": 0, "unknown": 0, "silent": 11, "answers": 16}
    assert {i["cause"] for i in found["items"]} == {"KTP102", "KTP103"}
    assert {(f["service"], f["code"]) for f in found["findings"]} >= {("edge/local-notready", "KTP102")}
    assert found["evidence"]["rules"] == ["iptables-nft"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--snapshot", CASE], "judges one node, and the snapshot has"),
        (["--snapshot", CASE, "--node", "node-z"], "nothing of a node 'node-z'"),
        (["--snapshot", CASE, "--node", "node-b", "--watch"], "a snapshot does not change"),
        (["--demo", "--serve", ":9497"], "a snapshot does not change"),
        (["--interval", "5"], "add --watch or --serve"),
        (["--watch", "--serve", ":9497"], "leave --watch out"),
        (["--serve", ":9497", "--metrics", "x"], "leave --metrics out"),
        (["--demo", "--node", "node-b", "-o", "html"], "has no html form"),
        (["--demo", "--node", "node-b", "--metrics", "/nowhere/at/all"], "cannot write /nowhere/at/all"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("address", ["9497", "x:y", "a:b:9497", "[::1]9497", ":70000"])
def test_no_address(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--serve", address]) == 2
    assert "is no address" in " ".join(capsys.readouterr().err.split())


def test_metrics_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ktp.prom"
    assert run(["check", "--snapshot", CASE, "--node", "node-b", "--metrics", str(file)]) == 1
    text = file.read_text()
    assert 'ktp_frontends{state="fails"} 3.0' in text
    assert 'ktp_finding{code="KTP103",namespace="edge",service="local-none",severity="error"} 1.0' in text
    assert "nginx-externaltrafficpolicy" not in text  # silent as configured is nothing to count
    assert [path.name for path in tmp_path.iterdir()] == ["ktp.prom"]
    capsys.readouterr()


def test_metrics_without_their_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert run(["--demo", "check", "--node", "node-b", "--metrics", "x.prom"]) == 2
    assert "pip install 'ktp[exporter]'" in capsys.readouterr().err


def test_the_metrics_have_no_series_for_what_is_well_or_unknown() -> None:
    text = metrics_text(CHECK, 2).decode()
    series = [line for line in text.splitlines() if line.startswith("ktp_finding")]
    assert series == [
        'ktp_finding{code="",namespace="shop",service="api",severity="error"} 1.0',
        'ktp_finding{code="KTP302",namespace="shop",service="web",severity="error"} 1.0',
    ]
    assert "ktp_check_errors_total 2.0" in text
    assert "ktp_evidence_timestamp_seconds 1000.0" in text
    assert "ktp_objects_timestamp_seconds 990.0" in text
    assert "ktp_frontends" not in metrics_text(None, 1).decode()


def test_nothing_to_check() -> None:
    assert summary(NodeCheck(node="n", counts={})) == "n: no Service has a front end for outside clients"


# ------------------------------------------------------------------------------------------------ the pages


def looker() -> Looker:
    return Looker(
        node="node-b", objects=lambda _: MemoryCapture(files={}), reading=lambda: MemoryCapture(files={})
    )


def get(at: str, path: str, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{at}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_pages() -> None:
    one = looker()
    with serving(("127.0.0.1", 0), lambda path: _page(one, path, 60)) as at:
        assert get(at, "/healthz")[0] == 503
        assert get(at, "/report")[0] == 503
        assert "ktp_check_errors_total 0.0" in get(at, "/metrics")[2]
        one.last, one.looked = CHECK, time.monotonic()
        assert get(at, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
        status, kind, text = get(at, "/report?x=1")
        assert (status, kind) == (200, "application/json")
        found = json.loads(text)
        assert 0 <= found.pop("age") < 5
        assert found == check_object(one.last)
        assert get(at, "/metrics")[1].startswith("text/plain; version=0.0.4")
        assert get(at, "/metrics", "HEAD")[2] == ""
        assert get(at, "/else")[0] == 404
        assert "KTP501" in get(at, "/codes/")[2]
        assert get(at, "/codes/KTP501")[2].startswith("# KTP501")
        assert get(at, "/codes/KTP999")[0] == 404
        assert get(at, "/", "POST")[0] == 501
        # A look that is three intervals old is told by /healthz, and the report is still there.
        one.looked = time.monotonic() - 181
        assert get(at, "/healthz")[0] == 503
        assert get(at, "/report")[0] == 200
        with (
            pytest.raises(UsageError, match="cannot listen on"),
            serving(("127.0.0.1", int(at.rpartition(":")[2])), lambda _: None),
        ):
            pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_no_host_is_every_address_of_both_families() -> None:
    with serving(("", 0), lambda _: Page(200, "text/plain", b"here")) as at:
        port = at.rpartition(":")[2]
        assert get(f"127.0.0.1:{port}", "/")[2] == "here"
        assert get(f"[::1]:{port}", "/")[2] == "here"


def test_a_look_that_fails_is_told_once_counted_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, stop = looker(), threading.Event()
    told: list[str] = []
    answers: list[NodeCheck | str] = ["away", "away", CHECK, "gone"]

    def look(self: Looker) -> NodeCheck:
        answer = answers.pop(0)
        if not answers:
            stop.set()
        if isinstance(answer, str):
            raise EvidenceError(answer)
        return answer

    monkeypatch.setattr(Looker, "look", look)
    assert list(check._looks(one, 0.0, stop, told.append)) == [None, None, CHECK, None]
    assert told == ["away", "gone"]
    assert one.errors == 3


def test_an_api_server_that_is_silent_is_a_gap_and_no_verdict() -> None:
    files = {
        f"{folder.name}/{path.name}"
        if folder.name == "cluster"
        else f"nodes/node-b/{path.name}": path.read_bytes()
        for folder in (Path(CASE) / "cluster", Path(CASE) / "nodes" / "node-b")
        for path in folder.iterdir()
        if path.is_file()
    }
    capture = MemoryCapture(files=files)
    heard = time.monotonic()
    one = Looker(node="node-b", objects=lambda _: capture, reading=lambda: capture, heard=lambda: heard)
    well = one.look()
    assert [g for g in well.gaps if g.kind == "api-away"] == []
    heard = time.monotonic() - 1000
    later = one.look()
    assert [(g.kind, g.message) for g in later.gaps if g.kind == "api-away"] == [
        ("api-away", "the API server has sent nothing; the objects are those of 1000 s ago")
    ]
    assert later.counts == well.counts
    one.problem = lambda: EvidenceError("no route to it", hint="look at the cable")
    (gap,) = [g for g in one.look().gaps if g.kind == "api-away"]
    assert isinstance(gap, EvidenceGap)
    assert gap.remedy == "look at the cable"


def test_a_clock_that_jumps_makes_nothing_old(monkeypatch: pytest.MonkeyPatch) -> None:
    one = looker()
    one.last, one.looked = CHECK, time.monotonic()
    jumped = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: jumped)
    page = _page(one, "/healthz", 60)
    assert page is not None
    assert page.status == 200
    assert one.age < 60
    assert not list(one._away())


def test_nothing_of_the_node_is_an_error_and_no_clean_bill() -> None:
    cluster = {f"cluster/{p.name}": p.read_bytes() for p in (Path(CASE) / "cluster").iterdir()}
    one = Looker(
        node="node-b", objects=lambda _: MemoryCapture(files=cluster), reading=lambda: MemoryCapture(files={})
    )
    with pytest.raises(EvidenceError, match="nothing of node node-b could be read"):
        one.look()
    assert one.last is None
    # A look that failed makes no older one young again.
    one.last, one.looked = CHECK, time.monotonic() - 500
    with pytest.raises(EvidenceError):
        one.look()
    assert one.age >= 500
