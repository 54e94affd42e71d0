"""What of a node is read of what passes there: its counters where they are asked for, the entries of asked UDP ports."""

from __future__ import annotations

import pytest

from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import CommandResult
from ktp.collect.nft_chains import Destination, Reach
from ktp.collect.passing import (
    CONNECTION_FILE,
    CONNTRACK_MODULE,
    MOST_ENTRIES,
    connection_commands,
    connection_file_command,
    counter_command,
)
from tests.unit.collect.test_local_node import PRESENT, PROC, READERS, FakeRunner

REACH = Reach(destinations=tuple(Destination(protocol="udp", port=port) for port in (53, 30053)))
DNS, NODE_PORT = (" ".join(words) for words in connection_commands(REACH))
IN_FILE = " ".join(connection_file_command(REACH))
COUNTERS = " ".join(counter_command(5))
RULES = "*nat\n:PREROUTING ACCEPT [0:0]\n[{}:0] -A PREROUTING -j RETURN\nCOMMIT\n"
FAILED = CommandResult(status=1, stderr=b"cat: Permission denied")


@pytest.mark.parametrize(
    ("seconds", "answer", "file", "gaps"),
    [
        (5, "1.00 1.00\n", b"1.00 1.00\n", []),
        (5, FAILED, None, ["node-counters"]),
        (5, "", None, ["node-counters"]),
        (0, FAILED, None, []),  # not asked for, and not missed
    ],
)
def test_counters(seconds: int, answer: str | CommandResult, file: bytes | None, gaps: list[str]) -> None:
    runner = FakeRunner({**READERS, COUNTERS: answer})
    capture = collect_local_node("node-a", runner, counters=seconds)
    assert capture.files.get("nodes/node-a/netstat.txt") == file
    assert [gap.kind for gap in capture.gaps] == gaps
    assert (COUNTERS in runner.ran) is bool(seconds)


@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("seconds", [0, 5])
def test_rules_are_read_again_where_two_tables_may_tie(seconds: int, is_one: bool) -> None:
    none = "# nothing\n" if is_one else RULES.format(0)
    saves = {"iptables-legacy-save": RULES, "iptables-nft-save": none}
    first = {f"{save} -c": text.format(0) for save, text in saves.items()}
    again = {f"{save} --counters": text.format(3) for save, text in saves.items()}
    files = {**PROC, "/proc/net/ip_tables_names": b"nat\n"}
    runner = FakeRunner({**READERS, **first, **again, COUNTERS: "1.00 1.00\n"}, files=files)
    capture = collect_local_node("node-a", runner, counters=seconds)
    read = {name.partition("/again/")[2]: text for name, text in capture.files.items() if "/again/" in name}
    expected = {"iptables-legacy-save.txt": RULES.format(3).encode(), "iptables-nft-save.txt": none.encode()}
    assert read == ({} if is_one or not seconds else expected)
    assert runner.ran[-len(read) or len(runner.ran) :] == [f"{name[:-4]} --counters" for name in read]


@pytest.mark.parametrize(
    ("more", "present", "expected"),
    [
        ({DNS: "one\n", NODE_PORT: "two\n"}, CONNTRACK_MODULE, b"one\ntwo\n"),
        ({DNS: "", NODE_PORT: ""}, CONNTRACK_MODULE, b"\n"),  # read, and nothing there
        ({DNS: "one\n" * (MOST_ENTRIES + 1), NODE_PORT: "two\n"}, CONNTRACK_MODULE, b"two\n"),
        ({DNS: FAILED, NODE_PORT: FAILED}, CONNTRACK_MODULE, None),
        # Asking would load a module; or the command is not there.
        ({DNS: "one\n", NODE_PORT: "two\n", IN_FILE: "three\n"}, CONNECTION_FILE, b"three\n"),
        ({IN_FILE: "three\n"}, CONNECTION_FILE, b"three\n"),
        ({IN_FILE: "three\n"}, "", None),
        ({}, CONNECTION_FILE, None),
    ],
)
def test_connections(more: dict[str, str | CommandResult], present: str, expected: bytes | None) -> None:
    runner = FakeRunner({**READERS, **more}, present={*PRESENT, present})
    capture = collect_local_node("node-a", runner, reach=REACH)
    assert capture.files.get("nodes/node-a/conntrack.txt") == expected
    assert capture.gaps == ()


def test_connections_are_read_of_asked_udp_ports_alone() -> None:
    assert not connection_commands(None)
    assert not connection_commands(Reach(destinations=(Destination(protocol="tcp", port=80),)))
    assert not connection_file_command(None)


def test_of_tcp_those_that_take_ports_are_read_with_counters() -> None:
    reach = Reach(
        destinations=(Destination(protocol="tcp", port=30080), Destination(protocol="udp", port=53))
    )
    (udp,) = connection_commands(reach)
    assert connection_commands(reach, counters=True) == [
        udp, ("conntrack", "-L", "-f", "ipv4", "-p", "tcp", "--src-nat", "--orig-port-dst", "30080"),
    ]  # fmt: skip
    tcp = " ".join(connection_commands(reach, counters=True)[1])
    for lines, expected in ((70_000, b"u\n" + b"t\n" * 70_000), (70_001, b"u\n")):
        runner = FakeRunner(
            {**READERS, COUNTERS: "1.00 1.00\n", " ".join(udp): "u\n", tcp: "t\n" * lines},
            present={*PRESENT, CONNTRACK_MODULE},
        )
        capture = collect_local_node("node-a", runner, reach=reach, counters=5)
        assert capture.files["nodes/node-a/conntrack.txt"] == expected
