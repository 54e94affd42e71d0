"""Plain data as JSON and YAML."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import yaml

from ktp.render.structured import dump

DATA: Any = {"b": [1, 2.5, None, True], "a": {"text": "no: \"quotes\" – and 'so'", "on": "on", "empty": []}}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("fmt", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_what_is_written_is_read_again(fmt: str, load: object, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    dump(DATA, fmt, stream)
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert callable(load)
    assert load(text) == DATA
    assert text.endswith("\n")
    assert list(load(text)) == ["b", "a"]
    assert ("–" in text) == (encoding == "utf-8")


def test_yaml_repeats_what_occurs_twice() -> None:
    shared = {"x": 1}
    stream = io.StringIO()
    dump([shared, shared], "yaml", stream)
    assert stream.getvalue() == "- x: 1\n- x: 1\n"


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump({"x": float("nan")}, "json", io.StringIO())
    with pytest.raises(ValueError, match="xml"):
        dump({}, "xml", io.StringIO())
