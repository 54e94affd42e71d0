"""The command line: flags, streams, exit status; no logic.

Each command is a module of its own, imported when it is called, so that `ktp --help` stays fast.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

import click

import ktp
from ktp.cli.options import Group, common_options
from ktp.cli.terminal import degrade_gracefully
from ktp.errors import ExitCode, KtpError
from ktp.render.clean import clean

_COMMANDS = {
    "diagnose": (
        "ktp.cli.diagnose",
        "Is a Service reachable, on each node, from each kind of client; why not.",
    ),
    "explain-rules": (
        "ktp.cli.explain_rules",
        "The rules that a Service's packets meet, each in plain words.",
    ),
    "trace": ("ktp.cli.trace", "One packet's way through the nodes, every step."),
    "what-if": ("ktp.cli.what_if", "The matrix before and after a change, without changing anything."),
    "probe": ("ktp.cli.probe", "Dial the front ends for real, and see whether it goes as predicted."),
    "check": (
        "ktp.cli.check",
        "This node by its own evidence, for monitors: once, repeatedly, as a server of metrics.",
    ),
    "fleet": ("ktp.cli.fleet", "A DaemonSet of nodes that check themselves."),
    "snapshot": ("ktp.cli.snapshot", "Collect everything into a folder or archive."),
    "node-script": ("ktp.cli.node_script", "The script that reads a node, to be run by somebody else."),
    "auth": ("ktp.cli.auth", "What the current user may read, and the manifest that adds the rest."),
    "codes": ("ktp.cli.codes", "The findings, and the page of one."),
}


_NEW_OBJECTS = 50_000

# A shell's exit status for a command that a signal ended is this and the signal's number.
_SIGNALS = 128


class _Commands(Group):
    """The commands, each imported when it is called; the list of them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, or None where there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(ktp.__version__, "-V", "--version", prog_name="ktp")
@common_options()
def cli() -> None:
    """Tells why a NodePort or load-balancer port of a Kubernetes Service does not answer, and proves it.

    ktp only reads: nothing is changed on a node or in the cluster.
    """


def main() -> None:
    """Entry point: runs a command and turns every way of ending into the exit status of the design."""
    # Little of what a question makes is circular, and most of what is read lives to the end: looked for at every 700
    # new objects, as Python does by default, circles cost a twelfth of the time.
    gc.set_threshold(_NEW_OBJECTS, 20, 20)
    status = run(sys.argv[1:])
    gc.freeze()  # else all objects are looked through once more before the process ends
    sys.exit(status)


def run(args: list[str]) -> int:
    """Run ktp with `args`; the exit status (ktp.errors.ExitCode)."""
    for stream in (sys.stdout, sys.stderr):
        degrade_gracefully(stream)
    try:
        result = cli.main(args=args, prog_name="ktp", standalone_mode=False)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else int(ExitCode.OK)
    except click.exceptions.Abort:
        click.echo("ktp: interrupted", err=True)
        return int(ExitCode.INTERRUPTED)
    except click.ClickException as e:
        e.show()
        return int(ExitCode.USAGE)
    except KtpError as e:
        click.echo(f"ktp: {clean(e.message)}", err=True)
        if e.hint:
            click.echo(f"     {clean(e.hint)}", err=True)
        return int(e.exit_code)
    except KeyboardInterrupt:
        click.echo("ktp: interrupted", err=True)
        return int(ExitCode.INTERRUPTED)
    except SystemExit as e:
        if isinstance(e.code, int) and e.code > _SIGNALS:
            click.echo(f"ktp: ended by signal {e.code - _SIGNALS}", err=True)
            return e.code
        # So click itself ends where the reader has gone (`ktp … | head`): not with the status of a finding.
        return int(ExitCode.OK)
    except BrokenPipeError:
        # The reader has gone (`ktp … | head`): no more output, and Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as e:
        if os.environ.get("KTP_DEBUG"):
            raise
        click.echo(
            f"ktp: this is a bug of ktp: {type(e).__name__}: {e}\n"
            "     run it again with KTP_DEBUG=1 and report what it prints",
            err=True,
        )
        return int(ExitCode.BUG)
