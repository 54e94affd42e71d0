"""Diagnoses as JUnit XML, for CI: a test case for each front end and node, and for each finding that is about neither.

Some test case fails exactly where `ktp diagnose --fail-on` ends with exit status 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from ktp.model.diagnosis import Cell, Finding, ServiceDiagnosis, Severity
from ktp.model.trace import Symptom
from ktp.render.report_words import printable


def junit_report(reports: Sequence[ServiceDiagnosis], fail_on: Severity) -> str:
    """The XML text. A case fails by the findings that are at least as grave as `fail_on`."""
    root = ET.Element("testsuites", name="ktp")
    totals = {"tests": 0, "failures": 0, "skipped": 0, "errors": 0}
    for d in reports:
        suite = ET.SubElement(root, "testsuite", name=printable(d.key))
        counts = _fill(suite, d, [f for f in d.findings if f.severity.rank <= fail_on.rank])
        for name, number in counts.items():
            suite.set(name, str(number))
            totals[name] += number
    for name, number in totals.items():
        root.set(name, str(number))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _fill(suite: ET.Element, d: ServiceDiagnosis, grave: Sequence[Finding]) -> dict[str, int]:
    """The cases of one Service, and how many there are of each kind."""
    counts = {"tests": 0, "failures": 0, "skipped": 0, "errors": 0}
    told: set[int] = set()
    names: Counter[str] = Counter()

    def add(name: str, found: Sequence[Finding], unknown: Cell | None = None) -> None:
        counts["tests"] += 1
        names[name] += 1
        if names[name] > 1:
            name = f"{name} ({names[name]})"
        case = ET.SubElement(suite, "testcase", classname=printable(d.key), name=printable(name))
        if found:
            counts["failures"] += 1
            told.update(map(id, found))
            failure = ET.SubElement(
                case, "failure", type=printable(found[0].code), message=printable(found[0].message)
            )
            failure.text = printable("\n".join(_words(f) for f in found))
        elif unknown is not None:
            counts["skipped"] += 1
            ET.SubElement(case, "skipped", message=printable(unknown.reason))

    for m in d.frontends:
        for row in m.nodes:
            cell = row.cells.get("external") or next(iter(row.cells.values()), None)
            found = [f for f in grave if any(c[:2] == (m.title, row.node) for c in f.cells)]
            is_unknown = cell is not None and cell.symptom is Symptom.UNKNOWN
            add(f"{m.title} on {row.node}", found, cell if is_unknown else None)
    for f in grave:
        if id(f) not in told:
            add(f"{f.code} {f.name}" + (f" on {', '.join(f.nodes[:5])}" if f.nodes else ""), [f])
    return counts


def _words(f: Finding) -> str:
    lines = [f"{f.code} {f.severity.value}: {f.message}"]
    lines += [f"{e.kind}: {e.source}: {e.text}" for e in f.evidence]
    lines += [f"to do: {x.summary}" for x in f.fixes]
    return "\n".join(lines)
