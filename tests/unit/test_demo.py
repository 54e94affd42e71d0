"""The packaged snapshot: the cluster of the article, complete and free of everything else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ktp.app.settings import demo_path
from ktp.collect.snapshot import open_snapshot
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot


@pytest.fixture(scope="module")
def demo() -> Snapshot:
    return parse_snapshot(open_snapshot(demo_path()))


def test_nothing_is_missing(demo: Snapshot) -> None:
    assert demo.gaps == ()


def test_the_nodes_are_those_of_the_article(demo: Snapshot) -> None:
    assert demo.cluster.nodes is not None
    assert {name: node.addresses_of("InternalIP") for name, node in demo.cluster.nodes.items()} == {
        "node-a": ("10.0.0.3",),
        "node-b": ("10.0.0.10",),
        "node-c": ("10.0.0.13",),
    }
    assert set(demo.nodes) == set(demo.cluster.nodes)
    assert all(node.has_rules for node in demo.nodes.values())


@pytest.mark.parametrize(
    ("service", "node_port", "policy"),
    [("test/nginx-externaltrafficpolicy", 31015, "Local"), ("test/nginx-log", 31465, "Cluster")],
)
def test_the_services_are_those_of_the_article(
    demo: Snapshot, service: str, node_port: int, policy: str
) -> None:
    found = demo.cluster.services[service]
    assert [port.node_port for port in found.ports] == [node_port]
    assert found.external_traffic_policy == policy


def test_only_one_namespace_is_there(demo: Snapshot) -> None:
    assert {service.namespace for service in demo.cluster.services.values()} == {"test"}
    text = b"".join(file.read_bytes() for file in demo_path().rglob("*-save.txt"))
    assert b"edge/" not in text
    assert b"default/" not in text


def test_every_chain_that_is_jumped_to_is_declared(demo: Snapshot) -> None:
    for node in sorted((demo_path() / "nodes").iterdir()):
        for file in node.glob("*-save.txt"):
            _check_chains(file)


def _check_chains(file: Path) -> None:
    declared: set[str] = set()
    for line in file.read_text().splitlines():
        if line.startswith("*"):
            declared = set()
        elif line.startswith(":"):
            declared.add(line[1:].split()[0])
        elif " -A " in line:
            words = line.split()
            assert words[words.index("-A") + 1] in declared
            for word, target in pairwise(words):
                if word in {"-j", "-g"} and target.startswith("KUBE-"):
                    assert target in declared, line


def test_it_holds_no_copies_of_manifests() -> None:
    assert b"last-applied" not in b"".join(file.read_bytes() for file in demo_path().rglob("*.json"))
