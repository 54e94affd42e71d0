"""`ktp check`: one node judged by its own evidence, once, again and again, or as a server of metrics."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ktp.app.evidence import did_you_mean
from ktp.app.settings import Settings, offline, open_offline
from ktp.errors import EvidenceError, ExitCode, KtpError, NotFoundError, UsageError
from ktp.model.node_check import FrontEndState, NodeCheck
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.app.serving import Page
    from ktp.collect.kube_api import KubeApi
    from ktp.collect.local_node import NftReading
    from ktp.collect.watching import ClusterWatch
    from ktp.diagnose.node_check import NodeChecker
    from ktp.model.capture import Capture, EvidenceGap, MemoryCapture
    from ktp.model.host import NodeState
    from ktp.model.snapshot import Snapshot

INTERVAL = 60.0
# An API server that has said nothing for so long is told of: it sends a bookmark about every minute.
_SILENCE = 300.0
# The files with rules, which are long, and what differs in them though nothing has changed: dates and counters.
_RULES = re.compile(r"(?:ip6?tables\S*-save|nft-ruleset)\.(?:txt|json)")
_FICKLE = re.compile(rb'^#.*$|\[\d+:\d+\]|"packets": ?\d+, ?"bytes": ?\d+', re.MULTILINE)


@dataclass(slots=True)
class Looker:
    """Looks at one node again and again; what has not changed since the last look is not asked anew.

    `heard` says when the API server was last heard of, `looked` is when the node was: by the monotonic clock, since the
    other may jump. `errors` counts the looks that failed. Not for several threads at once.
    """

    node: str
    objects: Callable[[tuple[str, ...]], Capture]
    reading: Callable[[], Capture]
    revision: Callable[[], object] = lambda: None
    heard: Callable[[], float] = time.monotonic
    problem: Callable[[], KtpError | None] = lambda: None
    errors: int = 0
    last: NodeCheck | None = None
    looked: float = 0.0
    _before: object = None
    _node: _Node | None = None
    _strangers: tuple[str, ...] = ()
    _checker: NodeChecker | None = field(default=None)

    def look(self) -> NodeCheck:
        """The node as it is now. Raises KtpError where it cannot be read."""
        from ktp.diagnose.node_check import NodeChecker
        from ktp.model.capture import merge_captures

        begun = time.monotonic()
        if self._checker is None:
            self._checker = NodeChecker(self.node)
        checker = self._checker
        revision = self.revision()
        objects = self.objects(self._strangers)
        read = self.reading()
        at, looked = time.time(), time.monotonic()
        _give_back_memory()  # a hundred thousand rules took twice their text while they were read
        node = _understood(merge_captures(objects, read), self.node, self._node)
        del read
        same_node = node is self._node
        if self.last is not None and same_node and revision is not None and revision == self._before:
            found = self.last
        else:
            # The texts of ten thousand Services are not kept while these are judged, nor two readings of them.
            snapshot = _snapshot(objects, node, self.node)
            del objects
            found = checker.check(snapshot, same_node=same_node)
            strangers = tuple(sorted(checker.strangers))
            if strangers and strangers != self._strangers:
                del snapshot
                found = checker.check(_snapshot(self.objects(strangers), node, self.node), same_node=True)
            self._strangers = strangers
        self._before, self._node = revision, node
        found = replace(
            found,
            at=at,
            objects_at=at - self.objects_age,
            seconds=time.monotonic() - begun,
            gaps=(*(g for g in found.gaps if g.kind != "api-away"), *self._away()),
        )
        self.last, self.looked = found, looked
        _give_back_memory()
        return found

    @property
    def age(self) -> float:
        """Seconds since the last look."""
        return time.monotonic() - self.looked

    @property
    def objects_age(self) -> float:
        """Seconds since the API server was heard of."""
        return max(0.0, time.monotonic() - self.heard())

    def _away(self) -> Iterator[EvidenceGap]:
        """A gap where the API server does not speak: the objects are those that it last told of."""
        from ktp.model.capture import EvidenceGap

        problem, age = self.problem(), self.objects_age
        if problem is None and age < _SILENCE:
            return
        why = problem.message if problem is not None else "the API server has sent nothing"
        yield EvidenceGap(
            "api-away",
            "api-server",
            f"{why}; the objects are those of {round(age)} s ago",
            remedy=problem.hint if problem is not None else None,
        )


def _give_back_memory() -> None:
    """Freed memory to the system, where the C library can (glibc): a look needs more than is kept between looks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True, slots=True)
