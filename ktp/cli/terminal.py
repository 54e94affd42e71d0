"""What the terminal is like: its width, and whether it shows colours."""

from __future__ import annotations

import codecs
import os
from typing import TextIO


def use_color(choice: str, stream: TextIO) -> bool:
    """Whether to colour `stream`: --color, then NO_COLOR (no-color.org), a dumb terminal, a pipe."""
    if choice != "auto":
        return choice == "always"
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def width() -> int:
    """Columns to write in: COLUMNS, else the terminal's, 80 in a pipe; never more than reads well."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return max(40, min(int(columns), 120))
    try:
        # As shutil.get_terminal_size, which would load every archive format to say so.
        return max(40, min(os.get_terminal_size(1).columns or 80, 120))
    except (ValueError, OSError):
        return 80


# One character for one where that can be read: what was laid out for the width stays in it.
_ASCII = {"→": ">", "…": "...", "–": "-", "×": "x", "’": "'", "•": "*", "✓": "ok", "─": "-", "│": "|"}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end


def degrade_gracefully(stream: TextIO) -> None:
    """Let a stream that cannot hold a character get its nearest ASCII spelling instead of failing."""
    codecs.register_error("ktp-ascii", _in_ascii)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="ktp-ascii")
