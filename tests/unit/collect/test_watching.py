"""The copy of the API's objects that watches keep up to date, against a server that watches are asked of."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ktp.collect import watching
from ktp.collect.kube_api import KubeApi
from ktp.collect.watching import ClusterWatch
from tests.support.api_server import ApiServer, Fault
from tests.support.clusters import parse_cluster

CASE = Path(__file__).resolve().parents[2] / "data" / "cases" / "core-1.36-iptables-nft"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer(CASE)
    made.bookmark_every = 0.1
    with made.running() as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> KubeApi:
    import urllib3

    return KubeApi(
        host=server.url,
        pool=urllib3.PoolManager(maxsize=4),
        authorization=lambda: None,
        source="test",
        sleep=lambda _: None,
    )


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(watching, "_MOST_WAIT", 0.1)


@pytest.fixture
def feed(api: KubeApi) -> Iterator[ClusterWatch]:
    made = ClusterWatch(api, "node-b")
    made.start(watch=True)
    made.refresh()
    yield made
    made.stop()


def until(what: Callable[[], Any], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def of(server: ApiServer, resource: str, name: str) -> dict[str, Any]:
    found = next(i for i in server.objects[resource] if i["metadata"]["name"].startswith(name))
    return copy.deepcopy(found)


def names(feed: ClusterWatch) -> set[str]:
    return set(parse_cluster(feed.capture()).services)


def test_only_external_services_and_their_endpoints_are_kept(feed: ClusterWatch, server: ApiServer) -> None:
    cluster = parse_cluster(feed.capture())
    external = {
        f"{s['metadata']['namespace']}/{s['metadata']['name']}"
        for s in server.objects["services"]
        if s["spec"]["type"] in ("NodePort", "LoadBalancer") or s["spec"].get("externalIPs")
    }
    assert set(cluster.services) == external
    assert len(external) < len(server.objects["services"])
    assert {s.service_name for s in cluster.slices or ()} <= {key.partition("/")[2] for key in external}
    assert cluster.slices
    assert list(cluster.nodes or ()) == ["node-b"]
    # Neither list is the cluster's whole one, and none is taken for it.
    assert not cluster.has_all("nodes")
    assert not cluster.has_all("slices")
    assert not [path for path in server.paths() if path.endswith(("/pods", "/nodes"))]


def test_what_changes_arrives_without_another_list(feed: ClusterWatch, server: ApiServer) -> None:
    before = feed.revision
    gone = of(server, "services", "cluster-none")
    server.delete("services", gone)
    until(lambda: "edge/cluster-none" not in names(feed))
    assert feed.revision != before
    server.put("services", gone)
    until(lambda: "edge/cluster-none" in names(feed))
    inner = next(
        copy.deepcopy(s)
        for s in server.objects["services"]
        if s["spec"]["type"] == "ClusterIP" and not s["spec"].get("externalIPs")
    )
    inner["spec"]["type"] = "NodePort"
    server.put("services", inner)
    until(lambda: f"{inner['metadata']['namespace']}/{inner['metadata']['name']}" in names(feed))
    part = of(server, "endpointslices", "nginx-externaltrafficpolicy")
    part["endpoints"] = []
    server.put("endpointslices", part)
    until(
        lambda: (
            not any(
                s.endpoints
                for s in parse_cluster(feed.capture()).slices or ()
                if s.service_name == "nginx-externaltrafficpolicy"
            )
        )
    )
    assert feed.lists == 2


def test_a_forgotten_version_is_listed_again(feed: ClusterWatch, server: ApiServer) -> None:
    gone = of(server, "services", "cluster-none")
    server.delete("services", gone)
    until(lambda: "edge/cluster-none" not in names(feed))
    server.forget()
    until(lambda: feed.lists == 4)
    server.put("services", gone)
    until(lambda: "edge/cluster-none" in names(feed))
    assert feed.lists == 4


def test_a_server_that_is_away_is_told_of_and_found_again(feed: ClusterWatch, server: ApiServer) -> None:
    server.misbehave("watch=1", *[Fault(status=503)] * 12)
    server.forget()  # ends the watches that run
    until(lambda: feed.problem is not None)
    heard = feed.heard
    assert names(feed)  # what was known is known
    until(lambda: feed.problem is None and feed.heard > heard)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'"a string"\n',
        b'{"type": "ADDED"}\n',
        b'{"type":"ERROR","object":{"code":500,"message":"etcd"}}\n',
        b"\n\n",
    ],
)
def test_what_is_no_event_ends_the_watch_and_not_the_program(
    feed: ClusterWatch, server: ApiServer, line: bytes
) -> None:
    server.misbehave("services.*watch=1", *[Fault(body=line)] * 3)
    server.forget()
    gone = of(server, "services", "cluster-none")
    server.delete("services", gone)
    until(lambda: "edge/cluster-none" not in names(feed))


def test_a_list_that_was_begun_again_holds_nothing_of_the_first(
    server: ApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ktp.collect import kube_api

    monkeypatch.setattr(kube_api, "PAGE_SIZE", 10)
    monkeypatch.setitem(KubeApi.list_pages.__kwdefaults__ or {}, "limit", 10)
    gone = of(server, "services", "cluster-none")
    server.objects["services"].sort(
        key=lambda s: s["metadata"]["name"] != "cluster-none"
    )  # on the first page
    server.misbehave("services.*continue", Fault(status=410))
    answers = iter([False, True])

    def pages(path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/services") and "continue" not in query and next(answers, True):
            server.objects["services"] = [
                s for s in server.objects["services"] if s["metadata"]["name"] != "cluster-none"
            ]
        return ApiServer.answer(server, path, query)

    monkeypatch.setattr(server, "answer", pages)
    feed = ClusterWatch(api, "node-b")
    feed.start(watch=False)
    assert f"edge/{gone['metadata']['name']}" not in names(feed)
    assert names(feed)


def test_bookmarks_tell_that_the_server_is_there(feed: ClusterWatch) -> None:
    heard = feed.heard
    until(lambda: feed.heard > heard)
    before = feed.revision
    time.sleep(0.3)
    assert feed.revision == before


def test_a_stranger_brings_the_endpoints_that_have_its_address(feed: ClusterWatch, server: ApiServer) -> None:
    inner = next(
        s
        for s in server.objects["endpointslices"]
        if s["endpoints"]
        and f"{s['metadata']['namespace']}/{s['metadata']['labels']['kubernetes.io/service-name']}"
        not in names(feed)
    )
    address = inner["endpoints"][0]["addresses"][0]
    name = inner["metadata"]["labels"]["kubernetes.io/service-name"]
    assert name not in {s.service_name for s in parse_cluster(feed.capture()).slices or ()}
    asked = parse_cluster(feed.capture([address]))
    assert name in {s.service_name for s in asked.slices or ()}
    assert asked.has_all("slices")


def test_endpoints_where_the_server_has_no_slices(server: ApiServer, api: KubeApi) -> None:
    server.unknown.add("endpointslices")
    server.objects["endpoints"] = [
        {"metadata": {"namespace": "test", "name": "nginx-externaltrafficpolicy"}, "subsets": []}
    ]
    feed = ClusterWatch(api, "node-b")
    feed.start(watch=False)
    cluster = parse_cluster(feed.capture())
    assert [e.service_name for e in cluster.endpoints or ()] == ["nginx-externaltrafficpolicy"]
    assert cluster.slices is None


def test_no_thread_is_left(api: KubeApi) -> None:
    before = threading.active_count()
    feed = ClusterWatch(api, "node-b")
    feed.start(watch=True)
    assert json.loads(feed.capture().read("cluster/services.json"))["items"]
    feed.stop()
    until(lambda: threading.active_count() <= before + 2)  # the server's own


def test_a_server_that_falls_silent_is_said_with_the_time_that_was_waited(
    server: ApiServer, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ktp.collect import kube_api
    from ktp.errors import ApiUnreachableError

    monkeypatch.setattr(kube_api, "WATCH_GRACE", -0.5)
    server.bookmark_every = 60.0
    with pytest.raises(ApiUnreachableError, match=r"gave no answer within 0\.5 s"):
        list(api.watch("/api/v1/services", str(server.version_of_all), seconds=1))
