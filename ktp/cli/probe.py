"""`ktp probe`: the front ends of a Service, dialled for real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from ktp.app.probe import Probing
from ktp.cli.complete import services
from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, settings
from ktp.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--tries",
        type=click.IntRange(1, 100),
        default=5,
        metavar="N",
        help="How often each address is dialled (default: 5).",
    ),
    click.option(
        "--wait",
        type=click.FloatRange(0.05, 60),
        default=2.0,
        metavar="SECONDS",
        help="How long to wait for an answer (default: 2).",
    ),
    click.option(
        "--http",
        is_flag=False,
        flag_value="/",
        metavar="[PATH]",
        help="Send a GET on each TCP connection and wait for its answer (default path: /).",
    ),
    click.option("--data", metavar="TEXT", help="What to send in a UDP datagram."),
    click.option(
        "--from-nodes",
        is_flag=True,
        help="Dial from the nodes and not from here (--node-access ssh or --node-shell).",
    ),
    click.option(
        "--dial-recorded",
        is_flag=True,
        help="Dial the addresses of a snapshot too: for a machine of the network that it was taken in.",
    ),
)


def probe_options(function: F) -> F:
    """The options that say how to dial."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def probing(
    tries: int, wait: float, http: str | None, data: str | None, from_nodes: bool, dial_recorded: bool
) -> Probing:
    """The options as the use cases take them. Raises UsageError for what is no path."""
    if http is not None and (
        not http.startswith("/") or not http.isascii() or not http.isprintable() or " " in http
    ):
        raise UsageError(
            f"--http {http!r} is no path", hint="a path begins with /; for / put --http behind the name"
        )
    return Probing(
        tries=tries,
        timeout=wait,
        http=http,
        data=data,
        from_nodes=from_nodes,
        dial_recorded=dial_recorded,
        progress=_progress(),
    )


def _progress() -> Callable[[int, int, str], None] | None:
    if not sys.stderr.isatty():
        return None
    from ktp.cli.progress import shown_progress

    return shown_progress("dialling")


@ktp_command("probe", short_help="Dial the front ends for real, and see whether it goes as predicted.")
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=services)
@probe_options
@click.option("--health", is_flag=True, help="Ask the healthCheckNodePort of each node too.")
@click.option(
    "--to-pods",
    is_flag=True,
    help="With --from-nodes: dial pods of other nodes directly too, also with long packets.",
)
@click.option("--counters", is_flag=True, help="On a node: show the rules whose counters moved meanwhile.")
@common_options()
def command(
    name: str,
    tries: int,
    wait: float,
    http: str | None,
    data: str | None,
    from_nodes: bool,
    dial_recorded: bool,
    health: bool,
    to_pods: bool,
    counters: bool,
) -> int:
    """Dials every front end of a Service from this machine and shows what came of it beside what ktp predicts.

    \b
      ktp probe shop/web                      TCP connections, UDP datagrams
      ktp probe shop/web --http               a GET on each connection
      ktp probe shop/web --node worker-3 --counters
      ktp probe shop/web --from-nodes --node-access ssh
      ktp probe shop/web --from-nodes --to-pods --node-access ssh

    It opens connections and nothing else: at most one datagram or GET is sent on each. With --to-pods nodes also send
    pods of other nodes three short and three full packets (ICMP echo, else datagrams to UDP port 33434), which tell a
    tunnel that carries short ones alone. --parallel is how many are
    open at once (default: 16). A UDP front end that does not answer is called silent: the datagram was lost, or the
    application answers no such datagram.

    Exit status: 0 all answer and ktp predicted it, 1 some do not, or otherwise than predicted, 4 some are silent.
    """
    from ktp.app.probe import probe_service

    chosen = settings()
    if counters and from_nodes:
        raise UsageError("--counters reads the counters of this machine; leave out --from-nodes")
    if to_pods and not from_nodes:
        raise UsageError(
            "--to-pods says whom the nodes dial",
            hint="add --from-nodes, and --node-access ssh or --node-shell",
        )
    how = replace(probing(tries, wait, http, data, from_nodes, dial_recorded), to_pods=to_pods)
    return int(probe_service(chosen, name, how, health=health, counters=counters))
