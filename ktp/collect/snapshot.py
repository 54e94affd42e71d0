"""Snapshots on disk: open a folder or a tar archive as a capture, and write a capture as either.

The layout is design §4. An archive may come from a stranger: nothing of it is ever unpacked to disk, and
names that lead elsewhere, links, devices and unbounded sizes are refused. This module interprets no file
but `gaps.json`, which keeps the gaps of the run that wrote the snapshot.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from ktp.errors import SnapshotError, UsageError
from ktp.model.capture import EvidenceGap, MemoryCapture, node_names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ktp.model.capture import Capture

REQUIRED_FILE = "cluster/services.json"
_OTHER_FILES = frozenset(
    f"cluster/{name}.json" for name in ("endpointslices", "endpoints", "pods", "nodes", "version", "partial")
)
OBJECT_FILES = (".json", ".yaml", ".yml", ".txt")
GAPS_FILE = "gaps.json"

# An archive is held in memory. The largest legacy table that a kernel can hold dumps to about 140 MB.
MAX_ARCHIVE_BYTES = 1 << 30
MAX_ARCHIVE_MEMBERS = 100_000

# What `ktp snapshot` never writes.
_STRANGE = "ask where it comes from; only plain files below cluster/ and nodes/NODE/ belong in a snapshot"
_ELSEWHERE = "choose a folder that exists, may be written to and has room"
_GZIP_MAGIC = b"\x1f\x8b"
_TAR_BLOCK = 512
_READ_SIZE = 1 << 16


# ---------------------------------------------------------------------------------------------------- reading


class FolderCapture:
    """A capture whose files lie in a folder and are read when asked for."""

    def __init__(self, root: Path, names: Iterable[str], gaps: tuple[EvidenceGap, ...], source: str) -> None:
        self.gaps = gaps
        self.source = source
        self._root = root
        self._names = frozenset(names)
        self._nodes = node_names_of(self._names)

    def names(self) -> tuple[str, ...]:
        """Every file name, sorted."""
        return tuple(sorted(self._names))

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return name in self._names

    def read(self, name: str) -> bytes:
        """The content of one file; KeyError if there is none, SnapshotError if it cannot be read."""
        path = self.path(name)
        if path is None:
            raise KeyError(name)
        return _read_file(path)

    def path(self, name: str) -> Path | None:
        """Where the file lies on disk, so that a large dump can be mapped; None if there is none."""
        return self._root / name if name in self._names else None

    def node_names(self) -> tuple[str, ...]:
        """Every NODE with a file `nodes/NODE/…`, sorted."""
        return self._nodes


def open_snapshot(
    path: str | Path, *, max_bytes: int = MAX_ARCHIVE_BYTES, max_members: int = MAX_ARCHIVE_MEMBERS
) -> Capture:
    """The capture in a snapshot folder, a `.tar`, `.tar.gz` or `.tgz`, or a file of objects (told by content).

    `max_bytes` bounds an unpacked archive, `max_members` the entries in it. Raises SnapshotError.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise SnapshotError(
            f"there is no snapshot at {path}", hint="check the path given to --snapshot"
        ) from None
    except OSError as error:
        raise _unreadable(f"the snapshot {path}", error) from None
    if stat.S_ISDIR(mode):
        return _open_folder(path)
    if stat.S_ISREG(mode):
        return _open_objects(path, max_bytes) or _open_archive(path, max_bytes, max_members)
    raise SnapshotError(
        f"{path} is neither a folder nor a file", hint="give a snapshot folder or a .tar.gz of one"
    )


def _open_folder(path: Path) -> FolderCapture:
    root = path.resolve()
    try:
        names = tuple(_folder_names(root))
    except OSError as error:
        raise _unreadable(f"the snapshot {path}", error) from None
    _require_services(names, path)
    gaps = _parse_gaps(_read_file(root / GAPS_FILE), path) if GAPS_FILE in names else ()
    return FolderCapture(root, (name for name in names if name != GAPS_FILE), gaps, f"snapshot {path}")


