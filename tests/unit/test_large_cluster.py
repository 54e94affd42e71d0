"""A large cluster is read and diagnosed within bounds; the generator is bench/large_cluster.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.errors import EvidenceError
from ktp.parse.kubernetes import parse_pods
from ktp.parse.snapshot import parse_snapshot

MEASURE = """
import json, os, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def pod(number: int) -> str:
    return f'{{"kind":"Pod","metadata":{{"name":"web-{number}","labels":{{"app":"web"}}}},"spec":{{"nodeName":"a"}}}}'


def list_of(*pods: str) -> str:
    return '{"kind":"List","items":[' + ",".join(pods) + "]}"


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def generate(**sizes: int) -> Path:
        out = tmp_path_factory.mktemp("large") / "snap"
        script = Path(__file__).resolve().parents[2] / "bench" / "large_cluster.py"
        options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
        subprocess.run([sys.executable, str(script), str(out), *options], check=True)
        return out

    return generate


def test_the_generated_cluster_is_complete(generate: Callable[..., Path]) -> None:
    snapshot = parse_snapshot(open_snapshot(generate(nodes=30, services=200, endpoints=2000)))
    assert {gap.kind for gap in snapshot.gaps} == {"node-rules"}  # no node was read
    assert len(snapshot.cluster.services) == 200
    assert len(snapshot.cluster.pods or ()) == 2000
    assert sum(len(piece.endpoints) for piece in snapshot.cluster.slices or ()) == 2000
    addresses = [address for pod in snapshot.cluster.pods or () for address in pod.pod_ips]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.slow
def test_the_whole_cluster_in_ten_seconds_and_one_gigabyte(generate: Callable[..., Path]) -> None:
    snapshot = generate(nodes=5_000, services=10_000, endpoints=100_000)
    command = [sys.executable, "-m", "ktp", "--snapshot", str(snapshot), "diagnose", "svc", "-A"]
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    status, seconds, megabytes = json.loads(answer.stdout)
    assert status == 1  # Services with externalTrafficPolicy Local are not answered by every node
    assert seconds < 10
    assert megabytes < 1000


# A list is read object by object where it has the usual shape, else whole: both ways give the same.


@pytest.mark.parametrize(
    "text",
    [
        '{"apiVersion":"v1","items":[%s],"kind":"List","metadata":{}}',
        ' {\n"kind" : "List" ,\n"items" : [ %s ] } \n',
        '{"items":[%s]}',
        "[%s]",
    ],
)
def test_lists_of_every_shape(text: str) -> None:
    pods = parse_pods(text.replace("%s", ",\n".join(pod(number) for number in range(3))))
    assert [pod.name for pod in pods] == ["web-0", "web-1", "web-2"]
    assert pods[0].labels == {"app": "web"}


def test_objects_of_a_typed_list_need_no_kind() -> None:
    bare = '"items":[{"metadata":{"name":"web"}}]'
    assert len(parse_pods('{"kind":"PodList",' + bare + "}")) == 1
    for text in ('{"kind":"ServiceList",' + bare + "}", "{" + bare + ',"kind":"ServiceList"}'):
        with pytest.raises(EvidenceError, match="should hold Pod objects and holds ServiceList"):
            parse_pods(text)


def test_other_kinds_in_a_list_are_left_out() -> None:
    assert len(parse_pods(list_of(pod(1), '{"kind":"Secret","metadata":{}}'))) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"items":[%s',
        '{"items":[%s]',
        '{"items":[%s,]}',
        '{"items":[%s]}x',
        '{"items":[%s %s]}',
        '{"items":[%s],}',
    ],
)
def test_a_damaged_list_is_said_to_be_one(text: str) -> None:
    with pytest.raises(EvidenceError, match="is not valid JSON"):
        parse_pods(text.replace("%s", pod(1)))


def test_pods_that_are_alike_share_what_is_alike() -> None:
    first, second = parse_pods(list_of(pod(1), pod(2)))
    assert first.labels is second.labels


def test_one_pod_with_two_ports_is_not_one_with_one() -> None:
    head = '{"kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","ports":['
    two = head + '{"containerPort":80},{"containerPort":81}]}]}}'
    one = head + '{"containerPort":80,"hostPort":81}]}]}}'
    assert [len(each.ports) for each in parse_pods(list_of(two, one))] == [2, 1]
