"""`ktp diagnose svc`: its screens, its exit status, and what it says of bad input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktp.app import diagnose as use_case
from ktp.app.settings import demo_path
from ktp.cli import run
from tests.test_conventions import run_and_list_modules

REPOSITORY = Path(__file__).resolve().parents[3]
GOLDEN = REPOSITORY / "tests" / "golden" / "diagnose"
RECORDED = REPOSITORY / "tests" / "data" / "cases" / "core-1.36-iptables-nft"
API_ALONE = REPOSITORY / "tests" / "data" / "api"
LOCAL, CLUSTER = "test/nginx-externaltrafficpolicy", "test/nginx-log"


def demo(*arguments: str) -> int:
    return run(["--demo", "diagnose", "svc", *arguments])


# ------------------------------------------------------------------------------------------------------- screens


class Terminal(io.TextIOWrapper):
    """A stream of an encoding that may say that it is a terminal."""

    def __init__(self, encoding: str, *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined,no-any-return]


SCREENS: dict[str, tuple[list[str], dict[str, str], str, bool]] = {
    # name: (arguments, environment, encoding, whether stdout is a terminal)
    "article-80": ([LOCAL], {"COLUMNS": "80"}, "utf-8", False),
    "article-120": ([LOCAL], {"COLUMNS": "120"}, "utf-8", False),
    "article-verbose": ([LOCAL, "-v"], {"COLUMNS": "120"}, "utf-8", False),
    "article-pipe": ([LOCAL], {}, "utf-8", False),
    "article-no-color": ([LOCAL], {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}, "utf-8", True),
    "article-dumb": ([LOCAL], {"COLUMNS": "80", "TERM": "dumb"}, "utf-8", True),
    "article-terminal": ([LOCAL], {"COLUMNS": "80", "TERM": "xterm"}, "utf-8", True),
    "article-color-always": ([LOCAL, "--color", "always"], {"COLUMNS": "80"}, "utf-8", False),
    "article-ascii": ([LOCAL], {"COLUMNS": "80"}, "ascii", False),
    "article-one-node": ([LOCAL, "--node", "node-b"], {"COLUMNS": "80"}, "utf-8", False),
    "healthy-80": ([CLUSTER], {"COLUMNS": "80"}, "utf-8", False),
    "healthy-120": ([CLUSTER], {"COLUMNS": "120"}, "utf-8", False),
    "no-external-front-end": (["test/springboot"], {"COLUMNS": "80"}, "utf-8", False),
    "all-80": (["-A"], {"COLUMNS": "80"}, "utf-8", False),
    "all-120": (["-A", "-v"], {"COLUMNS": "120"}, "utf-8", False),
    "two-services": ([CLUSTER, LOCAL], {"COLUMNS": "80"}, "utf-8", False),
}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def screen(name: str, monkeypatch: pytest.MonkeyPatch, snapshot: list[str] | None = None) -> tuple[int, str]:
    arguments, environment, encoding, is_terminal = (
        SCREENS[name] if snapshot is None else SCREENS["article-80"]
    )
    monkeypatch.delenv("TERM", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    out = Terminal(encoding, is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    status = run([*(snapshot or ["--demo"]), "diagnose", "svc", *arguments])
    return status, out.text()


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("KTP_UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is_as_reviewed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTP_UPDATE_GOLDEN=1 (`make golden`) writes the files again; read the difference."""
    status, text = screen(name, monkeypatch)
    monkeypatch.undo()
    assert status == (0 if name.startswith(("healthy", "no-external")) else 1)
    compare(name, text.replace("\x1b", "␛"))
    _, environment, encoding, _ = SCREENS[name]
    plain = _ESCAPE.sub("", text)
    for line in plain.splitlines():
        # commands are whole, to be copied
        assert (
            len(line) <= int(environment.get("COLUMNS", "80")) or "kubectl " in line or "sysctl " in line
        ), line
        assert line == line.rstrip() or "\x1b" in text
    assert ("\x1b" in text) == (name in {"article-terminal", "article-color-always"})
    if encoding == "ascii":
        assert text.isascii()
        assert "?" not in text


