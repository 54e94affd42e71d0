"""The manifests of deploy/: valid for each Kubernetes from 1.28 on, and nothing in them that is not so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ktp.cli import run
from ktp.cli.check import command
from ktp.collect.exporters import SELECTOR
from ktp.model.diagnosis import Finding, Severity
from ktp.model.node_check import CheckedFrontEnd, FrontEndState, NodeCheck
from ktp.model.trace import Symptom
from ktp.render.node_check import metrics_text

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VERSIONS = [f"1.{minor}" for minor in range(28, 37)]


def objects(*names: str) -> Iterator[dict[str, Any]]:
    for name in names or [str(p.relative_to(DEPLOY)) for p in sorted(DEPLOY.rglob("*.yaml"))]:
        if not name.endswith("kustomization.yaml"):
            yield from yaml.safe_load_all((DEPLOY / name).read_text())


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [each for each in objects() if each["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_is_valid(version: str) -> None:
    native = [each for each in objects() if "coreos.com" not in each["apiVersion"]]
    assert len(native) == 8
    for each in native:
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_do_refuse() -> None:
    wrong = of_kind("DaemonSet")
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.36", strict=True)


def test_kustomize_has_all_of_them() -> None:
    for folder in (DEPLOY, DEPLOY / "monitoring"):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = {p.name for p in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(kustomization["resources"]) == files
        assert kustomization["namespace"] == "ktp"
        for made in kustomization.get("configMapGenerator", ()):
            assert all((folder / name).is_file() for name in made["files"])


def test_the_rights_are_get_list_and_watch_of_what_is_read() -> None:
    rules = [rule for each in objects("rbac.yaml") for rule in each.get("rules", ())]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert {resource for rule in rules for resource in rule["resources"]} == {
        "services", "endpointslices", "nodes", "configmaps",
    }  # fmt: skip


def test_the_pods_write_nothing_and_hold_two_capabilities() -> None:
    (container,) = of_kind("DaemonSet")["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert "privileged" not in context
    assert "volumes" not in of_kind("DaemonSet")["spec"]["template"]["spec"]


def test_the_command_is_one_that_ktp_has() -> None:
    template = of_kind("DaemonSet")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    names = {env["name"] for env in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) == names
    for address in ("10.0.0.10", "fd00::10"):
        words = [
            arg.replace("$(HOST_IP)", address).replace("$(NODE_NAME)", "node-b") for arg in container["args"]
        ]
        assert words[0] == "check"
        parsed = command.make_context("check", words[1:]).params
        assert parsed["serve"] == (address, container["ports"][0]["containerPort"])
    key, _, value = SELECTOR.partition("=")
    assert template["metadata"]["labels"][key] == value
    assert container["ports"][0]["name"] == "metrics"


def exposed() -> set[str]:
    """The metrics that there are, with their labels."""
    one = CheckedFrontEnd(
        namespace="a", name="b", policy="Local", title="t", state=FrontEndState.FAILS, symptom=Symptom.REFUSED,
        intended=Symptom.CONNECTS, reason="", cause="KTP301",
    )  # fmt: skip
    finding = Finding(code="KTP301", name="n", severity=Severity.ERROR, message="m")
    check = NodeCheck(
        node="n", counts={FrontEndState.FAILS: 1}, not_well=(one,), findings={"a/b": (finding,)}
    )
    text = metrics_text(check, 0).decode()
    return set(re.findall(r"^(ktp_\w+)", text, re.MULTILINE))


def test_alerts_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    rules = of_kind("PrometheusRule")["spec"]["groups"][0]["rules"]
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for text in asked for name in re.findall(r"\bktp_\w+", text)}
    assert names
    assert names <= exposed()
    for text in asked:
        assert text.count("(") == text.count(")")
        states = set(re.findall(r'state="(\w+)"', text))
        assert states <= {state.value for state in FrontEndState}
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"].startswith("http://{{ $labels.instance }}/")
        assert "for" in rule
    assert of_kind("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


def test_manifest_prints_them_with_the_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fleet", "manifest", "--image", "registry.test/ktp:1", "--monitoring"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    daemon_set = next(each for each in printed if each["kind"] == "DaemonSet")
    assert daemon_set["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.test/ktp:1"
    (dashboard,) = [each for each in printed if each["kind"] == "ConfigMap"]
    assert json.loads(dashboard["data"]["dashboard.json"])["title"]
    kubernetes_validate.validate(dashboard, "1.36", strict=True)
    kinds = [each["kind"] for each in objects()]
    assert sorted(each["kind"] for each in printed) == sorted([*kinds, "ConfigMap"])
    assert run(["fleet", "manifest"]) == 0
    assert re.search(r"image: ktp:\d", capsys.readouterr().out)
