"""What stands between ktp and an API server: clocks, certificates, proxies, credential plugins, an overloaded etcd.

Each ends in an answer, or in one sentence on stderr and the exit status of the design.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ktp.cli import run
from ktp.collect import kube_api, kube_config
from ktp.collect.kube_api import KubeApi, connect
from ktp.collect.kube_config import load_configuration
from tests.integration.conftest import DEMO, TOKEN
from tests.integration.test_api_live import LOCAL, diagnose, refused
from tests.support.api_server import CLIENT, EXPIRED, NOT_YET, SERVER, ApiServer, Fault, Pki, issue
from tests.support.processes import left_behind
from tests.support.tunnel import Tunnel

Kubeconfig = Callable[..., Path]
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_proxy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# ------------------------------------------------------------------------------------------- certificates and clocks


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        (EXPIRED, ("certificate has expired", "or the clock of this machine is wrong")),
        (NOT_YET, ("certificate is not yet valid", "the clock of this machine is behind")),
    ],
    ids=["expired", "not yet valid"],
)
def test_a_server_certificate_of_another_time(
    valid: tuple[str, str], words: tuple[str, ...], pki: Pki, kubeconfig: Kubeconfig, capsys: Capsys
) -> None:
    certificate = issue(pki.ca.parent, f"server-{valid[0]}", SERVER, valid)
    with ApiServer(DEMO, token=TOKEN, pki=pki, certificate=certificate).running() as server:
        assert diagnose(kubeconfig(server.url), LOCAL) == 3
    refused(capsys, "the TLS handshake with https://127.0.0.1:", *words)


@pytest.mark.parametrize(
    ("asks_clients", "words"),
    [(True, "hangs up"), (False, "refuses the credentials (401 Unauthorized)")],
    ids=["in the handshake", "as kube-apiserver does"],
)
def test_a_client_certificate_that_has_expired(
    asks_clients: bool, words: str, pki: Pki, kubeconfig: Kubeconfig, capsys: Capsys
) -> None:
    certificate, key = issue(pki.ca.parent, f"old-client-{asks_clients}", CLIENT, EXPIRED)
    user = {"client-certificate": str(certificate), "client-key": str(key)}
    with ApiServer(DEMO, token=TOKEN, pki=pki, asks_clients=asks_clients).running() as server:
        assert diagnose(kubeconfig(server.url, user=user), LOCAL) == 3
    refused(
        capsys,
        f"the API server {server.url} {words}: the client certificate of this context expired at 2020-01-02T00:00:00Z",
        "kubeadm certs renew",
    )


def test_when_certificates_end(pki: Pki) -> None:
    for valid, year in ((EXPIRED, 2020), (NOT_YET, 2099), (None, None)):
        certificate, key = issue(pki.ca.parent, f"dated-{year}", CLIENT, valid)
        ends = kube_api._end_of_certificate(str(certificate))
        assert ends is not None
        assert year in {None, ends.year}
        assert kube_api._end_of_certificate(str(key)) is None
    assert ends is not None
    assert ends > datetime.now(timezone.utc)
    assert kube_api._end_of_certificate("/no/such/file") is None


def test_a_refusal_of_credentials_tells_of_clocks(
    kubeconfig: Kubeconfig, server: ApiServer, capsys: Capsys
) -> None:
    server.misbehave("/services", Fault(status=401))
    assert diagnose(kubeconfig(), LOCAL) == 3
    refused(capsys, "(401 Unauthorized)", "wrong or expired (a token or certificate by the server's clock)")


# ------------------------------------------------------------------------------------------------- overloaded


TOO_LARGE = {
    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Timeout", "code": 504,
    "message": "Timeout: Too large resource version: 2000, current: 1000",
    "details": {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1},
}  # fmt: skip
ETCD = {
    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500,
    "message": "etcdserver: request timed out",
}  # fmt: skip


def said(status: int, body: dict[str, Any], **headers: str) -> Fault:
    return Fault(status=status, body=json.dumps(body).encode(), headers=headers)


@pytest.mark.parametrize(
    ("fault", "words", "waits"),
    [
        (
            said(504, TOO_LARGE, **{"Retry-After": "1"}),
            "Too large resource version: 2000, current: 1000",
            [1.0, 1.0, 1.0],
        ),
        (said(500, ETCD), "etcdserver: request timed out", [0.25, 0.5, 1.0]),
        (said(429, ETCD, **{"Retry-After": "2"}), "HTTP 429", [2.0, 2.0, 2.0]),
        (Fault(status=503), "HTTP 503", [0.25, 0.5, 1.0]),
    ],
    ids=["a watch cache that is behind", "etcd times out", "too many requests", "unavailable"],
)
def test_an_overloaded_server(
    fault: Fault, words: str, waits: list[float], kubeconfig: Kubeconfig, server: ApiServer, capsys: Capsys,
    naps: list[float],
) -> None:  # fmt: skip
    server.misbehave("/services/", fault, fault)
    assert diagnose(kubeconfig(), LOCAL) == 1
    assert "KTP501" in capsys.readouterr().out
    assert naps == waits[:2]
    naps.clear()
    server.misbehave("/services/", *[fault] * 20)
    assert diagnose(kubeconfig(), LOCAL) == 3
    refused(capsys, words, "try again later")
    assert naps == waits


def many_pods(server: ApiServer, number: int) -> None:
    template = server.objects["pods"][0]
    for index in range(number):
        metadata = {**template["metadata"], "name": f"more-{index}", "labels": {}}
        server.objects["pods"].append({**template, "metadata": metadata})


@pytest.mark.parametrize(
    ("fault", "lists"),
    [
        (Fault(status=410), 2),
        (said(500, ETCD), 1),
        (Fault(truncate=True), 1),
        (Fault(hang_up=True), 1),
    ],
    ids=["expired", "etcd times out", "cut", "hung up"],
)
def test_a_list_that_fails_on_its_second_page(
    fault: Fault, lists: int, kubeconfig: Kubeconfig, server: ApiServer, capsys: Capsys
) -> None:
    many_pods(server, kube_api.PAGE_SIZE)
    assert diagnose(kubeconfig(), "-A", "-o", "json") == 1
    whole = capsys.readouterr().out
    server.requests.clear()
    server.misbehave("/pods.*continue=", fault)
    assert diagnose(kubeconfig(), "-A", "-o", "json") == 1
    assert capsys.readouterr().out == whole
    pages = [request.query for request in server.requests if request.path == "/api/v1/pods"]
    assert len([query for query in pages if "continue" not in query]) == lists
    assert len(pages) == 2 * lists + (lists == 1)


def test_pods_whose_list_never_ends_well_are_a_gap(
    kubeconfig: Kubeconfig, server: ApiServer, capsys: Capsys
) -> None:
    many_pods(server, kube_api.PAGE_SIZE)
    server.misbehave("/pods.*continue=", *[said(500, ETCD)] * 20)
    assert diagnose(kubeconfig(), "-A", "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    (gap,) = [gap for gap in found["items"][0]["gaps"] if gap["kind"] == "pods"]
    assert "etcdserver: request timed out; why a pod is not an endpoint cannot be told" in gap["message"]


def test_a_server_that_takes_the_request_and_is_silent(
    kubeconfig: Kubeconfig, server: ApiServer, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connect.__kwdefaults__ or {}, "read_timeout", 0.1)
    server.misbehave("/services/", *[Fault(delay=0.5)] * 5)
    assert diagnose(kubeconfig(), LOCAL) == 3
    refused(capsys, "took the request and gave no answer within 0.1 s", "overloaded")


# ------------------------------------------------------------------------------------------------------ proxies


@pytest.fixture
def tunnel(server: ApiServer) -> Iterator[tuple[Tunnel, str]]:
    made = Tunnel(urlsplit(server.url).port or 0)
    with made.running() as place:
        yield made, place


def far_away(server: ApiServer) -> str:
    """The server by a name that only the tunnel knows: of this machine no proxy is ever asked."""
    return server.url.replace("127.0.0.1", "kubernetes.test")


@pytest.mark.parametrize("form", ["http://{}", "{}"])
def test_a_proxy_of_the_environment(
    form: str, kubeconfig: Kubeconfig, server: ApiServer, tunnel: tuple[Tunnel, str], capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made, place = tunnel
    monkeypatch.setenv("HTTPS_PROXY", form.format(place))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # for http alone
    assert diagnose(kubeconfig(far_away(server)), LOCAL) == 1
    assert "KTP501" in capsys.readouterr().out
    assert set(made.asked) == {urlsplit(far_away(server)).netloc}


def test_proxy_url_comes_before_the_environment(
    server: ApiServer, kubeconfig: Kubeconfig, tunnel: tuple[Tunnel, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, place = tunnel
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    config = kubeconfig(far_away(server))
    content = yaml.safe_load(config.read_text())
    content["clusters"][0]["cluster"]["proxy-url"] = f"http://{place}"
    config.write_text(yaml.safe_dump(content))
    assert diagnose(config, LOCAL) == 1
    assert made.asked


def test_a_proxy_that_wants_a_password(
    server: ApiServer, kubeconfig: Kubeconfig, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Tunnel(urlsplit(server.url).port or 0, password=base64.b64encode(b"jane:p@ss").decode())
    with made.running() as place:
        monkeypatch.setenv("HTTPS_PROXY", f"http://jane:p%40ss@{place}")
        assert diagnose(kubeconfig(far_away(server)), LOCAL) == 1
        capsys.readouterr()
        monkeypatch.setenv("HTTPS_PROXY", f"http://jane:wrong@{place}")
        assert diagnose(kubeconfig(far_away(server)), LOCAL) == 3
    refused(capsys, "the proxy on the way to https://kubernetes.test:", "407", "HTTPS_PROXY")


def test_a_proxy_that_is_not_there(
    server: ApiServer, kubeconfig: Kubeconfig, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert diagnose(kubeconfig(far_away(server)), LOCAL) == 3
    refused(capsys, "the proxy on the way to https://kubernetes.test:", "connection refused", "HTTPS_PROXY")
    assert diagnose(kubeconfig(), LOCAL) == 1, "an API server on this machine is asked without"


@pytest.mark.parametrize(
    ("server", "no_proxy", "expected"),
    [
        ("https://k8s.example.net:6443", "", True),
        ("https://k8s.example.net:6443", "other.net, example.net", False),
        ("https://k8s.example.net:6443", ".example.net", False),
        ("https://example.net:6443", ".example.net", True),
        ("https://example.net:6443", "*.example.net", True),
        ("https://badexample.net:6443", "example.net", True),
        ("https://k8s.example.net:6443", "k8s.example.net:6443", False),
        ("https://k8s.example.net:6443", "k8s.example.net:443", True),
        ("https://k8s.example.net", "k8s.example.net:443", False),
        ("https://10.0.0.7:6443", "10.0.0.0/8", False),
        ("https://10.0.0.7:6443", "10.0.0.7", False),
        ("https://10.0.0.7:6443", "0.0.7", True),
        ("https://[fd00::7]:6443", "fd00::/8", False),
        ("https://[fd00::7]:6443", "[fd00::7]:6443", False),
        ("https://k8s.example.net:6443", "*", False),
        ("https://127.0.0.1:6443", "", False),
        ("https://[::1]:6443", "", False),
        ("https://localhost:6443", "", False),
        ("http://k8s.example.net", "", False),  # HTTPS_PROXY is not for it
    ],
)
def test_which_server_is_asked_through_the_proxy(
    server: str, no_proxy: str, expected: bool, kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.net:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    client = load_configuration(kubeconfig(server)).client
    assert (client.proxy is not None) == expected
    assert not client.no_proxy


# ---------------------------------------------------------------------------------------------- credential plugins


V1 = "client.authentication.k8s.io/v1"


def credential(**status: Any) -> str:
    return json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})


def plugin(folder: Path, script: str, **more: Any) -> dict[str, Any]:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return {"exec": {"apiVersion": V1, "command": str(path), **more}}


GOOD = credential(token=TOKEN)


@pytest.mark.parametrize(
    ("script", "more", "words"),
    [
        ("echo 'Your session has expired.' >&2; exit 1", {}, "failed with exit status 1: Your session has expired"),
        ("read password || { echo 'no terminal' >&2; exit 3; }", {}, "failed with exit status 3: no terminal"),
        (f"echo '{GOOD}'", {"interactiveMode": "Always"}, "must ask somebody, and there is no terminal"),
        (f"echo '{credential(token='t', expirationTimestamp='2020-01-01T00:00:00Z')}'", {},
         "prints a credential that expired at 2020-01-01T00:00:00Z, by the clock of this machine"),
        (f"echo '{GOOD}'", {"apiVersion": "client.authentication.k8s.io/v1beta1"},
         "answers with apiVersion client.authentication.k8s.io/v1, and the kubeconfig asks for "
         "client.authentication.k8s.io/v1beta1"),
        ("echo Hello", {}, "prints no ExecCredential"),
        ("exit 0", {}, "prints no ExecCredential"),
        (f"echo '{credential()}'", {}, "prints neither a token nor a client certificate with key"),
        (f"echo '{credential(clientCertificateData='x')}'", {}, "prints neither a token nor a client certificate"),
        ("kill -9 $$", {}, "failed with exit status -9"),
    ],
    ids=["session", "asks", "must ask", "expired", "apiVersion", "words", "silent", "empty", "half", "killed"],
)  # fmt: skip
def test_a_plugin_that_gives_no_credentials(
    script: str, more: dict[str, Any], words: str, kubeconfig: Kubeconfig, server: ApiServer, tmp_path: Path,
    capsys: Capsys,
) -> None:  # fmt: skip
    assert diagnose(kubeconfig(user=plugin(tmp_path, script, **more)), LOCAL) == 3
    refused(
        capsys,
        f"gave no credentials for 'test': the credential plugin {tmp_path}/plugin",
        words,
        "log in again",
    )
    assert server.requests == []


def test_a_plugin_that_is_not_installed_is_named_with_its_hint(
    kubeconfig: Kubeconfig, capsys: Capsys
) -> None:
    user = {
        "exec": {"apiVersion": V1, "command": "no-such-plugin", "installHint": "Install it\nfrom example.net"}
    }
    assert diagnose(kubeconfig(user=user), LOCAL) == 3
    refused(capsys, "no-such-plugin cannot be run: no such file or directory (Install it from example.net)")


def test_a_plugin_that_hangs_is_ended_with_its_children(
    kubeconfig: Kubeconfig, server: ApiServer, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_config, "PLUGIN_TIMEOUT", 0.3)
    user = plugin(tmp_path, f"sh -c 'sleep 300; : {tmp_path}' & wait")
    before = time.monotonic()
    assert diagnose(kubeconfig(user=user), LOCAL) == 3
    assert time.monotonic() - before < 30
    refused(capsys, "did not end within 0.3 s; it may wait for a login")
    assert left_behind(f": {tmp_path}") == []


def test_a_plugin_is_asked_once_in_a_run_and_told_what_kubectl_tells(
    kubeconfig: Kubeconfig, server: ApiServer, tmp_path: Path, capsys: Capsys
) -> None:
    """Nearly expired, which is no reason to ask again for each request."""
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
    script = f'echo "$KUBERNETES_EXEC_INFO|$WHO|$1" >>{tmp_path}/asked; cat {tmp_path}/answer'
    (tmp_path / "answer").write_text(credential(token=TOKEN, expirationTimestamp=soon))
    user = plugin(
        tmp_path, script, args=["get-token"], env=[{"name": "WHO", "value": "me"}], provideClusterInfo=True
    )
    assert diagnose(kubeconfig(user=user), "nginx-log", LOCAL) == 1
    assert "KTP501" in capsys.readouterr().out
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    question, who, argument = asked.split("|")
    assert (who, argument) == ("me", "get-token")
    told = json.loads(question)
    assert (told["apiVersion"], told["kind"], told["spec"]["interactive"]) == (V1, "ExecCredential", False)
    assert told["spec"]["cluster"]["server"] == server.url


def test_a_token_that_expires_is_renewed(kubeconfig: Kubeconfig, server: ApiServer, tmp_path: Path) -> None:
    ends = time.time() + 1.2
    late = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    answers = [credential(token=TOKEN, expirationTimestamp=late), credential(token="new")]
    for number, answer in enumerate(answers):
        (tmp_path / f"answer{number}").write_text(answer)
    script = f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo 1 >{tmp_path}/n; cat {tmp_path}/answer$n"
    api: KubeApi = connect(kubeconfig(user=plugin(tmp_path, script)))
    assert api.authorization() == f"Bearer {TOKEN}"
    time.sleep(max(0.0, int(ends) - time.time() + 0.05))
    assert api.authorization() == "Bearer new"


def test_a_plugin_may_give_a_client_certificate(
    kubeconfig: Kubeconfig, server: ApiServer, pki: Pki, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(
        credential(
            clientCertificateData=pki.client_cert.read_text(), clientKeyData=pki.client_key.read_text()
        )
    )
    assert diagnose(kubeconfig(user=plugin(tmp_path, f"cat {tmp_path}/answer")), LOCAL) == 1
    assert {request.client_name for request in server.requests} == {"client"}


def test_what_is_piped_into_ktp_is_not_the_plugins(
    kubeconfig: Kubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    flow = b'{"id": 1, "from": "198.51.100.7", "to": "10.0.0.10", "port": 31015, "protocol": "tcp"}\n'
    reading, writing = os.pipe()
    os.write(writing, flow)
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        user = plugin(tmp_path, f"cat >{tmp_path}/taken; echo '{GOOD}'")
        diagnose(kubeconfig(user=user), LOCAL)
        assert (tmp_path / "taken").read_bytes() == b""
        assert os.read(0, 4096) == flow
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
    assert "KTP501" in capsys.readouterr().out


def test_auth_says_the_same(kubeconfig: Kubeconfig, tmp_path: Path, capsys: Capsys) -> None:
    config = kubeconfig(user=plugin(tmp_path, "echo ended >&2; exit 1"))
    assert run(["auth", "--kubeconfig", str(config)]) == 3
    refused(capsys, "failed with exit status 1: ended")
