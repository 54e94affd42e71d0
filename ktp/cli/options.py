"""Options that every command shares. They may stand before or behind the command; the later one counts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ktp.app.settings import Settings
from ktp.cli import complete
from ktp.errors import UsageError
from ktp.render.reports import FORMS

F = TypeVar("F", bound=Callable[..., Any])


def store(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Keep an option's value for `settings()`; a click callback."""
    if value in (None, (), False) or param.name is None:
        return value
    kept = ctx.find_root().ensure_object(dict)
    kept[param.name] = value
    return value


def _option(*names: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=store, **attributes)


_COMMON: tuple[Callable[[Any], Any], ...] = (
    _option(
        "--snapshot",
        metavar="PATH",
        help="Answer from a snapshot: a folder, a .tar.gz, or objects that kubectl printed (-o yaml).",
    ),
    _option("--demo", is_flag=True, help="Answer from the snapshot that ktp brings along."),
    _option("--kubeconfig", metavar="FILE", help="The kubeconfig file to use."),
    _option("--context", metavar="NAME", help="The kubeconfig context to use."),
    _option(
        "-n",
        "--namespace",
        metavar="NS",
        help="The namespace of the Service.",
        shell_complete=complete.namespaces,
    ),
    _option(
        "--node",
        "nodes",
        metavar="NODE",
        multiple=True,
        help="Only this node (may be repeated).",
        shell_complete=complete.nodes,
    ),
    _option(
        "--node-access",
        type=click.Choice(["auto", "none", "local", "ssh", "agent", "kube-proxy", "exporter"]),
        help="How to read the nodes' rules (default: auto); agent: through the pods of kube-proxy or Cilium; exporter: "
        "by what each node's own ktp check says (diagnose svc).",
    ),
    _option(
        "--node-shell",
        metavar="COMMAND",
        help="Read the nodes by a command that gives a shell there, as 'docker exec -i {node} sh', or one of "
        "docker (kind, k3d), podman, debug (makes a privileged pod a node), gcloud, tsh.",
    ),
    _option("--ssh-user", metavar="USER", help="The user to log in as with --node-access ssh."),
    _option(
        "--ssh-option",
        "ssh_options",
        metavar="KEY=VALUE",
        multiple=True,
        help="An option of ssh, as for its -o (may be repeated).",
    ),
    _option("--sudo", is_flag=True, help="On the nodes, read rules through sudo -n."),
    _option(
        "--pods",
        type=click.Choice(["none", "asked", "all"]),
        help="Pods whose network namespaces are read on their nodes, as root (default: those of the asked Service; "
        "of a snapshot all, of -A none).",
    ),
    _option(
        "--parallel", type=click.IntRange(1, 1000), metavar="N", help="Nodes read at once (default: 16)."
    ),
    _option(
        "--timeout",
        type=click.FloatRange(1, 86400),
        metavar="SECONDS",
        help="How long reading one node may take (default: 120).",
    ),
    _option(
        "-o",
        "--output",
        type=click.Choice(["text", *FORMS]),
        help="The form of the result (default: text); each command says which it has.",
    ),
    _option("--color", type=click.Choice(["auto", "always", "never"]), help="Colour (default: auto)."),
    _option("-v", "--verbose", is_flag=True, help="Say more about the evidence."),
)


def common_options(function: F) -> F:
    """Add the options of design §5 to a command."""
    for option in reversed(_COMMON):
        function = option(function)
    return function


def settings() -> Settings:
    """What the common options say, gathered from before and behind the command."""
    context = click.get_current_context()
    kept = context.find_root().ensure_object(dict)
    _require_form(context, kept.get("output", "text"))
    access = str(kept.get("node_access") or "auto")
    if kept.get("node_shell"):
        if access != "auto":
            raise UsageError(
                f"--node-shell and --node-access {access} are two ways to the nodes", hint="give one"
            )
        access = "shell"
    for name, option in (("ssh_user", "--ssh-user"), ("ssh_options", "--ssh-option"), ("sudo", "--sudo")):
        by_sudo = name == "sudo" and (access == "shell" or context.info_name == "node-script")
        if kept.get(name) and access != "ssh" and not by_sudo:
            raise UsageError(f"{option} is about logging in to nodes", hint="add --node-access ssh")
    return Settings(
        snapshot=kept.get("snapshot"),
        demo=kept.get("demo", False),
        kubeconfig=kept.get("kubeconfig"),
        context=kept.get("context"),
        namespace=kept.get("namespace"),
        nodes=tuple(kept.get("nodes", ())),
        node_access=_ALIASES.get(access, access),
        output=kept.get("output", "text"),
        color=kept.get("color", "auto"),
        verbose=kept.get("verbose", False),
        fail_on=kept.get("fail_on", "warning"),
        node_shell=kept.get("node_shell"),
        ssh_user=kept.get("ssh_user"),
        ssh_options=tuple(kept.get("ssh_options", ())),
        sudo=kept.get("sudo", False),
        pods=kept.get("pods"),
        parallel=kept.get("parallel", 16),
        timeout=kept.get("timeout", 120.0),
        progress=_node_progress(),
        warn=lambda words: click.echo(f"ktp: {words}", err=True),
    )


_ALIASES = {"kube-proxy": "agent"}  # the name that it had while kube-proxy's pods alone were asked

# Which forms of the result a command has; one of `diagnose` has all.
_DATA = ("text", "json", "yaml")
_FORMS = {
    "trace": (*_DATA, "markdown", "html"),
    "explain-rules": (*_DATA, "markdown", "html"),
    "what-if": (*_DATA, "markdown", "html"),
    "codes": (*_DATA, "markdown"),
    "snapshot": _DATA,
    "check": _DATA,
    "manifest": ("text",),
    "node-script": ("text",),
    "probe": _DATA,
    "auth": _DATA,
}


def _require_form(context: click.Context, output: str) -> None:
    forms = _FORMS.get(context.info_name or "")
    if forms is not None and output not in forms:
        has = f"-o {', '.join(forms[:-1])} or {forms[-1]}" if forms[1:] else f"it is {forms[0]}"
        raise UsageError(f"ktp {context.info_name} has no {output} form", hint=has)


def _node_progress() -> Callable[[int, int, str], None] | None:
    """A bar on standard error while nodes are read, where that is a terminal; `ktp snapshot` shows its own."""
    if not sys.stderr.isatty() or click.get_current_context().command.name == "snapshot":
        return None
    from ktp.cli.progress import shown_progress

    return shown_progress()
