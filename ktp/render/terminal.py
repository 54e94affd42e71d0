"""The console that reports are written to."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from rich.console import Console


def make_console(color: str, stream: TextIO) -> Console:
    """A rich console: COLUMNS or the terminal's width, 80 in a pipe; colours by --color, NO_COLOR, TERM, a pipe.

    Markup, emoji and highlighting are off: what is shown is data, and `[x]` in it must stay.
    """
    auto = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
    colored = color == "always" or (color == "auto" and auto)
    columns = shutil.get_terminal_size((80, 24)).columns
    return Console(
        file=stream,
        width=max(40, min(columns, 160)),
        force_terminal=colored,
        no_color=not colored,
        color_system="standard" if colored else None,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
