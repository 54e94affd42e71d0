"""What a command prints for people as a document to keep or send: Markdown, or one page of plain HTML."""

from __future__ import annotations

import html
import re

from ktp.render.report_words import printable

WIDTH = 120  # columns of the text in a document

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 2rem; font-family: sans-serif }} pre {{ font-size: 0.85rem; overflow-x: auto }}</style></head>
<body><h1>{title}</h1><pre>{text}</pre><p>Made by ktp, which only reads.</p></body></html>
"""


def document(text: str, title: str, output: str) -> str:
    """`text` under `title`, as "markdown" or "html"; ValueError for other forms."""
    text, title = printable(text).rstrip("\n"), printable(title)
    if output == "html":
        return _PAGE.format(title=html.escape(title), text=html.escape(text))
    if output != "markdown":
        raise ValueError(f"there is no document of the form {output!r}")
    # A fence is longer than any in the text, which quotes comments of rules.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    words = re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", title)
    return f"# {words}\n\n{fence}text\n{text}\n{fence}\n"
