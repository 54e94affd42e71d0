"""What a node says of itself: for people, as data, and as Prometheus metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ktp.errors import UsageError
from ktp.model.diagnosis import Finding, Severity
from ktp.model.node_check import CheckedFrontEnd, FrontEndState, NodeCheck
from ktp.model.trace import Symptom
from ktp.render.diagnosis_json import API_VERSION, finding_object, gap_object
from ktp.render.terminal import write

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_WORDS = {
    FrontEndState.FAILS: "fail",
    FrontEndState.DEVIATES: "deviate",
    FrontEndState.UNKNOWN: "unknown",
    FrontEndState.SILENT: "silent as configured",
    FrontEndState.ANSWERS: "answer",
}
_STYLES = {FrontEndState.FAILS: "red", FrontEndState.DEVIATES: "yellow", FrontEndState.UNKNOWN: "yellow"}
_MOST_LINES = 40


def summary(check: NodeCheck) -> str:
    """One line that says how the node does: first on standard output, where monitors read it."""
    if not check.total:
        return f"{check.node}: no Service has a front end for outside clients"
    said = [f"{check.count(state)} {_WORDS[state]}" for state in FrontEndState if check.count(state)]
    return f"{check.node}: of {check.total} front ends {', '.join(said)}"


def print_check(check: NodeCheck, console: Console, *, verbose: bool = False) -> None:
    """The summary, what is not well, and its causes."""
    bad = check.count(FrontEndState.FAILS) + check.count(FrontEndState.DEVIATES)
    style = "bold red" if bad else "bold yellow" if check.not_well else "bold green"
    console.print(Text(summary(check), style=style), soft_wrap=True)
    write(
        console,
        Text(f"Evidence: {', '.join(check.evidence) or 'no rules'}; {check.source}", style="dim"),
        0,
        2,
    )
    shown = check.not_well if verbose else check.not_well[:_MOST_LINES]
    for each in shown:
        line = Text.assemble(
            (_WORDS[each.state], _STYLES[each.state]), f"  {each.key} {each.title}: {said_of(each)}",
            f" ({each.cause})" if each.cause else "",
        )  # fmt: skip
        write(console, line, 0, 4)
    if len(shown) < len(check.not_well):
        console.print(Text(f"… {len(check.not_well) - len(shown)} more (-v shows them)", style="dim"))
    for message, finding, keys in _merged(check):
        console.print()
        write(console, Text.assemble((finding.code, "bold"), f" {message}"), 0, 2)
        if len(keys) > 1:
            write(console, Text(f"the same of {_some(keys[1:])}", style="dim"), 2)
    if check.undiagnosed:
        console.print()
        write(
            console,
            Text(
                f"{check.undiagnosed} more Services are not well; their causes were not sought", style="dim"
            ),
        )
    for gap in check.gaps:
        write(console, Text(f"not read: {gap.message}", style="yellow"), 0, 2)
    if check.not_well:
        first = check.not_well[0]
        console.print(
            Text(f"ktp diagnose svc {first.key} tells why and what to do", style="dim"), soft_wrap=True
        )


def said_of(each: CheckedFrontEnd) -> str:
    """What becomes of a client, and what is meant to."""
    if each.state is FrontEndState.DEVIATES:
        if each.symptom is Symptom.UNKNOWN:
            return "its packets are sent where the API has no endpoint, and what becomes of them is not known"
        return "it connects, but not as the API objects call for"
    symptom = each.symptom.value.replace("_", " ")
    if each.state is FrontEndState.UNKNOWN:
        return each.reason
    meant = (
        ""
        if each.intended is each.symptom
        else f", where it should be: {each.intended.value.replace('_', ' ')}"
    )
    return f"{symptom}{meant}"


def _merged(check: NodeCheck) -> Iterator[tuple[str, Finding, list[str]]]:
    """The findings of all Services, gravest first, those of one code and severity once, with the Services' names."""
    groups: dict[tuple[int, str], list[tuple[str, Finding]]] = {}
    for key, findings in check.findings.items():
        for finding in findings:
            groups.setdefault((finding.severity.rank, finding.code), []).append((key, finding))
    for _, members in sorted(groups.items()):
        key, first = members[0]
        yield first.message, first, list(dict.fromkeys(key for key, _ in members))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_object(check: NodeCheck) -> dict[str, Any]:
    """kind NodeCheck."""
    return {
        "apiVersion": API_VERSION,
        "kind": "NodeCheck",
        "node": check.node,
        "summary": summary(check),
        "at": check.at,
        "objectsAt": check.objects_at,
        "seconds": round(check.seconds, 3),
        "frontends": {state.value: check.count(state) for state in FrontEndState},
        "items": [
            {
                "service": {"namespace": e.namespace, "name": e.name, "externalTrafficPolicy": e.policy},
                "frontend": e.title,
                "state": e.state.value,
                "symptom": e.symptom.value,
                "intended": e.intended.value,
                "reason": e.reason,
                "cause": e.cause,
            }
            for e in check.not_well
        ],
        "findings": [
            {"service": key, **finding_object(finding)}
            for key, found in check.findings.items()
            for finding in found
        ],
        "undiagnosed": check.undiagnosed,
        "evidence": {"source": check.source, "rules": list(check.evidence)},
        "gaps": [gap_object(g) for g in check.gaps],
    }


