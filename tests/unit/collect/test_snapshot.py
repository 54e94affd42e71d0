"""Snapshots on disk: folders and archives, whole, damaged and hostile; and writing them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot, write_archive, write_folder, write_snapshot
from ktp.errors import ExitCode, SnapshotError, UsageError
from ktp.model.capture import EvidenceGap, MemoryCapture, merge_captures

SERVICES = b'{"items": []}\n'
RULES = b"*nat\nCOMMIT\n"
GAP = EvidenceGap("node-rules", "node-b", "no rules of node-b – “none”", remedy="ask")
FILES = {
    "cluster/services.json": SERVICES,
    "nodes/node-a/iptables-save.txt": RULES,
    "nodes/node-a/again/iptables-save.txt": RULES,
    "nodes/node-b/ss.txt": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "recorded"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(
    path: Path, members: dict[str, bytes], *, change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    """A tar archive of the members, gzipped if its name says so; `change` may spoil each header."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if change:
                change(member)
            archive.addfile(member, io.BytesIO(content))
    return path


# ------------------------------------------------------------------------------------------------------ reading


def test_a_folder(folder: Path) -> None:
    capture = open_snapshot(folder)
    assert tuple(capture.names()) == tuple(sorted(FILES))
    assert {name: capture.read(name) for name in capture.names()} == FILES
    assert capture.node_names() == ("node-a", "node-b")
    assert capture.path("nodes/node-a/iptables-save.txt") == folder / "nodes/node-a/iptables-save.txt"
    assert capture.source == f"snapshot {folder}"
    assert capture.gaps == ()


def test_an_absent_file_is_a_key_error(folder: Path) -> None:
    for capture in (open_snapshot(folder), MemoryCapture(files=FILES)):
        assert not capture.has("cluster/pods.json")
        assert capture.path("cluster/pods.json") is None
        with pytest.raises(KeyError):
            capture.read("cluster/pods.json")


def test_a_name_that_leads_out_of_the_folder_is_absent(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    with pytest.raises(KeyError):
        open_snapshot(folder).read("../secret")


def test_other_files_are_left_alone(folder: Path) -> None:
    for name in ("case.json", "cluster/.swp", "nodes/README", "nodes/node-a/deeper/x.txt", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert tuple(open_snapshot(folder).names()) == tuple(sorted(FILES))


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz", "named-otherwise"])
@pytest.mark.parametrize("prefix", ["", "./", "top/", "./top/"])
def test_an_archive(tmp_path: Path, name: str, prefix: str) -> None:
    path = pack(
        tmp_path / name, {prefix + name: content for name, content in FILES.items()} | {"notes": b"x"}
    )
    capture = open_snapshot(path)
    assert {name: capture.read(name) for name in capture.names()} == FILES
    assert capture.node_names() == ("node-a", "node-b")
    assert capture.path("cluster/services.json") is None
    assert capture.source == f"snapshot {path}"


def test_an_archive_as_the_tar_command_makes_it(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="recorded")
    assert tuple(open_snapshot(tmp_path / "x.tar.gz").names()) == tuple(sorted(FILES))


# ------------------------------------------------------------------------------------------- missing and damaged


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="there is no snapshot at") as caught:
        open_snapshot(tmp_path / "none")
    assert caught.value.exit_code is ExitCode.EVIDENCE


def test_a_folder_that_is_no_snapshot(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/pods.json").write_text("{}")
    with pytest.raises(
        SnapshotError, match=r"looked for cluster/services\.json .* found cluster/pods\.json$"
    ):
        open_snapshot(tmp_path)


def test_an_archive_that_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"looked for cluster/services\.json"):
        open_snapshot(pack(tmp_path / "x.tgz", {"a/b": b"c"}))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8bnonsense", os.urandom(5000)])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SnapshotError, match="is not a tar archive, or it is damaged or cut short") as caught:
        open_snapshot(tmp_path / "x")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_an_archive_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    whole = pack(tmp_path / name, {**FILES, "nodes/node-a/ss.txt": os.urandom(3000)}).read_bytes()
    # The tar format allows any number of zero blocks at the end; one of them is enough to tell the end.
    last = len(whole.rstrip(b"\0")) if name == "x.tar" else len(whole)
    for length in range(0, last, 97):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="cut short"):
            open_snapshot(tmp_path / "cut")


def test_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar.gz", FILES)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in gzip's checksum
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="damaged"):
        open_snapshot(path)


@pytest.mark.parametrize("content", [b"{", b"[3]", b'[{"kind": "x"}]', b'{"a": 1}', b"\xff"])
def test_damaged_gaps(folder: Path, content: bytes) -> None:
    (folder / "gaps.json").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"gaps\.json of the snapshot"):
        open_snapshot(folder)


def test_a_file_that_vanishes_is_an_error_of_the_snapshot(folder: Path) -> None:
    capture = open_snapshot(folder)
    (folder / "nodes/node-b/ss.txt").unlink()
    with pytest.raises(SnapshotError, match="cannot be read: no such file"):
        capture.read("nodes/node-b/ss.txt")


# ------------------------------------------------------------------------------------------------------ hostile


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "nodes/../../x", "nodes\\..\\x"])
def test_a_name_that_leads_out_of_the_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(SnapshotError, match="leads out of it"):
        open_snapshot(pack(tmp_path / "x.tar", {**FILES, name: b"x"}))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_an_archive(tmp_path: Path, kind: bytes) -> None:
    def change(member: tarfile.TarInfo) -> None:
        if member.name.endswith("ss.txt"):
            member.type, member.linkname = kind, "/etc/passwd"

    with pytest.raises(SnapshotError, match="a link, a device or sparse"):
        open_snapshot(pack(tmp_path / "x.tar", FILES, change=change))