class _Node:
    """The node as it was understood: its state and gaps, and what tells whether either has changed.

    `rules` has for each file with rules its text and a digest of it, `rest` what all other files say.
    """

    state: NodeState
    gaps: tuple[EvidenceGap, ...]
    rules: Mapping[str, tuple[bytes, bytes]]
    rest: object


def _understood(capture: Capture, node: str, before: _Node | None) -> _Node:
    """The node by its files in `capture`; `before` itself where they say nothing else than then.

    Raises EvidenceError where nothing of the node was read.
    """
    from ktp.model.capture import MemoryCapture
    from ktp.parse.snapshot import parse_snapshot

    files = {name: capture.read(name) for name in capture.names() if name.startswith(f"nodes/{node}/")}
    rules = {
        name: _digest(content, before.rules.get(name) if before is not None else None)
        for name, content in files.items()
        if _RULES.fullmatch(name.rpartition("/")[2])
    }
    gaps = tuple(gap for gap in capture.gaps if gap.subject.partition("/")[0] == node)
    no_services = {"cluster/services.json": b'{"items": []}'}
    others = {name: content for name, content in files.items() if name not in rules}
    rest = _steady(parse_snapshot(MemoryCapture(files={**others, **no_services})).nodes.get(node)), gaps
    if (
        before is not None
        and rest == before.rest
        and {name: digest for name, (_, digest) in rules.items()}
        == {name: digest for name, (_, digest) in before.rules.items()}
    ):
        return before
    parsed = parse_snapshot(MemoryCapture(files={**files, **no_services}, gaps=gaps), nodes=(node,))
    if node not in parsed.nodes:
        raise EvidenceError(
            f"nothing of node {node} could be read", hint=next((gap.message for gap in capture.gaps), None)
        )
    of_node = tuple(gap for gap in parsed.gaps if gap.subject.partition("/")[0] == node)
    return _Node(parsed.nodes[node], of_node, rules, rest)


def _steady(state: NodeState | None) -> NodeState | None:
    """The state without what counts and is another at each look."""
    from ktp.collect.local_node import FICKLE_SYSCTLS

    if state is None or state.sysctls is None:
        return state
    return replace(state, sysctls={k: v for k, v in state.sysctls.items() if k not in FICKLE_SYSCTLS})


def _digest(content: bytes, before: tuple[bytes, bytes] | None) -> tuple[bytes, bytes]:
    if before is not None and before[0] is content:
        return before
    return content, hashlib.blake2b(_FICKLE.sub(b"", content), digest_size=16).digest()


def _snapshot(objects: Capture, node: _Node, name: str) -> Snapshot:
    """The objects with the node. That no pods were read is as it should be, and no gap."""
    from ktp.model.snapshot import Snapshot
    from ktp.parse.kubernetes import parse_cluster_with_gaps

    cluster, gaps = parse_cluster_with_gaps(objects)
    others = tuple(gap for gap in objects.gaps if gap.subject.partition("/")[0] != name)
    return Snapshot(
        cluster=cluster, nodes={name: node.state}, gaps=(*others, *gaps, *node.gaps), source=objects.source
    )


# ------------------------------------------------------------------------------------------- where it looks


