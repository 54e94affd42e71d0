"""`ktp what-if`: the matrix before and after a change."""

from __future__ import annotations

import click

from ktp.cli.complete import services
from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, settings
from ktp.errors import UsageError


@ktp_command("what-if", short_help="The matrix before and after a change, without changing anything.")
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=services)
@click.option("--policy", metavar="Cluster|Local", help="Another externalTrafficPolicy.")
@click.option(
    "--target-port",
    metavar="[PORT=]N",
    multiple=True,
    help="Another targetPort (of a port, by name or number).",
)
@click.option("--drain", metavar="NODE", multiple=True, help="A node drained of its pods.")
@click.option("--cordon", metavar="NODE", multiple=True, help="A node that takes no new pods.")
@click.option("--scale", metavar="N", help="So many pods behind the Service.")
@click.option("--pod-on", metavar="NODE", multiple=True, help="One more ready pod on a node.")
@click.option("--delete-pod", metavar="POD", multiple=True, help="A pod gone.")
@click.option("--forward-policy", metavar="ACCEPT", help="Another policy of the FORWARD chains.")
@common_options()
def command(name: str, **asked: object) -> int:
    """Shows what a change would do to a Service, by the same engine that diagnoses. Nothing is changed.

    Several changes are made in the order: policy, target-port, drain, cordon, delete-pod, scale, pod-on,
    forward-policy.
    Exit status: 0 no client loses anything, 1 some client that gets through now would not.
    """
    from ktp.app.what_if import what_if_service
    from ktp.model.change import Change

    changes = []
    for kind in (
        "policy",
        "target-port",
        "drain",
        "cordon",
        "delete-pod",
        "scale",
        "pod-on",
        "forward-policy",
    ):
        given = asked[kind.replace("-", "_")]
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None:
                changes.append(Change(kind=kind, value=str(value)))
    if not changes:
        raise UsageError("nothing to change: say for instance --policy Cluster, --drain NODE or --scale N")
    return int(what_if_service(settings(), name, changes))