def test_color_changes_nothing_but_the_color(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {}
    for name in ("article-color-always", "article-80"):
        texts[name] = "\n".join(
            line.rstrip() for line in _ESCAPE.sub("", screen(name, monkeypatch)[1]).splitlines()
        )
    assert texts["article-color-always"] == texts["article-80"]


def test_the_screen_of_the_api_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = screen("api-alone", monkeypatch, ["--snapshot", str(API_ALONE)])
    monkeypatch.undo()
    assert status == 1
    compare("api-alone", text.replace(str(API_ALONE), "SNAPSHOT"))
    for words in ("~times out", "~: by the API", "assumed: kube-proxy runs in iptables mode", "Not known"):
        assert words in text


def test_the_first_line_is_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    demo(LOCAL)
    assert capsys.readouterr().out.startswith(
        "test/nginx-externaltrafficpolicy: nodePort 31015/TCP answers outside clients on"
    )


# ---------------------------------------------------------------------------------------------------------- data


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = demo(*arguments, "-o", "json")
    return status, json.loads(capsys.readouterr().out)


def test_json_has_the_shape_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answer(capsys, LOCAL)
    assert status == 1
    assert list(found)[:2] == ["apiVersion", "kind"]
    assert (found["apiVersion"], found["kind"]) == ("ktp.dev/v1", "ServiceDiagnosis")
    assert {"service", "verdict", "frontends", "findings", "evidence", "gaps"} <= set(found)
    service = found["service"]
    assert (service["namespace"], service["name"]) == ("test", "nginx-externaltrafficpolicy")
    assert (service["type"], service["externalTrafficPolicy"]) == ("NodePort", "Local")
    front = found["frontends"][0]
    assert (front["kind"], front["protocol"], front["port"], front["nodePort"]) == (
        "nodePort",
        "TCP",
        80,
        31015,
    )
    row = front["nodes"][1]
    assert (row["node"], row["addresses"], row["localEndpoints"]) == ("node-b", ["10.0.0.10"], 0)
    vantages = {"external", "nodeItself", "localhost", "podSameNode", "podOtherNode", "otherNode"}
    assert vantages <= set(row)
    for vantage in vantages:
        cell = row[vantage]
        assert {"symptom", "cause", "clientSourcePreserved", "endpoints", "basis", "reason"} <= set(cell)
    assert row["external"]["symptom"] == "times_out"
    assert row["external"]["cause"] == "KTP501"
    assert row["external"]["clientSourcePreserved"] is None
    finding = found["findings"][0]
    assert (finding["code"], finding["severity"], finding["node"]) == ("KTP501", "error", "node-b")
    assert all(set(e) == {"kind", "source", "text"} for e in finding["evidence"])
    assert all({"summary", "cost", "patch", "verified"} <= set(f) for f in finding["fixes"])
    assert found["evidence"]["nodes"]["node-b"] == ["iptables-legacy"]
    assert found["gaps"] == []


def keys(found: object) -> set[str]:
    if isinstance(found, dict):
        # what stands under a node's or field's name is data, not a key of the format
        inner = {k: v for k, v in found.items() if k not in {"patch"}}
        own = set() if set(found) & {"node-a", "connects", "times_out"} else set(found)
        return own.union(*(keys(v) for v in inner.values()))
    return set().union(*(keys(v) for v in found)) if isinstance(found, list) else set()


def test_every_key_is_in_the_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "reference" / "json.md").read_text()
    words = set(re.findall(r"[A-Za-z]+", page))
    assert keys(answer(capsys, "-A")[1]) - words == set()
    run(["--snapshot", str(API_ALONE), "diagnose", "svc", LOCAL, "-o", "json"])
    assert keys(json.loads(capsys.readouterr().out)) - words == set()
    monkeypatch.setattr(use_case, "_WHOLE_DIAGNOSES", 0)
    assert keys(answer(capsys, "-A")[1]) - words == set()


def test_every_command_and_common_option_is_in_the_reference() -> None:
    from ktp.cli import cli
    from ktp.cli.diagnose import svc

    page = (REPOSITORY / "docs" / "reference" / "cli.md").read_text()
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert f"ktp {name}" in page
    for parameter in cli.params:
        assert parameter.opts[0] in page or not parameter.opts[0].startswith("--"), parameter.opts
    for word in ("--client", "--fail-on", "--all-namespaces", "--probe", "--health"):
        assert word in page
        assert any(word in parameter.opts for parameter in svc.params)


def test_yaml_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    _, found = answer(capsys, LOCAL)
    demo(LOCAL, "-o", "yaml")
    assert yaml.safe_load(capsys.readouterr().out) == found


