"""A LabelSelector of the API → model."""

from __future__ import annotations

from typing import Any

from ktp.model.selector import LabelSelector, Requirement
from ktp.parse.text import list_of, object_of, string_map, string_of, strings_of


def parse_selector(found: Any) -> LabelSelector:
    """A LabelSelector; null is one that selects all. TypeError or ValueError for what is none."""
    selector = object_of(found)
    wanted = [
        Requirement(key, "In", (value,)) for key, value in string_map(selector.get("matchLabels")).items()
    ]
    for expression in list_of(selector.get("matchExpressions")):
        entry = object_of(expression)
        operator = string_of(entry.get("operator"))
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise ValueError(f"there is no operator {operator!r}")
        wanted.append(
            Requirement(string_of(entry.get("key")), operator, tuple(strings_of(entry.get("values"))))
        )
    return LabelSelector(tuple(wanted))