@contextlib.contextmanager
def looking(settings: Settings, *, watch: bool) -> Iterator[Looker]:
    """What looks at this machine, or at the node of a snapshot."""
    if offline(settings):
        yield _of_snapshot(settings)
        return
    from ktp.collect.kube_api import connect
    from ktp.collect.watching import ClusterWatch

    if settings.node_access not in ("auto", "local"):
        raise UsageError(
            f"ktp check reads the node that it runs on, and not by --node-access {settings.node_access}",
            hint="ktp diagnose svc -A --node NODE reads other nodes",
        )
    api = connect(settings.kubeconfig, settings.context)
    node = _this_node(api, settings)
    feed = ClusterWatch(api, node)
    feed.start(watch=watch)
    try:
        yield _of_this_machine(feed, node)
    finally:
        feed.stop()


def _of_this_machine(feed: ClusterWatch, node: str) -> Looker:
    def revision() -> object:
        feed.refresh()
        return feed.revision

    return Looker(
        node=node,
        objects=feed.capture,
        reading=ThisNode(node).read,
        revision=revision,
        heard=lambda: feed.heard,
        problem=lambda: feed.problem,
    )


class ThisNode:
    """This machine, read again and again: rules in nf_tables only where they have changed."""

    def __init__(self, node: str) -> None:
        """`node` is the name of its Node."""
        self._node = node
        self._before: NftReading | None = None

    def read(self) -> MemoryCapture:
        """What the machine says of itself."""
        from ktp.collect.local_node import NftReading, collect_local_node, nft_generation

        # All rules are read: to pick those of hundreds of Services takes longer (46 s and 8 s of 175,000 rules).
        generation = nft_generation()
        known = self._before if self._before is not None and self._before.generation == generation else None
        found = collect_local_node(self._node, before=known)
        self._before = None
        if generation is not None and nft_generation() == generation:
            self._before = NftReading.of(found, self._node, generation)
        return found


def _of_snapshot(settings: Settings) -> Looker:
    from ktp.model.capture import MemoryCapture

    capture = open_offline(settings)
    names = capture.node_names()
    chosen = settings.nodes or names
    if len(chosen) != 1:
        raise UsageError(
            f"ktp check judges one node, and the snapshot has {len(names)}",
            hint=f"say which with --node: {', '.join(names[:8])}",
        )
    if chosen[0] not in names:
        raise NotFoundError(
            f"there is nothing of a node {chosen[0]!r} in the snapshot" + did_you_mean(chosen[0], list(names))
        )
    return Looker(
        node=chosen[0],
        objects=lambda _strangers: capture,
        reading=lambda: MemoryCapture(files={}, source=capture.source),
    )


def _this_node(api: KubeApi, settings: Settings) -> str:
    """The name of this machine's Node: as --node says, or the one Node that is this machine."""
    if settings.nodes:
        if len(settings.nodes) > 1:
            raise UsageError("ktp check judges the node that it runs on; give one --node")
        return settings.nodes[0]
    from ktp.collect.cluster import node_object, nodes_of
    from ktp.collect.local_node import local_node_name
    from ktp.model.capture import MemoryCapture

    for read in (partial(node_object, api, os.uname().nodename.lower()), partial(nodes_of, api)):
        part = read()
        capture = MemoryCapture(files={file: objects.to_json() for file, objects in part.lists.items()})
        if (name := local_node_name(capture)) is not None:
            return name
    raise EvidenceError(
        "this machine is none of the cluster's nodes",
        hint="say which one it is with --node NAME, or run ktp check on the node",
    )


# -------------------------------------------------------------------------------------------- what it does


def check_once(settings: Settings, metrics_file: str | None) -> ExitCode:
    """Look once, and write the result."""
    with looking(settings, watch=False) as looker:
        found = looker.look()
    _write(settings, found)
    if metrics_file is not None:
        write_metrics(metrics_file, looker)
    return status_of(found)


def check_again_and_again(
    settings: Settings, interval: float, metrics_file: str | None, *, stop: threading.Event | None = None
) -> ExitCode:
    """Look every `interval` seconds until interrupted, and write what has changed since the last look."""
    stop = stop or threading.Event()
    said: object = None
    with looking(settings, watch=True) as looker:
        for found in _looks(looker, interval, stop, settings.warn):
            if metrics_file is not None:
                write_metrics(metrics_file, looker)
            if found is None:
                continue
            now = (found.counts, found.not_well, found.gaps and [g.kind for g in found.gaps])
            if now != said:
                said = now
                _write(settings, found)
                sys.stdout.flush()
    return ExitCode.EVIDENCE if looker.last is None else status_of(looker.last)