def _open_objects(path: Path, max_bytes: int) -> MemoryCapture | None:
    """A file of Kubernetes objects, as `kubectl get … -o yaml` prints them; None where it is no text."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_READ_SIZE)
            if not _is_text(start) or path.stat().st_size > max_bytes:
                return None
            content = start + stream.read()
    except OSError as error:
        raise _unreadable(f"the snapshot {path}", error) from None
    is_named = (
        path.suffix in OBJECT_FILES and f"cluster/{path.name}" != REQUIRED_FILE and path.name.isprintable()
    )
    name = path.name if is_named else "objects.yaml"
    return MemoryCapture(files={f"cluster/{name}": content}, source=f"objects in {path}")


def _is_text(start: bytes) -> bool:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(start.strip()) and b"\0" not in start


def _folder_names(root: Path) -> Iterator[str]:
    """The snapshot's file names under `root`; SnapshotError for what is no plain file of this folder.

    A link may be used inside a snapshot (files that several nodes share), but must not lead out of it: the
    folder may come from a stranger, and its content is quoted in reports. Opening a pipe would hang.
    """
    candidates = [root / GAPS_FILE]
    nodes = _subfolders(root / "nodes")
    inner = [node / name for node in nodes for name in _NODE_FOLDERS]
    pods = [pod for node in nodes for pod in _subfolders(node / "pods")]
    for folder in (root / "cluster", *nodes, *inner, *pods):
        if folder.is_dir():
            candidates.extend(folder.iterdir())
    for candidate in candidates:
        name = candidate.relative_to(root).as_posix()
        if (
            not _is_snapshot_name(name)
            or candidate.is_dir()
            or not (candidate.is_symlink() or candidate.exists())
        ):
            continue
        if not name.isprintable():
            raise SnapshotError(f"the snapshot holds {name!r}, a name that cannot be printed", hint=_STRANGE)
        if not candidate.resolve().is_relative_to(root):
            raise SnapshotError(
                f"{candidate} is a link that leads out of the snapshot", hint="copy the file instead"
            )
        if not candidate.is_file():
            raise SnapshotError(f"{candidate} is not a plain file", hint=_STRANGE)
        yield name


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


# Folders of a node's folder: what a data plane prints of its own tables, and the rules once more.
_NODE_FOLDERS = ("cilium", "again")


def _is_snapshot_name(name: str) -> bool:
    """Whether a file of this name belongs to a snapshot; anything else that lies there is left alone."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    if len(parts) > 3:  # nodes/NODE/cilium/FILE, again/FILE, pods/POD/FILE
        return parts[0] == "nodes" and (len(parts), parts[2]) in {
            *((4, name) for name in _NODE_FOLDERS),
            (5, "pods"),
        }
    return name == GAPS_FILE or (len(parts), parts[0]) in {(2, "cluster"), (3, "nodes")}


def _require_services(names: Iterable[str], path: Path) -> None:
    names = tuple(names)
    if REQUIRED_FILE in names or any(
        name.startswith("cluster/") and name.endswith(OBJECT_FILES) and name not in _OTHER_FILES
        for name in names
    ):
        return
    found = ", ".join(sorted(names)[:5]) or "none of a snapshot's files"
    raise SnapshotError(
        f"{path} is not a snapshot: looked for {REQUIRED_FILE} (the one file that must be there), "
        f"cluster/{{endpointslices,endpoints,pods,nodes}}.json and nodes/NODE/…, found {found}",
        hint="`ktp snapshot OUT` writes one; the least of one by hand: "
        "`kubectl get services -A -o json > cluster/services.json`",
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error) from None