def test_a_bomb_gets_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    member = tarfile.TarInfo("nodes/a/ss.txt")
    member.size = 1 << 40
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf() + bytes(3 << 20))
    with pytest.raises(SnapshotError, match="holds more than 1 MiB"):
        open_snapshot(path, max_bytes=1 << 20)


def test_a_bomb_in_a_header_gets_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT if header.size < 8**11 else tarfile.GNU_FORMAT))
        file.write(bytes(3 << 20))
    with pytest.raises(SnapshotError, match="holds more than 1 MiB"):
        open_snapshot(path, max_bytes=1 << 20)


def test_too_many_members(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {**FILES, **{f"nodes/n{number}/ss.txt": b"" for number in range(20)}})
    with pytest.raises(SnapshotError, match="more than 10 entries"):
        open_snapshot(path, max_members=10)


def test_a_link_out_of_a_folder(folder: Path) -> None:
    (folder / "nodes/node-b/sysctl.txt").symlink_to("/etc/passwd")
    with pytest.raises(SnapshotError, match="leads out of the snapshot"):
        open_snapshot(folder)


def test_a_link_inside_a_folder_is_fine(folder: Path) -> None:
    (folder / "nodes/node-b/iptables-save.txt").symlink_to("../node-a/iptables-save.txt")
    assert open_snapshot(folder).read("nodes/node-b/iptables-save.txt") == RULES


def test_a_name_in_a_folder_that_moves_the_cursor(folder: Path) -> None:
    (folder / "nodes/\x1b[2J").mkdir()
    (folder / "nodes/\x1b[2J/ss.txt").touch()
    with pytest.raises(SnapshotError, match="cannot be printed"):
        open_snapshot(folder)


def test_a_pipe_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "nodes/node-b/sysctl.txt")
    with pytest.raises(SnapshotError, match="not a plain file"):
        open_snapshot(folder)
    os.mkfifo(folder.parent / "pipe")
    with pytest.raises(SnapshotError, match="neither a folder nor a file"):
        open_snapshot(folder.parent / "pipe")


# ------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("name", ["out", "out.tar.gz", "out.tgz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    written = MemoryCapture(files=FILES, gaps=(GAP,), source="somewhere")
    write_snapshot(written, tmp_path / name)
    read = open_snapshot(tmp_path / name)
    assert {name: read.read(name) for name in read.names()} == FILES
    assert read.gaps == (GAP,)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_only_the_owner_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_folder(MemoryCapture(files=FILES), tmp_path / "out")
        write_archive(MemoryCapture(files=FILES), tmp_path / "out.tgz")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"), tmp_path / "out.tgz"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_equal_captures_make_equal_archives(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    write_archive(MemoryCapture(files=FILES), tmp_path / "1/x.tgz")
    write_archive(MemoryCapture(files=dict(reversed(FILES.items()))), tmp_path / "2/x.tgz")
    assert (tmp_path / "1/x.tgz").read_bytes() == (tmp_path / "2/x.tgz").read_bytes()


@pytest.mark.parametrize("name", ["out", "out.tgz"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    write_snapshot(MemoryCapture(files=FILES), tmp_path / name)
    with pytest.raises(UsageError, match="exists already"):
        write_snapshot(MemoryCapture(files={"cluster/services.json": b"{}"}), tmp_path / name)
    assert open_snapshot(tmp_path / name).read("cluster/services.json") == SERVICES


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_folder(MemoryCapture(files=FILES), tmp_path / "out")
    assert open_snapshot(tmp_path / "out").has("cluster/services.json")


class BreaksOff(MemoryCapture):
    """Its last file cannot be read."""

    def read(self, name: str) -> bytes:
        if name == max(self.files):
            raise OSError(28, "No space left on device")
        return self.files[name]


@pytest.mark.parametrize("name", ["out", "out.tgz"])
def test_half_a_snapshot_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be written to .*: no space left on device"):
        write_snapshot(BreaksOff(files=FILES), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["no/such/folder/out", "no/such/folder/out.tgz"])
def test_nowhere_to_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_snapshot(MemoryCapture(files=FILES), tmp_path / name)


@pytest.mark.parametrize("name", ["../escape", "/tmp/ktp-escape", "nodes/../x.txt", "cluster/a/b/c"])
def test_a_capture_cannot_choose_where_it_is_written(tmp_path: Path, name: str) -> None:
    for target in ("out", "out.tgz"):
        with pytest.raises(SnapshotError, match="not the name of a snapshot's file"):
            write_snapshot(MemoryCapture(files={**FILES, name: b"x"}), tmp_path / target)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ merging


def test_captures_are_merged_with_their_gaps() -> None:
    api = MemoryCapture(
        files={"cluster/services.json": b"1", "nodes/a/ss.txt": b"old"}, gaps=(GAP,), source="api"
    )
    node = MemoryCapture(files={"nodes/a/ss.txt": b"new"}, source="node a")
    both = merge_captures(api, node)
    assert (both.read("cluster/services.json"), both.read("nodes/a/ss.txt")) == (b"1", b"new")
    assert (both.gaps, both.source) == ((GAP,), "api; node a")
