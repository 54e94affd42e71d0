"""`ktp diagnose svc`: reports on named Services, and the survey of all."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from ktp.app.evidence import find_service, node_names, snapshot_for_all, snapshot_for_service
from ktp.app.settings import Settings
from ktp.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from ktp.app.probe import Probing
    from ktp.diagnose.survey import SurveyRow
    from ktp.model.cluster import Service
    from ktp.model.diagnosis import ServiceDiagnosis
    from ktp.model.snapshot import Snapshot


def diagnose_services(
    settings: Settings,
    names: tuple[str, ...],
    client: str | None,
    *,
    probing: Probing | None = None,
    probe: bool = False,
    health: bool = False,
) -> ExitCode:
    """Diagnose the named Services and write the report to stdout; the exit status.

    With `probe` their front ends are dialled too, with `health` their health checks are asked; `probing` says how.
    """
    from ktp.diagnose.service import diagnose_service

    outside = client_address(client)
    reports = []
    for name in names:
        snapshot, service = snapshot_for_service(settings, name)
        _require_family(service, outside)
        said = None
        if health:
            from ktp.app.probe import health_answers

            said = health_answers(settings, snapshot, service, probing)
        report = diagnose_service(snapshot, service, nodes=settings.nodes, client=outside, health=said)
        if probe and probing is not None:
            from ktp.app.probe import dial
            from ktp.diagnose.probing import with_probes

            report = with_probes(report, dial(settings, snapshot, service, probing).rows, snapshot)
        reports.append(report)
    write_diagnoses(settings, reports)
    return status_of(reports, settings.fail_on)


def client_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """The address that --client names; UsageError where it is none that a client outside can have."""
    if text is None:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise UsageError(f"--client {text!r} is no IP address") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise UsageError(f"--client {text} is no address that a client outside the cluster can have")
    return address


def _require_family(service: Service, client: IPv4Address | IPv6Address | None) -> None:
    from ktp.kubeproxy.frontends import ip_versions_of

    versions = ip_versions_of(service)
    if client is not None and versions and client.version not in versions:
        raise UsageError(
            f"--client {client} cannot dial {service.key}, which has no IPv{client.version} address"
        )


def write_diagnoses(settings: Settings, reports: list[ServiceDiagnosis], *, as_list: bool = False) -> None:
    """Write the reports; as data one alone is no list, unless `as_list`."""
    from ktp.render.reports import FORMS

    if settings.output in FORMS:
        from ktp.model.diagnosis import Severity

        FORMS[settings.output](reports, sys.stdout, Severity(settings.fail_on), as_list)
        return
    from ktp.render.diagnosis_text import print_border, print_diagnosis
    from ktp.render.terminal import make_console

    console = make_console(settings.color, sys.stdout)
    for number, report in enumerate(reports):
        if number:
            print_border(console)
        print_diagnosis(report, console, verbose=settings.verbose)


def status_of(reports: list[ServiceDiagnosis], fail_on: str = "warning") -> ExitCode:
    """FINDINGS where one is as severe as `fail_on`, UNDETERMINED where a cell is, the worst of all reports."""
    from ktp.model.diagnosis import Severity

    limit = Severity(fail_on).rank
    if any(f.severity.rank <= limit for r in reports for f in r.findings):
        return ExitCode.FINDINGS
    if any(r.undetermined for r in reports):
        return ExitCode.UNDETERMINED
    return ExitCode.OK


def survey_services(settings: Settings, namespace: str | None) -> ExitCode:
    """Every Service with an external front end, worst first; the exit status."""
    from ktp.diagnose.examine import Examiner
    from ktp.diagnose.service import diagnose_service
    from ktp.diagnose.survey import rows_of, survey, surveyed, with_causes

    snapshot = snapshot_for_all(settings, namespace)
    if namespace is not None and not any(
        s.namespace == namespace for s in snapshot.cluster.services.values()
    ):
        find_service(snapshot.cluster, namespace, "")
    keys = surveyed(snapshot, namespace=namespace)
    size = len(keys) * len(settings.nodes or node_names(snapshot))
    if size <= (_WHOLE_IN_TEXT if settings.output == "text" else _WHOLE_DIAGNOSES):
        services = snapshot.cluster.services
        examiner = Examiner(snapshot)
        reports = {
            key: diagnose_service(snapshot, services[key], nodes=settings.nodes, examiner=examiner)
            for key in keys
        }
        rows = rows_of(reports.values())
        if settings.output == "text":
            _print_survey(settings, rows)
        else:
            in_order = dict.fromkeys((*(row.key for row in rows), *keys))
            write_diagnoses(settings, [reports[key] for key in in_order], as_list=True)
        return status_of(list(reports.values()), settings.fail_on)
    rows = survey(snapshot, namespace=namespace, nodes=settings.nodes)
    sought = _SOUGHT_WITHIN if size <= _MOST_SOUGHT else 0
    rows, reports = with_causes(snapshot, rows, nodes=settings.nodes, seconds=sought)
    guessed = len({r.key for r in rows if r.failing and r.key not in reports})
    if settings.output == "text":
        _print_survey(settings, rows, guessed)
    else:
        _write_summaries(settings, snapshot, rows, size, guessed)
    if guessed:
        return ExitCode.FINDINGS
    status = status_of(list(reports.values()), settings.fail_on)
    if status is ExitCode.OK and any(r.unknown or not r.total for r in rows):
        return ExitCode.UNDETERMINED
    return status


# Beyond so many Services times nodes `-A -o json` prints summaries: whole diagnoses would take minutes.
_WHOLE_DIAGNOSES = 3000
# Up to so many the list for people is made of them, too: a few seconds.
_WHOLE_IN_TEXT = 300
# Beyond, those that are not well are diagnosed worst first, for so many seconds; of more rows than that none is, since
# one diagnosis alone takes seconds there.
_SOUGHT_WITHIN = 5.0
_MOST_SOUGHT = 100_000


def _print_survey(settings: Settings, rows: list[SurveyRow], guessed: int = 0) -> None:
    from ktp.render.survey import print_survey
    from ktp.render.terminal import make_console

    print_survey(rows, make_console(settings.color, sys.stdout), verbose=settings.verbose, guessed=guessed)


def _write_summaries(
    settings: Settings, snapshot: Snapshot, rows: list[SurveyRow], size: int, guessed: int
) -> None:
    if settings.output not in ("json", "yaml"):
        raise UsageError(
            f"{size} rows of Services and nodes are too many for one {settings.output} report",
            hint="narrow it with -n NAMESPACE or --node NODE, or use -o json, which prints a summary of each",
        )
    from ktp.render.structured import dump
    from ktp.render.survey import survey_object

    dump(survey_object(rows, snapshot, guessed), settings.output, sys.stdout)