@pytest.mark.parametrize("output", ["text", "json", "yaml", "markdown", "html", "junit"])
@pytest.mark.parametrize(
    ("arguments", "status"), [([LOCAL], 1), ([CLUSTER], 0), (["-A"], 1), (["test/nginx"], 0)]
)
def test_the_exit_status_is_the_same_in_every_form(
    arguments: list[str], status: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(*arguments, "-o", output) == status
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err == ""


def test_all_services_are_whole_diagnoses_worst_first(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answer(capsys, "-A")
    assert status == 1
    assert found["kind"] == "ServiceDiagnosisList"
    assert "summary" not in found
    assert [i["kind"] for i in found["items"]] == ["ServiceDiagnosis"] * 2
    assert [i["service"]["name"] for i in found["items"]] == ["nginx-externaltrafficpolicy", "nginx-log"]
    assert found["items"][0] == answer(capsys, LOCAL)[1]


def test_one_service_of_a_list_is_a_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shutil.copytree(demo_path(), tmp_path / "s")
    file = folder / "cluster" / "services.json"
    services = json.loads(file.read_text())
    services["items"] = [s for s in services["items"] if s["metadata"]["name"] == "nginx-log"]
    file.write_text(json.dumps(services))
    assert run(["--snapshot", str(folder), "diagnose", "svc", "-A", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 1


def test_too_many_services_are_summed_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_case, "_WHOLE_DIAGNOSES", 5)
    status, found = answer(capsys, "-A")
    assert status == 1
    assert found["summary"] is True
    first = found["items"][0]
    assert first["summary"] is True
    assert first["service"]["name"] == "nginx-externaltrafficpolicy"
    assert first["nodes"] == {"connects": 1, "times_out": 2}
    assert first["failingNodes"] == ["node-b", "node-c"]
    assert (first["cause"], first["basis"]) == ("KTP501", "rules")
    assert demo("-A", "-o", "html") == 2
    assert "too many for one html report" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "undiagnosed"), [(0.0, 1), (60.0, 0)])
def test_of_too_many_the_causes_are_tried_as_long_as_there_is_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, undiagnosed: int
) -> None:
    demo("-A")
    whole = capsys.readouterr().out
    monkeypatch.setattr(use_case, "_WHOLE_DIAGNOSES", 0)
    monkeypatch.setattr(use_case, "_WHOLE_IN_TEXT", 0)
    monkeypatch.setattr(use_case, "_SOUGHT_WITHIN", seconds)
    status, found = answer(capsys, "-A")
    assert (status, found["undiagnosed"]) == (1, undiagnosed)
    demo("-A")
    text = capsys.readouterr().out
    if undiagnosed:
        assert "the causes of 1 of them were not tried" in text
    else:
        assert text == whole


