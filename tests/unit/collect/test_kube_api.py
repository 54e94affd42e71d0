"""The transport over real sockets: authentication, pages, retries, and what each failure is called."""

from __future__ import annotations

import base64
import email.utils
import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.kube_api import EMPTY_LIST, KubeApi, connect
from ktp.errors import (
    ApiAnswerError,
    ApiForbiddenError,
    ApiNotFoundError,
    ApiTlsError,
    ApiUnauthorizedError,
    ApiUnreachableError,
    ExitCode,
    KtpError,
    KubeConfigError,
)
from tests.support.api_server import ApiServer, Fault, Pki

WriteKubeconfig = Callable[..., Path]


class Naps(list[float]):
    """Stands in for time.sleep and remembers how long each nap would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
def api(server: ApiServer, write_kubeconfig: WriteKubeconfig, naps: Naps) -> KubeApi:
    return connect(write_kubeconfig(server.url), read_timeout=0.3, connect_timeout=0.3, sleep=naps)


def names(items: tuple[bytes, ...]) -> list[str]:
    return [json.loads(item)["metadata"]["name"] for item in items]


# ------------------------------------------------------------------------------------------------ good answers


def test_get_sends_the_token_and_returns_the_object(api: KubeApi, server: ApiServer) -> None:
    service = api.get("/api/v1/namespaces/test/services/nginx")
    assert service["metadata"]["name"] == "nginx"
    assert server.requests[0].authorization == "Bearer good-token"


def test_source_names_server_and_context(api: KubeApi, server: ApiServer) -> None:
    assert api.source == f"API server {server.url} (context test)"


def test_pages_are_joined_in_order(api: KubeApi, server: ApiServer) -> None:
    pods = api.list_pages("/api/v1/pods", limit=3)
    assert names(pods.items) == [pod["metadata"]["name"] for pod in server.objects["pods"]]
    assert [request.query.get("limit") for request in server.requests] == ["3", "3", "3"]


def test_items_become_a_list_as_kubectl_prints_it(api: KubeApi, server: ApiServer) -> None:
    server.objects["endpointslices"][0]["metadata"]["managedFields"] = [
        {"manager": "kube-controller-manager"}
    ]
    printed = json.loads(api.list_pages("/apis/discovery.k8s.io/v1/endpointslices").to_json())
    assert (printed["apiVersion"], printed["kind"]) == ("v1", "List")
    assert len(printed["items"]) == 6
    assert {(item["apiVersion"], item["kind"]) for item in printed["items"]} == {
        ("discovery.k8s.io/v1", "EndpointSlice")
    }
    assert "managedFields" not in printed["items"][0]["metadata"]


def test_an_empty_list_is_still_a_list() -> None:
    assert json.loads(EMPTY_LIST.to_json()) == {"apiVersion": "v1", "kind": "List", "items": []}


def test_a_pods_environment_stays_where_it_is(api: KubeApi, server: ApiServer) -> None:
    pod = server.objects["pods"][0]
    pod["spec"]["containers"][0]["env"] = [{"name": "PASSWORD", "value": "hunter2"}]
    pod["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "…hunter2…"}
    text = api.list_pages("/api/v1/pods").to_json()
    assert b"hunter2" not in text
    assert json.loads(text)["items"][0]["spec"]["containers"][0]["ports"]


def test_parameters_are_sent_and_selectors_work(api: KubeApi) -> None:
    pods = api.list_pages("/api/v1/namespaces/test/pods", {"labelSelector": "app=log"})
    assert pods.keys == ("test/nginx-log-0", "test/nginx-log-1")


def test_adding_lists_keeps_each_object_once(api: KubeApi) -> None:
    log = api.list_pages("/api/v1/namespaces/test/pods", {"labelSelector": "app=log"})
    every = api.list_pages("/api/v1/namespaces/test/pods")
    both = log + every
    assert len(both.keys) == len(both.items) == len(every.keys) == 4
    assert both.keys[:2] == log.keys


@pytest.mark.parametrize("enabled", [True, False])
def test_the_cycle_collector_is_left_as_it_was(api: KubeApi, enabled: bool) -> None:
    try:
        (gc.enable if enabled else gc.disable)()
        api.get("/version")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_error_is_asked_again(api: KubeApi, server: ApiServer, naps: Naps, status: int) -> None:
    server.misbehave("/version", Fault(status=status), Fault(status=status))
    assert api.get("/version")["gitVersion"] == "v1.36.2"
    assert naps == [0.25, 0.5]


def test_retry_after_in_seconds_is_obeyed(api: KubeApi, server: ApiServer, naps: Naps) -> None:
    server.misbehave("/version", Fault(status=429, headers={"Retry-After": "3"}))
    api.get("/version")
    assert naps == [3.0]


def test_retry_after_as_a_date_is_obeyed(api: KubeApi, server: ApiServer, naps: Naps) -> None:
    date = email.utils.formatdate(time.time() + 5, usegmt=True)
    server.misbehave("/version", Fault(status=503, headers={"Retry-After": date}))
    api.get("/version")
    assert 3 < naps[0] <= 5


def test_retry_after_does_not_stop_ktp_for_an_hour(api: KubeApi, server: ApiServer, naps: Naps) -> None:
    server.misbehave("/version", Fault(status=429, headers={"Retry-After": "3600"}))
    api.get("/version")
    assert naps == [10.0]


def test_a_lasting_error_ends_after_four_tries(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", *[Fault(status=500)] * 9)
    with pytest.raises(ApiAnswerError, match=r"HTTP 500: made to answer 500$") as caught:
        api.get("/version")
    assert len(server.requests) == 4
    assert caught.value.status == 500
    assert caught.value.exit_code is ExitCode.EVIDENCE


def test_a_broken_off_answer_is_asked_again(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/api/v1/pods", Fault(truncate=True), Fault(truncate=True))
    assert len(api.list_pages("/api/v1/pods").items) == 7
    assert len(server.requests) == 3


def test_an_answer_that_always_breaks_off_is_an_error(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/api/v1/pods", *[Fault(truncate=True)] * 9)
    with pytest.raises(ApiAnswerError, match=r"broke off|breaks off"):
        api.list_pages("/api/v1/pods")


def test_cut_json_of_the_announced_length_is_asked_again(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", Fault(body=b'{"gitVersion": "v1'))
    assert api.get("/version")["gitVersion"] == "v1.36.2"


def test_a_hung_up_connection_is_tried_again(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", Fault(hang_up=True), Fault(hang_up=True))
    assert api.get("/version")["gitVersion"] == "v1.36.2"


def test_a_slow_server_is_tried_twice(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", *[Fault(delay=0.6)] * 5)
    with pytest.raises(ApiUnreachableError, match=r"gave no answer within 0\.3 s"):
        api.get("/version")
    assert len(server.requests) == 2


# --------------------------------------------------------------------------------------- lists that grow old


def test_an_expired_continue_token_begins_the_list_again(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("continue=", Fault(), Fault(status=410))
    pods = api.list_pages("/api/v1/pods", limit=2)
    assert len(pods.keys) == len(set(pods.keys)) == 7
    assert [("continue" in request.query) for request in server.requests] == [
        False, True, True, False, True, True, True,
    ]  # fmt: skip


def test_the_last_restart_asks_for_no_pages(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("continue=", *[Fault(status=410)] * 9)
    assert len(api.list_pages("/api/v1/pods", limit=2).keys) == 7
    assert "limit" not in server.requests[-1].query
    assert len(server.requests) == 7


def test_gone_without_a_token_is_an_error(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/api/v1/pods", Fault(status=410))
    with pytest.raises(ApiAnswerError, match="HTTP 410"):
        api.list_pages("/api/v1/pods")


def test_a_list_that_runs_in_a_circle_ends(api: KubeApi, server: ApiServer) -> None:
    page = json.dumps({"kind": "PodList", "metadata": {"continue": "again"}, "items": []}).encode()
    server.misbehave("/api/v1/pods", *[Fault(body=page)] * 9)
    with pytest.raises(ApiAnswerError, match="does not end"):
        api.list_pages("/api/v1/pods")


@pytest.mark.parametrize("body", [b'{"kind": "Pod", "items": []}', b'{"kind": "PodList", "items": 3}'])
def test_what_is_no_list_is_an_error(api: KubeApi, server: ApiServer, body: bytes) -> None:
    server.misbehave("/api/v1/pods", Fault(body=body))
    with pytest.raises(ApiAnswerError, match="not a list"):
        api.list_pages("/api/v1/pods")


def test_a_list_of_something_else_is_an_error(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/api/v1/pods", Fault(body=b'{"kind": "PodList", "items": ["x"]}'))
    with pytest.raises(ApiAnswerError, match="no API object"):
        api.list_pages("/api/v1/pods")


# ---------------------------------------------------------------------------------------------- plain refusals


def test_wrong_token(server: ApiServer, write_kubeconfig: WriteKubeconfig) -> None:
    api = connect(write_kubeconfig(server.url, user={"token": "old"}))
    with pytest.raises(ApiUnauthorizedError, match="401") as caught:
        api.get("/version")
    assert "expired" in str(caught.value.hint)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("path", "verb", "resource", "namespace"),
    [
        ("/api/v1/nodes", "list", "nodes", None),
        ("/api/v1/namespaces/test/pods", "list", "pods", "test"),
        ("/api/v1/namespaces/test/services/nginx", "get", "services", "test"),
        ("/apis/discovery.k8s.io/v1/endpointslices", "list", "endpointslices.discovery.k8s.io", None),
        ("/api/v1/namespaces/test", "get", "namespaces", None),
        ("/api/v1/namespaces", "list", "namespaces", None),
    ],
)
def test_forbidden_names_the_missing_permission(
    api: KubeApi, server: ApiServer, path: str, verb: str, resource: str, namespace: str | None
) -> None:
    server.forbidden = {"nodes", "pods", "services", "endpointslices", "namespaces"}
    with pytest.raises(ApiForbiddenError) as caught:
        api.get(path)
    error = caught.value
    assert (error.verb, error.resource, error.namespace) == (verb, resource, namespace)
    where = f'in namespace "{namespace}"' if namespace else "across the cluster"
    assert error.message == f'user "jane" may not {verb} {resource} {where}'
    assert f"--resource={resource}" in str(error.hint)


def test_not_found(api: KubeApi) -> None:
    with pytest.raises(ApiNotFoundError, match="not found"):
        api.get("/api/v1/namespaces/test/services/nginz")


def test_a_login_page_is_no_api_server(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", Fault(body=b"<html>", content_type="text/html; charset=utf-8"))
    with pytest.raises(ApiAnswerError, match="text/html"):
        api.get("/version")
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(api: KubeApi, server: ApiServer) -> None:
    server.misbehave("/version", Fault(status=302, headers={"Location": "/elsewhere"}))
    with pytest.raises(ApiAnswerError, match="HTTP 302"):
        api.get("/version")
    assert server.paths() == ["/version"]


def test_nobody_listens(write_kubeconfig: WriteKubeconfig, naps: Naps) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        api = connect(write_kubeconfig(url), sleep=naps)
        with pytest.raises(ApiUnreachableError, match=r"cannot connect .*: connection refused$") as caught:
            api.get("/version")
    assert "0x" not in caught.value.message
    assert len(naps) == 1


def test_a_name_that_does_not_resolve(write_kubeconfig: WriteKubeconfig, naps: Naps) -> None:
    api = connect(write_kubeconfig("http://no-such-host.invalid:6443"), sleep=naps)
    with pytest.raises(ApiUnreachableError, match="cannot connect"):
        api.get("/version")


def test_no_message_quotes_a_token(server: ApiServer, write_kubeconfig: WriteKubeconfig) -> None:
    api = connect(write_kubeconfig(server.url, user={"token": "se\u201ccret"}))
    with pytest.raises(KubeConfigError) as caught:
        api.get("/version")
    assert "cret" not in f"{caught.value} {caught.value.hint}"


# ---------------------------------------------------------------------------------------------------------- TLS


def test_https_with_ca_and_token(tls_server: ApiServer, pki: Pki, write_kubeconfig: WriteKubeconfig) -> None:
    api = connect(write_kubeconfig(tls_server.url, cluster={"certificate-authority": str(pki.ca)}))
    assert api.get("/version")["major"] == "1"


def test_https_with_data_in_the_kubeconfig_and_client_certificate(
    tls_server: ApiServer, pki: Pki, write_kubeconfig: WriteKubeconfig
) -> None:
    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    config = write_kubeconfig(
        tls_server.url,
        cluster={"certificate-authority-data": data(pki.ca)},
        user={"client-certificate-data": data(pki.client_cert), "client-key-data": data(pki.client_key)},
    )
    assert connect(config).get("/version")["major"] == "1"
    assert tls_server.requests[0].client_name == "client"
    assert tls_server.requests[0].authorization is None


def test_https_with_a_wrong_ca(
    tls_server: ApiServer, pki: Pki, write_kubeconfig: WriteKubeconfig, naps: Naps
) -> None:
    config = write_kubeconfig(tls_server.url, cluster={"certificate-authority": str(pki.other_ca)})
    with pytest.raises(ApiTlsError, match="certificate verify failed") as caught:
        connect(config, sleep=naps).get("/version")
    assert "certificate-authority" in str(caught.value.hint)
    assert naps == []
    assert tls_server.requests == []


@pytest.mark.parametrize("section", ["cluster", "user"])
def test_https_with_rubbish_for_a_certificate(
    tls_server: ApiServer, pki: Pki, write_kubeconfig: WriteKubeconfig, section: str
) -> None:
    rubbish = base64.b64encode(b"rubbish").decode()
    cluster = {"certificate-authority": str(pki.ca)}
    user = {"token": "good-token"}
    if section == "cluster":
        cluster = {"certificate-authority-data": rubbish}
    else:
        user = {"client-certificate-data": rubbish, "client-key-data": rubbish}
    with pytest.raises(KtpError) as caught:
        connect(write_kubeconfig(tls_server.url, cluster=cluster, user=user)).get("/version")
    assert caught.value.exit_code is ExitCode.EVIDENCE
    assert "not PEM text" in str(caught.value.hint)
    assert "[" not in caught.value.message


def test_https_for_another_name(tls_server: ApiServer, pki: Pki, write_kubeconfig: WriteKubeconfig) -> None:
    cluster = {"certificate-authority": str(pki.ca), "tls-server-name": "kubernetes.example"}
    with pytest.raises(ApiTlsError):
        connect(write_kubeconfig(tls_server.url, cluster=cluster)).get("/version")


def test_https_unverified_if_the_kubeconfig_says_so(
    tls_server: ApiServer, write_kubeconfig: WriteKubeconfig, recwarn: pytest.WarningsRecorder
) -> None:
    config = write_kubeconfig(tls_server.url, cluster={"insecure-skip-tls-verify": True})
    assert connect(config).get("/version")["major"] == "1"
    assert [str(warning.message) for warning in recwarn] == []


def test_https_to_a_port_that_speaks_http(server: ApiServer, write_kubeconfig: WriteKubeconfig) -> None:
    api = connect(write_kubeconfig(server.url.replace("http:", "https:")))
    with pytest.raises(ApiTlsError, match="TLS handshake"):
        api.get("/version")


# ---------------------------------------------------------------------------------------------------- imports


def test_the_client_is_imported_only_to_connect() -> None:
    code = "import sys, ktp.collect.cluster, ktp.collect.kube_api; print('kubernetes' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_no_typed_model_is_imported(server: ApiServer, write_kubeconfig: WriteKubeconfig) -> None:
    code = (
        "import sys; from ktp.collect.kube_api import connect; "
        f"connect({str(write_kubeconfig(server.url))!r}).get('/version'); "
        "print([m for m in sys.modules if m.endswith(('core_v1_api', 'v1_pod'))])"
    )
    import kubernetes

    if int(kubernetes.__version__.partition(".")[0]) < 37:
        pytest.skip("before version 37 the package imports its models itself")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
