"""`ktp diagnose svc` on a live API server, over HTTPS: the answer, and what is said where there is none."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.collect.machine import CommandResult, LocalRunner
from ktp.collect.snapshot import open_snapshot
from tests.support.api_server import ApiServer, Fault, Pki

LOCAL = "test/nginx-externaltrafficpolicy"
Kubeconfig = Callable[..., Path]


def diagnose(config: Path, *arguments: str) -> int:
    return run(["diagnose", "svc", *arguments, "--kubeconfig", str(config)])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """One clear sentence on stderr, perhaps with a hint under it; no traceback, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    first, *hints = captured.err.splitlines()
    assert first.startswith("ktp: ")
    assert all(hint.startswith("     ") for hint in hints)
    assert len(hints) <= 1
    for word in words:
        assert word in captured.err, captured.err


# ---------------------------------------------------------------------------------------------------- the answer


def test_the_api_alone_names_the_cause(
    kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str], server: ApiServer
) -> None:
    assert diagnose(kubeconfig(), LOCAL) == 1
    out = capsys.readouterr().out
    assert " ".join(out.split()).startswith(
        "test/nginx-externaltrafficpolicy: nodePort 31015/TCP should answer outside clients on node-a, time out on"
    )
    assert "KTP501" in out
    assert "API objects alone" in out
    # one Service, not all of them
    assert "/api/v1/namespaces/test/services/nginx-externaltrafficpolicy" in server.paths()
    assert not [path for path in server.paths() if path.endswith("/services")]


def test_the_api_alone_as_data(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), LOCAL, "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "ServiceDiagnosis"
    rows = {row["node"]: row for row in found["frontends"][0]["nodes"]}
    assert {n: (r["external"]["symptom"], r["external"]["cause"]) for n, r in rows.items()} == {
        "node-a": ("connects", None),
        "node-b": ("times_out", "KTP501"),
        "node-c": ("times_out", "KTP501"),
    }
    assert {r["external"]["basis"] for r in rows.values()} == {"api"}
    assert found["evidence"]["api"] is True
    assert set(found["evidence"]["nodes"]) == set(rows)
    assert not any(found["evidence"]["nodes"].values())
    assert {g["subject"] for g in found["gaps"] if g["kind"] == "node-rules"} == set(rows)


