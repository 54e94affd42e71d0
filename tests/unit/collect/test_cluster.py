"""What is read from the API server for a question, what is not, and what becomes of a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.cluster import collect_service, collect_services, near_names
from ktp.collect.kube_api import KubeApi, connect
from ktp.errors import (
    ApiAnswerError,
    ApiForbiddenError,
    ApiUnauthorizedError,
    ExitCode,
    NotFoundError,
    UsageError,
)
from ktp.model.capture import Capture
from tests.support.api_server import ApiServer, Fault


@pytest.fixture
def api(server: ApiServer, write_kubeconfig: Callable[..., Path]) -> KubeApi:
    return connect(write_kubeconfig(server.url), sleep=lambda _: None)


def keys(capture: Capture, name: str) -> list[str]:
    items = json.loads(capture.read(f"cluster/{name}.json"))["items"]
    return [f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}" for item in items]


def kube_proxy_pod(node: str) -> dict[str, object]:
    return {
        "metadata": {
            "name": f"kube-proxy-{node}",
            "namespace": "kube-system",
            "labels": {"k8s-app": "kube-proxy"},
        },
        "spec": {"nodeName": node, "containers": [{"image": "registry.k8s.io/kube-proxy:v1.30.2"}]},
    }


def config_map(name: str, data: dict[str, str]) -> dict[str, object]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"}, "data": data}


# -------------------------------------------------------------------------------------------------- one Service


def test_one_service_reads_only_what_concerns_it(api: KubeApi, server: ApiServer) -> None:
    server.objects["pods"].append(kube_proxy_pod("node-a"))
    server.objects["configmaps"] = [config_map("kube-proxy", {"config.conf": "mode: nftables\n"})]
    capture = collect_service(api, "test", "nginx-log")
    assert keys(capture, "services") == ["test/nginx-log"]
    assert keys(capture, "endpointslices") == ["test/nginx-log-t9scg"]
    assert keys(capture, "pods") == ["test/nginx-log-0", "test/nginx-log-1", "kube-system/kube-proxy-node-a"]
    assert keys(capture, "nodes") == ["/node-a", "/node-b", "/node-c"]
    assert json.loads(capture.read("cluster/version.json"))["gitVersion"] == "v1.36.2"
    assert capture.node_names() == ("node-a", "node-b", "node-c")
    assert capture.read("nodes/node-b/kube-proxy-config.yaml") == b"mode: nftables\n"
    assert capture.gaps == ()
    assert capture.source == api.source
    assert not capture.has("cluster/endpoints.json")
    assert not {"/api/v1/services", "/api/v1/pods", "/api/v1/namespaces/test/services"} & set(server.paths())


def test_a_service_without_selector_asks_for_no_pods(api: KubeApi, server: ApiServer) -> None:
    capture = collect_service(api, "default", "kubernetes")
    assert "/api/v1/namespaces/default/pods" not in server.paths()
    assert keys(capture, "endpointslices") == ["default/kubernetes"]


def test_a_selector_with_two_labels(api: KubeApi, server: ApiServer) -> None:
    server.objects["services"][0]["spec"]["selector"] = {"b": "2", "a": "1"}
    collect_service(api, "default", "kubernetes")
    asked = next(request for request in server.requests if request.path == "/api/v1/namespaces/default/pods")
    assert asked.query["labelSelector"] == "a=1,b=2"


@pytest.mark.parametrize("absence", ["unknown group", "no slices"])
def test_endpoints_stand_in_for_missing_slices(api: KubeApi, server: ApiServer, absence: str) -> None:
    if absence == "unknown group":
        server.unknown = {"endpointslices"}
    else:
        server.objects["endpointslices"] = []
    capture = collect_service(api, "test", "nginx")
    assert keys(capture, "endpoints") == ["test/nginx"]
    assert capture.has("cluster/endpointslices.json") == (absence == "no slices")
    assert [gap.kind for gap in capture.gaps] == ["kube-proxy-config"]


def test_neither_slices_nor_endpoints(api: KubeApi, server: ApiServer) -> None:
    server.objects["endpointslices"] = server.objects["endpoints"] = []
    capture = collect_service(api, "test", "nginx")
    assert keys(capture, "endpoints") == keys(capture, "endpointslices") == []


def test_kube_proxys_configuration_as_eks_keeps_it(api: KubeApi, server: ApiServer) -> None:
    server.objects["configmaps"] = [
        config_map("kube-proxy", {"kubeconfig.conf": "-"}), config_map("kube-proxy-config", {"config": "mode: ipvs"}),
    ]  # fmt: skip
    assert collect_service(api, "test", "nginx").read("nodes/node-a/kube-proxy-config.yaml") == b"mode: ipvs"


# -------------------------------------------------------------------------------------------------- refusals


def test_nodes_and_pods_may_be_forbidden(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"nodes", "pods", "configmaps"}
    capture = collect_service(api, "test", "nginx")
    assert keys(capture, "services") == ["test/nginx"]
    assert not capture.has("cluster/nodes.json")
    assert not capture.has("cluster/pods.json")
    assert [(gap.kind, gap.subject) for gap in capture.gaps] == [
        ("api-forbidden", "nodes"),
        ("api-forbidden", "pods"),
        ("kube-proxy-config", "kube-system/kube-proxy"),
        ("api-forbidden", "kube-system/kube-proxy"),
    ]
    assert capture.gaps[0].message.startswith('user "jane" may not list nodes across the cluster; ')
    assert "--resource=nodes" in str(capture.gaps[0].remedy)


def test_forbidden_slices_are_replaced_by_endpoints_and_named(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"endpointslices"}
    capture = collect_service(api, "test", "nginx")
    assert keys(capture, "endpoints") == ["test/nginx"]
    assert ("api-forbidden", "endpointslices") in [(gap.kind, gap.subject) for gap in capture.gaps]


def test_no_endpoints_of_any_kind(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"endpointslices", "endpoints"}
    for capture in (collect_service(api, "test", "nginx"), collect_services(api, None)):
        assert not capture.has("cluster/endpoints.json")
        assert [gap.kind for gap in capture.gaps][:2] == ["api-forbidden", "api-forbidden"]


def test_a_forbidden_service_is_an_error(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"services"}
    with pytest.raises(ApiForbiddenError, match='may not get services in namespace "test"') as caught:
        collect_service(api, "test", "nginx")
    assert caught.value.exit_code is ExitCode.EVIDENCE
    with pytest.raises(ApiForbiddenError, match="may not list services across the cluster"):
        collect_services(api, None)


def test_a_server_that_cannot_list_pods_leaves_a_gap(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/namespaces/test/pods", *[Fault(status=500)] * 9)
    capture = collect_service(api, "test", "nginx")
    assert ("pods", "pods") in [(gap.kind, gap.subject) for gap in capture.gaps]


def test_a_server_that_cannot_list_slices_is_an_error(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("endpointslices", *[Fault(status=500)] * 9)
    with pytest.raises(ApiAnswerError):
        collect_service(api, "test", "nginx")


def test_wrong_credentials_are_not_a_gap(server: ApiServer, write_kubeconfig: Callable[..., Path]) -> None:
    with pytest.raises(ApiUnauthorizedError):
        collect_services(connect(write_kubeconfig(server.url, user={"token": "old"})), None)


# ---------------------------------------------------------------------------------------------- several Services


def test_all_services_of_the_cluster(api: KubeApi, server: ApiServer) -> None:
    capture = collect_services(api, None)
    assert len(keys(capture, "services")) == len(keys(capture, "endpointslices")) == 6
    assert len(keys(capture, "pods")) == 7
    assert not capture.has("cluster/endpoints.json")
    assert server.paths().count("/api/v1/pods") == 1


def test_the_services_of_one_namespace(api: KubeApi, server: ApiServer) -> None:
    server.objects["pods"].append(kube_proxy_pod("node-a"))
    capture = collect_services(api, "test")
    assert {key.split("/")[0] for key in keys(capture, "services")} == {"test"}
    assert {key.split("/")[0] for key in keys(capture, "pods")} == {"test", "kube-system"}


def test_endpoints_of_all_services_where_there_are_no_slices(api: KubeApi, server: ApiServer) -> None:
    server.unknown = {"endpointslices"}
    assert len(keys(collect_services(api, "test"), "endpoints")) == 3


def test_an_empty_namespace_is_no_error(api: KubeApi, server: ApiServer) -> None:
    server.objects["namespaces"].append({"metadata": {"name": "empty"}})
    assert keys(collect_services(api, "empty"), "services") == []


# -------------------------------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(
    ("namespace", "name", "message", "near"),
    [
        (
            "test",
            "ngnix",
            'no Service "ngnix" in namespace "test"; did you mean "nginx"',
            ("nginx",),
        ),
        ("tset", "nginx", 'there is no namespace "tset"; did you mean "test"?', ("test",)),
        (
            "edge",
            "nginx",
            'no Service "nginx" in namespace "edge"; did you mean "test/nginx"?',
            ("test/nginx",),
        ),
        ("test", "zzz", 'no Service "zzz" in namespace "test"', ()),
        ("zzz", "nginx", 'there is no namespace "zzz"', ()),
    ],
)
def test_a_wrong_name(api: KubeApi, namespace: str, name: str, message: str, near: tuple[str, ...]) -> None:
    with pytest.raises(NotFoundError) as caught:
        collect_service(api, namespace, name)
    assert caught.value.message.startswith(message)
    assert caught.value.near[: len(near)] == near
    assert bool(caught.value.near) == bool(near)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_wrong_namespace_for_all_its_services(api: KubeApi) -> None:
    with pytest.raises(NotFoundError, match=r'no namespace "tset"; did you mean "test"'):
        collect_services(api, "tset")


def test_suggestions_need_no_permission(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"namespaces"}
    server.misbehave("/namespaces/test/services($|[?])", Fault(status=403))
    server.misbehave("/v1/services", Fault(status=403))
    with pytest.raises(NotFoundError, match=r'^no Service "ngnix" in namespace "test"$'):
        collect_service(api, "test", "ngnix")


@pytest.mark.parametrize(("namespace", "name"), [("", "x"), ("x", "")])
def test_an_empty_name_is_not_asked_for(api: KubeApi, server: ApiServer, namespace: str, name: str) -> None:
    with pytest.raises(UsageError):
        collect_service(api, namespace, name)
    assert server.requests == []


def test_a_name_cannot_lead_to_another_path(api: KubeApi, server: ApiServer) -> None:
    with pytest.raises(NotFoundError):
        collect_service(api, "test", "../secrets/key")
    assert "/api/v1/namespaces/test/services/../secrets/key" in server.paths()


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("nginx", ["nginx-log", "redis"], ("nginx-log",)),
        ("web-frontend-prod", ["web", "x"], ("web",)),
        ("a", ["abc"], ()),
        ("abc", [], ()),
    ],
)
def test_near_names(name: str, names: list[str], near: tuple[str, ...]) -> None:
    assert near_names(name, names) == near
