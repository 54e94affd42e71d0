"""Which API server is meant, and by whom: the search for a kubeconfig and what is wrong with one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ktp.collect.kube_api import connect
from ktp.collect.kube_config import load_configuration
from ktp.errors import ExitCode, KtpError, KubeConfigError, NotFoundError, UsageError
from tests.support.api_server import ApiServer

WriteKubeconfig = Callable[..., Path]


def token_of(configuration: object) -> str:
    return configuration.client.auth_settings()["BearerToken"]["value"]  # type: ignore[attr-defined,no-any-return]


# -------------------------------------------------------------------------------------------------- the search


def test_the_order_of_the_search(
    write_kubeconfig: WriteKubeconfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    explicit = write_kubeconfig("http://explicit", name="explicit")
    variable = write_kubeconfig("http://variable", name="variable")
    node = write_kubeconfig("http://node", name="admin.conf")
    (tmp_path / ".kube").mkdir()
    home = write_kubeconfig("http://home", name=".kube/config")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(variable))

    def host(kubeconfig: Path | None = None) -> str:
        return str(load_configuration(kubeconfig, node_kubeconfigs=("/no/such", str(node))).client.host)

    assert host(explicit) == "http://explicit"
    assert host() == "http://variable"
    monkeypatch.delenv("KUBECONFIG")
    assert host() == "http://home"
    home.unlink()
    assert host() == "http://node"


def test_an_empty_file_at_home_does_not_end_the_search(
    write_kubeconfig: WriteKubeconfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").write_text("apiVersion: v1\nkind: Config\ncontexts: null\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    node = write_kubeconfig("http://node", name="admin.conf")
    assert load_configuration(node_kubeconfigs=(str(node),)).client.host == "http://node"


def test_in_a_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kubernetes.config import incluster_config

    (tmp_path / "token").write_text("pod-token\n")
    (tmp_path / "ca.crt").write_text("a certificate")
    (tmp_path / "namespace").write_text("monitoring")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    loader = incluster_config.InClusterConfigLoader
    monkeypatch.setattr(
        incluster_config,
        "InClusterConfigLoader",
        lambda **_: loader(token_filename=str(tmp_path / "token"), cert_filename=str(tmp_path / "ca.crt")),
    )
    monkeypatch.setattr("ktp.collect.kube_config.SERVICE_ACCOUNT_NAMESPACE", str(tmp_path / "namespace"))
    found = load_configuration(node_kubeconfigs=())
    assert found.client.host == "https://[fd00::1]:443"
    assert (found.namespace, found.context) == ("monitoring", None)
    assert token_of(found).split() == ["bearer", "pod-token"]


def test_in_a_pod_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(KubeConfigError, match="service account cannot be used: Service token file") as caught:
        load_configuration(node_kubeconfigs=())
    assert "automountServiceAccountToken" in str(caught.value.hint)


def test_nothing_anywhere() -> None:
    with pytest.raises(KubeConfigError, match="no configuration for an API server was found") as caught:
        load_configuration(node_kubeconfigs=("/no/such/admin.conf",))
    assert "/no/such/admin.conf" in caught.value.message
    assert "--snapshot" in str(caught.value.hint)
    assert caught.value.exit_code is ExitCode.EVIDENCE


def test_a_missing_kubeconfig_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no kubeconfig at"):
        load_configuration(tmp_path / "none")


def test_a_variable_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/no/such:/nor/this")
    with pytest.raises(KubeConfigError, match="KUBECONFIG names /no/such, /nor/this, which does not exist"):
        load_configuration()


def test_several_files_are_merged_as_kubectl_does(
    write_kubeconfig: WriteKubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_kubeconfig("http://first", name="1", context="one", current="one")
    second = write_kubeconfig("http://second", name="2", context="two", current="two")
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(["/no/such", str(first), str(second)]))
    found = load_configuration()
    assert (found.context, found.client.host) == ("one", "http://first")
    # The cluster is named `c` in both files: the first one counts.
    assert load_configuration(context="two").client.host == "http://first"


# -------------------------------------------------------------------------------------------------- contexts


def test_the_context_gives_the_namespace(write_kubeconfig: WriteKubeconfig, server: ApiServer) -> None:
    assert connect(write_kubeconfig(server.url, namespace="test")).default_namespace == "test"
    assert connect(write_kubeconfig(server.url)).default_namespace == "default"


def test_a_context_can_be_chosen(write_kubeconfig: WriteKubeconfig, server: ApiServer) -> None:
    config = write_kubeconfig(server.url, context="prod", current=None)
    assert connect(config, "prod").get("/version")["major"] == "1"


def test_a_context_that_does_not_exist(write_kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(NotFoundError, match="has no context 'prd'") as caught:
        load_configuration(write_kubeconfig("http://x", context="prod"), "prd")
    assert caught.value.hint == "its contexts are: prod"
    assert caught.value.exit_code is ExitCode.USAGE


def test_no_current_context(write_kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(KubeConfigError, match="names no current context") as caught:
        load_configuration(write_kubeconfig("http://x", current=None))
    assert caught.value.hint == "give --context (test)"


def test_a_current_context_that_does_not_exist(write_kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(KubeConfigError, match="has no context 'gone'"):
        load_configuration(write_kubeconfig("http://x", current="gone"))


# ------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("contexts: [\n  {", r"is not valid YAML \(line \d+\)"),
        ("a: b: c", r"is not valid YAML \(line 1\)"),
        ("- a list", "is not a kubeconfig"),
        ("just words", "is not a kubeconfig"),
        ("", "names no current context"),
        ("current-context: x\ncontexts: [3, {name: x}]", "needs the cluster None, which is not there"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\n"
            "clusters: [{name: c, cluster: {}}]",
            "needs the server of cluster 'c'",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
            "clusters: [{name: c, cluster: {server: 'http://x'}}]",
            "needs the user 'u'",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\n"
            "clusters: [{name: c, cluster: {server: 'https://x', certificate-authority: /no/such/ca}}]",
            "cannot be used: File does not exist: /no/such/ca",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\n"
            "clusters: [{name: c, cluster: {server: 'https://x', certificate-authority-data: 'abc'}}]",
            "cannot be used",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\n"
            "clusters: [{name: c, cluster: {server: 7}}]",
            "cannot be used",
        ),
    ],
)
def test_a_bad_kubeconfig_is_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(KubeConfigError, match=message) as caught:
        load_configuration(path)
    assert "\n" not in caught.value.message


def test_binary_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(KubeConfigError, match="not valid YAML"):
        load_configuration(path)


def test_a_folder_is_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(KubeConfigError, match="cannot be read: is a directory"):
        load_configuration(tmp_path)


def test_the_users_files_are_not_changed(write_kubeconfig: WriteKubeconfig) -> None:
    path = write_kubeconfig("http://x")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    load_configuration(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


# ---------------------------------------------------------------------------------------------- credentials


def test_a_token_file_may_end_in_a_newline(
    write_kubeconfig: WriteKubeconfig, server: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("good-token\n")
    api = connect(write_kubeconfig(server.url, user={"tokenFile": str(tmp_path / "token")}))
    assert api.get("/version")["major"] == "1"


def exec_user(tmp_path: Path, script: str) -> dict[str, object]:
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(0o700)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "args": []}}


def test_an_exec_plugin_gives_the_token(
    write_kubeconfig: WriteKubeconfig, server: ApiServer, tmp_path: Path
) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "good-token"},
    }  # fmt: skip
    user = exec_user(tmp_path, f"echo '{json.dumps(credential)}'")
    assert connect(write_kubeconfig(server.url, user=user)).get("/version")["major"] == "1"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'session has ended' >&2; exit 1", "session has ended"),
        ("echo nonsense", "prints no ExecCredential"),
    ],
)
def test_a_failing_exec_plugin_is_blamed_and_not_the_server(
    write_kubeconfig: WriteKubeconfig,
    server: ApiServer,
    tmp_path: Path,
    script: str,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = write_kubeconfig(server.url, user=exec_user(tmp_path, script))
    with pytest.raises(KubeConfigError, match=f"gave no credentials for .*{reason}"):
        connect(config)
    assert server.requests == []
    assert capfd.readouterr().err == ""


def test_a_missing_exec_plugin(write_kubeconfig: WriteKubeconfig, tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/no/such/plugin"}}
    with pytest.raises(KubeConfigError, match="/no/such/plugin"):
        load_configuration(write_kubeconfig("http://x", user=user))


def test_an_unknown_auth_provider(write_kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(KubeConfigError, match="gave no credentials for 'u'"):
        load_configuration(write_kubeconfig("http://x", user={"auth-provider": {"name": "azure"}}))


# ------------------------------------------------------------------------------------------------------ proxy


def test_proxy_url_is_used_by_every_version_of_the_client(write_kubeconfig: WriteKubeconfig) -> None:
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b'{"major": "1"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Keeps the test output clean."""

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        config = write_kubeconfig("http://kubernetes.invalid:6443", cluster={"proxy-url": url})
        assert connect(config).get("/version") == {"major": "1"}
        proxy.shutdown()
        thread.join()
    assert asked == ["http://kubernetes.invalid:6443/version"]


def test_a_dead_proxy_is_blamed(write_kubeconfig: WriteKubeconfig) -> None:
    config = write_kubeconfig("http://kubernetes.invalid", cluster={"proxy-url": "http://127.0.0.1:1"})
    with pytest.raises(
        KtpError, match=r"proxy on the way to http://kubernetes\.invalid cannot be used"
    ) as caught:
        connect(config, sleep=lambda _: None).get("/version")
    assert "proxy-url" in str(caught.value.hint)


def test_a_nonsensical_proxy(write_kubeconfig: WriteKubeconfig) -> None:
    with pytest.raises(KubeConfigError, match="no connection can be set up"):
        connect(write_kubeconfig("http://x", cluster={"proxy-url": "ftp://127.0.0.1:1"}))
