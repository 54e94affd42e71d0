"""Diagnoses whose every word tries to break out of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

POISON = (
    "</title></style><script>document.title='ktp-was-here';alert(1)</script><img src=x onerror=alert(2)>"
    '" onclick="alert(3)\' `` ``` ]]> --> &amp; &#60;b&#62; [a](http://evil.example/) ![i](http://evil.example/i) | '
    "<!-- \x00\x07\x1b[31m \ud800\ufffe \u202e https://evil.example/ @someone\n\n# head\n\n| x | y |\n- item"
)
# What must stay: keys that the code itself compares.
_KEPT = {
    "vantage",
    "direction",
    "kind",
    "balancer",
    "basis",
    "verdict",
    "ip",
    "dst",
    "src",
    "host",
    "odd",
    "problem",
}


def poisoned(value: T) -> T:
    """A copy in which every text has the poison behind it."""
    return _poison(value, "")  # type: ignore[no-any-return]


def _poison(value: Any, name: str) -> Any:
    if isinstance(value, Enum) or name in _KEPT:
        return value
    if isinstance(value, str):
        return value + POISON
    if isinstance(value, tuple):
        return tuple(_poison(v, "") for v in value)
    if isinstance(value, Mapping):
        return {k if name == "cells" else _poison(k, ""): _poison(v, "") for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for f in dataclasses.fields(value):
            if f.init:
                changed[f.name] = _poison(getattr(value, f.name), f.name)
        return dataclasses.replace(value, **changed)
    return value
