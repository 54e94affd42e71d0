"""Archives that are damaged, or made to do harm, given to `--snapshot`: one sentence and exit status 3, and nothing else."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.cli import run

Capsys = pytest.CaptureFixture[str]
SERVICES = b'{"apiVersion": "v1", "kind": "List", "items": []}\n'
FILES = {"cluster/services.json": SERVICES, "nodes/node-a/ss.txt": b""}
SECRET = "secret-of-this-machine"


def member(name: str, content: bytes = b"", **fields: object) -> bytes:
    """One entry as it lies in an archive, its header as made or spoilt by `fields`."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in fields.items():
        setattr(entry, key, value)
    padding = -len(content) % 512
    return entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(padding)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header (POSIX.1-2001, pax Interchange Format) for the entry that follows."""
    return member("pax", records, type=kind)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode(errors="surrogateescape")
    size = len(text) + 1
    while len(str(size)) + len(text) != size:
        size = len(str(size)) + len(text)
    return str(size).encode() + text


def archive(*entries: bytes) -> bytes:
    whole = b"".join(member(name, content) for name, content in FILES.items())
    return whole + b"".join(entries) + bytes(1024)


def resized(header: bytes, size: bytes) -> bytes:
    """The header with another size field (12 bytes) and the checksum that goes with it."""
    block = bytearray(header[:512])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + header[512:]


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in FILES.items():
            file.writestr(name, content)
    return out.getvalue()


DAMAGED = "is not a tar archive, or it is damaged or cut short"
LINK = "which is a link, a device or sparse and no plain file"
OUT = "a name that leads out of it"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", DAMAGED),
    "a zip": (zipped, DAMAGED),
    "gzipped words": (lambda: gzip.compress(b"hello " * 1000), DAMAGED),
    "gzip in gzip": (lambda: gzip.compress(gzip.compress(archive())), DAMAGED),
    "cut": (lambda: gzip.compress(archive())[:-30], DAMAGED),
    "cut within an entry": (lambda: gzip.compress(archive(member("nodes/a/ss.txt", b"x" * 5000))[:-3000]), DAMAGED),
    "absolute": (lambda: archive(member("/etc/passwd", b"x")), OUT),
    "dots": (lambda: archive(member("nodes/../../x", b"x")), OUT),
    "absolute by pax": (lambda: archive(extended(record("path", "/etc/passwd")), member("nodes/a/ss.txt")), OUT),
    "dots by pax": (lambda: archive(extended(record("path", "nodes/../../x")), member("nodes/a/ss.txt")), OUT),
    "dots by a global pax header": (
        lambda: archive(extended(record("path", "../x"), tarfile.XGLTYPE), member("nodes/a/ss.txt")), OUT,
    ),
    "dots by a long name of GNU": (lambda: archive(member("x", b"../../x\0", type=b"L"), member("nodes/a/x")), OUT),
    "symbolic link": (
        lambda: archive(member("nodes/a/ss.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd")), LINK,
    ),
    "hard link": (
        lambda: archive(member("nodes/a/ss.txt", type=tarfile.LNKTYPE, linkname="cluster/services.json")), LINK,
    ),
    "link to a folder": (
        lambda: archive(member("nodes/a", type=tarfile.SYMTYPE, linkname="/etc"), member("nodes/a/passwd", b"x")), LINK,
    ),
    "device": (lambda: archive(member("nodes/a/ss.txt", type=tarfile.CHRTYPE, devmajor=1, devminor=5)), LINK),
    "pipe": (lambda: archive(member("nodes/a/ss.txt", type=tarfile.FIFOTYPE)), LINK),
    "sparse": (
        lambda: archive(
            extended(record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1")
                     + record("GNU.sparse.size", str(1 << 40)) + record("GNU.sparse.map", f"0,0,{1 << 40},0")),
            member("nodes/a/ss.txt"),
        ), LINK,
    ),
    "twice": (lambda: archive(member("nodes/node-a/ss.txt", b"tcp LISTEN\n")), "'nodes/node-a/ss.txt' twice"),
    "twice in two spellings": (lambda: archive(member("./nodes//node-a/ss.txt")), "twice"),
    "no UTF-8": (lambda: archive(member("nodes/\udcff/ss.txt")), "cannot be printed"),
    "no UTF-8 in a pax name": (
        lambda: archive(extended(record("path", "nodes/\udcff/ss.txt")), member("x")), "cannot be printed",
    ),
    "a damaged header": (
        lambda: archive(member("nodes/a/ss.txt").replace(b"nodes/a/", b"nodes/b/"), member("nodes/c/ss.txt")), DAMAGED,
    ),
    "a name that moves the cursor": (lambda: archive(member("nodes/\x1b[2J/ss.txt")), "cannot be printed"),
    "a line break in a name": (lambda: archive(member("nodes/a\nb/ss.txt")), "cannot be printed"),
    "a negative size": (
        lambda: archive(resized(member("nodes/a/ss.txt"), b"\xff" * 11 + b"\x00")), DAMAGED,
    ),
    "a huge size": (lambda: archive(resized(member("nodes/a/ss.txt"), b"77777777777\0")), DAMAGED),
    "a pax size that is no number": (
        lambda: archive(extended(record("size", "-9")), member("nodes/a/ss.txt")), DAMAGED,
    ),
    "headers upon headers": (lambda: archive(*[member("x", b"y\0", type=b"L")] * 5000), DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_with_a_sentence(name: str, tmp_path: Path, capsys: Capsys) -> None:
    make, words = HOSTILE[name]
    path = tmp_path / "given.tar.gz"
    path.write_bytes(make())
    assert run(["--snapshot", str(path), "diagnose", "svc", "-A"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    first, *hints = captured.err.splitlines()
    assert first.startswith("ktp: ")
    assert words in first
    assert all(hint.startswith("     ") for hint in hints)
    assert captured.err.isprintable() or set(filter(lambda c: not c.isprintable(), captured.err)) == {"\n"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["given.tar.gz"]


def test_a_tar_of_another_name_is_read(tmp_path: Path, capsys: Capsys) -> None:
    """The twin of the above: the same without what makes it hostile, and not compressed for all its name says."""
    path = tmp_path / "given.tar.gz"
    path.write_bytes(
        archive(extended(record("path", "nodes/b/ss.txt")), member("x"), member("nodes/é/ss.txt"))
    )
    assert run(["--snapshot", str(path), "diagnose", "svc", "-A"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [("diagnose", "svc", "a/b"), ("explain-rules", "--node-port", "31015"), ("trace", "--from", "1.2.3.4", "--to", "5.6.7.8:80"),
     ("snapshot", "OUT"), ("what-if", "a/b", "--policy", "Local")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_every_command_says_so(arguments: tuple[str, ...], tmp_path: Path, capsys: Capsys) -> None:
    path = tmp_path / "given.tar.gz"
    path.write_bytes(archive(member("/etc/passwd", SECRET.encode())))
    words = [str(tmp_path / word) if word == "OUT" else word for word in arguments]
    assert run(["--snapshot", str(path), *words]) == 3
    captured = capsys.readouterr()
    assert (captured.out, SECRET in captured.err) == ("", False)
    assert OUT in captured.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["given.tar.gz"]
