"""`ktp snapshot` and `ktp auth`, as called from the shell."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ktp.app import snapshot as use_case
from ktp.app.settings import Settings
from ktp.cli import run
from ktp.collect import kube_config
from ktp.collect.snapshot import open_snapshot
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture, merge_captures
from tests.support.api_server import ApiServer

RECORDED = Path(__file__).resolve().parents[2] / "data" / "api"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(kube_config, "NODE_KUBECONFIGS", ())
    with ApiServer(RECORDED).running() as running:
        metadata = {"name": "kube-proxy", "namespace": "kube-system"}
        config = {"config.conf": "kind: KubeProxyConfiguration\nmode: iptables\n"}
        running.objects["configmaps"] = [{"kind": "ConfigMap", "metadata": metadata, "data": config}]
        yield running


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    content = {
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


class Nodes:
    """Stands for the machines: which were asked, and which of them answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.silent: set[str] = set()
        self.interrupt_after: int | None = None

    def __call__(self, settings: Settings, capture: Capture, **_: object) -> Capture:
        if self.interrupt_after is not None and len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append(settings.nodes)
        files = {
            f"nodes/{node}/iptables-save.txt": b"*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
            for node in settings.nodes
            if node not in self.silent
        }
        gaps = tuple(
            EvidenceGap("node-rules", node, f"{node} does not answer")
            for node in settings.nodes
            if node in self.silent
        )
        return merge_captures(capture, MemoryCapture(files=files, gaps=gaps))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    fake = Nodes()
    monkeypatch.setattr(use_case, "with_nodes", fake)
    monkeypatch.setattr(use_case, "_NODES_AT_ONCE", 1)
    return fake


def names_of_nodes(server: ApiServer) -> list[str]:
    return sorted(item["metadata"]["name"] for item in server.objects["nodes"])


def test_a_folder_holds_the_cluster_and_is_private(
    kubeconfig: Path, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "snap"
    assert run(["snapshot", str(out), "--node-access", "none"]) == 0
    assert open_snapshot(out).has("cluster/endpointslices.json")
    for path in (out, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    printed = capsys.readouterr()
    assert "0 with rules" in printed.out
    assert "--node-access" in printed.out
    assert printed.err == ""  # no progress in a pipe


def test_nodes_are_kept_as_they_come_and_not_read_again(
    kubeconfig: Path, server: ApiServer, nodes: Nodes, tmp_path: Path
) -> None:
    out, names = tmp_path / "snap", names_of_nodes(server)
    assert len(names) > 1
    nodes.interrupt_after = 1
    assert run(["snapshot", str(out), "--node-access", "ssh"]) == 130
    assert nodes.asked == [(names[0],)]
    nodes.interrupt_after = None
    assert run(["snapshot", str(out), "--node-access", "ssh", "--resume"]) == 0
    assert nodes.asked == [(name,) for name in names]
    capture = open_snapshot(out)
    assert capture.node_names() == tuple(names)
    for name in names:
        assert capture.has(f"nodes/{name}/iptables-save.txt")
        assert capture.has(f"nodes/{name}/kube-proxy-config.yaml")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_node_that_did_not_answer_is_asked_again(
    kubeconfig: Path, server: ApiServer, nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, names = tmp_path / "snap", names_of_nodes(server)
    nodes.silent = {names[0]}
    assert run(["snapshot", str(out), "--node-access", "ssh"]) == 0
    assert f"{names[0]} does not answer" in capsys.readouterr().out
    assert [gap.subject for gap in open_snapshot(out).gaps if gap.kind == "node-rules"] == [names[0]]
    nodes.silent, nodes.asked = set(), []
    assert run(["snapshot", str(out), "--node-access", "ssh", "--resume"]) == 0
    assert nodes.asked == [(names[0],)]
    assert not [gap for gap in open_snapshot(out).gaps if gap.kind == "node-rules"]


def test_only_the_nodes_asked_for_are_in_it(
    kubeconfig: Path, server: ApiServer, nodes: Nodes, tmp_path: Path
) -> None:
    name = names_of_nodes(server)[1]
    assert run(["snapshot", str(tmp_path / "s.tar.gz"), "--node-access", "ssh", "--node", name]) == 0
    capture = open_snapshot(tmp_path / "s.tar.gz")
    assert capture.node_names() == (name,)
    assert stat.S_IMODE((tmp_path / "s.tar.gz").stat().st_mode) == 0o600


def test_without_an_api_server_there_is_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_config, "NODE_KUBECONFIGS", ())
    assert run(["snapshot", str(tmp_path / "snap")]) == 3
    assert not (tmp_path / "snap").exists()


def test_a_folder_that_exists_is_left_alone(kubeconfig: Path, tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "mine").write_text("mine")
    assert run(["snapshot", str(tmp_path / "snap"), "--node-access", "none"]) == 2
    assert [path.name for path in (tmp_path / "snap").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--resume", "x.tar.gz"),
        ("--resume", "--redact", "x"),
        ("--demo", "--resume", "x"),
        ("--redact-map", "m", "x"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...]) -> None:
    assert run(["snapshot", *arguments]) == 2


def test_redacting_twice_with_one_map_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, kept = (str(tmp_path / name) for name in ("a.tar.gz", "b.tar.gz", "map.json"))
    assert run(["--demo", "snapshot", first, "--redact", "--redact-map", kept, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["redacted"], told["nodes"]) == (True, {"total": 3, "withRules": 3, "resumed": 0})
    assert run(["--demo", "snapshot", second, "--redact", "--redact-map", kept]) == 0
    a, b = open_snapshot(first), open_snapshot(second)
    assert {name: a.read(name) for name in a.names()} == {name: b.read(name) for name in b.names()}
    assert stat.S_IMODE(Path(kept).stat().st_mode) == 0o600
    assert "node-b" in Path(kept).read_text()
    assert not any("map" in name for name in a.names())


def test_another_file_is_not_taken_for_a_map(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[]")
    arguments = [
        "--demo",
        "snapshot",
        str(tmp_path / "a"),
        "--redact",
        "--redact-map",
        str(tmp_path / "mine.json"),
    ]
    assert run(arguments) == 2
    assert (tmp_path / "mine.json").read_text() == "[]"


# -------------------------------------------------------------------------------------------------------- ktp auth


def test_auth_when_nothing_is_missing(kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["auth"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("jane at ")
    assert "Nothing is missing." in out


def test_auth_prints_the_manifest_that_mends(
    kubeconfig: Path, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden = {"nodes", "pods/exec"}
    assert run(["auth"]) == 1
    out = capsys.readouterr().out
    role, binding = yaml.safe_load_all(out.partition("-f -`:\n")[2])
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    assert binding["subjects"][0]["name"] == "jane"


def test_auth_asks_for_the_access_mode(
    kubeconfig: Path, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden = {"pods/exec"}
    assert run(["auth"]) == 0
    capsys.readouterr()
    assert run(["auth", "--node-access", "kube-proxy", "-o", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [part["kind"] for part in document["manifest"]] == ["Role", "RoleBinding"]
    assert document["manifest"][0]["rules"] == [
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}
    ]


def test_auth_has_nothing_to_ask_a_snapshot() -> None:
    assert run(["--demo", "auth"]) == 2
