"""The JSON Schema that ktp brings along, strictly: what it does not describe is refused, so that nothing goes undescribed."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastjsonschema

import ktp

FILE = Path(ktp.__file__).parent / "schema" / "v1.json"


@functools.cache
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def name_of(data: dict[str, Any]) -> str:
    """The definition that an output follows: its kind, or which of those without one it is."""
    if "kind" in data:
        return str(data["kind"])
    return "trace" if "paths" in data else "batchError" if "error" in data else "batchAnswer"


def validate(data: dict[str, Any]) -> None:
    """Raises JsonSchemaException where the schema does not describe `data` whole."""
    validator(name_of(data), strict=True)(data)


def validate_as_reader(data: dict[str, Any]) -> None:
    """As a program that reads v1 does: fields that it does not know are none of its business."""
    validator(name_of(data), strict=False)(data)


@functools.cache
def validator(name: str, *, strict: bool) -> Callable[[Any], Any]:
    definitions = copy.deepcopy(schema()["$defs"])
    assert name in definitions, f"no schema describes {name}"
    if strict:
        _close(definitions)
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": f"#/$defs/{name}",
        "$defs": definitions,
    }
    made: Callable[[Any], Any] = fastjsonschema.compile(whole)
    return made


def _close(part: Any) -> None:
    """Every object with described fields has no others."""
    if isinstance(part, dict):
        if "properties" in part and isinstance(part["properties"], dict):
            part.setdefault("additionalProperties", False)
        for value in part.values():
            _close(value)
    elif isinstance(part, list):
        for value in part:
            _close(value)
