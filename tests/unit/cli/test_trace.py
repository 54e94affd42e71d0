"""`ktp trace`: the command line, one flow and many."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.app.trace import FlowBatch
from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.parse.snapshot import parse_snapshot

REPOSITORY = Path(__file__).resolve().parents[3]
CASE = REPOSITORY / "tests" / "data" / "cases" / "core-1.36-iptables-nft"
GOLDEN = REPOSITORY / "tests" / "golden" / "trace"

DROPPED = {"id": 1, "from": "10.0.0.100", "to": "10.0.0.10", "port": 31015, "protocol": "tcp"}
SHARED = {"id": 2, "from": "10.0.0.100", "to": "10.0.0.3", "port": 31465, "protocol": "tcp"}


def trace(*arguments: str) -> int:
    return run(["trace", "--snapshot", str(CASE), *arguments])


def answers(
    lines: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[dict[str, Any]]]:
    data = b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    status = trace("--batch", "-")
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---------------------------------------------------------------------------------------------------- one flow


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dropped", ["--from", "10.0.0.100", "--to", "10.0.0.10:31015"]),
        ("rejected", ["--from", "10.0.0.100", "--to", "10.0.0.3:30002"]),
        ("two-endpoints", ["--from", "10.0.0.100", "--to", "10.0.0.3:31465"]),
        ("answer-lost-in-one-of-three", ["--from", "10.244.1.10", "--to", "10.0.0.10:30006"]),
        ("process-to-localhost-verbose", ["--from", "@node-a", "--to", "localhost:31015", "-v"]),
        ("ipv6-no-route", ["--from", "@node-a", "--to", "[2001:db8::1]:53/udp"]),
        ("virtual-address-without-via", ["--from", "10.0.0.100", "--to", "10.99.0.1:80"]),
    ],
)
def test_text_is_as_reviewed(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """KTP_UPDATE_GOLDEN=1 writes the files again; read the difference."""
    status = trace(*arguments)
    text = f"$ ktp trace {' '.join(arguments)}\n{capsys.readouterr().out}exit status {status}\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("KTP_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    body = text.splitlines()[1:]
    assert all(len(line) <= 80 for line in body)
    assert text.isascii()


@pytest.mark.parametrize(
    ("arguments", "status", "first"),
    [
        (["--from", "10.0.0.100", "--to", "10.0.0.3:31015"], 0, "connects: delivered to"),
        (["--from", "10.0.0.100", "--to", "10.0.0.10:31015"], 1, "times out (dropped): node-b drops"),
        (["--from", "10.0.0.100", "--to", "10.0.0.3:22"], 1, "refused (no listener):"),
        (["--from", "10.244.1.10", "--to", "10.0.0.10:30006"], 1, "intermittent (lost): connects in 67%"),
        (["--from", "10.0.0.100", "--to", "10.77.0.1:80"], 4, "undetermined: no node owns 10.77.0.1"),
    ],
)
def test_verdict_comes_first_and_decides_the_status(
    arguments: list[str], status: int, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(*arguments) == status
    assert capsys.readouterr().out.startswith(first)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "10.0.0.100", "--to", "node-b:31015"], {"from": "10.0.0.100", "to": "10.0.0.10"}),
        (["--from", "@node-a", "--to", "10.0.0.10:31015"], {"from_node": "node-a", "to": "10.0.0.10"}),
        (["--from", "node-a", "--to", "node-a:31015"], {"from_node": "node-a", "to": "10.0.0.3"}),
        (["--from", "10.244.2.11", "--to", "node-a:31015"], {"from": "10.244.2.11", "from_node": "node-b"}),
        (["--from", "10.0.0.13", "--to", "node-a:31015"], {"from": "10.0.0.13", "from_node": "node-c"}),
        (
            ["--from", "test/nginx-log-0", "--to", "node-a:31015"],
            {"from": "10.244.2.11", "from_node": "node-b"},
        ),
        (["--from", "10.0.0.100", "--to", "10.99.0.1:80", "--via", "node-c"], {"via": "node-c"}),
        (["--from", "@node-a", "--to", "10.0.0.3:30011/UDP"], {"protocol": "udp", "port": 30011}),
        (
            ["--from", "[2001:db8::7]", "--to", "[fd00::1]:80"],
            {"from": "2001:db8::7", "to": "fd00::1", "port": 80},
        ),
        (
            ["--from", "2001:db8::7@node-a", "--to", "[fd00::1]:80"],
            {"from": "2001:db8::7", "from_node": "node-a"},
        ),
    ],
)
def test_who_and_where_are_understood(
    arguments: list[str], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trace(*arguments, "-o", "json")
    flow = json.loads(capsys.readouterr().out)["flow"]
    assert {name: flow.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "10.0.0.3:80"], "--from is missing"),
        (["--from", "10.0.0.100"], "--to is missing"),
        (["--from", "10.0.0.100", "--to", "10.0.0.3"], "not an address and a port"),
        (["--from", "10.0.0.100", "--to", "10.0.0.3:0"], "not a port"),
        (["--from", "10.0.0.100", "--to", "10.0.0.3:80/icmp"], "not a protocol"),
        (["--from", "10.0.0.100", "--to", "fd00::1:80"], "brackets"),
        (["--from", "10.0.0.100", "--to", "[fd00::1]:80"], "different address families"),
        (["--from", "10.0.0.100", "--to", "node-z:80"], "did you mean node-"),
        (["--from", "@node-z", "--to", "10.0.0.3:80"], "there is no node 'node-z'"),
        (["--from", "10.0.0.100", "--to", "10.0.0.3:80", "--via", "node-z"], "there is no node 'node-z'"),
        (["--from", "@node-a", "--to", "10.0.0.3:80", "--via", "node-b"], "runs on node-a"),
        (["--from", "10.0.0.100@", "--to", "10.0.0.3:80"], "names no node"),
        (["--from", "somewhere", "--to", "10.0.0.3:80"], "no IP address and no node"),
        (["--from", "test/nothing", "--to", "10.0.0.3:80"], "there is no pod 'test/nothing'"),
        (["--from", "test/nginx-log-0@node-a", "--to", "10.0.0.3:80"], "runs on node-b, not on node-a"),
        (["--batch", "-", "--to", "10.0.0.3:80"], "leave out --from, --to and --via"),
        (["--batch", "-", "-o", "yaml"], "JSON Lines"),
        (["--batch", "/no/such/file"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_json_and_yaml_say_the_same_and_show_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--from", "10.0.0.100", "--to", "10.0.0.3:31465"]
    assert trace(*arguments, "-o", "json") == 0
    as_json = json.loads(capsys.readouterr().out)
    assert trace(*arguments, "-o", "yaml") == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == as_json
    assert "&id" not in text
    batch = FlowBatch(parse_snapshot(open_snapshot(CASE)))
    line = json.loads(batch.answer(json.dumps({"id": 0, **as_json["flow"]}).encode()))
    assert {name: as_json[name] for name in line if name != "id"} == {
        n: v for n, v in line.items() if n != "id"
    }
    assert [p["probability"] for p in as_json["paths"]] == [0.5, 0.5]
    hop = as_json["paths"][0]["hops"][0]
    assert (hop["node"], hop["direction"], hop["in_interface"]) == ("node-a", "request", "eth0")
    assert hop["arrived"] == {
        "src": "10.0.0.100",
        "sport": None,
        "dst": "10.0.0.3",
        "dport": 31465,
        "mark": 0,
    }
    jump = hop["steps"][0]
    assert (jump["hook"], jump["table"], jump["chain"], jump["position"]) == (
        "PREROUTING",
        "nat",
        "PREROUTING",
        1,
    )
    dump = (CASE / "nodes" / "node-a" / "iptables-nft-save.txt").read_text().splitlines()
    steps = [
        s
        for h in as_json["paths"][0]["hops"]
        if h["node"] == "node-a"
        for s in h["steps"]
        if s["kind"] == "rule"
    ]
    assert steps
    assert all(dump[s["line"] - 1].endswith(s["rule"]) for s in steps)
    assert {h["direction"] for h in as_json["paths"][0]["hops"]} == {"request", "reply"}


def test_nothing_read_of_the_first_node_is_missing_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "snapshot"
    (folder / "cluster").mkdir(parents=True)
    for file in (CASE / "cluster").iterdir():
        (folder / "cluster" / file.name).write_bytes(file.read_bytes())
    status = run(["trace", "--snapshot", str(folder), "--from", "10.0.0.100", "--to", "10.0.0.3:31015"])
    assert status == 3
    assert capsys.readouterr().out.startswith("undetermined: nothing was read of node node-a")


def test_a_node_without_rules_is_no_node_that_lets_everything_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "snapshot"
    for file in (*(CASE / "cluster").iterdir(), *(CASE / "nodes" / "node-a").glob("ip-*.json")):
        copy = folder / file.relative_to(CASE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    status = run(["trace", "--snapshot", str(folder), "--from", "10.0.0.100", "--to", "10.0.0.3:31015"])
    assert status in {3, 4}
    assert "connects" not in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- many flows


def test_answers_come_in_order_with_their_ids(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{**DROPPED, "id": {"any": ["thing", None, 1.5]}}, SHARED, {**DROPPED, "id": "again"}]
    status, out = answers(lines, capsys, monkeypatch)
    assert status == 0
    assert [a["id"] for a in out] == [{"any": ["thing", None, 1.5]}, 2, "again"]
    assert {**out[0], "id": 0} == {**out[2], "id": 0}
    dropped, shared = out[:2]
    assert (dropped["disposition"], dropped["symptom"]) == ("dropped", "times_out")
    assert dropped["decided_by"]["node"] == "node-b"
    assert dropped["decided_by"]["table"] == "filter"
    assert dropped["decided_by"]["chain"] == "KUBE-EXTERNAL-SERVICES"
    assert dropped["decided_by"]["rule"].startswith("-A KUBE-EXTERNAL-SERVICES ")
    assert dropped["backends"] == []
    assert shared["client_source"] == {"seen": ["10.0.0.3"], "preserved": False}
    assert shared["backends"][0] == {
        "ip": "10.244.1.12",
        "port": 80,
        "pod": "test/nginx-log-1",
        "node": "node-a",
        "probability": 0.5,
        "disposition": "delivered",
        "symptom": "connects",
        "source_seen": "10.0.0.3",
    }


@pytest.mark.parametrize(
    ("line", "id_", "words"),
    [
        (b"nonsense\n", None, "not JSON"),
        (b"\n", None, "empty"),
        (b"\xff\xfe\n", None, "not UTF-8"),
        (b"[1, 2]\n", None, "not a JSON object"),
        (b'{"id": NaN}\n', None, "NaN"),
        (b'{"id": 1e999, "to": "10.0.0.3"}\n', None, "port"),
        (b"[" * 5000 + b"\n", None, "not JSON"),
        ({**DROPPED, "to": None}, 1, '"to" is missing'),
        ({**DROPPED, "to": "10.0.0"}, 1, '"to" must be an IP address, not "10.0.0"'),
        ({**DROPPED, "to": 7}, 1, '"to" must be an IP address'),
        ({**DROPPED, "from": "fe80::1%eth0"}, 1, '"from" must be an IP address'),
        ({**DROPPED, "from": "fd00::1"}, 1, "different address families"),
        ({**DROPPED, "port": None}, 1, '"port" is missing'),
        ({**DROPPED, "port": "80"}, 1, '"port" must be a number'),
        ({**DROPPED, "port": 65536}, 1, '"port" must be a number'),
        ({**DROPPED, "port": True}, 1, '"port" must be a number'),
        ({**DROPPED, "port": 80.0}, 1, '"port" must be a number'),
        ({**DROPPED, "protocol": "icmp"}, 1, '"protocol" must be tcp, udp or sctp'),
        ({**DROPPED, "protocol": ["tcp"]}, 1, '"protocol" must be tcp, udp or sctp'),
        ({**DROPPED, "protocol": None}, 1, '"protocol" is missing'),
        ({**DROPPED, "from": None}, 1, '"from" is missing'),
        ({**DROPPED, "from_node": "node-z"}, 1, 'there is no node "node-z"'),
        ({**DROPPED, "via": 3}, 1, '"via": there is no node 3'),
    ],
)
def test_a_bad_line_gets_its_error_and_the_run_goes_on(
    line: Any, id_: object, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = answers([line, SHARED], capsys, monkeypatch)
    assert status == 2
    bad, good = out
    assert set(bad) == {"id", "error"}
    assert bad["id"] == id_
    assert words in bad["error"]
    assert "\n" not in bad["error"]
    assert good["symptom"] == "connects"


def test_a_last_line_without_an_end_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = b"\xef\xbb\xbf" + json.dumps(SHARED).encode()
    status, out = answers([json.dumps(DROPPED).encode() + b"\r\n", last], capsys, monkeypatch)
    assert (status, [a["id"] for a in out]) == (0, [1, 2])


def test_no_line_no_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers([], capsys, monkeypatch) == (0, [])


def test_a_bug_on_one_line_is_told_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ktp.dataplane.answer as module

    real = module.answer_flow

    def failing(walker: Any, flow: Any, **options: Any) -> Any:
        if flow.port == 31015:
            raise RuntimeError("planted")
        return real(walker, flow, **options)

    monkeypatch.setattr(module, "answer_flow", failing)
    monkeypatch.delenv("KTP_DEBUG", raising=False)
    status, out = answers([DROPPED, SHARED], capsys, monkeypatch)
    assert status == 70
    assert out[0]["error"] == "this is a bug of ktp: RuntimeError: planted"
    assert out[1]["symptom"] == "connects"


def test_each_line_is_answered_before_the_next_is_sent() -> None:
    command = [sys.executable, "-m", "ktp", "trace", "--batch", "-", "--snapshot", str(CASE)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as ktp:
        assert ktp.stdin is not None
        assert ktp.stdout is not None
        for number, flow in enumerate((DROPPED, SHARED, DROPPED)):
            ktp.stdin.write(json.dumps({**flow, "id": number}) + "\n")
            ktp.stdin.flush()
            assert json.loads(ktp.stdout.readline())["id"] == number
        ktp.stdin.close()
        assert ktp.stdout.read() == ""
        assert ktp.wait(timeout=30) == 0


def test_a_reader_who_leaves_is_no_error(tmp_path: Path) -> None:
    flows = tmp_path / "flows.jsonl"
    flows.write_text("".join(json.dumps({**SHARED, "id": n}) + "\n" for n in range(3000)))
    command = f"{sys.executable} -m ktp trace --batch {flows} --snapshot {CASE} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["id"] == 0


def test_remembered_answers_are_the_same() -> None:
    snapshot = parse_snapshot(open_snapshot(CASE))
    with_memory, without = FlowBatch(snapshot), FlowBatch(snapshot, remember=False)
    for flow in (DROPPED, SHARED, DROPPED, SHARED):
        line = json.dumps(flow).encode()
        assert with_memory.answer(line) == without.answer(line)


def test_a_load_balancers_address_by_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    """edge/local-lb has pods on node-b and node-c: node-a is silent, the two others draw among their own."""
    asked = ["--from", "10.0.0.100", "--to", "10.99.0.10:80"]
    assert trace(*asked, "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "TraceList"
    assert {tuple(item["via"]): item["symptom"] for item in found["items"]} == {
        ("node-a",): "times_out", ("node-b",): "connects", ("node-c",): "connects",
    }  # fmt: skip
    for item in found["items"]:
        assert trace(*asked, "--via", item["via"][0], "-o", "json") in (0, 1)
        alone = json.loads(capsys.readouterr().out)
        assert {key: item[key] for key in alone} == alone
    assert trace(*asked) == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("by ")] == [
        "by node-a",
        "by node-b",
        "by node-c",
    ]
