"""kubectl itself, where it can be had: it builds and takes the manifests, and calls ktp as its plugin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBECTL = shutil.which("kubectl")
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")

CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
PLURALS = {"NetworkPolicy": "networkpolicies"}


def kubectl(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    assert KUBECTL is not None
    return subprocess.run(
        [KUBECTL, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def built(folder: str) -> list[dict[str, Any]]:
    done = kubectl("kustomize", str(DEPLOY / folder))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


class _Discovery(BaseHTTPRequestHandler):
    """A server that has the kinds of the manifests, and no object yet."""

    kinds: dict[str, set[str]]  # group and version → kinds

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        group_version = path.removeprefix("apis/").removeprefix("api/")
        if path == "api":
            answer: dict[str, Any] = {"kind": "APIVersions", "versions": ["v1"]}
        elif path == "apis":
            groups = [each.split("/") for each in self.kinds if "/" in each]
            answer = {
                "kind": "APIGroupList",
                "groups": [
                    {"name": name, "versions": [{"groupVersion": f"{name}/{version}", "version": version}]}
                    for name, version in groups
                ],
            }
        elif group_version in self.kinds:
            resources = [
                {
                    "name": PLURALS.get(kind, kind.lower() + "s"), "kind": kind, "namespaced": kind not in CLUSTER_WIDE,
                    "singularName": kind.lower(), "verbs": ["get", "list", "create", "patch"],
                }
                for kind in sorted(self.kinds[group_version])
            ]  # fmt: skip
            answer = {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}
        else:
            answer = {
                "kind": "Status",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
                "message": "not found",
            }
        body = json.dumps({"apiVersion": "v1", **answer}).encode()
        self.send_response(404 if answer.get("kind") == "Status" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: tests speak for themselves."""


@pytest.fixture
def server() -> Iterator[str]:
    kinds: dict[str, set[str]] = {"v1": {"Namespace"}}
    for each in (*built("."), *built("monitoring")):
        kinds.setdefault(each["apiVersion"], set()).add(each["kind"])
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Discovery", (_Discovery,), {"kinds": kinds}))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize("folder", [".", "monitoring"])
def test_kubectl_takes_what_kustomize_builds(folder: str, server: str, tmp_path: Path) -> None:
    objects = built(folder)
    assert objects
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    done = kubectl(
        "apply", "--dry-run=client", "--validate=false", "--server", server, "-f", str(file), "-o", "name",
        KUBECONFIG=str(tmp_path / "none"), HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(objects)


def test_ktp_is_a_plugin_of_kubectl(tmp_path: Path) -> None:
    """`kubectl ktp` finds kubectl-ktp on the path, and completes by kubectl_complete-ktp (kubectl 1.26 and later)."""
    scripts = Path(sys.executable).parent
    if not (scripts / "kubectl-ktp").exists():
        pytest.skip("needs ktp installed")
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    done = kubectl("ktp", "--version", PATH=path, HOME=str(tmp_path))
    assert done.stdout.startswith("ktp, version"), done.stderr
    done = kubectl(
        "ktp", "--demo", "diagnose", "svc", "test/nginx-externaltrafficpolicy", PATH=path, HOME=str(tmp_path)
    )
    assert done.returncode == 1
    assert "KTP501" in done.stdout
    done = kubectl("__complete", "ktp", "exp", PATH=path, HOME=str(tmp_path))
    assert "explain-rules" in done.stdout.split()
