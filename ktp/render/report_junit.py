"""Diagnoses as JUnit XML, for CI: one test case a front end and node, one failure a finding of the asked severity."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from ktp.model.diagnosis import ServiceDiagnosis, Severity
from ktp.model.trace import Symptom


def junit_report(reports: Sequence[ServiceDiagnosis], fail_on: Severity) -> str:
    """The XML text. A cell of outside clients that fails by a finding at least as grave as `fail_on` is a failure."""
    root = ET.Element("testsuites", name="ktp")
    for d in reports:
        suite = ET.SubElement(root, "testsuite", name=d.key)
        tests = failures = skipped = 0
        for m in d.frontends:
            for row in m.nodes:
                cell = row.cells.get("external") or next(iter(row.cells.values()), None)
                if cell is None:
                    continue
                tests += 1
                case = ET.SubElement(suite, "testcase", classname=d.key, name=f"{m.title} on {row.node}")
                if cell.symptom is Symptom.UNKNOWN:
                    skipped += 1
                    ET.SubElement(case, "skipped", message=_clean(cell.reason))
                    continue
                if cell.symptom is Symptom.CONNECTS:
                    continue
                key = (m.title, row.node)
                found = [
                    f
                    for f in d.findings
                    if f.severity.rank <= fail_on.rank and any(c[:2] == key for c in f.cells)
                ]
                if found:
                    failures += 1
                    failure = ET.SubElement(
                        case, "failure", type=found[0].code, message=_clean(found[0].message)
                    )
                    failure.text = _clean(
                        "\n".join(f"{e.kind}: {e.source}: {e.text}" for f in found for e in f.evidence)
                    )
        suite.set("tests", str(tests))
        suite.set("failures", str(failures))
        suite.set("skipped", str(skipped))
        suite.set("errors", "0")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c >= " " or c in "\n\t")
