"""The forms of a report beside the terminal's, by name: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ktp.model.diagnosis import ServiceDiagnosis, Severity

Writer = Callable[[Sequence["ServiceDiagnosis"], TextIO, "Severity", bool], None]
"""`(reports, stream, severity from which a report fails, whether one alone is a list too)`."""


def _markdown(reports: Sequence[ServiceDiagnosis], out: TextIO, fail_on: Severity, as_list: bool) -> None:  # noqa: ARG001
    from ktp.render.report_markdown import markdown_report

    out.write("\n".join(markdown_report(report) for report in reports))


def _html(reports: Sequence[ServiceDiagnosis], out: TextIO, fail_on: Severity, as_list: bool) -> None:  # noqa: ARG001
    from ktp.render.report_html import html_report

    out.write(html_report(reports))


def _junit(reports: Sequence[ServiceDiagnosis], out: TextIO, fail_on: Severity, as_list: bool) -> None:  # noqa: ARG001
    from ktp.render.report_junit import junit_report

    out.write(junit_report(reports, fail_on))


def _data(form: str) -> Writer:
    def write(reports: Sequence[ServiceDiagnosis], out: TextIO, fail_on: Severity, as_list: bool) -> None:  # noqa: ARG001
        from ktp.render.diagnosis_json import diagnosis_list, diagnosis_object
        from ktp.render.structured import dump

        alone = len(reports) == 1 and not as_list
        dump(diagnosis_object(reports[0]) if alone else diagnosis_list(reports), form, out)

    return write


FORMS: Mapping[str, Writer] = {
    "json": _data("json"),
    "yaml": _data("yaml"),
    "markdown": _markdown,
    "html": _html,
    "junit": _junit,
}