def serve(
    settings: Settings, address: tuple[str, int], interval: float, *, stop: threading.Event | None = None
) -> ExitCode:
    """Look every `interval` seconds, and answer /metrics, /healthz and /report until interrupted."""
    from ktp.render.node_check import require_prometheus

    require_prometheus()
    from ktp.app.serving import serving

    stop = stop or threading.Event()
    with looking(settings, watch=True) as looker:

        def page(path: str) -> Page | None:
            return _page(looker, path, interval)

        with serving(address, page) as at:
            settings.warn(f"serving /metrics, /healthz and /report of {looker.node} on {at}")
            for _ in _looks(looker, interval, stop, settings.warn):
                pass
    return ExitCode.OK


def _looks(
    looker: Looker, interval: float, stop: threading.Event, warn: Callable[[str], None]
) -> Iterator[NodeCheck | None]:
    """A look every `interval` seconds; one that fails is None, told and counted, and the next is tried."""
    told = ""
    while not stop.is_set():
        due = time.monotonic() + interval
        found: NodeCheck | None
        try:
            found = looker.look()
        except KtpError as error:
            looker.errors += 1
            if error.message != told:
                told = error.message
                warn(error.message)
            found = None
        else:
            told = ""
        yield found
        stop.wait(max(0.0, due - time.monotonic()))


def status_of(found: NodeCheck) -> ExitCode:
    """FINDINGS where a front end fails or deviates, UNDETERMINED where one is not known."""
    if found.count(FrontEndState.FAILS) or found.count(FrontEndState.DEVIATES):
        return ExitCode.FINDINGS
    return ExitCode.UNDETERMINED if found.count(FrontEndState.UNKNOWN) else ExitCode.OK


def _write(settings: Settings, found: NodeCheck) -> None:
    from ktp.render.node_check import check_object, print_check

    if settings.output == "text":
        from ktp.render.terminal import make_console

        print_check(found, make_console(settings.color, sys.stdout), verbose=settings.verbose)
        return
    from ktp.render.structured import dump

    dump(check_object(found), settings.output, sys.stdout)


def write_metrics(path: str, looker: Looker) -> None:
    """The metrics in a file for node_exporter's textfile collector, whole at every moment."""
    from ktp.render.node_check import metrics_text

    text = metrics_text(looker.last, looker.errors)
    part = Path(f"{path}.{os.getpid()}.tmp")
    try:
        part.write_bytes(text)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _code_page(path: str) -> Page | None:
    """`/codes` lists the findings, `/codes/KTP501` is the page of one: where alerts lead."""
    from ktp.app.serving import Page
    from ktp.diagnose.codes import find_page, index_markdown, page_markdown

    code = path.removeprefix("/codes").strip("/")
    try:
        text = page_markdown(find_page(code)) if code else index_markdown()
    except NotFoundError:
        return None
    return Page(200, "text/markdown; charset=utf-8", text.encode())


def _page(looker: Looker, path: str, interval: float) -> Page | None:
    """The answer to one path, None for a path that there is not."""
    from ktp.app.serving import Page
    from ktp.render.node_check import METRICS_TYPE, metrics_text, report_text

    found = looker.last
    if path == "/metrics":
        return Page(200, METRICS_TYPE, metrics_text(found, looker.errors))
    if path == "/healthz":
        late = found is None or looker.age > 3 * interval
        return Page(
            503 if late else 200, "text/plain; charset=utf-8", b"no recent look\n" if late else b"ok\n"
        )
    if path.startswith("/codes"):
        return _code_page(path)
    if path == "/report":
        if found is None:
            return Page(503, "text/plain; charset=utf-8", b"not looked yet\n")
        return Page(200, "application/json", report_text(found, looker.age))
    return None
