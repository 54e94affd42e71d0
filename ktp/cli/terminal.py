"""What the terminal is like: its width, and whether it shows colours."""

from __future__ import annotations

import os
import shutil
from typing import TextIO


def use_color(choice: str, stream: TextIO) -> bool:
    """Whether to colour `stream`: --color, then NO_COLOR (no-color.org), a dumb terminal, a pipe."""
    if choice != "auto":
        return choice == "always"
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def width() -> int:
    """Columns to write in: COLUMNS, else the terminal's, 80 in a pipe; never more than reads well."""
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, 120))
