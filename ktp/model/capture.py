"""What collection hands on: file names of a snapshot and their raw bytes, plus what could not be had.

A live run, a folder, an archive and a test all look the same from here on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from ktp.model.record import dataclass

if TYPE_CHECKING:
    from pathlib import Path

# Which lists of the API do not have all of the cluster's objects, and whose they have (`model.cluster.Scope`).
PARTIAL = "cluster/partial.json"

# How sysctl(8) of procps 3 and 4, and busybox, say that there is no such key. Without br_netfilter there is none, and
# bridged packets pass no rules: of these keys alone the absence is evidence.
NO_BRIDGE_NETFILTER = re.compile(
    r"\s*(?:sysctl|error):.*\bnet[./]bridge[./](bridge-nf-call-ip6?tables)\b.*(?:No such file|unknown key)"
)


class GapCause(str, Enum):
    """Why evidence is not there, where whoever asks has to know."""

    NOT_INSTALLED = "not-installed"
    NOT_READ = "not-read"


@dataclass(frozen=True, slots=True)
class EvidenceGap:
    """Something that an answer would have needed and that was not there.

    `kind` is a short stable slug (`node-rules`, `api-forbidden`, `pods` …), `subject` names the node, Service
    or resource concerned, `message` is one sentence for the user, `remedy` says how to get the evidence.
    """

    kind: str
    subject: str
    message: str
    _: KW_ONLY
    remedy: str | None = None
    cause: GapCause = GapCause.NOT_READ


class Capture(Protocol):
    """The files of one snapshot (names as in design §4, with `/`) and the gaps met while collecting them."""

    @property
    def gaps(self) -> tuple[EvidenceGap, ...]:
        """What was looked for in vain, in the order met."""

    @property
    def source(self) -> str:
        """Words for the report that say where this evidence is from."""

    def names(self) -> Iterable[str]:
        """Every file name, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def read(self, name: str) -> bytes:
        """The content of one file; KeyError if there is none of that name."""

    def path(self, name: str) -> Path | None:
        """Where the file lies on disk as it is, so that a large dump can be mapped; None if it does not."""

    def node_names(self) -> tuple[str, ...]:
        """Every NODE with a file `nodes/NODE/…`, sorted."""


def node_names_of(names: Iterable[str]) -> tuple[str, ...]:
    """The NODE of every `nodes/NODE/FILE` among file names, sorted, each once."""
    parts = (name.split("/") for name in names)
    return tuple(sorted({part[1] for part in parts if len(part) >= 3 and part[0] == "nodes"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCapture:
    """A capture held in memory: a live run, an archive, a test."""

    files: Mapping[str, bytes]
    gaps: tuple[EvidenceGap, ...] = ()
    source: str = "memory"
    _nodes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the node names once; a cluster may have thousands."""
        object.__setattr__(self, "_nodes", node_names_of(self.files))

    def names(self) -> tuple[str, ...]:
        """Every file name, sorted."""
        return tuple(sorted(self.files))

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return name in self.files

    def read(self, name: str) -> bytes:
        """The content of one file; KeyError if there is none of that name."""
        return self.files[name]

    def path(self, name: str) -> Path | None:  # noqa: ARG002 - the signature is the protocol's
        """None: nothing of this lies on disk."""
        return None

    def node_names(self) -> tuple[str, ...]:
        """Every NODE with a file `nodes/NODE/…`, sorted."""
        return self._nodes


def merge_captures(*captures: Capture, source: str | None = None) -> MemoryCapture:
    """One capture with the files and gaps of several; of two files with one name the later one counts.

    `source` defaults to the sources of all of them, joined by "; ".
    """
    files = {name: capture.read(name) for capture in captures for name in capture.names()}
    gaps = tuple(gap for capture in captures for gap in capture.gaps)
    words = "; ".join(dict.fromkeys(capture.source for capture in captures))
    return MemoryCapture(files=files, gaps=gaps, source=words if source is None else source)