def test_the_namespace_of_the_context_is_the_default(
    kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose(kubeconfig(), "nginx-log") == 0
    assert "test/nginx-log" in capsys.readouterr().out


def test_several_services(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "nginx-log", LOCAL, "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "ServiceDiagnosisList"
    assert [i["service"]["name"] for i in found["items"]] == ["nginx-log", "nginx-externaltrafficpolicy"]


def test_all_services_worst_first(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "-A") == 1
    assert capsys.readouterr().out.startswith("by the API objects alone, 1 of 2 Services")
    assert diagnose(kubeconfig(), "-n", "test", "-o", "json") == 1
    items = json.loads(capsys.readouterr().out)["items"]
    assert [i["service"]["name"] for i in items] == ["nginx-externaltrafficpolicy", "nginx-log"]


def test_a_client_certificate_will_do(
    kubeconfig: Kubeconfig, pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    user = {"client-certificate": str(pki.client_cert), "client-key": str(pki.client_key)}
    assert diagnose(kubeconfig(user=user), LOCAL) == 1


def test_endpoints_serve_where_there_are_no_endpoint_slices(
    kubeconfig: Kubeconfig, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.unknown.add("endpointslices")
    assert diagnose(kubeconfig(), LOCAL) == 1
    assert "KTP501" in capsys.readouterr().out


@pytest.mark.parametrize("resource", ["pods", "nodes", "endpointslices", "configmaps"])
def test_what_may_not_be_read_is_a_gap_that_names_the_right(
    resource: str, kubeconfig: Kubeconfig, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden.add(resource)
    status = diagnose(kubeconfig(), LOCAL, "-o", "json")
    captured = capsys.readouterr()
    assert status in {0, 1, 4}, captured.err
    found = json.loads(captured.out)
    if resource != "configmaps":  # nice to have, no more
        said = [g for g in found["gaps"] if resource in g["message"] and "list" in g["message"]]
        assert said, found["gaps"]


# --------------------------------------------------------------------------------------------------- no answer


def test_no_such_service(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "test/nginx-lgo") == 2
    refused(capsys, "nginx-lgo", "did you mean", "nginx-log")


def test_no_such_namespace(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), "tset/nginx-log") == 2
    refused(capsys, "tset", "did you mean", "test")


def test_no_such_node(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), LOCAL, "--node", "node-x") == 2
    refused(capsys, "'node-x'", "node-a")


@pytest.mark.parametrize("access", ["none", "local", "ssh", "kube-proxy"])
@pytest.mark.parametrize("out", ["out", "out.tar.gz"])
def test_no_snapshot_of_a_node_that_is_not_there(
    out: str, access: str, kubeconfig: Kubeconfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ktp.collect.ssh.run_child", None)  # no machine of that name is logged in to
    words = ["--kubeconfig", str(kubeconfig()), "--node-access", access, "--node", "node-x"]
    assert run(["snapshot", str(tmp_path / out), *words]) == 2
    refused(capsys, "'node-x'", "node-a")
    assert not (tmp_path / out).exists()


def test_no_api_server(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{free.getsockname()[1]}"
    assert diagnose(kubeconfig(url), LOCAL) == 3
    refused(capsys, url.removeprefix("https://"))


def test_no_kubeconfig(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diagnose", "svc", LOCAL]) == 3
    refused(capsys, "--snapshot")


def test_a_kubeconfig_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(tmp_path / "none", LOCAL) == 2
    refused(capsys, "no kubeconfig at")


def test_no_such_context(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), LOCAL, "--context", "prod") == 2
    refused(capsys, "prod", "test")


def test_credentials_that_have_expired(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(user={"token": "old"}), LOCAL) == 3
    refused(capsys, "401")


def test_no_credentials_at_all(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(user={}), LOCAL) == 3
    refused(capsys, "401")


def test_a_right_that_is_missing_is_named(
    kubeconfig: Kubeconfig, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden.add("services")
    assert diagnose(kubeconfig(), LOCAL) == 3
    refused(capsys, "get", "services", "test")
    assert diagnose(kubeconfig(), "-A") == 3
    refused(capsys, "list", "services")


def test_a_server_that_nobody_vouches_for(
    kubeconfig: Kubeconfig, pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose(kubeconfig(ca=pki.other_ca), LOCAL) == 3
    refused(capsys, "certificate")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"<html>hello</html>", content_type="text/html"),
        Fault(truncate=True),
        Fault(body=b"[]"),
        Fault(body=b'{"kind": "Service"'),
    ],
    ids=["a web page", "half an answer", "another shape", "broken JSON"],
)
def test_an_answer_that_is_none_of_an_api_server(
    fault: Fault, kubeconfig: Kubeconfig, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave("/services", *[fault] * 20)
    assert diagnose(kubeconfig(), LOCAL) == 3
    refused(capsys)


# ------------------------------------------------------------------------------------------- on a node, not root


def test_on_a_node_without_being_root(
    kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer from the API stands; what root alone may read is said once, and how to have it."""

    def denied(self: LocalRunner, command: Sequence[str], *, timeout: float) -> CommandResult:
        if "tables" in command[0] or command[0] in {"nft", "ipset", "ipvsadm"}:
            return CommandResult(status=4, stderr=b"Permission denied (you must be root)")
        return CommandResult(status=0, stdout=b"[]" if command[0] == "ip" else b"")

    monkeypatch.setattr(LocalRunner, "is_root", lambda self: False)
    monkeypatch.setattr(LocalRunner, "has_command", lambda self, name: True)
    monkeypatch.setattr(LocalRunner, "run", denied)
    status = diagnose(kubeconfig(), LOCAL, "--node", "node-b", "--node-access", "local", "-o", "json")
    captured = capsys.readouterr()
    assert status == 1, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    external = found["frontends"][0]["nodes"][0]["external"]
    assert (external["cause"], external["basis"]) == ("KTP501", "api")
    said = [g for g in found["gaps"] if g["kind"] == "node-rules"]
    assert [g["subject"] for g in said] == ["node-b"]
    assert "does not run as root" in said[0]["message"]
    assert "sudo" in said[0]["remedy"]


def test_a_machine_that_is_no_node(kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(kubeconfig(), LOCAL, "--node-access", "local") == 3
    refused(capsys, "none of the cluster's nodes", "--node")


# ---------------------------------------------------------------------------------------------- what must not travel


@pytest.mark.parametrize("out", ["out", "out.tar.gz"])
def test_no_secret_is_in_a_snapshot(
    out: str, kubeconfig: Kubeconfig, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "s3cret-word"
    applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"password": secret})}
    for resource in ("pods", "services", "nodes", "endpoints", "endpointslices"):
        for item in server.objects[resource]:
            metadata = item["metadata"]
            metadata["annotations"] = {**(metadata.get("annotations") or {}), **applied}
            metadata["managedFields"] = [{"manager": secret}]
    container = server.objects["pods"][0]["spec"]["containers"][0]
    container["env"] = [{"name": "PASSWORD", "value": secret}]
    container["args"] = [f"--password={secret}"]
    container["livenessProbe"] = {
        "httpGet": {"port": 80, "httpHeaders": [{"name": "Authorization", "value": secret}]}
    }
    metadata = {"name": "kube-proxy", "namespace": "kube-system"}
    data = {"config.conf": "mode: iptables\n", "kubeconfig.conf": f"token: {secret}\n"}
    server.objects["configmaps"] = [{"kind": "ConfigMap", "metadata": metadata, "data": data}]
    assert (
        run(["snapshot", str(tmp_path / out), "--kubeconfig", str(kubeconfig()), "--node-access", "none"])
        == 0
    )
    capture = open_snapshot(tmp_path / out)
    assert capture.has("cluster/pods.json")
    for name in capture.names():
        assert secret not in capture.read(name).decode(), name
    assert secret not in capsys.readouterr().out
    assert not [path for path in server.paths() if "secrets" in path]
    assert run(["--snapshot", str(tmp_path / out), "diagnose", "svc", LOCAL]) == 1


# ----------------------------------------------------------------------------------------- MetalLB and Cilium

BALANCED = "test/nginx-log"


def with_metallb(server: ApiServer) -> None:
    (service,) = [s for s in server.objects["services"] if s["metadata"]["name"] == "nginx-log"]
    service["spec"]["type"] = "LoadBalancer"
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "10.99.0.12"}]}}
    server.objects["ipaddresspools"] = [
        {
            "metadata": {"namespace": "metallb-system", "name": "first"},
            "spec": {"addresses": ["10.99.0.0/24"]},
        }
    ]


def test_metallb_is_asked_where_it_is(
    server: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with_metallb(server)
    diagnose(kubeconfig(), BALANCED, "-o", "json")
    found = json.loads(capsys.readouterr().out)
    assert "KTP608" not in {f["code"] for f in found["findings"]}
    assert not [g for g in found["gaps"] if g["kind"] == "announcing"]  # it is not there, which is no gap
    assert not [p for p in server.paths() if "metallb" in p or "cilium" in p]
    assert server.paths().count("/apis") == 1
    server.groups.add("/apis/metallb.io/v1beta1")
    assert diagnose(kubeconfig(), BALANCED, "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    (finding,) = [f for f in found["findings"] if f["code"] == "KTP608"]
    assert "which no advertisement announces" in finding["message"]
    # A Service of another type has nothing to do with it.
    server.requests.clear()
    diagnose(kubeconfig(), LOCAL)
    assert not [p for p in server.paths() if "metallb" in p or p == "/apis"]


def test_metallb_that_may_not_be_read_is_a_gap(
    server: ApiServer, kubeconfig: Kubeconfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with_metallb(server)
    server.groups.add("/apis/metallb.io/v1beta1")
    server.forbidden.add("l2advertisements")
    diagnose(kubeconfig(), BALANCED, "-o", "json")
    found = json.loads(capsys.readouterr().out)
    assert "KTP608" not in {f["code"] for f in found["findings"]}
    (gap,) = [g for g in found["gaps"] if g["subject"] == "l2advertisements"]
    assert "whether a load-balancer address is announced is not known" in gap["message"]


def with_cilium(server: ApiServer) -> None:
    """Cilium announces the address from node-c, which holds no pod of the Service."""
    with_metallb(server)
    (service,) = [s for s in server.objects["services"] if s["metadata"]["name"] == "nginx-log"]
    service["spec"]["externalTrafficPolicy"] = "Local"
    server.objects["ipaddresspools"] = []
    server.objects["ciliumloadbalancerippools"] = [
        {
            "metadata": {"name": "blue"},
            "spec": {"blocks": [{"start": "10.99.0.5", "stop": "10.99.0.20"}]},
        }
    ]
    server.objects["ciliuml2announcementpolicies"] = [
        {
            "metadata": {"name": "lan"},
            "spec": {
                "loadBalancerIPs": True,
                "serviceSelector": {"matchLabels": {"io.kubernetes.service.namespace": "test"}},
            },
        }
    ]
    server.objects["leases"] = [
        {
            "metadata": {
                "namespace": "kube-system",
                "name": f"cilium-l2announce-{BALANCED.replace('/', '-')}",
            },
            "spec": {"holderIdentity": "node-c"},
        },
        {
            "metadata": {"namespace": "kube-system", "name": "kube-scheduler"},
            "spec": {"holderIdentity": "x_1"},
        },
    ]


def test_cilium_announces_from_the_node_that_holds_its_lease(
    server: ApiServer, kubeconfig: Kubeconfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_cilium(server)
    server.groups.add(
        "/apis/cilium.io/v2alpha1"
    )  # a version whose pools are of v2alpha1 alone has no such list here
    diagnose(kubeconfig(), BALANCED, "-o", "json")
    found = json.loads(capsys.readouterr().out)
    assert [f["nodes"] for f in found["findings"] if f["code"] == "KTP608"] == [["node-c"]]
    server.groups.add("/apis/cilium.io/v2")
    out, hidden = tmp_path / "out", tmp_path / "hidden"
    assert run(["snapshot", str(out), "--kubeconfig", str(kubeconfig()), "--node-access", "none"]) == 0
    assert "kube-scheduler" not in (out / "cluster" / "leases.json").read_text()
    assert run(["snapshot", str(hidden), "--snapshot", str(out), "--redact"]) == 0
    capsys.readouterr()
    for snapshot in (out, hidden):
        assert run(["diagnose", "svc", "-A", "--snapshot", str(snapshot), "-o", "json"]) == 1
        items = json.loads(capsys.readouterr().out)["items"]
        (finding,) = [f for item in items for f in item["findings"] if f["code"] == "KTP608"]
        assert "(Lease cilium-l2announce-" in finding["message"]
    secret = "nginx-log"
    assert not [f for f in (hidden / "cluster").iterdir() if secret in f.read_text()]
    # Without the lease: any node may be elected.
    server.forbidden.add("leases")
    diagnose(kubeconfig(), BALANCED, "-o", "json")
    found = json.loads(capsys.readouterr().out)
    (finding,) = [f for f in found["findings"] if f["code"] == "KTP608"]
    assert finding["severity"] == "warning"
    assert "may announce 10.99.0.12 of test/nginx-log from node-" in finding["message"]
    assert "leases" in [g["subject"] for g in found["gaps"]]


def test_metallb_is_in_a_snapshot(
    server: ApiServer, kubeconfig: Kubeconfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_metallb(server)
    server.groups.add("/apis/metallb.io/v1beta1")
    out = tmp_path / "out"
    assert run(["snapshot", str(out), "--kubeconfig", str(kubeconfig()), "--node-access", "none"]) == 0
    assert run(["diagnose", "svc", BALANCED, "--snapshot", str(out), "-o", "json"]) == 1
    captured = capsys.readouterr().out
    assert "which no advertisement announces" in captured
    hidden = tmp_path / "hidden"
    assert run(["snapshot", str(hidden), "--snapshot", str(out), "--redact"]) == 0
    assert run(["diagnose", "svc", "-A", "--snapshot", str(hidden), "-o", "json"]) == 1
    assert "which no advertisement announces" in capsys.readouterr().out
    assert "metallb-system" in (hidden / "cluster" / "ipaddresspools.json").read_text()
    assert "10.99.0" not in (hidden / "cluster" / "ipaddresspools.json").read_text()
    # Of one namespace alone, the cluster's pools stay.
    part = tmp_path / "part"
    assert run(["snapshot", str(part), "--snapshot", str(out), "-n", "test"]) == 0
    assert run(["diagnose", "svc", BALANCED, "--snapshot", str(part), "-o", "json"]) == 1
    assert "which no advertisement announces" in capsys.readouterr().out
