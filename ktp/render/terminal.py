"""The console that reports are written to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ktp.render.clean import clean


class _Console(Console):
    """A console that passes on no control characters but its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is drawn, cleaned."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else clean(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def make_console(color: str, stream: TextIO, *, width: int | None = None) -> Console:
    """A rich console: COLUMNS or the terminal's width, 80 in a pipe; colours by --color, NO_COLOR, TERM, a pipe.

    Markup, emoji and highlighting are off: what is shown is data, and `[x]` in it must stay.
    """
    auto = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
    colored = color == "always" or (color == "auto" and auto)
    columns = width or shutil.get_terminal_size((80, 24)).columns
    return _Console(
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


def print_table(console: Console, table: Table) -> None:
    """Print a table without trailing blanks."""
    with console.capture() as capture:
        console.print(table)
    # To the file itself: printed again, the console's own escapes would be taken for a stranger's.
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def write(console: Console, text: Text, indent: int = 0, hang: int | None = None) -> None:
    """Print `text` folded to the console's width, without trailing blanks; `hang` indents its further lines."""
    width = console.width
    first, *rest = text.wrap(console, width - indent)
    lines = [(indent, first)]
    if rest:
        hang = indent if hang is None else hang
        remainder = text[len(first.plain) :]
        while remainder.plain[:1] == " ":
            remainder = remainder[1:]
        lines += [(hang, line) for line in remainder.wrap(console, width - hang)]
    for margin, line in lines:
        line.rstrip()
        console.print(Text(" " * margin).append_text(line), soft_wrap=True)
