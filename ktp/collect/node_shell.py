"""Nodes by a command of the user's that gives a shell on them: `docker exec`, `kubectl debug`, `tsh ssh`, …

The command is run without a shell of this machine's, with the reading script on its standard input, as OpenSSH's client
is; what the script does there is the same. Nothing is created by ktp: where a command leaves something behind (kubectl
debug leaves the pod that it made), a preset says so beforehand and takes away what the command said that it made.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ktp.collect.children import Answer, ChildResult, run_child
from ktp.collect.remote_script import (
    Conversation,
    Recording,
    build_script,
    collect_recorded,
    parse_stream,
    why_cut,
)
from ktp.collect.ssh import CONNECT_SHARE, PARALLEL, TIMEOUT, is_host, read_each, short
from ktp.errors import EvidenceError, UsageError
from ktp.model.capture import EvidenceGap, MemoryCapture
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.nft_chains import Reach
    from ktp.collect.parallel import OnProgress
    from ktp.collect.pod_namespaces import PodAddresses

NODE = "{node}"
_CLEANING_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A command by name. `makes` says what it creates in the cluster, "" where nothing.

    Where it creates something, `made` finds the name in what it prints, and `cleaning` takes that ({made}) away.
    """

    command: str
    makes: str = ""
    made: str = ""
    cleaning: str = ""