def _unreadable(what: str, error: OSError) -> SnapshotError:
    return SnapshotError(
        f"{what} cannot be read: {_reason(error)}",
        hint="see who may read it (ls -l), and whether it is all there",
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _parse_gaps(content: bytes, path: Path) -> tuple[EvidenceGap, ...]:
    try:
        return tuple(
            EvidenceGap(
                str(gap["kind"]),
                str(gap["subject"]),
                str(gap["message"]),
                remedy=None if gap.get("remedy") is None else str(gap["remedy"]),
            )
            for gap in json.loads(content)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SnapshotError(
            f"{GAPS_FILE} of the snapshot {path} is not a list of evidence gaps",
            hint="remove the file to read the snapshot without them",
        ) from None


# --------------------------------------------------------------------------------------------------- archives


class _BoundedReader:
    """A stream that refuses to give more than `limit` bytes and remembers the last block it gave.

    The bound is on what comes out of the decompressor, so that neither a gzip bomb nor a header that claims a
    huge size gets memory.
    """

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self._stream = stream
        self._left = limit
        self._limit = limit
        self._path = path
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, b"" at the end; SnapshotError beyond the limit."""
        wanted = _READ_SIZE if size < 0 else min(size, _READ_SIZE)
        chunk = self._stream.read(wanted)
        self._left -= len(chunk)
        if self._left < 0:
            raise SnapshotError(
                f"the archive {self._path} holds more than {self._limit >> 20} MiB",
                hint="unpack it and give the folder to --snapshot",
            )
        self.tail = (self.tail + chunk)[-_TAR_BLOCK:]
        return chunk


def archive_members(
    path: Path, max_bytes: int = MAX_ARCHIVE_BYTES, max_members: int = MAX_ARCHIVE_MEMBERS
) -> dict[str, bytes]:
    """The plain files of a `.tar` or `.tar.gz`, by name. Raises SnapshotError."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with contextlib.ExitStack() as stack:
                plain = cast(
                    "IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=raw)) if compressed else raw
                )
                return _read_members(_BoundedReader(plain, max_bytes, path), path, max_members)
    # tarfile follows headers that extend each other by recursion, and reads numbers in them as it finds them.
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError, ValueError) as error:
        raise SnapshotError(
            f"{path} is not a tar archive, or it is damaged or cut short "
            f"({str(error).lower() or 'no tar header'})",
            hint="give a snapshot folder, or a .tar or .tar.gz of one that was copied completely",
        ) from None
    except OSError as error:
        raise _unreadable(f"the snapshot {path}", error) from None


def _open_archive(path: Path, max_bytes: int, max_members: int) -> MemoryCapture:
    files = _without_top_folder(archive_members(path, max_bytes, max_members))
    _require_services(files, path)
    gaps = _parse_gaps(files[GAPS_FILE], path) if GAPS_FILE in files else ()
    kept = {name: content for name, content in files.items() if name != GAPS_FILE and _is_snapshot_name(name)}
    return MemoryCapture(files=kept, gaps=gaps, source=f"snapshot {path}")


class _Entry(tarfile.TarInfo):
    """An entry whose damaged header is an error: tarfile takes it for the end of the archive, and its files for all."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Entry:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined] # public in all but typeshed
            raise tarfile.ReadError(str(error)) from None


def _read_members(stream: _BoundedReader, path: Path, max_members: int) -> dict[str, bytes]:
    """Every regular file of a tar stream by its name as written, without leading `./`."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Entry) as archive:
        for count, member in enumerate(archive, start=1):
            if count > max_members:
                raise SnapshotError(
                    f"the archive {path} holds more than {max_members} entries",
                    hint="unpack it and give the folder to --snapshot",
                )
            if member.size < 0:
                raise tarfile.ReadError("negative size")
            name = _safe_name(member, path)
            if member.isdir():
                continue
            content = archive.extractfile(member)
            if content is None:
                raise SnapshotError(
                    f"the archive {path} holds {member.name!r}, which is not a plain file", hint=_STRANGE
                )
            if name in files:
                # Which of them is meant cannot be told, and programs that unpack disagree.
                raise SnapshotError(
                    f"the archive {path} holds {member.name!r} twice", hint="unpack it and pack it again"
                )
            files[name] = content.read()
    # tarfile stops at the end mark. Only the rest of the stream has gzip's checksum, and an archive that was
    # cut between two entries can only be told by the mark that it lacks.
    while stream.read():
        pass
    if stream.tail.strip(b"\0"):
        raise tarfile.ReadError("no end mark")
    return files


def _safe_name(member: tarfile.TarInfo, path: Path) -> str:
    pure = PurePosixPath(member.name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in member.name or "\\" in member.name:
        raise SnapshotError(
            f"the archive {path} holds {member.name!r}, a name that leads out of it", hint=_STRANGE
        )
    # Bytes that are no UTF-8 come as surrogates, which are not printable either.
    if not member.name.isprintable():
        raise SnapshotError(
            f"the archive {path} holds {member.name!r}, a name that cannot be printed", hint=_STRANGE
        )
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise SnapshotError(
            f"the archive {path} holds {member.name!r}, which is a link, a device or sparse and no plain file",
            hint="pack it again with `tar --dereference -czf`",
        )
    return pure.as_posix()


def _without_top_folder(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with one leading folder cut off, where the archive was made of the folder itself."""
    if REQUIRED_FILE in files:
        return dict(files)
    tops = sorted(name.split("/")[0] for name in files if name.split("/", 1)[1:] == [REQUIRED_FILE])
    if not tops:
        return dict(files)
    prefix = tops[0] + "/"
    return {name.removeprefix(prefix): content for name, content in files.items() if name.startswith(prefix)}


# ---------------------------------------------------------------------------------------------------- writing


def write_snapshot(capture: Capture, path: str | Path) -> None:
    """Write a capture as an archive if `path` ends in .tar.gz or .tgz, else as a folder; see below."""
    path = Path(path)
    if is_archive_name(path):
        write_archive(capture, path)
    else:
        write_folder(capture, path)


def write_folder(capture: Capture, path: str | Path) -> None:
    """Write a capture as a folder, all of it or nothing; folders get mode 0700 and files 0600.

    Addresses, rules and names of a cluster are nobody else's business. Raises UsageError if `path` exists and
    is not an empty folder, or cannot be written.
    """
    path = Path(path).absolute()
    _refuse_existing(path)
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, content in _contents(capture):
                target = building / name
                _make_private_folders(target.parent, building)
                with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
            building.rename(path)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None


def write_archive(capture: Capture, path: str | Path) -> None:
    """Write a capture as a `.tar.gz`, all of it or nothing, with mode 0600; equal captures give equal bytes.

    The files lie in one folder named after the archive. Raises UsageError if `path` exists or cannot be
    written.
    """
    path = Path(path).absolute()
    _refuse_existing(path)
    top = path.name.removesuffix(".tgz").removesuffix(".tar.gz")
    try:
        descriptor, building = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with (
                os.fdopen(descriptor, "wb") as raw,
                gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                for name, content in _contents(capture):
                    member = tarfile.TarInfo(f"{top}/{name}")
                    member.size = len(content)
                    member.mode = 0o600
                    archive.addfile(member, io.BytesIO(content))
            Path(building).rename(path)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None


def _contents(capture: Capture) -> Iterator[tuple[str, bytes]]:
    for name in capture.names():
        # Names hold node names, which an API server says: they must not choose where a file is written.
        if PurePosixPath(name).is_absolute() or not _is_snapshot_name(name):
            raise SnapshotError(f"{name!r} is not the name of a snapshot's file", hint=_STRANGE)
        yield name, capture.read(name)
    if capture.gaps:
        yield GAPS_FILE, _gaps_json(capture.gaps)


def _gaps_json(gaps: Iterable[EvidenceGap]) -> bytes:
    entries = [
        {"kind": gap.kind, "subject": gap.subject, "message": gap.message, "remedy": gap.remedy}
        for gap in gaps
    ]
    return json.dumps(entries, indent=1, ensure_ascii=False).encode()


def _make_private_folders(folder: Path, root: Path) -> None:
    for part in reversed([folder, *folder.parents]):
        if part != root and part.is_relative_to(root):
            part.mkdir(mode=0o700, exist_ok=True)


def _refuse_existing(path: Path) -> None:
    try:
        occupied = any(path.iterdir()) if path.is_dir() else path.is_symlink() or path.exists()
    except OSError as error:
        raise _unwritable(path, error) from None
    if occupied:
        raise UsageError(f"{path} exists already", hint="choose another name, or remove it first")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"the snapshot cannot be written to {path}: {_reason(error)}", hint=_ELSEWHERE)


class SnapshotFolder:
    """A snapshot folder that is written node by node and can be taken up again where it broke off.

    Each node's files appear at once or not at all, so that a node that has a folder with rules is done.
    """

    def __init__(self, path: str | Path, *, resume: bool) -> None:
        """Raises UsageError if there is something at `path` and `resume` is not set, or it cannot be written."""
        self.path = Path(path).absolute()
        self.gaps: tuple[EvidenceGap, ...] = ()
        if not resume:
            _refuse_existing(self.path)
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            (self.path / "nodes").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if resume and (self.path / GAPS_FILE).is_file():
            self.gaps = _parse_gaps(_read_file(self.path / GAPS_FILE), self.path)

    def complete_nodes(self) -> frozenset[str]:
        """The nodes whose packet filter rules are there already."""
        return frozenset(
            folder.name
            for folder in _subfolders(self.path / "nodes")
            if any(_holds_rules(file.name) for file in folder.iterdir())
        )

    def write_cluster(self, files: Mapping[str, bytes]) -> None:
        """Replace `cluster/`; the names are those of a capture."""
        self._replace("cluster", {name: files[name] for name in files if name.startswith("cluster/")})

    def write_node(self, node: str, files: Mapping[str, bytes]) -> None:
        """Replace `nodes/NODE/`."""
        folder = f"nodes/{node}"
        self._replace(folder, {name: files[name] for name in files if name.startswith(folder + "/")})

    def write_gaps(self, gaps: Iterable[EvidenceGap]) -> None:
        """Replace `gaps.json`."""
        content = _gaps_json(gaps)
        try:
            descriptor, building = tempfile.mkstemp(prefix=".gaps.", dir=self.path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(building).replace(self.path / GAPS_FILE)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _replace(self, folder: str, files: Mapping[str, bytes]) -> None:
        for name in files:
            if not _is_snapshot_name(name) or not PurePosixPath(name).is_relative_to(folder):
                raise SnapshotError(f"{name!r} is not the name of a snapshot's file", hint=_STRANGE)
        if not files:
            return
        try:
            building = Path(tempfile.mkdtemp(prefix=".building.", dir=self.path))
            try:
                for name, content in files.items():
                    target = building / PurePosixPath(name).relative_to(folder)
                    _make_private_folders(target.parent, building)
                    with os.fdopen(
                        os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
                    ) as file:
                        file.write(content)
                if (self.path / folder).exists():
                    (self.path / folder).rename(building.with_name(building.name + ".old"))
                building.rename(self.path / folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
                shutil.rmtree(building.with_name(building.name + ".old"), ignore_errors=True)
        except OSError as error:
            raise _unwritable(self.path, error) from None


def _holds_rules(file: str) -> bool:
    return (
        file.endswith("tables-save.txt")
        or "tables-legacy-" in file
        or "tables-nft-" in file
        or "nft-rules" in file
    )


def is_archive_name(path: str | Path) -> bool:
    """Whether a snapshot of this name is an archive."""
    return Path(path).name.endswith((".tar.gz", ".tgz"))


def write_private_file(path: str | Path, content: bytes) -> None:
    """Write a file that only its owner may read, at once or not at all. Raises UsageError where that fails."""
    path = Path(path).absolute()
    try:
        descriptor, building = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(building).replace(path)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {_reason(error)}", hint=_ELSEWHERE) from None
