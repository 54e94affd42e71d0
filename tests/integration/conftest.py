"""A recorded cluster's API server over HTTPS, and a kubeconfig that leads to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.collect import kube_config
from ktp.collect.kube_api import connect
from tests.support.api_server import ApiServer, Pki, make_pki

DEMO = Path(__file__).resolve().parents[2] / "ktp" / "demo" / "article"
TOKEN = "good-token"


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("live-pki"))


@pytest.fixture(autouse=True)
def _no_node_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be a node."""
    monkeypatch.setattr(kube_config, "NODE_KUBECONFIGS", ())
    monkeypatch.delenv("KUBECONFIG", raising=False)


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which are not waited for."""
    taken: list[float] = []
    monkeypatch.setitem(connect.__kwdefaults__ or {}, "sleep", taken.append)
    return taken


@pytest.fixture
def server(pki: Pki) -> Iterator[ApiServer]:
    """The article's cluster, with the ConfigMap that kubeadm keeps kube-proxy's configuration in."""
    with ApiServer(DEMO, token=TOKEN, pki=pki).running() as running:
        yield running


@pytest.fixture
def kubeconfig(server: ApiServer, pki: Pki, tmp_path: Path) -> Callable[..., Path]:
    """Writes a kubeconfig for the server; `user` replaces its credentials."""

    def write(url: str | None = None, *, user: dict[str, Any] | None = None, ca: Path | None = None) -> Path:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {"server": url or server.url, "certificate-authority": str(ca or pki.ca)},
                }
            ],
            "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "test"}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def kube_proxy_map() -> Callable[..., dict[str, Any]]:
    """The ConfigMap kube-proxy of kubeadm."""

    def make(**fields: Any) -> dict[str, Any]:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "",
            "clusterCIDR": "10.244.0.0/16",
            **fields,
        }
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "kube-system", "name": "kube-proxy"},
            "data": {"config.conf": json.dumps(config)},
        }

    return make
