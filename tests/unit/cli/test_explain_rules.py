"""`ktp explain-rules` from outside: screens, exit status, bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktp.cli import run

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY / "tests" / "data" / "explain"
GOLDEN = REPOSITORY / "tests" / "golden" / "explain"
B20 = str(DATA / "1.20-node-b.txt")
B36 = str(DATA / "1.36-node-b.txt")


def ktp(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = run(["explain-rules", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


SCREENS = [
    ("1.20-local-here", "1.20-node-a.txt", ["--node-port", "31015"], 0),
    ("1.20-local-not-here", "1.20-node-b.txt", ["--node-port", "31015"], 1),
    ("1.20-cluster", "1.20-node-b.txt", ["--node-port", "31465"], 0),
    ("1.20-local-not-here-from-pod", "1.20-node-b.txt", ["--node-port", "31015", "--from", "pod"], 0),
    ("1.20-chain-xlb", "1.20-node-b.txt", ["--chain", "KUBE-XLB-3LS5F4HE6J2O753K"], 0),
    ("1.24-local-not-here", "1.24.txt", ["--node-port", "30080"], 1),
    ("1.24-no-endpoints", "1.24.txt", ["--node-port", "30900"], 1),
    ("1.30-local-here", "1.30-node-a.txt", ["--node-port", "31015"], 0),
    ("1.30-local-not-here", "1.30-node-b.txt", ["--node-port", "31015"], 1),
    ("1.36-local-not-here", "1.36-node-b.txt", ["--node-port", "31015"], 1),
    ("1.36-local-not-here-from-node", "1.36-node-b.txt", ["--node-port", "31015", "--from", "node"], 0),
    (
        "1.36-local-not-here-from-localhost",
        "1.36-node-b.txt",
        ["--node-port", "31015", "--from", "localhost"],
        0,
    ),
    ("1.36-affinity", "1.36-node-b.txt", ["--node-port", "30010"], 0),
    ("1.36-ipv6", "1.36-node-b-ip6.txt", ["--node-port", "31015"], 1),
    ("1.29-ufw", "1.29-node-b-ufw.txt", ["--node-port", "31015"], 1),
]


@pytest.mark.parametrize(("name", "dump", "args", "status"), SCREENS, ids=[s[0] for s in SCREENS])
def test_screens(name: str, dump: str, args: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTP_UPDATE_GOLDEN=1 writes the files again; read the difference. 80 columns, as on a terminal."""
    from ktp.app import Settings, explain_chain, explain_node_port, open_rules
    from ktp.render.rules_tree import print_explanations

    monkeypatch.chdir(DATA)
    rules = open_rules(dump, sys.stdin)
    if args[0] == "--chain":
        explained = explain_chain(Settings(), args[1], rules)
    else:
        explained = explain_node_port(Settings(), args[1], args[3] if len(args) > 2 else "external", rules)
    assert explained.status == status
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8")
    print_explanations(explained.explanations, out, width=80, fold_rules=True)
    out.flush()
    text = raw.getvalue().decode("utf-8")
    assert all(len(line) <= 80 or " " not in line.strip(" │├└─|-`") for line in text.splitlines()), text
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("KTP_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_rules_are_whole_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", B20)
    assert status == 1
    assert (
        '-A KUBE-XLB-3LS5F4HE6J2O753K -m comment --comment "test/nginx-externaltrafficpolicy:80-80-tcp has no local '
        'endpoints" -j KUBE-MARK-DROP' in out
    )
    assert "\x1b" not in out
    assert "192.0.2." not in out
    assert "198.51.100." not in out


def test_standard_input_needs_nothing_else() -> None:
    with open(B36, "rb") as dump:
        done = subprocess.run(
            [sys.executable, "-m", "ktp", "explain-rules", "--node-port", "31015", "--rules", "-"],
            stdin=dump, capture_output=True, cwd=REPOSITORY, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"},
        )  # fmt: skip
    assert done.returncode == 1
    text = done.stdout.decode("ascii")
    assert "DROPPED: the client's connection attempts time out" in text
    assert "`- => 1. every new connection: on to KUBE-SERVICES" in text


