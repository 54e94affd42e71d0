"""Connections that open and then hang, for their long packets are lost between two nodes: real ones, through VXLAN."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ktp.diagnose.sizes import crossings
from ktp.model.capture import MemoryCapture
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Disposition, Header, Hop, Path, Symptom
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

PORT = 8000
SERVE = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.settimeout(3)
    try:
        asked = int(client.recv(10))
        client.sendall(b"y" * asked)
        while client.recv(65536):
            pass
        client.sendall(b"!")
    except OSError:
        pass
    client.close()
"""
# Sends much and takes little ("request"), or the other way round ("reply"), and says whether all of it got through.
ASK = f"""
import socket, sys
sent, taken = (100000, 1) if sys.argv[2] == "request" else (1, 100000)
s = socket.create_connection((sys.argv[1], {PORT}), timeout=3)
s.sendall(b"%010d" % taken)
got = 0
try:
    while got < taken:
        got += len(s.recv(65536))
    s.sendall(b"x" * sent)
    s.shutdown(socket.SHUT_WR)
    print("whole" if s.recv(1) == b"!" else "cut")
except OSError:
    print("hangs")
"""
NODES = ("node-a", "node-b")


@contextmanager
def tunnelled(
    make_netns: Callable[[str], str], inside: int, underlay: tuple[int, int]
) -> Iterator[tuple[list[str], Snapshot]]:
    """Two nodes with a VXLAN between them, devices of these MTUs; what is longer than a device takes is lost at it."""
    names = [make_netns("za"), make_netns("zb")]

    def run(name: str, *words: str) -> str:
        done = subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=True)
        return done.stdout

    run(names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
    files = {"cluster/services.json": b'{"items": []}'}
    for number, (name, mtu) in enumerate(zip(names, underlay, strict=True), 1):
        # One segment a packet, as they are on a wire.
        run(name, "link", "set", "eth0", "mtu", str(mtu), "gso_max_segs", "1", "up")
        run(name, "addr", "add", f"10.9.5.{number}/24", "dev", "eth0")
        ends = ("local", f"10.9.5.{number}", "remote", f"10.9.5.{3 - number}")
        run(name, "link", "add", "vx0", "type", "vxlan", "id", "1", "dstport", "8472", *ends)
        run(name, "addr", "add", f"10.55.0.{number}/24", "dev", "vx0")
        run(name, "link", "set", "vx0", "mtu", str(inside), "gso_max_segs", "1", "up")
        for file, words in (
            ("ip-addr.json", "-j addr"), ("ip-route.json", "-j route show table all"), ("ip-link.json", "-j -d link"),
        ):  # fmt: skip
            files[f"nodes/{NODES[number - 1]}/{file}"] = run(name, *words.split()).encode()
    yield names, parse_snapshot(MemoryCapture(files=files))


def hop(node: str, direction: str, *, arrives: bool) -> Hop:
    header = Header(src="", sport=0, dst="", dport=0, mark=0)
    device: dict[str, Any] = {"in_interface": "vx0"} if arrives else {"out_interface": "vx0"}
    return Hop(node=node, direction=direction, arrived=header, left=header, **device)


@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize(
    ("inside", "underlay"),
    [
        (1450, (1500, 1500)), (1450, (1500, 1450)), (1450, (1450, 1500)), (1450, (1500, 1490)), (1400, (1500, 1450)),
        (1500, (1500, 1500)), (1500, (1500, 1490)), (1390, (1440, 1400)), (1350, (1500, 1400)),
    ],
)  # fmt: skip
def test_what_is_longer_than_the_next_node_takes(
    make_netns: Callable[[str], str], inside: int, underlay: tuple[int, int], direction: str
) -> None:
    with tunnelled(make_netns, inside, underlay) as (names, snapshot):
        hops = [
            hop("node-a", "request", arrives=False), hop("node-b", "request", arrives=True),
            hop("node-b", "reply", arrives=False), hop("node-a", "reply", arrives=True),
        ]  # fmt: skip
        path = Path(
            probability=1.0,
            disposition=Disposition.DELIVERED,
            symptom=Symptom.CONNECTS,
            reason="",
            hops=tuple(hops),
        )
        # The tunnels have their ends by `local`; the nodes' own addresses are not in a Node here.
        found = {c.direction: c.is_lost for c in crossings(snapshot, path, from_outside=False)}
        inside_of = ["ip", "netns", "exec"]
        with subprocess.Popen(
            [*inside_of, names[1], sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            try:
                asked = [*inside_of, names[0], sys.executable, "-c", ASK, "10.55.0.2", direction]
                met = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            finally:
                server.kill()
        assert found[direction] is (met == "hangs"), (met, found)
