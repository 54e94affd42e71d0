"""Completion in shells: what click offers for commands and options, and names of the cluster where one belongs.

`kubectl ktp` is completed by `kubectl_complete-ktp`, which kubectl runs with the words so far.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ktp.app.settings import Settings

_NO_FILES = 4  # cobra's ShellCompDirectiveNoFileComp: what is printed is all that there is


def services(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Services by name."""
    from ktp.app.complete import service_names

    return _beginning(incomplete, ((name, None) for name in service_names(_settings(ctx))))


def namespaces(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Namespaces that have Services."""
    from ktp.app.complete import namespaces as found

    return _beginning(incomplete, ((name, None) for name in found(_settings(ctx))))


def nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Nodes by name."""
    from ktp.app.complete import node_names

    return _beginning(incomplete, ((name, None) for name in node_names(_settings(ctx))))


def codes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Findings by code."""
    from ktp.app.complete import codes as found

    return _beginning(incomplete.upper(), found())


def _settings(ctx: click.Context) -> Settings:
    from ktp.cli.options import asked_from  # which offers these completions

    return asked_from(ctx)


def _beginning(incomplete: str, found: Iterable[tuple[str, str | None]]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(value, help=words) for value, words in found if value.startswith(incomplete)]


def kubectl_complete() -> None:
    """`kubectl_complete-ktp WORD… INCOMPLETE`: one completion a line, then the directive (kubectl 1.26 and later)."""
    from click.shell_completion import ShellComplete

    from ktp.cli import cli

    *words, incomplete = sys.argv[1:] or [""]
    for item in ShellComplete(cli, {}, "ktp", "_KTP_COMPLETE").get_completions(words, incomplete):
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{_NO_FILES}")
