#!/usr/bin/env python3
"""Writes docs/screen.svg, the picture in the README: what the demo prints, as far as the matrix and its cause."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "screen.svg"
SERVICE = "test/nginx-externaltrafficpolicy"
sys.path.insert(0, str(REPOSITORY))

from ktp.app.settings import Settings, open_offline  # noqa: E402
from ktp.diagnose.service import diagnose_service  # noqa: E402
from ktp.parse.snapshot import parse_snapshot  # noqa: E402
from ktp.render.diagnosis_text import print_diagnosis  # noqa: E402
from ktp.render.terminal import make_console  # noqa: E402

INK, PAPER = (214, 217, 224), (24, 26, 31)
# Black, red, green, yellow, blue, magenta, cyan, white.
COLORS = [
    PAPER, (239, 107, 115), (140, 200, 120), (229, 192, 110), (110, 170, 240), (198, 140, 220), (90, 190, 200), INK,
]  # fmt: skip
THEME = TerminalTheme(PAPER, INK, COLORS, COLORS)


def shown() -> str:
    """The lines of the picture, with the escapes of a terminal."""
    snapshot = parse_snapshot(open_offline(Settings(demo=True)))
    out = io.StringIO()
    print_diagnosis(
        diagnose_service(snapshot, snapshot.cluster.services[SERVICE]), make_console("always", out, width=80)
    )
    lines = out.getvalue().splitlines()
    # Up to the sentence of the first finding; its proof and the cures are the tutorial's.
    end = next(at for at, line in enumerate(lines) if "rule:" in line)
    return "\n".join(lines[:end])


def picture() -> str:
    """The SVG; without fonts from elsewhere, so that it looks the same without a network."""
    console = Console(
        record=True,
        width=80,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
    )
    console.print(Text.from_ansi("$ ktp diagnose svc test/nginx-externaltrafficpolicy\n" + shown()))
    svg = console.export_svg(title="ktp", theme=THEME, unique_id="ktp")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace('<svg class="rich-terminal"', '<svg class="rich-terminal" xml:space="preserve"')
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