# ----------------------------------------------------------------------------------------------------- bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str, click: bool = False) -> None:
    """One clear sentence on stderr, perhaps with a hint; no traceback, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    if click:
        assert lines[-1].startswith("Error: ")
    else:
        assert lines[0].startswith("ktp: ")
        assert len(lines) <= 2
        assert not lines[0].endswith(".")
    for word in words:
        assert word in captured.err, captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["test/nginx-lgo"], ["nginx-lgo", "test", "did you mean nginx-log"]),
        (["tset/nginx-log"], ["tset", "did you mean test"]),
        (["nginx-log"], ["default", "test"]),
        (["default/nginx-log"], ["default"]),
        (["-n", "nope"], ["nope", "there is test"]),
        (["a/b/c"], ["NAMESPACE/NAME"]),
        (["test/"], ["NAMESPACE/NAME"]),
        (["/nginx-log"], ["NAMESPACE/NAME"]),
        ([""], ["is empty"]),
        ([], ["-A"]),
        ([LOCAL, "-A"], ["leave the names out"]),
        ([LOCAL, "--node", "node-x"], ["node-x", "node-a"]),
        ([LOCAL, "--node", "node-a", "--node", "b"], ["'b'"]),
        ([LOCAL, "--client", "10.0.0"], ["10.0.0", "no IP address"]),
        ([LOCAL, "--client", "10.0.0.0/8"], ["no IP address"]),
        ([LOCAL, "--client", "127.0.0.1"], ["outside the cluster"]),
        ([LOCAL, "--client", "fd00::1"], ["no IPv6 address"]),
        (["-A", "--client", "192.0.2.1"], ["named Services"]),
        ([CLUSTER, "test/nginx-lgo"], ["nginx-lgo"]),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(*arguments) == 2
    refused(capsys, *words)


@pytest.mark.parametrize(
    "arguments", [["-o", "xml"], ["--node-access", "magic"], ["--nod", "a"], ["--color", "red"]], ids=str
)
def test_options_that_there_are_not(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(LOCAL, *arguments) == 2
    refused(capsys, click=True)


def test_two_snapshots_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(LOCAL, "--snapshot", str(RECORDED)) == 2
    refused(capsys, "--demo", "--snapshot")


def test_a_service_without_front_end_for_the_outside(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("test/springboot") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("test/springboot is of type ClusterIP and has no external front end")
    assert captured.err == ""


# --------------------------------------------------------------------------------------------- damaged snapshots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_path(), tmp_path / "snapshot"))


def ask(folder: Path, *arguments: str) -> int:
    return run(["--snapshot", str(folder), "diagnose", "svc", LOCAL, *arguments])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, ["no snapshot at"]),
        (lambda f: [shutil.rmtree(f), f.mkdir()], ["is not a snapshot", "cluster/services.json"]),
        (lambda f: (f / "cluster/services.json").unlink(), ["cluster/services.json"]),
        (
            lambda f: (f / "cluster/services.json").write_text('{"items": ['),
            ["services.json", "not valid JSON"],
        ),
        (lambda f: (f / "cluster/services.json").write_bytes(os.urandom(999)), ["services.json"]),
        (lambda f: (f / "cluster/services.json").write_text(""), ["services.json"]),
        (lambda f: [shutil.rmtree(f), f.write_bytes(b"\x1f\x8b broken")], ["archive"]),
    ],
    ids=[
        "gone",
        "empty",
        "no services",
        "cut services",
        "binary services",
        "blank services",
        "broken archive",
    ],
)
def test_snapshots_without_services(
    damage: Callable[[Path], object], words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    assert ask(folder) == 3
    refused(capsys, *words)


def test_an_archive_that_was_cut(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "s.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, arcname=".")
    assert ask(archive) == 1
    capsys.readouterr()
    archive.write_bytes(archive.read_bytes()[:9000])
    assert ask(archive) == 3
    refused(capsys, "cut short")


@pytest.mark.parametrize(
    "garbage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:700],
        lambda _: os.urandom(5000),
        lambda _: b"\0" * 5000,
        lambda _: b"",
        lambda _: b"iptables-save: command not found\n",
        lambda _: b"Fatal: can't open lock file /run/xtables.lock: Permission denied\n",
    ],
    ids=["half", "a start", "random", "zeros", "blank", "not found", "denied"],
)
def test_a_damaged_dump_is_not_taken_for_a_node_without_rules(
    garbage: Callable[[bytes], bytes], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the API calls for is the answer then, marked as such; the damage is said."""
    for node in ("node-b", "node-c"):
        file = folder / "nodes" / node / "iptables-legacy-save.txt"
        file.write_bytes(garbage(file.read_bytes()))
    assert ask(folder, "-o", "json") == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    rows = {row["node"]: row["external"] for row in found["frontends"][0]["nodes"]}
    assert {n: (c["symptom"], c["basis"], c["cause"]) for n, c in rows.items()} == {
        "node-a": ("connects", "rules", None),
        "node-b": ("times_out", "api", "KTP501"),
        "node-c": ("times_out", "api", "KTP501"),
    }
    said = {gap["subject"].partition("/")[0] for gap in found["gaps"]}
    assert said == {"node-b", "node-c"}


def test_a_snapshot_without_rules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in folder.glob("nodes/*/*-save.txt"):
        file.unlink()
    assert ask(folder) == 1
    out = capsys.readouterr().out
    assert "no node's rules were read" in out
    assert "iptables-save.txt" in out


def test_a_snapshot_with_the_api_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "nodes")
    assert ask(folder) == 1
    assert "API objects alone" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["endpointslices.json", "endpoints.json", "pods.json", "nodes.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_other_lists_may_be_damaged(
    file: str, damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "cluster" / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:200])
    assert ask(folder, "-o", "json") in {1, 4}
    captured = capsys.readouterr()
    assert captured.err == ""
    gaps = json.loads(captured.out)["gaps"]
    # one of EndpointSlices and Endpoints is enough
    assert gaps or (damage == "missing" and "endpoint" in file)


# ------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("diagnose", "--help"),
        ("diagnose", "svc", "--help"),
        ("--demo", "diagnose", "svc", LOCAL),
        ("--demo", "diagnose", "svc", LOCAL, "-o", "json"),
        ("--snapshot", str(RECORDED), "diagnose", "svc", "-A"),
    ],
    ids=lambda a: " ".join(a).replace(str(RECORDED), "RECORDED"),
)
def test_no_client_of_the_api_is_imported(arguments: tuple[str, ...]) -> None:
    status, modules = run_and_list_modules(*arguments)
    assert status in {0, 1}
    assert not modules & {"kubernetes", "iptc"}
    if "--help" in arguments:
        assert not modules & {"rich", "yaml"}
