"""The roles in docs/how-to/rbac.md hold what ktp asks an API server for: all of it, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ktp.cli import run
from ktp.collect.auth import permissions
from tests.integration.conftest import DEMO, TOKEN
from tests.support.api_server import OPTIONAL, ApiServer, Pki, Request
from tests.support.exec_server import ExecServer, Program

LOCAL = "test/nginx-externaltrafficpolicy"
# Every authenticated user may ask these: the ClusterRoles system:basic-user and system:public-info-viewer.
OPEN_TO_ALL = re.compile(
    r"/version|/apis/(authorization|authentication)\.k8s\.io/v1/selfsubject\w+|/apis(/(metallb|cilium)\.io/v\w+)?"
)


class Right(NamedTuple):
    """What RBAC grants or a request needs; `namespace` "" is the whole cluster, `name` "" any object."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


def rights_of(roles: Iterable[dict[str, Any]]) -> set[Right]:
    return {
        Right(verb, group, resource, role["metadata"].get("namespace", ""), name)
        for role in roles
        if role["kind"] in {"Role", "ClusterRole"}
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def documented(repository: Path) -> tuple[set[Right], set[Right]]:
    """What the page grants for the API, and what it adds for --node-access kube-proxy."""
    text = (repository / "docs/how-to/rbac.md").read_text()
    manifests = [
        list(yaml.safe_load_all(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    ]
    api, kube_proxy = manifests
    return rights_of(api), rights_of(kube_proxy)


def needed_for(request: Request) -> Right | None:
    if OPEN_TO_ALL.fullmatch(request.path):
        return None
    found = re.fullmatch(
        r"/(?:api|apis/(?P<group>[^/]+))/v(?:1|1beta1|2|2alpha1)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
        r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?P<sub>/exec)?",
        request.path,
    )
    assert found, request.path
    assert request.method == "GET", request  # a WebSocket is a GET too
    return Right(
        "get" if found["name"] else "list",
        found["group"] or "",
        found["resource"] + (found["sub"] or ""),
        found["namespace"] or "",
        found["name"] or "",
    )


def is_granted(needed: Right, granted: set[Right]) -> bool:
    return any(
        (right.verb, right.group, right.resource) == needed[:3]
        and right.namespace in {"", needed.namespace}
        and right.name in {"", needed.name}
        for right in granted
    )


@pytest.fixture
def server(pki: Pki) -> Iterator[ApiServer]:
    # Asked for is asked for: a refusal is the quickest answer.
    execs = ExecServer(lambda command, stdin: Program(), refuse=(403, "pods/exec is forbidden"))
    with ApiServer(DEMO, token=TOKEN, pki=pki, execs=execs).running() as running:
        for node in ("node-a", "node-b"):
            metadata = {
                "name": f"kube-proxy-{node}",
                "namespace": "kube-system",
                "labels": {"k8s-app": "kube-proxy"},
            }
            spec = {"nodeName": node, "hostNetwork": True, "containers": [{"name": "kube-proxy"}]}
            running.objects["pods"].append(
                {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}
            )
        running.groups |= OPTIONAL
        yield running


def asked_for(server: ApiServer, kubeconfig: Path, folder: Path, access: str) -> set[Right]:
    """What all commands ask for, in their usual ways and where names are wrong or objects are of an old server."""
    kinds = (
        ["diagnose", "svc", LOCAL],
        ["diagnose", "svc", "-A"],
        ["diagnose", "svc", "-n", "test"],
        ["diagnose", "svc", "test/nginx-lgo"],
        ["diagnose", "svc", "tset/nginx-log"],
        ["explain-rules", LOCAL],
        ["trace", "--from", "198.51.100.7", "--to", "10.0.0.10:31015"],
        ["what-if", LOCAL, "--policy", "Cluster"],
        ["snapshot", str(folder / "out")],
        ["auth"],
    )
    server.requests.clear()
    for words in kinds:
        run([*words, "--kubeconfig", str(kubeconfig), "--node-access", access])
    server.unknown.add("endpointslices")
    for words in (["diagnose", "svc", LOCAL], ["diagnose", "svc", "-A"]):
        run([*words, "--kubeconfig", str(kubeconfig), "--node-access", access])
    return {right for request in server.requests if (right := needed_for(request)) is not None}


@pytest.mark.parametrize("access", ["none", "kube-proxy"])
def test_the_page_grants_what_is_asked_for_and_nothing_else(
    access: str, server: ApiServer, kubeconfig: Callable[..., Path], tmp_path: Path, repository: Path
) -> None:
    api, kube_proxy = documented(repository)
    granted = api | (kube_proxy if access == "kube-proxy" else set())
    asked = asked_for(server, kubeconfig(), tmp_path, access)
    assert [right for right in sorted(asked) if not is_granted(right, granted)] == []
    # A server from 1.35 on asks for "create" too where a WebSocket is opened.
    unused = {right for right in granted if not any(is_granted(needed, {right}) for needed in asked)}
    assert unused == ({Right("create", "", "pods/exec", "kube-system")} if access == "kube-proxy" else set())


def test_auth_asks_about_the_same_rights(repository: Path) -> None:
    api, kube_proxy = documented(repository)
    asked = {
        Right(p.verb, p.group, p.resource, p.namespace or "", name)
        for p in permissions(None)
        for name in (p.names or ("",))
    }
    # Pods of kube-system are among those of all namespaces.
    assert asked - {Right("list", "", "pods", "kube-system")} == (api | kube_proxy) - {
        Right("list", "", "pods", "kube-system")
    }
