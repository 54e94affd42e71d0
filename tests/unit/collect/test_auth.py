"""What the credentials may read, asked of an API server, and the roles that add the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.auth import ROLE, Permission, User, ask_permissions, manifest, permissions, who_am_i
from ktp.collect.kube_api import KubeApi, connect
from ktp.errors import ApiUnauthorizedError
from tests.support.api_server import ApiServer, Fault


@pytest.fixture
def api(server: ApiServer, write_kubeconfig: Callable[..., Path]) -> KubeApi:
    return connect(write_kubeconfig(server.url), sleep=lambda _: None)


def test_the_server_says_who_asks(api: KubeApi) -> None:
    assert who_am_i(api).name == "jane"


def test_an_old_server_does_not_say_who_asks(api: KubeApi, server: ApiServer) -> None:
    server.tells_user = False
    assert who_am_i(api) == User()


def test_everything_is_allowed(api: KubeApi) -> None:
    assert all(answer.allowed for answer in ask_permissions(api, permissions(None)))


def test_what_is_forbidden_is_found(api: KubeApi, server: ApiServer) -> None:
    server.forbidden = {"nodes", "get services", "pods/exec"}
    answers = ask_permissions(api, permissions(None))
    assert [str(a.permission) for a in answers if not a.allowed] == [
        "get services in all namespaces",
        "list nodes",
        "get pods/exec in namespace kube-system",
        "create pods/exec in namespace kube-system",
    ]


def test_a_fault_is_asked_again(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("selfsubjectreviews", Fault(status=503))
    assert who_am_i(api).name == "jane"


def test_wrong_credentials_are_an_error(server: ApiServer, write_kubeconfig: Callable[..., Path]) -> None:
    api = connect(write_kubeconfig(server.url, user={"token": "stale"}), sleep=lambda _: None)
    with pytest.raises(ApiUnauthorizedError):
        who_am_i(api)


def permission(verb: str, resource: str, namespace: str | None = None, **more: object) -> Permission:
    return Permission(verb=verb, resource=resource, namespace=namespace, purpose="test", **more)  # type: ignore[arg-type]


def test_nothing_missing_needs_no_manifest() -> None:
    assert manifest([], User(name="jane")) == []


def test_the_manifest_holds_exactly_what_is_missing() -> None:
    missing = [permission("list", "nodes"), permission("get", "services"), permission("list", "services")]
    role, binding = manifest(missing, User(name="jane"))
    assert role["kind"] == "ClusterRole"
    assert role["metadata"] == {"name": ROLE}
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list"]},
    ]
    assert binding["kind"] == "ClusterRoleBinding"
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]


def test_rights_in_one_namespace_are_a_role_there() -> None:
    missing = [
        permission("get", "configmaps", "kube-system", names=("kube-proxy",)),
        permission("get", "configmaps", "kube-system", names=("kube-proxy-config",)),
        permission("list", "pods", "kube-system"),
    ]
    role, binding = manifest(missing, User())
    assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "kube-system")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["kube-proxy", "kube-proxy-config"],
            "verbs": ["get"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    assert binding["subjects"][0]["name"] == "USER"


def test_what_is_allowed_everywhere_is_not_repeated() -> None:
    documents = manifest(
        [permission("list", "pods"), permission("list", "pods", "kube-system")], User(name="jane")
    )
    assert [document["kind"] for document in documents] == ["ClusterRole", "ClusterRoleBinding"]


def test_a_service_account_is_bound_as_one() -> None:
    _, binding = manifest([permission("list", "nodes")], User(name="system:serviceaccount:ops:ktp"))
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ktp", "namespace": "ops"}]
