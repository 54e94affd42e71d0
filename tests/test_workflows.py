"""The workflows and templates are YAML that names what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_make_target_that_a_workflow_runs_is_there() -> None:
    asked: set[str] = set()
    for path in WORKFLOWS:
        for step in steps(yaml.safe_load(path.read_text())):
            for words in re.findall(r"\bmake ([a-z -]+)", step.get("run", "")):
                asked |= set(words.split())
    assert {"check", "site", "demo", "test", "test-kernel", "dist", "pyz", "sbom"} <= asked
    assert asked <= TARGETS


def test_each_supported_python_is_tested() -> None:
    (path,) = [path for path in WORKFLOWS if path.stem == "test"]
    tested = yaml.safe_load(path.read_text())["jobs"]["python"]["strategy"]["matrix"]["python"]
    lowest = re.search(r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert lowest is not None
    assert tested[0] == lowest[1]
    assert tested == [f"3.{minor}" for minor in range(10, 15)]


def test_only_the_publishing_jobs_may_write() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            writes = {k for k, v in job.get("permissions", {}).items() if v == "write"}
            assert not writes or name in ("publish", "release"), name


def test_templates_ask_for_a_redacted_snapshot() -> None:
    for path in sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        found = yaml.safe_load(path.read_text())
        if "body" in found:
            assert "ktp snapshot --redact" in path.read_text()


def test_the_site_has_every_page() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    named: set[str] = set()

    def gather(part: Any) -> None:
        if isinstance(part, str):
            named.add(part)
        else:
            for each in part.values() if isinstance(part, dict) else part:
                gather(each)

    gather(site["nav"])
    pages = {str(p.relative_to(REPOSITORY / "docs")) for p in (REPOSITORY / "docs").rglob("*.md")}
    missing = {p for p in pages - named if not p.startswith("reference/findings/")}
    assert not missing
    assert all((REPOSITORY / "docs" / name).exists() for name in named)
