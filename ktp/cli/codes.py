"""`ktp codes`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ktp.cli.complete import codes
from ktp.cli.options import Section, common_options, settings
from ktp.cli.options import command as ktp_command
from ktp.cli.terminal import use_color, width

if TYPE_CHECKING:
    from ktp.diagnose.codes import Page

_COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}


@ktp_command("codes", short_help="The findings, and the page of one.")
@click.argument("code", required=False, metavar="[CODE]", shell_complete=codes)
@common_options(Section.OUTPUT)
def command(code: str | None) -> int:
    """List the findings, or show the page of one.

    \b
      ktp codes             one line a finding
      ktp codes KTP501      what it means, how to confirm it by hand, what to do
    """
    from ktp.diagnose.codes import (
        find_page,
        index_markdown,
        page_markdown,
        page_object,
        page_text,
        pages,
        row_object,
    )

    chosen = settings()
    page = find_page(code) if code is not None else None
    if chosen.output in ("json", "yaml"):
        from ktp.render.structured import dump

        head = {"apiVersion": "ktp.dev/v1", "kind": "FindingPage" if page is not None else "FindingPageList"}
        body = page_object(page) if page is not None else {"items": [row_object(p) for p in pages()]}
        dump({**head, **body}, chosen.output, sys.stdout)  # type: ignore[dict-item]
    elif chosen.output == "markdown":
        click.echo(page_markdown(page) if page is not None else index_markdown(), nl=False)
    elif page is not None:
        click.echo(page_text(page, min(width(), 80)), nl=False)
    else:
        colored = use_color(chosen.color, sys.stdout)
        for line in _lines(pages(), width(), colored=colored):
            click.echo(line, color=colored)
    return 0


def _lines(pages: tuple[Page, ...], columns: int, *, colored: bool) -> Iterator[str]:
    for page in pages:
        severity = f"{page.severity.value:7}"
        first, *rest = textwrap.wrap(
            f"{page.name}: {page.summary}", columns - 17, break_long_words=False, break_on_hyphens=False
        )
        shown = click.style(severity, fg=_COLORS[page.severity.value]) if colored else severity
        yield f"{page.code}  {shown}  {first}"
        yield from (f"{'':17}{line}" for line in rest)
