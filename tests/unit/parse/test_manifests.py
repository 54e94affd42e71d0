"""Objects in any form that kubectl prints in full; what stands alone is some of its kind, not all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.cli import run
from ktp.collect.snapshot import open_snapshot
from ktp.errors import EvidenceError
from ktp.model.cluster import Cluster, Scope
from ktp.parse.manifests import with_lists
from tests.support.clusters import parse_cluster

ARTICLE = Path(__file__).resolve().parents[3] / "ktp/demo/article/cluster"
NAME = "nginx-externaltrafficpolicy"


def items(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ARTICLE / f"{name}.json").read_bytes())["items"]
    return found


EVERYTHING = [item for name in ("services", "endpointslices", "pods", "nodes") for item in items(name)]
SERVICE = next(item for item in items("services") if item["metadata"]["name"] == NAME)
SLICE = next(
    item
    for item in items("endpointslices")
    if item["metadata"]["labels"]["kubernetes.io/service-name"] == NAME
)
NODES = items("nodes")
LIST = {"apiVersion": "v1", "kind": "List", "items": EVERYTHING}


def documents(*objects: object) -> str:
    return "---\n".join(yaml.safe_dump(each) for each in objects)


def read(text: str | bytes, tmp_path: Path, name: str = "objects.yaml") -> Cluster:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_cluster(with_lists(open_snapshot(path)))


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump(LIST),
        json.dumps(LIST),
        json.dumps(LIST, indent=4).encode("utf-16"),
        "```yaml\n$ kubectl get services,endpointslices,pods,nodes -A -o yaml\n" + yaml.safe_dump(LIST) + "```\n",
        "".join(f"> {line}\n" for line in yaml.safe_dump(LIST).splitlines()),
        documents(*({"kind": f"{kind}List", "items": [{k: v for k, v in item.items() if k != "kind"}
                    for item in EVERYTHING if item["kind"] == kind]} for kind in ("Service", "EndpointSlice", "Pod", "Node"))),
    ],
    ids=["yaml", "json", "utf-16", "fenced", "quoted", "typed lists"],
)  # fmt: skip
def test_a_list_is_all_of_its_kind(text: str | bytes, tmp_path: Path) -> None:
    cluster = read(text, tmp_path)
    article = parse_cluster(open_snapshot(ARTICLE.parent))
    assert (cluster.services, cluster.slices, cluster.pods, cluster.nodes) == (
        article.services,
        article.slices,
        article.pods,
        article.nodes,
    )
    assert cluster.has_all("pods")
    assert not cluster.partial


@pytest.mark.parametrize("name", ["services.yaml", "services.json", "from-kubectl.txt", "a.yml"])
def test_names_of_files_in_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / name).write_text(yaml.safe_dump({"kind": "List", "items": items("services")}))
    (tmp_path / "cluster/nodes.json").write_bytes((ARTICLE / "nodes.json").read_bytes())
    cluster = parse_cluster(with_lists(open_snapshot(tmp_path)))
    assert f"test/{NAME}" in cluster.services
    assert cluster.has_all("nodes")
    assert cluster.pods is None


@pytest.mark.parametrize("form", [documents, lambda *o: "\n".join(json.dumps(each, indent=1) for each in o)])
def test_objects_alone_are_some_of_theirs(
    form: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = read(form(SERVICE, SLICE, NODES[0]), tmp_path)
    assert dict(cluster.partial) == dict.fromkeys(("services", "slices", "nodes"), Scope.SOME)
    assert not cluster.has_all("nodes")
    snapshot = str(tmp_path / "objects.yaml")
    assert run(["diagnose", "svc", f"test/{NAME}", "--snapshot", snapshot, "-o", "json"]) == 0
    gaps = {gap["kind"]: gap["message"] for gap in json.loads(capsys.readouterr().out)["gaps"]}
    assert gaps["nodes"] == "only some nodes were given; of others nothing is known"


def test_a_service_whose_slices_were_not_among_those_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(item for item in items("services") if item["metadata"]["name"] == "springboot")
    (tmp_path / "objects.yaml").write_text(documents(SERVICE, other, SLICE, *NODES))
    ask = ["diagnose", "svc", "--snapshot", str(tmp_path / "objects.yaml"), "-o", "json"]
    assert run([*ask, "test/springboot"]) == 4
    said = json.loads(capsys.readouterr().out)
    rows = said["frontends"][0]["nodes"]
    symptoms = {cell["symptom"] for row in rows for cell in row.values() if isinstance(cell, dict)}
    assert symptoms == {"unknown"}
    assert not said["findings"]
    assert run([*ask, f"test/{NAME}"]) == 1
    assert "KTP501" in {finding["code"] for finding in json.loads(capsys.readouterr().out)["findings"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NAME  TYPE  CLUSTER-IP\nx  NodePort  1.2.3.4\n", "is a table that kubectl prints for people"),
        ("$ kubectl get pods -A -o wide\nNAMESPACE  NAME  READY\na  b  1/1\n", "is a table that kubectl"),
        ("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", "holds packet filter rules"),
        ("kind: Service\n metadata: {{\n", r"is neither JSON nor YAML \(line 2: "),
        (documents(items("pods")[0]), "has no Service in it: it holds Pod"),
        ("just: words\n", "holds no Kubernetes objects"),
        (json.dumps({"kind": "Status", "message": "forbidden"}), "holds an error of the API server: forbidden"),
    ],
)  # fmt: skip
def test_what_is_too_little_or_something_else(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=words):
        read(text, tmp_path)
