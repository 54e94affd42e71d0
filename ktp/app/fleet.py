"""Fleets: the manifest of a DaemonSet of `ktp check --serve`, and what its pods say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ktp
from ktp.app.settings import Settings, split_name
from ktp.errors import EvidenceError, ExitCode, UsageError
from ktp.model.node_check import FrontEndState

if TYPE_CHECKING:
    from ktp.model.fleet import Fleet

_BASE = ("namespace.yaml", "rbac.yaml", "daemonset.yaml", "networkpolicy.yaml")
_MONITORING = ("podmonitor.yaml", "prometheusrule.yaml", "dashboard.json")


def manifest(image: str, *, monitoring: bool = False) -> str:
    """The objects of deploy/ as one YAML text, with `image`; with `monitoring` those of the Prometheus operator too."""
    folder = _deploy()
    texts = [(folder / name).read_text() for name in _BASE]
    if monitoring:
        for name in _MONITORING:
            text = (folder / "monitoring" / name).read_text()
            texts.append(_dashboard(text) if name.endswith(".json") else text)
    whole = "---\n".join(text if text.endswith("\n") else f"{text}\n" for text in texts)
    return re.sub(r"^(\s+image:) ktp$", rf"\1 {image}", whole, flags=re.MULTILINE)


def default_image() -> str:
    """The image that `make image` builds."""
    return f"ktp:{ktp.__version__}"


def _deploy() -> Path:
    """The folder of the manifests: in the package, or beside it in a checkout."""
    inside = Path(ktp.__file__).parent / "deploy"
    return inside if inside.is_dir() else Path(ktp.__file__).parent.parent / "deploy"


def _dashboard(text: str) -> str:
    """The ConfigMap that kustomize makes of the dashboard."""
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ktp-dashboard\n  namespace: ktp\n  labels:\n"
        f'    app.kubernetes.io/name: ktp\n    grafana_dashboard: "1"\ndata:\n  dashboard.json: |\n{indented}'
    )


def report_of_fleet(settings: Settings, names: tuple[str, ...], namespace: str | None) -> ExitCode:
    """What the nodes themselves say of the named Services, or of all: `--node-access exporter`."""
    fleet = ask_fleet(settings, names, namespace)
    if settings.output == "text":
        from ktp.render.fleet import print_fleet
        from ktp.render.terminal import make_console

        print_fleet(fleet, make_console(settings.color, sys.stdout), verbose=settings.verbose)
    else:
        from ktp.render.fleet import fleet_object
        from ktp.render.structured import dump

        dump(fleet_object(fleet), settings.output, sys.stdout)
    if any(row.count(FrontEndState.FAILS) or row.count(FrontEndState.DEVIATES) for row in fleet.rows):
        return ExitCode.FINDINGS
    return ExitCode.UNDETERMINED if fleet.rows or fleet.silent else ExitCode.OK


def ask_fleet(settings: Settings, names: tuple[str, ...], namespace: str | None) -> Fleet:
    """What the nodes say of the named Services, or of all (of a namespace).

    Raises EvidenceError where no node says anything, NotFoundError for a name that is none.
    """
    from ktp.collect.cluster import named_service, require_namespace
    from ktp.collect.exporters import ask_exporters
    from ktp.collect.kube_api import connect
    from ktp.collect.watching import may_be_dialled
    from ktp.diagnose.fleet import merge_reports
    from ktp.parse.node_reports import parse_node_report

    api = connect(settings.kubeconfig, settings.context)
    parts = [split_name(name, settings, api.default_namespace) for name in names]
    keys = tuple("/".join(part) for part in parts)
    # A wrong name is told before five thousand nodes are asked.
    for key, (at, name) in zip(keys, parts, strict=True):
        if not may_be_dialled(named_service(api, at, name)):
            raise UsageError(
                f"{key} has no front end for clients outside, which are all that the nodes check",
                hint=f"ktp diagnose svc {key}",
            )
    if namespace is not None and not names:
        require_namespace(api, namespace)
    answers = ask_exporters(
        api, settings.nodes, parse_node_report, parallel=settings.parallel, on_progress=settings.progress
    )
    gaps = [answer.gap for answer in answers if answer.gap is not None]
    reports = [answer.report for answer in answers if answer.report is not None]
    if not reports:
        raise EvidenceError("no node told how it does", hint=gaps[0].message if gaps else None)
    return merge_reports(
        reports,
        gaps,
        services=keys,
        namespace=None if names else namespace,
        source=api.source,
    )
