#!/usr/bin/env python3
"""Writes the manual pages, one a command, into docs/man or another folder: `tools/gen_man.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import ktp  # noqa: E402
from ktp.cli import cli  # noqa: E402


def main(arguments: list[str]) -> int:
    """Write the pages into the folder."""
    folder = Path(arguments[0]) if arguments else REPOSITORY / "docs" / "man"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.1"):
        old.unlink()
    context = click.Context(cli, info_name="ktp")
    # Its commands are imported when they are called; click-man asks for them all.
    commands = {
        name: found for name in cli.list_commands(context) if (found := cli.get_command(context, name))
    }
    whole = click.Group("ktp", commands=commands, params=cli.params, help=cli.help)
    # Without a date of its own: the pages change where the commands do.
    write_man_pages("ktp", whole, version=ktp.__version__, target_dir=str(folder), date=" ")
    for alias in ("service", "services"):
        (folder / f"ktp-diagnose-{alias}.1").unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
