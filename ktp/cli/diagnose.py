"""`ktp diagnose svc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ktp.cli.complete import services
from ktp.cli.options import Group, common_options, counters_option, settings, store
from ktp.cli.options import command as ktp_command
from ktp.cli.probe import probe_options, probing
from ktp.errors import UsageError

if TYPE_CHECKING:
    from ktp.app.settings import Settings


class _What(Group):
    """A group of which the first word may be what was dialled, and not the name of a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Each command once: other spellings of its name are not listed."""
        return ["svc"]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words name, `what` for all others."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "what", what, args
        return super().resolve_command(ctx, args)


@click.group(
    "diagnose",
    cls=_What,
    subcommand_metavar="svc NAME… | WHAT…",
    short_help="Is a Service reachable, on each node, from each kind of client; why not.",
)
@common_options()
def command() -> None:
    """Is it reachable, on each node, from each kind of client; why not; what to do.

    WHAT is what was dialled: IP:PORT, [IPv6]:PORT, :NODE-PORT, a URL, a host's or node's name with a port, a Service as
    NAMESPACE/NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc.cluster.local, each with /udp or /sctp where it is not TCP.
    ktp says what that is, and diagnoses it.

    \b
      ktp diagnose svc shop/web
      ktp diagnose 10.0.0.10:31015
      ktp diagnose http://node-b:31015/
    """


_fail_on = click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info"]),
    expose_value=False,
    callback=store,
    help="Exit with 1 from findings of this severity on (default: warning).",
)


@ktp_command("what", hidden=True)
@click.argument("words", nargs=-1, required=True, metavar="WHAT…")
@click.option("--client", metavar="IP", help="The outside client to ask for (default: one far away).")
@_fail_on
@counters_option
@common_options()
def what(words: tuple[str, ...], client: str | None) -> int:
    """Say what was dialled, and diagnose that."""
    from ktp.app.what import diagnose_what

    return int(diagnose_what(settings(), words, client))


@command.command("svc")
@click.argument("names", nargs=-1, metavar="[NAMESPACE/]NAME…", shell_complete=services)
@click.option("-A", "--all-namespaces", is_flag=True, help="Every Service with an external front end.")
@_fail_on
@counters_option
@click.option("--client", metavar="IP", help="The outside client to ask for (default: one far away).")
@click.option("--probe", is_flag=True, help="Dial the front ends for real too, as ktp probe does.")
@probe_options
@click.option("--health", is_flag=True, help="Ask the healthCheckNodePort of each node too.")
@common_options()
def svc(
    names: tuple[str, ...],
    all_namespaces: bool,
    client: str | None,
    probe: bool,
    tries: int,
    wait: float,
    http: str | None,
    data: str | None,
    from_nodes: bool,
    dial_recorded: bool,
    health: bool,
) -> int:
    """Diagnose Services: those named, or all (-A, or -n NAMESPACE alone)."""
    from ktp.app.diagnose import diagnose_services, survey_services

    chosen = settings()
    if all_namespaces and names:
        raise UsageError("-A means every Service; leave the names out")
    if client is not None and not names:
        raise UsageError("--client is asked for with named Services only")
    if not names and not all_namespaces and chosen.namespace is None:
        raise UsageError("name a Service (NAMESPACE/NAME), or ask for all of them with -A or -n NAMESPACE")
    how = probing(tries, wait, http, data, from_nodes, dial_recorded)
    if not probe and (http is not None or data is not None or from_nodes):
        raise UsageError("--http, --data and --from-nodes say how --probe dials; add --probe")
    if dial_recorded and not (probe or health):
        raise UsageError("--dial-recorded says what --probe and --health dial; add one of them")
    if (probe or health) and not names:
        raise UsageError("--probe and --health dial; name the Services that they are for")
    if chosen.node_access == "exporter":
        return int(_ask_fleet(chosen, names, all_namespaces, client, probe or health))
    if names:
        return int(
            diagnose_services(
                chosen,
                names,
                client,
                probing=how if probe or dial_recorded else None,
                probe=probe,
                health=health,
            )
        )
    return int(survey_services(chosen, None if all_namespaces else chosen.namespace))


def _ask_fleet(
    chosen: Settings, names: tuple[str, ...], all_namespaces: bool, client: str | None, dials: bool
) -> int:
    from ktp.app.fleet import report_of_fleet

    if chosen.snapshot is not None or chosen.demo:
        raise UsageError("--node-access exporter asks live pods; a snapshot has none")
    if client is not None or dials:
        raise UsageError(
            "the nodes judge what any outside client gets; leave --client, --probe and --health out"
        )
    if chosen.output not in ("text", "json", "yaml"):
        raise UsageError(f"--node-access exporter has no {chosen.output} form", hint="-o text, json or yaml")
    return report_of_fleet(chosen, names, None if all_namespaces else chosen.namespace)


for _alias in ("service", "services"):
    command.add_command(svc, _alias)
    command.commands[_alias] = svc
