"""A small API server with a recorded cluster, plain and over TLS, and kubeconfig files that lead to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.collect import kube_config
from tests.support.api_server import ApiServer, Pki, make_pki

RECORDED = Path(__file__).resolve().parents[2] / "data" / "api"
TOKEN = "good-token"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(RECORDED, token=TOKEN).running() as running:
        yield running


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def tls_server(pki: Pki) -> Iterator[ApiServer]:
    with ApiServer(RECORDED, token=TOKEN, pki=pki).running() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_node_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be a node."""
    monkeypatch.setattr(kube_config, "NODE_KUBECONFIGS", ())
    monkeypatch.delenv("KUBECONFIG", raising=False)


@pytest.fixture
def write_kubeconfig(tmp_path: Path) -> Callable[..., Path]:
    """Writes a kubeconfig with one context `test` for a server; `user` and `cluster` add to its sections."""

    def write(
        server: str,
        *,
        user: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
        name: str = "config",
        context: str = "test",
        current: str | None = "test",
        namespace: str | None = None,
    ) -> Path:
        content: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
            "users": [{"name": "u", "user": {"token": TOKEN} if user is None else user}],
            "contexts": [
                {
                    "name": context,
                    "context": {
                        "cluster": "c",
                        "user": "u",
                        **({"namespace": namespace} if namespace else {}),
                    },
                }
            ],
        }
        if current:
            content["current-context"] = current
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return write
