"""`ktp snapshot`: a cluster in a folder or archive, to ask later, elsewhere, or by somebody else."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click

from ktp.app.settings import Settings
from ktp.app.snapshot import Taken, take_snapshot
from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, counters_option, settings
from ktp.errors import ExitCode, UsageError
from ktp.render.clean import clean

_GAPS_SHOWN = 10


@ktp_command("snapshot", short_help="Collect everything into a folder or archive.")
@click.argument("arguments", nargs=-1, required=True, metavar="OUT | import SOURCE... OUT")
@click.option(
    "--resume", is_flag=True, help="Go on with a folder: nodes that are in it already are not read again."
)
@click.option("--redact", is_flag=True, help="Replace names, addresses and labels by pseudonyms.")
@click.option(
    "--redact-map", metavar="FILE", help="Keep the pseudonyms in FILE; an existing one is used again."
)
@counters_option
@common_options()
def command(arguments: tuple[str, ...], resume: bool, redact: bool, redact_map: str | None) -> int:
    """Writes what ktp can read of a cluster to OUT: a folder, or an archive if OUT ends in .tar.gz.

    \b
      ktp snapshot cluster.tar.gz --node-access ssh        everything, all nodes
      ktp snapshot cluster/ -n shop --node worker-3        one namespace, one node
      ktp --snapshot cluster/ snapshot public.tar.gz --redact
      ktp snapshot import must-gather/ node-b.ktp cluster/     from what others collected

    Secrets, environment variables, command lines and copies of manifests are never in it. OUT can be read by
    its owner only. What could not be had is listed at the end and in OUT.

    import takes files, folders and archives: objects as kubectl prints them (one file or hundreds: cluster-info dump,
    must-gather, support bundles), the answer of `ktp node-script`, and what commands on nodes printed (iptables-save,
    nft, ipset, ip -j), where a folder or file is called after the node.

    Exit status: 0 written, 3 nothing could be had.
    """
    chosen = settings()
    if arguments[0] == "import":
        return _import(chosen, arguments[1:], redact=redact, redact_map=redact_map)
    if len(arguments) != 1:
        raise UsageError(
            f"ktp snapshot writes to one place, and {len(arguments)} were given",
            hint="ktp snapshot OUT, or ktp snapshot import SOURCE... OUT",
        )
    out = arguments[0]
    try:
        with _progress() as progress:
            taken = take_snapshot(
                chosen, out, resume=resume, redact=redact, redact_map=redact_map, progress=progress
            )
    except KeyboardInterrupt:
        click.echo(f"ktp: interrupted; if {out} is there, --resume goes on with it", err=True)
        return int(ExitCode.INTERRUPTED)
    if chosen.output == "text":
        for line in _lines(taken, verbose=chosen.verbose):
            click.echo(clean(line))
    else:
        from ktp.render.structured import dump

        dump(_document(taken), chosen.output, sys.stdout)
    return int(ExitCode.OK)


def _import(chosen: Settings, paths: tuple[str, ...], *, redact: bool, redact_map: str | None) -> int:
    from ktp.app.importing import import_evidence

    if len(paths) < 2:
        raise UsageError(
            "what is to be imported, and where to?",
            hint="ktp snapshot import SOURCE... OUT: files, folders, archives (a folder called import is ./import)",
        )
    if chosen.snapshot is not None or chosen.demo or chosen.nodes or chosen.node_access != "auto":
        raise UsageError(
            "import takes what the sources hold, and asks nothing else",
            hint="leave out --snapshot, --demo, --node and the ways to the nodes",
        )
    *sources, out = paths
    done = import_evidence(tuple(sources), out, redact=redact, redact_map=redact_map)
    if chosen.output != "text":
        from ktp.render.structured import dump

        imported: dict[str, Any] = {
            "objects": done.objects,
            "files": done.from_nodes,
            "ofNoNode": list(done.homeless),
            "unused": done.unused,
        }
        dump({**_document(done.written), "imported": imported}, chosen.output, sys.stdout)
        return int(ExitCode.OK)
    for line in _lines(done.written, verbose=chosen.verbose):
        click.echo(clean(line))
    click.echo("  Taken: " + ", ".join(f"{number} {kind}" for kind, number in done.objects.items()))
    for source, file in done.from_nodes.items():
        click.echo(f"  - {file} from {clean(source)}")
    for name in done.homeless[:_GAPS_SHOWN]:
        click.echo(
            f"  Not taken: {clean(name)}: of which node? Put it in a folder that is called after the Node."
        )
    if done.unused:
        click.echo(f"  {_count(done.unused, 'file')} of no use to ktp")
    return int(ExitCode.OK)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is going on, on one line of the terminal; nothing where standard error is none."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False).status("") as status:
        yield status.update


def _lines(taken: Taken, *, verbose: bool) -> Iterator[str]:
    services = "" if taken.services is None else f"{_count(taken.services, 'Service')}, "
    what = "redacted snapshot" if taken.redacted else "snapshot"
    yield f"{taken.path}: {what} of {services}{_count(taken.nodes, 'node')}, {taken.nodes_with_rules} with rules"
    if taken.resumed:
        yield f"  {_count(taken.resumed, 'node')} had been read before"
    if not taken.nodes_with_rules:
        yield "  No packet filter rules were read: --node-access ssh or agent reads them from here."
    if not taken.gaps:
        return
    kinds = Counter(gap.kind for gap in taken.gaps)
    yield f"  Not had ({', '.join(f'{kind} {number}' for kind, number in kinds.most_common())}):"
    shown = taken.gaps if verbose else taken.gaps[:_GAPS_SHOWN]
    for gap in shown:
        yield f"  - {gap.message}"
        if gap.remedy:
            yield f"    {gap.remedy}"
    if len(shown) < len(taken.gaps):
        yield f"  … and {len(taken.gaps) - len(shown)} more in gaps.json (-v lists them)"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _document(taken: Taken) -> dict[str, Any]:
    return {
        "apiVersion": "ktp.dev/v1",
        "kind": "SnapshotTaken",
        "path": taken.path,
        "redacted": taken.redacted,
        "services": taken.services,
        "nodes": {"total": taken.nodes, "withRules": taken.nodes_with_rules, "resumed": taken.resumed},
        "gaps": [
            {"kind": gap.kind, "subject": gap.subject, "message": gap.message, "remedy": gap.remedy}
            for gap in taken.gaps
        ],
    }
