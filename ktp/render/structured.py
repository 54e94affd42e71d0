"""Plain data → JSON or YAML. Every command with `-o json|yaml` prints through here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_AT_ONCE = 10_000  # words and marks that are written at once, where a stream does not gather them itself

Plain = None | bool | int | float | str | Sequence["Plain"] | Mapping[str, "Plain"]


def dump(data: Plain, fmt: str, stream: TextIO) -> None:
    """Write `data` (dicts, lists, text, numbers) to `stream`; `fmt` is "json" or "yaml".

    Keys keep their order. A stream that cannot hold every character gets them escaped, not replaced.
    """
    any_character = (getattr(stream, "encoding", None) or "").lower().startswith("utf")
    if fmt == "json":
        encoder = json.JSONEncoder(indent=2, ensure_ascii=not any_character, allow_nan=False)
        parts = iter(encoder.iterencode(data))
        while block := "".join(islice(parts, _AT_ONCE)):
            stream.write(block)
        stream.write("\n")
    elif fmt == "yaml":
        import yaml

        yaml.dump(
            data, stream, Dumper=_dumper(), sort_keys=False, allow_unicode=any_character, width=100,
            default_flow_style=False,
        )  # fmt: skip
    else:
        raise ValueError(f"there is no output format {fmt!r}")


def _dumper() -> type:
    import yaml

    class Dumper(yaml.SafeDumper):
        """SafeDumper that writes a value again where it occurs again, instead of `&id001`."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

    return Dumper
