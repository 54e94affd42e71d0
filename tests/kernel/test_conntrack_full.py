"""A full table of connections drops new ones (KTP216): the limit is the first network namespace's, so only in a guest."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.diagnose.checks.ktp216_conntrack_full import COUNT, LIMIT
from ktp.parse.passing import parse_counters
from tests.unit.diagnose.scenarios_catalogue import appended
from tests.unit.diagnose.worlds import CLUSTER, Asked, findings, recorded

pytestmark = pytest.mark.kernel

PROC = Path("/proc/sys")
NODE, CLIENT, PORT = "10.9.3.1", "10.9.3.2", 8000
# Connections that were answered, which are not dropped for new ones, and then one more.
ASK = f"""
import socket, sys
held = [socket.create_connection(("{NODE}", {PORT}), timeout=5) for _ in range(int(sys.argv[1]))]
try:
    socket.create_connection(("{NODE}", {PORT}), timeout=2)
    print("connects")
except TimeoutError:
    print("times_out")
"""


def read(key: str) -> int:
    return int((PROC / key.replace(".", "/")).read_text())


def write(key: str, value: int) -> None:
    (PROC / key.replace(".", "/")).write_text(str(value))


@pytest.fixture
def client(make_netns: Callable[[str], str]) -> Iterator[str]:
    """A client of this kernel's first network namespace, where connections are tracked and none may be more than 64."""
    if "User Mode Linux" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the limit of connections is this machine's: `make test-vm` boots a kernel of its own")
    name = make_netns("full")
    before = read(LIMIT)
    rule = ["INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
    for words in (
        ["ip", "link", "add", "ktp-full", "type", "veth", "peer", "name", "eth0", "netns", name],
        ["ip", "addr", "add", f"{NODE}/24", "dev", "ktp-full"],
        ["ip", "link", "set", "ktp-full", "up"],
        ["ip", "-n", name, "addr", "add", f"{CLIENT}/24", "dev", "eth0"],
        ["ip", "-n", name, "link", "set", "eth0", "up"],
        ["iptables-legacy", "-A", *rule],
    ):
        subprocess.run(words, check=True, capture_output=True)
    try:
        yield name
    finally:
        write(LIMIT, before)
        subprocess.run(["iptables-legacy", "-D", *rule], check=True, capture_output=True)
        subprocess.run(["ip", "link", "del", "ktp-full"], check=True, capture_output=True)


@pytest.mark.parametrize("room", [0, 4])
def test_a_new_connection_finds_no_room(client: str, room: int) -> None:
    held = 20
    write(LIMIT, read(COUNT) + held + room)
    counters = ["cat", "/proc/net/stat/nf_conntrack"]
    before = subprocess.run(counters, capture_output=True, text=True, check=True).stdout
    with (
        socket.create_server((NODE, PORT)),
        subprocess.Popen(
            ["ip", "netns", "exec", client, sys.executable, "-c", ASK, str(held)],
            stdout=subprocess.PIPE,
            text=True,
        ) as asking,
    ):
        assert asking.stdout is not None
        met = asking.stdout.readline().strip()
        count, limit = read(COUNT), read(LIMIT)
        asking.wait()
    after = subprocess.run(counters, capture_output=True, text=True, check=True).stdout
    moved = parse_counters(before + after)
    assert moved is not None
    assert met == ("connects" if room else "times_out")
    snapshot = recorded({("node-b", "sysctl.txt"): appended(f"{COUNT} = {count}\n{LIMIT} = {limit}")})
    said = findings(Asked(snapshot, CLUSTER).diagnosis(), "KTP216")
    assert [f.node for f in said] == ([] if room else ["node-b"])
    assert (moved.moved("nf_conntrack.drop") + moved.moved("nf_conntrack.early_drop") > 0) is not bool(room)
