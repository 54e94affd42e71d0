"""The schema of ktp's JSON, and its promise: within v1 fields are added, and those that there are stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import jsonschema
import pytest

from ktp.cli import run
from tests.support.schema import FILE, schema, validate, validate_as_reader

OLD = Path(__file__).resolve().parents[2] / "data" / "json-0.1"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference"
LOCAL = "test/nginx-externaltrafficpolicy"
# What was asked of 0.1 about the packaged snapshot.
QUESTIONS = {
    "diagnose": ["diagnose", "svc", LOCAL],
    "explain-port": ["explain-rules", "--node-port", "31015"],
    "trace": ["trace", "--from", "192.0.2.1", "--to", "10.0.0.10:31015"],
    "what-if": ["what-if", LOCAL, "--policy", "Cluster"],
    "code": ["codes", "KTP501"],
}


def old(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OLD / f"{name}.json").read_text())
    return found


def shape(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, JSON type) of every value; the items of a list have one path."""
    if isinstance(data, dict):
        yield path, "object"
        for key, value in data.items():
            yield from shape(value, f"{path}/{key}")
    elif isinstance(data, list):
        yield path, "array"
        for value in data:
            yield from shape(value, f"{path}/-")
    else:
        kinds = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
        yield path, kinds[type(data)]


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    refs = [value.rpartition("/")[2] for key, value in walk(schema()) if key == "$ref"]
    assert set(refs) <= schema()["$defs"].keys()
    # Each output of its own has a place at the top.
    top = {ref["$ref"].rpartition("/")[2] for ref in schema()["oneOf"]}
    assert {name for name in schema()["$defs"] if name[0].isupper()} <= top


def walk(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        for key, value in part.items():
            yield key, value
            yield from walk(value)
    elif isinstance(part, list):
        for value in part:
            yield from walk(value)


def test_the_copy_in_the_docs_is_fresh() -> None:
    assert (DOCS / "ktp.dev-v1.schema.json").read_text() == FILE.read_text(), "make pages"


@pytest.mark.parametrize("name", [*QUESTIONS, "batch"])
def test_who_reads_v1_reads_the_outputs_of_0_1(name: str) -> None:
    validate_as_reader(old(name))


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_field_of_0_1_is_there_still(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--demo", *QUESTIONS[name], "-o", "json"])
    now: dict[str, set[str]] = {}
    for path, kind in shape(json.loads(capsys.readouterr().out)):
        now.setdefault(path, set()).add(kind)
    gone = {path for path, _ in shape(old(name))} - now.keys()
    # Which sections a finding's page has is text; which parts of a rule are there depends on the rules shown.
    gone = {path for path in gone if name != "code" and not path.endswith(("/chain", "/chainShown"))}
    assert not {path for path in gone if "/chain/" not in path}
    for path, kind in shape(old(name)):
        assert kind == "null" or path not in now or kind in now[path] or now[path] == {"null"}, path


def test_what_is_not_described_is_refused() -> None:
    found = old("diagnose")
    with pytest.raises(fastjsonschema.JsonSchemaException):
        validate({**found, "news": 1})
    with pytest.raises(fastjsonschema.JsonSchemaException):
        validate_as_reader({**found, "verdict": 1})
    with pytest.raises(AssertionError, match="no schema describes"):
        validate({"kind": "Unheard"})


def test_batch_lines_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows = tmp_path / "flows"
    flows.write_text(
        '{"id": 1, "from": "192.0.2.1", "to": "10.0.0.3", "port": 31015, "protocol": "tcp"}\n'
        '{"id": "x", "from": "192.0.2.1", "to": "10.0.0.10", "port": 31015, "protocol": "tcp"}\n'
        '{"id": null, "to": 1}\nno json\n'
    )
    run(["--demo", "trace", "--batch", str(flows)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        validate(json.loads(line))