def test_imports_are_few() -> None:
    code = (
        "import sys; from ktp.cli import run; "
        f"run(['explain-rules', '--node-port', '31015', '--rules', {B36!r}]); "
        "print(sorted({'rich', 'kubernetes', 'yaml', 'iptc', 'subprocess'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, check=True)
    assert done.stderr.decode().strip() == "[]"


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(B36).read_text().replace("*nat\n", "*nat\n", 1)
    text = text.replace(
        "-A PREROUTING ",
        '-A PREROUTING -m comment --comment "[bold]x[/bold]" -j LOG --log-prefix "[x] "\n[0:0] -A PREROUTING ',
        1,
    )
    dump = tmp_path / "dump.txt"
    dump.write_text(text)
    for color in ("never", "always"):
        _, out, _ = ktp(capsys, "--node-port", "31015", "--rules", str(dump), "--color", color)
        assert "[bold]x[/bold]" in out
        assert "[x]" in out


@pytest.mark.parametrize(
    ("args", "status", "sentence"),
    [
        (["--node-port", "31016", "--rules", B36], 2, "near it there are 31015/tcp"),
        (["--node-port", "31015/udp", "--rules", B36], 2, "31015/tcp"),
        (["--node-port", "x", "--rules", B36], 2, "is not a node port"),
        (["--node-port", "0", "--rules", B36], 2, "is not a node port"),
        (["--chain", "KUBE-MARK-MASK", "--rules", B36], 2, "did you mean KUBE-MARK-MASQ"),
        (["test/x", "--rules", B36], 2, "a dump knows no Services"),
        (["--rules", B36], 2, "say what to explain"),
        (["a/b", "--chain", "X"], 2, "three different questions"),
        (["--demo", "--node-port", "1", "--rules", B36], 2, "different evidence"),
        (["--demo", "test/nope"], 2, "there is no Service 'nope'"),
        (["--demo", "--node-port", "31016"], 2, "31015/tcp"),
        (["--node-port", "31015", "--rules", "/nonexistent"], 3, "No such file"),
        (["--node-port", "31015", "--rules", sys.executable], 3, "binary"),
    ],
)
def test_bad_questions(
    args: list[str], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = ktp(capsys, *args)
    assert got == status
    assert sentence in err
    assert not out
    assert "Traceback" not in err


def test_truncated_dump(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "cut.txt"
    dump.write_text(Path(B36).read_text()[:9000])
    status, _, err = ktp(capsys, "--node-port", "31015", "--rules", str(dump))
    assert status == 3
    assert "truncated" in err


def test_dump_without_kube_proxy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "plain.txt"
    dump.write_text("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")
    status, _, err = ktp(capsys, "--node-port", "31015", "--rules", str(dump))
    assert status == 3
    assert "no rules of kube-proxy" in err
    assert "both back ends" in err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31465", "--rules", B20, "-o", "json")
    assert status == 0
    data = json.loads(out)
    assert data["kind"] == "RuleExplanation"
    verdict = data["verdict"]
    assert verdict["disposition"] == "delivered"
    assert verdict["clientSource"] == "replaced"
    assert [(e["address"], e["share"]) for e in verdict["endpoints"]] == [
        ("10.244.1.12:80", 0.5),
        ("10.244.2.11:80", 0.5),
    ]
    assert [(s["hook"], s["chain"]["table"]) for s in data["stages"]] == [
        ("PREROUTING", "nat"),
        ("FORWARD", "filter"),
        ("POSTROUTING", "nat"),
    ]


def test_demo_service_is_explained_on_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--demo", "test/nginx-externaltrafficpolicy", "-o", "json")
    assert status == 1
    ends = {
        (item["node"], item["verdict"]["disposition"])
        for item in json.loads(out)["items"]
        if item["subject"].startswith("node port 31015")
    }
    assert ends == {("node-a", "delivered"), ("node-b", "dropped"), ("node-c", "dropped")}


@pytest.mark.parametrize("vantage", ["node", "localhost", "pod"])
def test_demo_from_inside(vantage: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--demo", "--node-port", "31015", "--node", "node-b", "--from", vantage)
    assert status == 0
    assert "DELIVERED" in out


def test_flushed_prerouting_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = Path(B36).read_text().splitlines(keepends=True)
    nat = next(i for i, line in enumerate(lines) if line.startswith("*nat"))
    kept = [line for i, line in enumerate(lines) if i < nat or " -A PREROUTING " not in line]
    dump = tmp_path / "flushed.txt"
    dump.write_text("".join(kept).replace(" -j DROP\n", " -j ACCEPT\n"))
    status, out, _ = ktp(capsys, "--node-port", "31465", "--rules", str(dump))
    assert status == 1
    assert "no packet gets to them" in out.replace("\n    ", " ")


def test_a_large_dump_is_answered_like_a_small_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same rules among so many others that chains are searched and not indexed."""
    lines = Path(B36).read_text().splitlines()
    at = max(i for i, line in enumerate(lines) if "-A KUBE-SERVICES" in line)
    extra = [
        f"[0:0] -A KUBE-SERVICES -d 10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/32 -p tcp -m comment --comment "
        f'"big/svc-{n}:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-3LS5F4HE6J2O753K'
        for n in range(30_000)
    ]
    dump = tmp_path / "large.txt"
    dump.write_text("\n".join([*lines[:at], *extra, *lines[at:]]) + "\n")
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", str(dump), "-o", "json")
    small_status, small, _ = ktp(capsys, "--node-port", "31015", "--rules", B36, "-o", "json")
    assert status == small_status == 1
    assert json.loads(out)["verdict"]["why"] == json.loads(small)["verdict"]["why"]
    services = json.loads(out)["stages"][0]["chain"]["rules"][0]["chain"]
    assert services["leftOut"] > 30_000
    assert [r["goesTo"] for r in services["rules"]] == ["KUBE-NODEPORTS"]
    status, out, _ = ktp(capsys, "--chain", "KUBE-SVC-3LS5F4HE6J2O753K", "--rules", str(dump))
    assert status == 0
    assert "more rules lead here" in out
