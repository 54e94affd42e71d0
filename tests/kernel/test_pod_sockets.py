"""What /proc/net says of sockets, as --pods exec reads it, against what ss prints of the same namespace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from ktp.collect.pod_sockets import READ, sockets_text
from ktp.parse.ss import parse_sockets

pytestmark = pytest.mark.kernel

SERVE = """
import socket
opened = []
for family, kind, address, port, only6 in (
    (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", 80, 0), (socket.AF_INET6, socket.SOCK_STREAM, "::", 80, 1),
    (socket.AF_INET6, socket.SOCK_STREAM, "::", 8080, 0), (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 9090, 0),
    (socket.AF_INET6, socket.SOCK_STREAM, "::1", 9090, 0), (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.2", 53, 0),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::", 54, 0),
):
    s = socket.socket(family, kind)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
    s.bind((address, port))
    if kind == socket.SOCK_STREAM:
        s.listen(5)
        client = socket.socket(family)
        client.connect(("::1" if ":" in address else "127.0.0.1", port))  # neither end of it listens
        opened.append(client)
    opened.append(s)
print("ready", flush=True)
input()
"""


def test_proc_tells_what_ss_tells(make_netns: Callable[[str], str]) -> None:
    name = make_netns("proc")
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    inside = ["ip", "netns", "exec", name]
    with subprocess.Popen(
        [*inside, sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        proc = subprocess.run([*inside, *READ], capture_output=True, text=True, check=True).stdout
        ss = subprocess.run([*inside, "ss", "-lntuH"], capture_output=True, text=True, check=True).stdout
        server.communicate("\n")
    told = {(s.protocol, s.ip, s.port, s.family) for s in parse_sockets(ss)}
    assert len(told) == 7
    assert {(s.protocol, s.ip, s.port, s.family) for s in parse_sockets(sockets_text(proc))} == told
