"""Options that every command shares. They may stand before or behind the command; the later one counts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

import click

from ktp.app.settings import Settings
from ktp.cli import complete
from ktp.errors import UsageError
from ktp.model.record import dataclass
from ktp.render.reports import FORMS

F = TypeVar("F", bound=Callable[..., Any])


def store(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Keep an option's value for `settings()`; a click callback."""
    if value in (None, (), False) or param.name is None:
        return value
    kept = ctx.find_root().ensure_object(dict)
    kept[param.name] = value
    return value


class Section(str, Enum):
    """A heading in --help, and the common options under it."""

    EVIDENCE = "Evidence"
    NODES = "Ways to the nodes"
    OUTPUT = "Output"


class _CommonOption(click.Option):
    """An option that every command takes; its help stands in a section of its own."""

    def __init__(self, *arguments: Any, section: Section, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


@dataclass(frozen=True, slots=True)
class _Common:
    """What an option is made of, anew for each command."""

    section: Section
    names: tuple[str, ...]
    attributes: dict[str, Any]

    def added(self, function: F, *, hidden: bool) -> F:
        return click.option(
            *self.names, cls=_CommonOption, section=self.section, expose_value=False, callback=store,
            **{**self.attributes, "hidden": hidden},
        )(function)  # fmt: skip


def _option(section: Section, *names: str, **attributes: Any) -> _Common:
    return _Common(section, names, attributes)


_COMMON: tuple[_Common, ...] = (
    _option(
        Section.EVIDENCE,
        "--snapshot",
        metavar="PATH",
        help="Answer from a snapshot: a folder, a .tar.gz, or objects that kubectl printed (-o yaml).",
    ),
    _option(Section.EVIDENCE, "--demo", is_flag=True, help="Answer from the snapshot that ktp brings along."),
    _option(Section.EVIDENCE, "--kubeconfig", metavar="FILE", help="The kubeconfig file to use."),
    _option(Section.EVIDENCE, "--context", metavar="NAME", help="The kubeconfig context to use."),
    _option(
        Section.EVIDENCE,
        "-n",
        "--namespace",
        metavar="NS",
        help="The namespace of the Service.",
        shell_complete=complete.namespaces,
    ),
    _option(
        Section.EVIDENCE,
        "--node",
        "nodes",
        metavar="NODE",
        multiple=True,
        help="Only this node (may be repeated).",
        shell_complete=complete.nodes,
    ),
    _option(
        Section.NODES,
        "--node-access",
        type=click.Choice(["auto", "none", "local", "ssh", "agent", "kube-proxy", "exporter"]),
        help="How to read the nodes' rules (default: auto); agent: through the pods of kube-proxy or Cilium; exporter: "
        "by what each node's own ktp check says (diagnose svc).",
    ),
    _option(
        Section.NODES,
        "--node-shell",
        metavar="COMMAND",
        help="Read the nodes by a command that gives a shell there, as 'docker exec -i {node} sh', or one of "
        "docker (kind, k3d), podman, debug (makes a privileged pod a node), gcloud, tsh.",
    ),
    _option(
        Section.NODES, "--ssh-user", metavar="USER", help="The user to log in as with --node-access ssh."
    ),
    _option(
        Section.NODES,
        "--ssh-option",
        "ssh_options",
        metavar="KEY=VALUE",
        multiple=True,
        help="An option of ssh, as for its -o (may be repeated).",
    ),
    _option(Section.NODES, "--sudo", is_flag=True, help="On the nodes, read rules through sudo -n."),
    _option(
        Section.NODES,
        "--pods",
        type=click.Choice(["none", "asked", "all", "exec"]),
        help="Pods whose network namespaces are read on their nodes, as root (default: those of the asked Service; "
        "of a snapshot all, of -A none). exec: what the asked Service's pods listen on, by `cat` in their containers.",
    ),
    _option(
        Section.NODES,
        "--parallel",
        type=click.IntRange(1, 1000),
        metavar="N",
        help="Nodes read at once (default: 16).",
    ),
    _option(
        Section.NODES,
        "--timeout",
        type=click.FloatRange(1, 86400),
        metavar="SECONDS",
        help="How long reading one node may take (default: 120).",
    ),
    _option(
        Section.OUTPUT,
        "-o",
        "--output",
        type=click.Choice(["text", *FORMS]),
        help="The form of the result (default: text); each command says which it has.",
    ),
    _option(
        Section.OUTPUT,
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        help="Colour (default: auto).",
    ),
    _option(Section.OUTPUT, "-v", "--verbose", is_flag=True, help="Say more about the evidence."),
)


NOTHING = ""
"""No section and no option: of a command that none of them means anything to."""


def common_options(*shown: Section | str) -> Callable[[F], F]:
    """Add the options of design §5 to a command, which takes them all.

    `shown` are the sections, and options by their long name, that mean something to it and stand in its help; all,
    where none is named.
    """

    def add(function: F) -> F:
        for option in reversed(_COMMON):
            hidden = bool(shown) and option.section not in shown and not set(option.names) & set(shown)
            function = option.added(function, hidden=hidden)
        return function

    return add


def counters_option(function: F) -> F:
    """Add --counters SECONDS to a command that reads nodes."""
    return click.option(
        "--counters",
        type=click.IntRange(1, 600),
        metavar="SECONDS",
        expose_value=False,
        callback=store,
        help="Read counters of the nodes' kernels and rules twice, so many seconds apart: what is dropped meanwhile, "
        "and which of two tables runs first.",
    )(function)


class _Sections(click.Command):
    """A command whose help has its own options first, then the common ones by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the commands of a group between both kinds."""
        own: list[tuple[str, str]] = []
        common: dict[Section, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None and parameter.name == "output":
                forms = _FORMS.get(ctx.info_name or "", ("text", *FORMS))
                record = f"-o, --output [{'|'.join(forms)}]", "The form of the result (default: text)."
            if record is not None:
                rows = (
                    common.setdefault(parameter.section, []) if isinstance(parameter, _CommonOption) else own
                )
                rows.append(record)
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        for section in Section:
            if section in common:
                with formatter.section(section.value):
                    formatter.write_dl(common[section])


class Command(_Sections):
    """A command of ktp."""


class Group(_Sections, click.Group):
    """Commands of ktp under one name."""

    command_class = Command


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """As click.command, for a command of ktp."""
    return click.command(name, cls=Command, **attributes)


def asked_from(context: click.Context) -> Settings:
    """Where the answer comes from, as far as the words so far tell; a completion needs no more."""
    kept = context.find_root().ensure_object(dict)
    return Settings(
        snapshot=kept.get("snapshot"),
        demo=kept.get("demo", False),
        kubeconfig=kept.get("kubeconfig"),
        context=kept.get("context"),
        namespace=kept.get("namespace"),
    )


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
    return replace(
        asked_from(context),
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
        counters=kept.get("counters") or 0,
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
