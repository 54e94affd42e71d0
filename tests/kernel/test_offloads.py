"""What a tunnel leaves to the hardware, read on a real one; and the counter that tells of spoiled checksums."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from ktp.collect.offloads import offload_command
from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
from ktp.parse.offloads import parse_offloads
from ktp.parse.passing import parse_counters
from tests.unit.diagnose.worlds import CLUSTER, Asked, demo, findings

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("ethtool") is None, reason="needs ethtool"),
]

A, B = "10.9.4.1", "10.9.4.2"
# Datagrams to the tunnel's port, with a checksum that a network card has spoiled, or with none, as VXLAN's have.
SPOIL = f"""
import socket, struct, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
for _ in range(5):
    head = struct.pack("!HHHH", 40000, 8472, 8 + 8, int(sys.argv[1]))
    raw.sendto(head + bytes((8, 0, 0, 0, 0, 0, 1, 0)), ("{B}", 0))
"""


def inside(where: str, *words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", "netns", "exec", where, *words], capture_output=True, text=True, check=check)
    return done.stdout


@pytest.fixture
def nodes(make_netns: Callable[[str], str]) -> tuple[str, str]:
    names = make_netns("oa"), make_netns("ob")
    inside(names[0], "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", names[1])
    for name, own in zip(names, (A, B), strict=True):
        for command in (
            f"ip addr add {own}/24 dev eth1", "ip link set eth1 up", "ip link add br0 type bridge",
            f"ip link add flannel.1 type vxlan id 1 local {own} dev eth1 dstport 8472 nolearning",
            "ip link set flannel.1 up",
        ):  # fmt: skip
            inside(name, *command.split())
    return names


def collected(where: str) -> dict[str, bytes]:
    """The node read by the script that goes over SSH."""
    script = build_script(sudo=False, reach=None, command_timeout=10)
    done = subprocess.run(
        ["ip", "netns", "exec", where, "sh"], input=script.text, capture_output=True, check=True
    )
    recording = parse_stream(done.stdout, script.mark)
    read = collect_recorded("n", recording, reach=None, source="", not_root=("", ""), why_cut="")
    return {name.removeprefix("nodes/n/"): read.read(name) for name in read.names()}


@pytest.mark.parametrize(
    ("checksum", "offload", "grown", "suspected"),
    [("4660", "on", 5, True), ("4660", "off", 5, False), ("0", "on", 0, None)],
)
def test_a_spoiled_checksum_is_counted(
    nodes: tuple[str, str], checksum: str, offload: str, grown: int, suspected: bool | None
) -> None:
    a, b = nodes
    inside(a, "ethtool", "-K", "flannel.1", "tx-checksum-ip-generic", offload, check=False)
    before = inside(b, "cat", "/proc/net/snmp")
    inside(a, sys.executable, "-c", SPOIL, checksum)
    text = before + inside(b, "cat", "/proc/net/snmp")
    counters = parse_counters(text)
    assert counters is not None
    assert counters.moved("Udp.InCsumErrors") == grown
    sender, receiver = collected(a), collected(b)
    read = parse_offloads(sender["ethtool.txt"])
    assert set(read) == {"flannel.1", "eth1"}
    assert read["flannel.1"]["tx-checksum-ip-generic"] is (offload == "on")
    world = demo(
        {
            ("node-a", "ip-link.json"): lambda _: sender["ip-link.json"].decode(),
            ("node-a", "ethtool.txt"): lambda _: sender["ethtool.txt"].decode(),
            ("node-b", "ip-link.json"): lambda _: receiver["ip-link.json"].decode(),
            ("node-b", "netstat.txt"): lambda _: text,
        }
    )
    found = findings(Asked(world, CLUSTER).diagnosis(), "KTP219")
    assert [any(e.kind == "offload" for e in f.evidence) for f in found] == (
        [] if suspected is None else [suspected]
    )


def test_nothing_is_read_where_there_is_no_tunnel(make_netns: Callable[[str], str]) -> None:
    where = make_netns("oc")
    inside(where, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "vxlan")
    inside(where, "ip", "link", "set", "eth0", "up")
    inside(where, "ip", "route", "add", "default", "dev", "eth0")
    assert inside(where, *offload_command()) == ""
    assert "ethtool.txt" not in collected(where)


def test_no_more_devices_are_asked_than_some(make_netns: Callable[[str], str]) -> None:
    where = make_netns("od")
    for number in range(20):
        inside(where, *f"ip link add vx{number} type vxlan id {number + 1} dstport {4000 + number}".split())
    assert len(parse_offloads(inside(where, *offload_command()))) == 16
