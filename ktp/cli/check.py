"""`ktp check`."""

from __future__ import annotations

import signal
import threading
from ipaddress import IPv6Address

import click

from ktp.cli.options import Section, common_options, settings
from ktp.cli.options import command as ktp_command
from ktp.errors import UsageError


class _Address(click.ParamType):  # type: ignore[type-arg]
    """`:PORT`, `HOST:PORT` or `[IPv6]:PORT`; a manifest has no brackets to put around an address of either family."""

    name = "[HOST]:PORT"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        host, colon, port = str(value).rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not _is_ipv6(host)):
            self.fail(f"{value!r} is no address; write :9497 or HOST:9497", param, ctx)
        return host, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


@ktp_command("check", short_help="This node by its own evidence, for monitors.")
@click.option("--metrics", metavar="FILE", help="Write Prometheus metrics to FILE too, for node_exporter.")
@click.option("--watch", is_flag=True, help="Look again and again, and say what changes.")
@click.option("--serve", type=_Address(), metavar="[HOST]:PORT", help="Serve /metrics, /healthz and /report.")
@click.option(
    "--interval",
    type=click.FloatRange(1, 86400),
    metavar="SECONDS",
    help="Between two looks of --watch and --serve (default: 60).",
)
@common_options("--snapshot", "--demo", "--kubeconfig", "--context", "--node", Section.OUTPUT)
def command(metrics: str | None, watch: bool, serve: tuple[str, int] | None, interval: float | None) -> int:
    """Judge this node by its own evidence: is every Service reachable here from outside, as the API objects call for?

    Runs on a node, or in a pod that has the node's network and is told its name by --node. The first line of the
    output is a summary; the exit status is 1 where a front end fails or deviates, 4 where one is not known.

    \b
      sudo ktp check
      ktp check --serve :9497 --node "$NODE_NAME"
      ktp check --snapshot FOLDER --node node-b
    """
    from ktp.app import check

    chosen = settings()
    if watch and serve is not None:
        raise UsageError("--serve looks again and again too; leave --watch out")
    if interval is not None and not watch and serve is None:
        raise UsageError("--interval is the time between two looks; add --watch or --serve")
    if metrics is not None and serve is not None:
        raise UsageError("--serve serves the metrics; leave --metrics out")
    if (watch or serve is not None) and (chosen.snapshot is not None or chosen.demo):
        raise UsageError("a snapshot does not change; leave --watch and --serve out")
    if not watch and serve is None:
        return int(check.check_once(chosen, metrics))
    stop = threading.Event()
    # As the kubelet ends a container; the last look's status is then the command's.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    seconds = interval or check.INTERVAL
    if serve is not None:
        return int(check.serve(chosen, serve, seconds, stop=stop))
    return int(check.check_again_and_again(chosen, seconds, metrics, stop=stop))