PRESETS: Mapping[str, Preset] = {
    "docker": Preset(command="docker exec -i {node} sh"),
    "podman": Preset(command="podman exec -i {node} sh"),
    "debug": Preset(
        command="kubectl debug node/{node} -i --profile=sysadmin --image=busybox -- chroot /host sh",
        makes="a privileged pod on each node, for as long as reading takes",
        # kubectl/pkg/cmd/debug: "Creating debugging pod %s with container %s on node %s."
        made=r"Creating debugging pod (\S+) with container \S+ on node",
        cleaning="kubectl delete pod {made} --wait=false",
    ),
    "gcloud": Preset(command="gcloud compute ssh {node} --quiet -- sudo sh"),
    "tsh": Preset(command="tsh ssh root@{node} sh"),
}  # fmt: skip
PRESETS = {**PRESETS, "kind": PRESETS["docker"], "k3d": PRESETS["docker"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShell:
    """How to get a shell. `command` is a preset's name, or a command with {node} where the node's name belongs.

    Raises UsageError where it is no such command.
    """

    command: str
    sudo: bool = False
    parallel: int = PARALLEL
    timeout: float = TIMEOUT
    counters: int = 0  # seconds between two readings of the kernel's counters; 0: none

    def __post_init__(self) -> None:
        """Check that the command asks for a node and can be split into words."""
        try:
            words = shlex.split(self.preset.command)
        except ValueError as error:
            raise UsageError(
                f"--node-shell {self.command!r} cannot be read as a command: {str(error).lower()}",
                hint="quote its words as for a shell",
            ) from None
        if not any(NODE in word for word in words):
            raise UsageError(
                f"--node-shell {self.command!r} names no node",
                hint="write {node} where its name belongs, as in 'docker exec -i {node} sh', or give a preset: "
                + ", ".join(sorted(PRESETS)),
            )

    @property
    def preset(self) -> Preset:
        """The preset of that name, or one of the command alone."""
        return PRESETS.get(self.command) or Preset(command=self.command)

    def words(self, node: str) -> list[str]:
        """The command for one node."""
        return [word.replace(NODE, node) for word in shlex.split(self.preset.command)]


def collect_by_shell(
    nodes: Sequence[str],
    shell: NodeShell,
    *,
    reach: Reach | None = None,
    pods: Mapping[str, PodAddresses] | None = None,
    on_progress: OnProgress | None = None,
) -> MemoryCapture:
    """What `nodes` say about themselves; a node that cannot be read is a gap.

    Raises EvidenceError if the command is not on this machine.
    """

    def visit(node: str) -> MemoryCapture:
        return _visit(node, shell, reach, (pods or {}).get(node))

    return read_each(nodes, visit, parallel=shell.parallel, on_progress=on_progress, how="by --node-shell")


def _visit(node: str, shell: NodeShell, reach: Reach | None, pods: PodAddresses | None) -> MemoryCapture:
    if not is_host(node):
        return _gap(node, f"{node!r} is no host name, and so ktp ran no command for it", "")
    script = build_script(
        sudo=shell.sudo,
        reach=reach,
        command_timeout=max(1.0, shell.timeout - min(CONNECT_SHARE, shell.timeout / 2)),
        pods=pods or (),
        counters=shell.counters,
    )
    words = shell.words(node)
    talk = Conversation(node, script, reach).answer if reach is not None else None
    done = _run(words, shell.timeout, script.text, talk)
    left = _clean(node, shell.preset, done)
    recording = parse_stream(done.stdout, script.mark)
    has_terminal = re.search(rb"\n" + script.mark.encode() + rb"[^\n]*\r\n", done.stdout) is not None
    if has_terminal or not recording.started:
        return _with_gaps(_gap(node, *_problem(node, shell, words, done, has_terminal=has_terminal)), left)
    read = collect_recorded(
        node,
        recording,
        reach=reach,
        source=f"node {node} ({words[0]})",
        not_root=_not_root(node, recording),
        why_cut=why_cut(done, shell.timeout),
        pods=pods,
        counters=shell.counters,
    )
    return _with_gaps(read, left)


def run_by_shell(node: str, shell: NodeShell, script: bytes, *, timeout: float) -> ChildResult | EvidenceGap:
    """Run a shell script on a node; the gap where it did not run. A script prints something at once."""
    if not is_host(node):
        return EvidenceGap("probe", node, f"{node!r} is no host name")
    words = shell.words(node)
    done = _run(words, timeout, script)
    _clean(node, shell.preset, done)
    if done.stdout:
        return done
    message, remedy = _problem(node, shell, words, done, has_terminal=False)
    return EvidenceGap("probe", node, message, remedy=remedy)


def _with_gaps(capture: MemoryCapture, gaps: tuple[EvidenceGap, ...]) -> MemoryCapture:
    return replace(capture, gaps=(*capture.gaps, *gaps)) if gaps else capture


def _run(words: Sequence[str], timeout: float, stdin: bytes, answer: Answer | None = None) -> ChildResult:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return run_child(
            words, timeout=timeout, stdin=stdin, answer=answer, environment=environment, spare=True
        )
    except OSError as error:
        raise EvidenceError(
            f"the command {words[0]!r} of --node-shell cannot be run: {(error.strerror or str(error)).lower()}",
            hint="install it, or give another --node-shell",
        ) from None


def _clean(node: str, preset: Preset, done: ChildResult) -> tuple[EvidenceGap, ...]:
    """Take away what the command said that it made; a gap for what is still there."""
    if not preset.made:
        return ()
    left = []
    said = (done.stdout[:4096] + b"\n" + done.stderr[:4096]).decode(errors="replace")
    for name in re.findall(preset.made, said):
        words = [w.replace("{made}", name) for w in shlex.split(preset.cleaning)]
        cleaned = _run(words, _CLEANING_TIMEOUT, b"")
        if cleaned.status != 0:
            why = short(cleaned.stderr.decode(errors="replace")) or "no answer"
            left.append(
                EvidenceGap(
                    "node-access",
                    node,
                    f"{name}, which reading node {node} made, is still there: {why}",
                    remedy=shlex.join(words),
                )
            )
    return tuple(left)


def _problem(
    node: str, shell: NodeShell, words: Sequence[str], done: ChildResult, *, has_terminal: bool
) -> tuple[str, str]:
    """The sentence and the remedy for a node that gave no answer."""
    command = shlex.join(words)
    if has_terminal:
        return (
            f"`{command}` gives a terminal, which changes the output of node {node}",
            "leave out the option for one (-t): ktp speaks to a shell through pipes",
        )
    if done.status is None:
        return (
            f"node {node} did not answer within {shell.timeout:g} s to `{command}`",
            "see whether the command asks for something; --timeout gives it longer",
        )
    last = short((done.stderr or done.stdout).decode(errors="replace").strip().rpartition("\n")[2])
    return (
        f"`{command}` ran no shell script (exit status {done.status}: {last or 'no output'})",
        f"see what `echo id | {command}` says",
    )


def _not_root(node: str, recording: Recording) -> tuple[str, str]:
    lost = f"and so the packet rules of node {node} cannot be read"
    said = recording.refused_by_sudo
    if said is None:
        return (
            f"the shell of --node-shell is not root's, {lost}",
            "give --sudo, or a command that ends in `sudo sh`",
        )
    return f"sudo on node {node} refuses ({short(said)}), {lost}", "give a command that ends in root's shell"


def _gap(node: str, message: str, remedy: str) -> MemoryCapture:
    gap = EvidenceGap("node-rules", node, message, remedy=remedy)
    return MemoryCapture(files={}, gaps=(gap,), source=f"node {node} (--node-shell)")
