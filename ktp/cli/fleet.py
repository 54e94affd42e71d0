"""`ktp fleet`."""

from __future__ import annotations

import click

from ktp.cli.options import NOTHING, Group, common_options, settings


@click.group("fleet", cls=Group)
def command() -> None:
    """Nodes that judge themselves: a DaemonSet of ktp check --serve, and what it says.

    \b
      ktp fleet manifest --image REGISTRY/ktp:0.2 | kubectl apply -f -
      ktp diagnose svc -A --node-access exporter
    """


@command.command("manifest")
@click.option(
    "--image", metavar="IMAGE", help="The image that the pods run (default: ktp:VERSION, of `make image`)."
)
@click.option(
    "--monitoring", is_flag=True, help="Add a PodMonitor, alerts and a dashboard (Prometheus operator)."
)
@common_options(NOTHING)
def manifest(image: str | None, monitoring: bool) -> int:
    """Print the objects to apply. Nothing is created by ktp.

    Another namespace, other resources: deploy/ in the source is a base for kustomize.
    """
    from ktp.app.fleet import default_image
    from ktp.app.fleet import manifest as text

    settings()
    click.echo(text(image or default_image(), monitoring=monitoring), nl=False)
    return 0
