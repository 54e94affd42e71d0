"""The stream that a node answers with: whole, cut anywhere, and of any bytes; the script in the usual shells."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.collect.machine import CommandResult
from ktp.collect.nft_chains import Destination, Reach
from ktp.collect.remote_script import RecordedRunner, build_script, collect_recorded, parse_stream

MARK = "ktp-0123456789abcdef"
NOT_ROOT = ("not root", "be root")


def frame(what: str, body: bytes, status: int = 0, errors: bytes = b"") -> bytes:
    return (
        f"\n{MARK} begin {what}\n".encode()
        + body
        + f"\n{MARK} end {status}\n".encode()
        + errors
        + f"\n{MARK} done\n".encode()
    )


END = f"\n{MARK} complete\n".encode()


@given(st.lists(st.tuples(st.binary(), st.binary(), st.integers(0, 255)), max_size=5))
def test_any_bytes_arrive_as_they_are(frames: list[tuple[bytes, bytes, int]]) -> None:
    stream = (
        b"Welcome!\n" + b"".join(frame(f"command c{n}", *parts(one)) for n, one in enumerate(frames)) + END
    )
    recording = parse_stream(stream, MARK)
    assert recording.complete
    for n, (body, errors, status) in enumerate(frames):
        expected = CommandResult(
            status=None if status == 124 else status, stdout=body, stderr=errors.rstrip(b"\n")
        )
        assert recording.commands[f"c{n}"] == expected


def parts(one: tuple[bytes, bytes, int]) -> tuple[bytes, int, bytes]:
    body, errors, status = one
    return body, status, errors


def test_a_stream_cut_anywhere_gives_whole_frames_or_none() -> None:
    frames = [("command one", b"first\n", b""), ("file /two", b"second\nline", b"oops"), ("uid", b"0\n", b"")]
    stream = b"".join(frame(what, body, errors=errors) for what, body, errors in frames) + END
    whole = parse_stream(stream, MARK)
    for cut in range(len(stream) - 1):
        recording = parse_stream(stream[:cut], MARK)
        assert not recording.complete
        assert recording.commands.items() <= whole.commands.items()
        assert recording.files.items() <= whole.files.items()
        assert recording.facts.items() <= whole.facts.items()


def test_what_did_not_arrive_is_not_taken_for_nothing() -> None:
    """An answer that breaks off at the very first frame must not say that the node has no rules."""
    read = collect_recorded(
        "node-a",
        parse_stream(frame("uid", b"0\n"), MARK),
        reach=None,
        source="test",
        not_root=NOT_ROOT,
        why_cut="broke off",
    )
    assert list(read.names()) == []
    assert [gap.message for gap in read.gaps] == [
        "the answer of node node-a broke off, and only what came whole until then is used"
    ]


def test_files_and_folders_of_a_recording() -> None:
    sysctls = b"/proc/sys/net/ipv4/ip_forward:1\n/proc/sys/net/ipv4/conf/eth0.7/rp_filter:2\n/proc/sys/net/ipv4/conf/lo/rp_filter:0\n"
    stream = frame("sysctls", sysctls) + frame("paths", b"/proc/modules\n") + frame("commands", b"ip\nss\n")
    stream += (
        frame("file /proc/net/ip_vs", b"", 1, b"cat: Permission denied")
        + frame("hostname", b"node-a\n")
        + END
    )
    runner = RecordedRunner(parse_stream(stream, MARK))
    assert runner.read_file("/proc/sys/net/ipv4/ip_forward") == b"1\n"
    assert runner.list_folder("/proc/sys/net/ipv4/conf") == ["eth0.7", "lo"]
    assert runner.exists("/proc/modules")
    assert not runner.exists("/sys/module/ip_set")
    assert runner.has_command("ss")
    assert not runner.has_command("nft")
    assert runner.hostnames() == ("node-a",)
    assert not runner.is_root()
    with pytest.raises(PermissionError):
        runner.read_file("/proc/net/ip_vs")
    with pytest.raises(FileNotFoundError):
        runner.read_file("/proc/net/ip_tables_names")


def test_each_script_has_a_marker_of_its_own() -> None:
    one, other = (build_script(sudo=False, reach=None, command_timeout=5) for _ in range(2))
    assert one.mark != other.mark
    assert one.mark.encode() in one.text
    assert b"@" not in one.text.replace(b'"$@"', b"")


@pytest.mark.parametrize("address", ["'; touch /tmp/x; '", "$(touch x)", 'a"b', "a\\b"])
def test_nothing_asked_for_becomes_a_command(address: str) -> None:
    reach = Reach(destinations=(Destination(addresses=frozenset({address})),), chains=(("nat", "'$(x)"),))
    script = build_script(sudo=False, reach=reach, command_timeout=5)
    done = subprocess.run(["sh", "-n"], input=script.text, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_script_that_arrives_cut_does_nothing() -> None:
    script = build_script(sudo=False, reach=None, command_timeout=5)
    for cut in range(0, len(script.text) - 17, 997):
        done = subprocess.run(["sh", "-s"], input=script.text[:cut], capture_output=True, check=False)
        assert done.stdout == b"", cut


@pytest.mark.kernel
@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "bash --posix"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_script_in_the_usual_shells(make_netns: Callable[[str], str], shell: str, legacy: bool) -> None:
    netns = make_netns("script")

    def inside(*command: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, check=True
        ).stdout

    inside("iptables-nft", "-t", "nat", "-N", "NFT-CHAIN")
    if legacy:
        inside("iptables-legacy", "-t", "nat", "-N", "LEGACY-CHAIN")
    script = build_script(sudo=False, reach=None, command_timeout=10)
    recording = parse_stream(inside(*shell.split(), "-s", stdin=script.text), script.mark)
    read = collect_recorded("n", recording, reach=None, source="s", not_root=NOT_ROOT, why_cut="")
    assert recording.complete
    assert read.gaps == ()
    assert b"NFT-CHAIN" in read.read("nodes/n/iptables-nft-save.txt")
    assert (b"LEGACY-CHAIN" in read.read("nodes/n/iptables-legacy-save.txt")) == legacy
    assert inside("cat", "/proc/net/ip_tables_names") == (b"nat\n" if legacy else b"")
    assert b"net.ipv4.ip_forward = " in read.read("nodes/n/sysctl.txt")