def report_text(check: NodeCheck, age: float) -> bytes:
    """The JSON of `check_object`, with the `age` of the look in seconds: clocks of machines may differ."""
    return json.dumps({**check_object(check), "age": round(age, 1)}, allow_nan=False).encode() + b"\n"


METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def require_prometheus() -> None:
    """UsageError where prometheus_client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise UsageError(
            "metrics need the package prometheus_client, which is not installed",
            hint="pip install 'ktp[exporter]', or the distribution's python3-prometheus-client",
        ) from None


def metrics_text(check: NodeCheck | None, errors: int) -> bytes:
    """The metrics in Prometheus's text format."""
    require_prometheus()
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            return metrics(check, errors)

    registry = CollectorRegistry()
    registry.register(Once())
    return generate_latest(registry)


def metrics(check: NodeCheck | None, errors: int) -> Iterable[Metric]:
    """The metrics of one look: no series for a Service that is well.

    `errors` counts the looks that failed; with None for `check`, none has succeeded yet.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    failed = CounterMetricFamily("ktp_check_errors", "Looks at the node that failed.", value=errors)
    yield failed
    if check is None:
        return
    states = GaugeMetricFamily(
        "ktp_frontends", "Front ends for outside clients on this node, by state.", labels=["state"]
    )
    for state in FrontEndState:
        states.add_metric([state.value], check.count(state))
    yield states
    found = GaugeMetricFamily(
        "ktp_finding",
        "Front ends of a Service that a finding is about.",
        labels=["code", "severity", "namespace", "service"],
    )
    for labels, count in sorted(_findings(check).items()):
        found.add_metric(list(labels), count)
    yield found
    yield GaugeMetricFamily(
        "ktp_undiagnosed_services", "Services that are not well and of which no cause was sought.",
        value=check.undiagnosed,
    )  # fmt: skip
    yield GaugeMetricFamily("ktp_evidence_gaps", "What could not be read.", value=len(check.gaps))
    yield GaugeMetricFamily(
        "ktp_evidence_timestamp_seconds", "When the node's evidence was complete (Unix time).", value=check.at
    )
    yield GaugeMetricFamily(
        "ktp_objects_timestamp_seconds", "When the API server was last heard of (Unix time).",
        value=check.objects_at,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "ktp_check_seconds", "How long the last look took, reading and thinking.", value=check.seconds
    )


def _findings(check: NodeCheck) -> Counter[tuple[str, str, str, str]]:
    """(code, severity, namespace, name) → front ends that fail or deviate; the code is empty where none is known."""
    severities = {(key, f.code): f.severity for key, findings in check.findings.items() for f in findings}
    return Counter(
        (
            e.cause or "",
            (severities.get((e.key, e.cause or "")) or _severity_of(e)).value,
            e.namespace,
            e.name,
        )
        for e in check.not_well
        if e.state is not FrontEndState.UNKNOWN
    )


def _severity_of(each: CheckedFrontEnd) -> Severity:
    return Severity.ERROR if each.state is FrontEndState.FAILS else Severity.WARNING
