"""Output of `ipset save` → sets. Source: ipset(8)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ktp.errors import EvidenceError
from ktp.model.host import IpSet
from ktp.parse.text import decode_text

# Words of `create` and of `add` that stand alone; `comment` has an argument in `add` only.
_CREATE_FLAGS = frozenset(("counters", "comment", "skbinfo", "forceadd"))
_ADD_FLAGS = frozenset(("nomatch", "wildcard"))
_WORD = re.compile(r'"[^"]*"|\S+')
_NO_OPTIONS: Mapping[str, str] = {}


def parse_ipsets(data: bytes | str, *, source: str = "ipset-save.txt") -> dict[str, IpSet]:
    """Every set by name, with its elements in order; no text is no sets.

    Options keep their spelling; those without an argument have the value "". Quotes around comments are taken off.
    Raises EvidenceError naming the first line that is neither `create` nor `add` to a set created before.
    """
    headers: dict[str, tuple[str, dict[str, str]]] = {}
    entries: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
    for number, line in enumerate(decode_text(data, source).splitlines(), 1):
        words = _WORD.findall(line) if '"' in line else line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3:
            raise _unknown(line, number, source)
        command, name, what, *rest = words
        name = name.strip('"')
        if command == "create":
            headers[name] = what, _options(rest, _CREATE_FLAGS)
            entries[name] = []
        elif command == "add" and name in entries:
            entries[name].append((what.strip('"'), _options(rest, _ADD_FLAGS) if rest else _NO_OPTIONS))
        else:
            raise _unknown(line, number, source)
    return {
        name: IpSet(
            name=name,
            type=kind,
            family=options.pop("family", "inet"),
            options=options,
            entries=tuple(entries[name]),
        )
        for name, (kind, options) in headers.items()
    }


def _options(words: list[str], flags: frozenset[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    position = 0
    while position < len(words):
        key = words[position]
        position += 1
        if key in flags or position == len(words):
            options[key] = ""
        else:
            options[key] = words[position].strip('"')
            position += 1
    return options


def _unknown(line: str, number: int, source: str) -> EvidenceError:
    return EvidenceError(
        f"line {number} of {source} is not one of `ipset save`: {line.strip()!r:.100}",
        hint="write it again: ipset save",
    )
