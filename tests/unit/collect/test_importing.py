"""`ktp snapshot import`: archives as other collectors lay them out, the answer of `ktp node-script`, and what lacks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.collect.importing import place, sort_out
from ktp.parse.posted import dump_of_listing
from ktp.parse.printed import printed_for_people

DEMO = Path(__file__).parents[3] / "ktp" / "demo" / "article"
RULES = (DEMO / "nodes" / "node-b" / "iptables-legacy-save.txt").read_bytes()


def items(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEMO / "cluster" / name).read_text())["items"]
    return found


def by_namespace(name: str) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for item in items(name):
        out.setdefault(item["metadata"]["namespace"], []).append(item)
    return out


def cluster_info_dump(folder: Path) -> None:
    """kubectl cluster-info dump --output-directory: nodes.json, and a folder a namespace (kubectl/pkg/cmd/clusterinfo)."""
    folder.mkdir()
    (folder / "nodes.json").write_text(json.dumps({"kind": "NodeList", "items": items("nodes.json")}))
    for kind, name in (("ServiceList", "services.json"), ("PodList", "pods.json")):
        for namespace, found in by_namespace(name).items():
            (folder / namespace).mkdir(exist_ok=True)
            (folder / namespace / name).write_text(json.dumps({"kind": kind, "items": found}))
    (folder / "test" / "nginx-log-1").mkdir(exist_ok=True)
    (folder / "test" / "nginx-log-1" / "logs.txt").write_text("==== START logs ====\n")


def must_gather(folder: Path) -> None:
    """oc adm inspect: lists below namespaces/NS/GROUP/, one file a Node (openshift/oc, pkg/cli/admin/inspect)."""
    nodes = folder / "quay-io-sha256" / "cluster-scoped-resources" / "core" / "nodes"
    nodes.mkdir(parents=True)
    for node in items("nodes.json"):
        text = json.dumps({"apiVersion": "v1", "kind": "Node", **node})
        (nodes / f"{node['metadata']['name']}.yaml").write_text(text)
    for group, kind, name in (
        ("core", "ServiceList", "services"), ("core", "PodList", "pods"),
        ("discovery.k8s.io", "EndpointSliceList", "endpointslices"),
    ):  # fmt: skip
        for namespace, found in by_namespace(f"{name}.json").items():
            at = folder / "quay-io-sha256" / "namespaces" / namespace / group
            at.mkdir(parents=True, exist_ok=True)
            (at / f"{name}.yaml").write_text(json.dumps({"kind": kind, "items": found}))


def imported(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    assert run(["snapshot", "import", *map(str, arguments), "-o", "json"]) == status
    done: dict[str, Any] = json.loads(capsys.readouterr().out)
    return done


def verdict(capsys: pytest.CaptureFixture[str], snapshot: Path) -> str:
    run(["--snapshot", str(snapshot), "diagnose", "svc", "test/nginx-externaltrafficpolicy"])
    return capsys.readouterr().out


def test_a_cluster_info_dump_has_no_endpoints_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_info_dump(tmp_path / "dump")
    done = imported(capsys, tmp_path / "dump", tmp_path / "out")
    assert done["imported"]["objects"] == {"Service": 5, "Pod": len(items("pods.json")), "Node": 3}
    assert done["imported"]["unused"] == 1
    assert not (tmp_path / "out" / "cluster" / "endpointslices.json").exists()
    assert "not known" in verdict(capsys, tmp_path / "out")


def test_a_must_gather_answers_as_the_cluster_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    must_gather(tmp_path / "gather")
    done = imported(capsys, tmp_path / "gather", tmp_path / "out")
    assert done["imported"]["objects"]["EndpointSlice"] == len(items("endpointslices.json"))
    assert "answer outside clients on node-a, time out on node-b, node-c" in " ".join(
        verdict(capsys, tmp_path / "out").split()
    )


def test_an_archive_and_rules_by_the_name_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
        for name, content in {
            **{
                f"bundle/{n}.json": (DEMO / "cluster" / f"{n}.json").read_bytes()
                for n in ("services", "nodes")
            },
            "bundle/sosreport-node-b-2026-11-27/iptables.log": RULES,
            "bundle/somewhere/rules.txt": RULES,
            "bundle/notes.md": b"# notes\n",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    done = imported(capsys, tmp_path / "bundle.tar.gz", tmp_path / "out")
    assert done["imported"]["ofNoNode"] == ["bundle.tar.gz/bundle/somewhere/rules.txt"]
    assert done["imported"]["unused"] == 1
    (file,) = (tmp_path / "out" / "nodes" / "node-b").iterdir()
    assert file.read_bytes() == RULES


def test_a_list_of_each_kind_is_whole_and_lists_of_namespaces_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("services", "pods", "nodes"):
        (tmp_path / f"{name}.json").write_bytes((DEMO / "cluster" / f"{name}.json").read_bytes())
    imported(capsys, *(tmp_path / f"{n}.json" for n in ("services", "pods", "nodes")), tmp_path / "whole")
    assert not (tmp_path / "whole" / "cluster" / "partial.json").exists()
    two = by_namespace("pods.json")
    (tmp_path / "two").mkdir()
    for namespace, found in {**two, "other": []}.items():
        pods = {"kind": "PodList", "items": found or [{"metadata": {"namespace": "other", "name": "x"}}]}
        (tmp_path / "two" / f"{namespace}.json").write_text(json.dumps(pods))
    imported(capsys, tmp_path / "services.json", tmp_path / "two", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "cluster" / "partial.json").read_text()) == {
        "cluster/pods.json": "namespace"
    }


def test_nothing_that_is_evidence_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    assert run(["snapshot", "import", str(tmp_path / "notes.txt"), str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert "there is no Service in" in said
    assert "kubectl get services" in said
    assert run(["snapshot", "import", str(tmp_path / "none"), str(tmp_path / "out")]) == 3
    assert run(["snapshot", "import", str(tmp_path / "out")]) == 2
    assert run(["snapshot", "import"]) == 2
    assert run(["--demo", "snapshot", "import", str(tmp_path), str(tmp_path / "out")]) == 2
    assert run(["snapshot", "a", "b"]) == 2


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_objects_are_found_however_they_are_spaced(separators: tuple[str, str]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "ServiceList", "items": []}, separators=separators)
    files = {
        "a.json": text.encode(),
        "b.json": b'{"kind":"ConfigMapList","items":[]}',
        "c.yaml": b"kind: Pod\n",
    }
    assert list(sort_out(files).objects) == ["a.json", "c.yaml"]


def refused(path: Path) -> bytes:
    raise PermissionError(13, "Permission denied", str(path))


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sosreport.tar.xz").write_bytes(b"\xfd7zXZ")
    assert run(["snapshot", "import", str(tmp_path / "sosreport.tar.xz"), str(tmp_path / "out")]) == 3
    assert "unpack it" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        assert run(["snapshot", "import", str(DEMO / "cluster"), str(tmp_path / "out")]) == 3
    assert "cannot be read: permission denied" in capsys.readouterr().err


def test_the_head_tells_which_program_saved_the_rules() -> None:
    heads = {
        "# Generated by iptables-save v1.8.9 (nf_tables) on Fri": "iptables-nft-save.txt",
        "# Generated by iptables-save v1.8.9 (legacy) on Fri": "iptables-legacy-save.txt",
        "# Generated by iptables-nft-save v1.8.9 on Fri": "iptables-nft-save.txt",
        "# Generated by ip6tables-save v1.6.1 on Fri": "ip6tables-save.txt",
        '{"nftables": [': "nft-ruleset.json",
        "table ip nat {": "nft-ruleset.txt",
        "create KUBE-X hash:ip,port": "ipset-save.txt",
    }
    for head, file in heads.items():
        files = {"node-b/output": f"{head}\n".encode()}
        found = sort_out(files)
        place(found, files, ["node-a", "node-b"], {}, printed_for_people, dump_of_listing)
        assert list(found.nodes) == [f"nodes/node-b/{file}"], head


def test_names_that_only_begin_alike_are_other_nodes() -> None:
    files = {"node-10/x": RULES, "mynode-1.txt": RULES}
    found = sort_out(files)
    place(found, files, ["node-1"], {}, printed_for_people, dump_of_listing)
    assert found.nodes == {}
    assert len(found.homeless) == 2


SOCKETS = "Netid State  Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"


@pytest.mark.parametrize(
    ("name", "text", "file"),
    [
        ("ip_-6_rule_list", "0:\tfrom all lookup local\n", "ip6-rule.json"),
        ("iprule.txt", "0:\tfrom all lookup local\n", "ip-rule.json"),
        ("iprule.txt", "0:\tfrom all wonder lookup local\n", None),
        (
            "iproute.txt",
            "default via 192.0.2.1 dev eth0\nlocal 192.0.2.7 dev eth0 table local\n",
            "ip-route.json",
        ),
        ("iproute.txt", "default via 192.0.2.1 dev eth0\nlocal 192.0.2.7 dev eth0 table local odd 3\n", None),
        ("iproute.txt", "default via 192.0.2.1 dev eth0\n", None),
        ("sysctl_-a", "abi.vsyscall32 = 1\nnet.ipv4.ip_forward = 1\n", "sysctl.txt"),
        ("ps", "PID TTY\n", None),
        # Names of files have numbers of their own.
        ("ip_rule_list-2026", "0:\tfrom all lookup local\n", "ip-rule.json"),
        (
            "ip_link",
            "1: lo: <LOOPBACK,UP> mtu 65536\n    link/loopback 00:00\n2: eth0: <UP> mtu 1500\n",
            None,
        ),
        ("ip_addr_show_lo", "1: lo: <LOOPBACK,UP> mtu 65536\n    inet 127.0.0.1/8 scope host lo\n", None),
        # Only what is connected, or one protocol, was asked for.
        ("ss_-tun", SOCKETS + "tcp ESTAB 0 0 10.0.0.1:22 10.0.0.9:5000\n", None),
        ("ss_-ltx", SOCKETS + "tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*\n", None),
        (
            "ss_-ltu",
            SOCKETS + "tcp LISTEN 0 128 0.0.0.0:ssh 0.0.0.0:*\nudp UNCONN 0 0 0.0.0.0:68 0.0.0.0:*\n",
            None,
        ),
        (
            "ss_-a",
            SOCKETS + "tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*\nudp UNCONN 0 0 0.0.0.0:68 0.0.0.0:*\n",
            "ss.txt",
        ),
    ],
)
def test_what_commands_print_for_people(name: str, text: str, file: str | None) -> None:
    found = printed_for_people(name, text.encode())
    assert (found[0] if found is not None else None) == file
    if file == "sysctl.txt":
        assert found == (file, b"net.ipv4.ip_forward = 1\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_answer_of_the_script_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node-script"]) == 0
    (tmp_path / "read.sh").write_text(capsys.readouterr().out)
    inside = "ip link set lo up; ip link add eth0 type veth peer name p; ip addr add 10.0.0.10/24 dev eth0; exec sh read.sh"
    answer = subprocess.run(
        ["unshare", "-n", "sh", "-c", inside], cwd=tmp_path, capture_output=True, check=True
    )
    (tmp_path / "node-b.ktp").write_bytes(answer.stdout)
    imported(capsys, DEMO / "cluster", tmp_path / "node-b.ktp", tmp_path / "out")
    addresses = json.loads((tmp_path / "out" / "nodes" / "node-b" / "ip-addr.json").read_text())
    assert "10.0.0.10" in [a["local"] for i in addresses for a in i["addr_info"]]
    (tmp_path / "node-b.ktp").write_bytes(answer.stdout[: len(answer.stdout) // 2])
    done = imported(capsys, DEMO / "cluster", tmp_path / "node-b.ktp", tmp_path / "cut")
    assert any("breaks off" in gap["message"] for gap in done["gaps"])
