"""`ktp trace`: one packet's way with every step, or many flows as JSON Lines."""

from __future__ import annotations

import io
import sys
from typing import IO, TextIO

import click

from ktp.app.evidence import snapshot_for_all
from ktp.app.settings import Settings
from ktp.app.trace import FlowBatch, Traced, trace_flow
from ktp.cli.options import command as ktp_command
from ktp.cli.options import common_options, settings
from ktp.errors import ExitCode, UsageError


@ktp_command("trace", short_help="One packet's way through the nodes, every step.")
@click.option(
    "--from", "source", metavar="IP[@NODE]", help="The sender: IP, IP@NODE, @NODE or NAMESPACE/POD."
)
@click.option(
    "--to", "target", metavar="IP:PORT[/udp]", help="What it dials; a node's name may stand for its address."
)
@click.option("--via", metavar="NODE", help="The node that an outside packet reaches first.")
@click.option("--batch", metavar="FILE", help="Answer the flows in FILE (- is stdin), JSON Lines in and out.")
@common_options()
def command(source: str | None, target: str | None, via: str | None, batch: str | None) -> int:
    """Follows one packet through the nodes and shows every step: rules, routes, translations, the answer's way.

    \b
      ktp trace --from 10.0.0.100 --to 10.0.0.10:31015     from outside the cluster
      ktp trace --from @node-a --to node-b:31015           a process of node-a
      ktp trace --from shop/web-0 --to 10.96.0.10:53/udp   a pod
      ktp trace --from 10.0.0.100 --to 192.0.2.7:80 --via node-a
      ktp trace --batch flows.jsonl > answers.jsonl

    Exit status: 0 it connects, 1 it does not, 4 undetermined, 3 nothing was read of the node that it starts from.
    With --batch: 0 every line was answered, 2 some lines were no flows (each got its error).
    """
    chosen = settings()
    if batch is not None:
        return _batch(chosen, batch, single=(source, target, via))
    if source is None or target is None:
        missing = "--from" if source is None else "--to"
        raise UsageError(
            f"{missing} is missing", hint="ktp trace --from IP[@NODE] --to IP:PORT, or ktp trace --batch FILE"
        )
    found = trace_flow(chosen, source, target, via)
    for traced in found:
        if traced.remedy is not None:
            click.echo(f"ktp: {traced.remedy}", err=True)
    status = max((traced.status for traced in found), key=_RANK.index)
    if chosen.output in ("json", "yaml"):
        from ktp.render.structured import dump
        from ktp.render.trace_json import trace_list, trace_object

        alone = len(found) == 1 and not found[0].via
        whole = trace_list([(each.answer, each.via) for each in found], found[0].pods)
        dump(trace_object(found[0].answer, found[0].pods) if alone else whole, chosen.output, sys.stdout)
        return int(status)
    from ktp.cli.terminal import use_color, width

    if chosen.output == "text":
        _write(found, sys.stdout, chosen, width=width(), color=use_color(chosen.color, sys.stdout))
        return int(status)
    from ktp.render.document import WIDTH, document

    page = io.StringIO()
    _write(found, page, chosen, width=WIDTH, color=False)
    sys.stdout.write(document(page.getvalue(), f"From {source} to {target}", chosen.output))
    return int(status)


# Of several ways into the cluster, from the best to the worst.
_RANK = (ExitCode.OK, ExitCode.UNDETERMINED, ExitCode.EVIDENCE, ExitCode.FINDINGS)


def _write(found: list[Traced], out: TextIO, chosen: Settings, *, width: int, color: bool) -> None:
    from ktp.render.trace_text import Layout, trace_lines, write_lines

    for number, traced in enumerate(found):
        if traced.via:
            out.write(("\n" if number else "") + f"by {', '.join(traced.via)}\n")
        layout = Layout(width=width, verbose=chosen.verbose, sender=traced.sender, sources=traced.sources)
        write_lines(trace_lines(traced.answer, layout), out, color=color)


def _batch(chosen: Settings, file: str, single: tuple[str | None, ...]) -> int:
    if any(word is not None for word in single):
        raise UsageError("--batch reads its flows from a file; leave out --from, --to and --via")
    if chosen.output not in ("text", "json"):
        raise UsageError("--batch answers with JSON Lines", hint="leave out -o, or write -o json")
    try:
        lines: IO[bytes] = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    with lines:
        answers = FlowBatch(snapshot_for_all(chosen, None))
        out = sys.stdout
        for line in lines:
            out.write(answers.answer(line) + "\n")
            out.flush()  # whoever waits for this answer before asking the next must get it
    if answers.bad_lines:
        click.echo(
            f"ktp: {answers.bad_lines} lines were no flows; each was answered with its error", err=True
        )
    return int(answers.status)
