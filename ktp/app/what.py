"""`ktp diagnose WHAT`: what was dialled, and then the diagnosis of what that is."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ktp.app.diagnose import client_address, status_of, write_diagnoses
from ktp.app.evidence import did_you_mean, find_service, near_names, node_names, snapshot_for_all, walker_for
from ktp.app.settings import Settings
from ktp.errors import ExitCode, NotFoundError, UsageError

if TYPE_CHECKING:
    from ktp.diagnose.dialled import Dialled
    from ktp.model.diagnosis import ServiceDiagnosis
    from ktp.model.snapshot import Snapshot
    from ktp.model.trace import FlowAnswer
    from ktp.parse.dialled import What


def diagnose_what(settings: Settings, words: tuple[str, ...], client: str | None) -> ExitCode:
    """Say what each of `words` is, and diagnose it; the exit status.

    Raises UsageError for words that are no address, NotFoundError for what nothing in the cluster is.
    """
    from ktp.parse.dialled import parse_what

    asked = [parse_what(text) for text in words]
    outside = client_address(client)
    snapshot = snapshot_for_all(settings, None)
    found = [dialled for what in asked for dialled in _meant(settings, snapshot, what)]
    reports: list[ServiceDiagnosis] = []
    others: list[tuple[Dialled, FlowAnswer | None]] = []
    from ktp.diagnose.service import diagnose_service

    for dialled in found:
        if dialled.service is None:
            others.append((dialled, _answer(snapshot, dialled)))
            continue
        nodes = [n for n in dialled.nodes if not settings.nodes or n in settings.nodes]
        if dialled.nodes and not nodes:
            raise UsageError(f"{dialled.words}; --node names another one", hint="leave --node out")
        nodes = nodes or list(settings.nodes)
        service = snapshot.cluster.services[dialled.service]
        report = diagnose_service(snapshot, service, nodes=tuple(nodes), client=outside)
        reports.append(replace(report, dialled=dialled.words, verdict=f"{dialled.words}. {report.verdict}"))
    _write(settings, reports, others)
    status = status_of(reports, settings.fail_on) if reports else ExitCode.OK
    return max((status, *(_status(answer) for _, answer in others)), key=_RANK.index)


_RANK = (ExitCode.OK, ExitCode.UNDETERMINED, ExitCode.FINDINGS)


def _answer(snapshot: Snapshot, dialled: Dialled) -> FlowAnswer | None:
    from ktp.dataplane.answer import answer_flow

    return answer_flow(walker_for(snapshot), dialled.flow) if dialled.flow is not None else None


def _status(answer: FlowAnswer | None) -> ExitCode:
    from ktp.model.trace import Symptom

    if answer is None or answer.symptom is Symptom.UNKNOWN:
        return ExitCode.UNDETERMINED
    return ExitCode.OK if answer.symptom is Symptom.CONNECTS else ExitCode.FINDINGS


def _write(
    settings: Settings, reports: list[ServiceDiagnosis], others: list[tuple[Dialled, FlowAnswer | None]]
) -> None:
    if not others:
        write_diagnoses(settings, reports)
        return
    if settings.output in ("json", "yaml"):
        from ktp.render.diagnosis_json import diagnosis_object, dialled_object
        from ktp.render.structured import dump

        items = [*map(diagnosis_object, reports), *(dialled_object(d.words, answer) for d, answer in others)]
        whole: dict[str, Any] = {"apiVersion": "ktp.dev/v1", "kind": "ServiceDiagnosisList", "items": items}
        dump(items[0] if len(items) == 1 else whole, settings.output, sys.stdout)
        return
    if settings.output != "text":
        raise UsageError(
            f"{others[0][0].words}: that is no Service, of which alone there are {settings.output} reports",
            hint="-o text, json or yaml",
        )
    from ktp.render.diagnosis_text import print_dialled
    from ktp.render.terminal import make_console

    if reports:
        write_diagnoses(settings, reports)
    console = make_console(settings.color, sys.stdout)
    for dialled, answer in others:
        print_dialled(dialled.words, answer, console)


# ------------------------------------------------------------------------------------------------ what is meant


def _meant(settings: Settings, snapshot: Snapshot, what: What) -> list[Dialled]:
    from ktp.diagnose.dialled import Dialled, at_address, at_node, at_node_port, near_ports

    cluster = snapshot.cluster
    if what.service is not None:
        namespace, name = what.service
        service = find_service(cluster, namespace or settings.namespace or "default", name)
        return [Dialled(words=f"{what.text} is {service.key}", service=service.key)]
    if what.ip is not None:
        found = at_address(snapshot, what.ip, what.port, what.protocol)
        return found or [_of_nobody(snapshot, what)]
    if not what.host:
        port = what.port or 0
        named = at_node_port(cluster, port, what.protocol)
        if not named:
            near = near_ports(cluster, port)
            raise NotFoundError(f"{port} is no node port of any Service{near}")
        return [Dialled(words=f"{port} is {words}", service=key) for words, key in named]
    if what.host in node_names(snapshot):
        return at_node(snapshot, what.host, None, what.port, what.protocol)
    balancers = [
        Dialled(words=f"{what.host} is the load balancer of {service.key}", service=service.key)
        for service in cluster.services.values()
        if any(entry.hostname == what.host for entry in service.ingress)
    ]
    return balancers or _by_name(settings, snapshot, what)


def _by_name(settings: Settings, snapshot: Snapshot, what: What) -> list[Dialled]:
    """A name that is no node's: of a Service, as `NAME.NAMESPACE` or `NAME`; else of a host that the system knows."""
    from ktp.diagnose.dialled import at_address, services_named

    name, _, namespace = what.host.partition(".")
    named = services_named(snapshot.cluster, name, namespace or settings.namespace)
    if not named and not namespace:
        named = services_named(snapshot.cluster, name, None)
    if named:
        from ktp.diagnose.dialled import Dialled

        return [Dialled(words=f"{what.text} is Service {s.key}", service=s.key) for s in named[:3]]
    from ipaddress import ip_address

    from ktp.collect.resolve import resolve

    for text in resolve(what.host):
        ip = ip_address(text.partition("%")[0])
        found = at_address(snapshot, ip, what.port, what.protocol)
        if found:
            return [
                replace(d, words=f"{what.host} is {text} by this machine's resolver; {d.words}")
                for d in found
            ]
    known = [*node_names(snapshot), *(s.name for s in snapshot.cluster.services.values())]
    raise NotFoundError(
        f"{what.host!r} is no node and no Service, and no address of the cluster by this machine's resolver"
        + (did_you_mean(what.host, near) if (near := near_names(what.host, known)) else "")
    )


def _of_nobody(snapshot: Snapshot, what: What) -> Dialled:
    """No node, Service or pod has the address: what has the port, at least, is diagnosed."""
    from ktp.diagnose.dialled import Dialled, at_node_port, local_cluster_words

    cluster = snapshot.cluster
    nodes = ", ".join(
        f"{node.name} {address}"
        for node in list((cluster.nodes or {}).values())[:3]
        for kind, address in node.addresses
        if kind == "InternalIP"
    )
    words = f"no node, Service or pod has the address {what.ip}" + (f" (nodes: {nodes})" if nodes else "")
    local = next((w for node in (cluster.nodes or {}).values() if (w := local_cluster_words(node))), "")
    words += f"; {local}" if local else ""
    named = at_node_port(cluster, what.port, what.protocol) if what.port is not None else []
    if not named:
        raise NotFoundError(words)
    return Dialled(words=f"{words}; {what.port} is {named[0][0]}", service=named[0][1])
