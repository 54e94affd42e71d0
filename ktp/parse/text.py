"""Bytes of a capture → text or JSON, with errors that name the file. Shared by the parsers of this package."""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from ktp.errors import EvidenceError

Number = TypeVar("Number", int, None)

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# What a value of an unexpected shape raises while a parser picks its fields.
SHAPE_ERRORS = (TypeError, AttributeError, ValueError, LookupError, RecursionError)


def decode_text(data: bytes | str, source: str) -> str:
    """`data` as text: UTF-8, or UTF-16 with a byte order mark (PowerShell's `>`); odd bytes are replaced.

    Raises EvidenceError naming `source` where it is not text at all (it has NUL bytes).
    """
    if isinstance(data, str):
        text = data
    elif data.startswith(UTF16_MARKS):
        text = data.decode("utf-16", "replace")
    else:
        text = data.decode("utf-8-sig", "replace")
    if "\0" in text:
        raise EvidenceError(f"{source} is not text", hint="collect that file again")
    return text


def load_json(data: bytes | str, source: str, *, remedy: str | None = None) -> Any:
    """The JSON document in `data` (UTF-8, -16 or -32).

    Raises EvidenceError naming `source`, with the place of the fault; `remedy` becomes its hint.
    """
    hint = remedy or "collect that file again"
    if not data.strip():
        raise EvidenceError(f"{source} is empty", hint=hint)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise EvidenceError(f"{source} is not valid JSON ({place})", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{source} is not valid JSON ({error})", hint=hint) from error


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Keeps the cyclic garbage collector off: it would walk every object of a large list again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object; null is an empty one; TypeError for anything else."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise TypeError(f"an object was expected, not {value!r:.60}")


def list_of(value: Any) -> list[Any]:
    """A JSON array; null is an empty one; TypeError for anything else."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise TypeError(f"a list was expected, not {value!r:.60}")


def string_of(value: Any, default: str = "") -> str:
    """A JSON string; null is `default`; TypeError for anything else."""
    if value is None:
        return default
    if isinstance(value, str):
        return value
    raise TypeError(f"a string was expected, not {value!r:.60}")


def optional_string(value: Any) -> str | None:
    """A JSON string, or None where it is null or empty; TypeError for anything else."""
    return string_of(value) or None


def number_of(value: Any, default: Number) -> int | Number:
    """A whole JSON number, also one written as a string; null is `default`; TypeError or ValueError else."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"a number was expected, not {value!r:.60}")
    return int(value)


def optional_bool(value: Any) -> bool | None:
    """A JSON boolean or None; TypeError for anything else."""
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"true or false was expected, not {value!r:.60}")


def strings_of(value: Any) -> tuple[str, ...]:
    """An array of strings; null is an empty one; TypeError for anything else."""
    return tuple([string_of(item) for item in list_of(value)])


def string_map(value: Any) -> dict[str, str]:
    """An object whose values are strings (null is ""); TypeError for anything else."""
    return {key: string_of(item) for key, item in object_of(value).items()}
