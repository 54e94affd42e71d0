"""`ktp probe --from-nodes --to-pods`: a node dials a pod of another through a real VXLAN, with short and full packets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.schema import validate
from tests.unit.diagnose.worlds import CLUSTER, RECORDED

pytestmark = pytest.mark.kernel

# Of the recorded cluster: who dials, who has the pod, the pod.
SENDER, HOLDER, POD = "10.0.0.13", "10.0.0.10", "10.244.2.11"
SSH = f"""#!/bin/sh
for word in "$@"; do
  [ "$word" = -G ] && exit 0
  case $word in node-c|{SENDER}) exec ip netns exec {{netns}} env PATH={{path}} sh -s ;; esac
done
exit 255
"""
BUSYBOX = '#!/bin/sh\necho "BusyBox v1.36.1"\n'
SERVE = f"""
import socket
s = socket.create_server(("{POD}", 80)); print("ready", flush=True)
while True: s.accept()[0].close()
"""
DROP_ERRORS = "iptables-nft -A OUTPUT -p icmp -j DROP"
BLOCKED = "the tunnel's port is blocked"
# What is done on the holder's node "b" or in the "pod", and whether full packets are carried.
WORLDS: dict[str, tuple[list[tuple[str, str]], bool | None]] = {
    "healthy": ([], True),
    "errors dropped, and none is needed": ([("b", DROP_ERRORS)], True),
    "the network between takes less": ([("b", "ip link set eth0 mtu 1400")], False),
    "the pod's link takes less": ([("b", "ip link set vpod mtu 1400")], True),
    "the pod's link takes less, and nobody says so": (
        [("b", "ip link set vpod mtu 1400"), ("b", DROP_ERRORS)],
        False,
    ),
    BLOCKED: ([("b", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")], None),
    "the pod answers neither": (
        [("pod", "iptables-nft -A OUTPUT -p icmp -j DROP"), ("b", "ip link set eth0 mtu 1400")],
        None,
    ),
}


class World:
    """node-c and node-b of the recorded cluster with a VXLAN between them, and a pod on node-b."""

    def __init__(self, make_netns: Callable[[str], str]) -> None:
        self.spaces = {name: make_netns(f"l{name}") for name in ("a", "b", "pod")}
        self.run("a", f"ip link add eth0 type veth peer name eth0 netns {self.spaces['b']}")
        self.run("pod", f"ip link add eth0 type veth peer name vpod netns {self.spaces['b']}")
        for number, (node, own, other) in enumerate((("a", SENDER, HOLDER), ("b", HOLDER, SENDER)), 1):
            for command in (
                f"ip addr add {own}/24 dev eth0", "ip link set eth0 up", "sysctl -qw net.ipv4.ip_forward=1",
                f"ip link add vx0 address 0a:00:00:00:00:0{number} type vxlan id 1 dstport 8472 local {own} remote {other}",
                f"ip addr add 10.55.0.{number}/24 dev vx0", "ip link set vx0 mtu 1450 up",
                # As flannel: nobody asks through the tunnel who has an address.
                f"ip neigh add 10.55.0.{3 - number} lladdr 0a:00:00:00:00:0{3 - number} dev vx0 nud permanent",
            ):  # fmt: skip
                self.run(node, command)
        for place, command in (
            ("a", "ip route add 10.244.2.0/24 via 10.55.0.2"), ("b", "ip link set vpod up"),
            ("b", f"ip route add {POD}/32 dev vpod"), ("b", "ip addr add 169.254.1.1/32 dev vpod"),
            ("pod", f"ip addr add {POD}/32 dev eth0"), ("pod", "ip link set eth0 up"), ("pod", "ip link set lo up"),
            ("pod", "ip route add 169.254.1.1 dev eth0"), ("pod", "ip route add default via 169.254.1.1"),
        ):  # fmt: skip
            self.run(place, command)

    def run(self, place: str, command: str) -> None:
        inside = ["ip", "netns", "exec", self.spaces[place], *command.split()]
        subprocess.run(inside, capture_output=True, text=True, check=True)

    def probe(self, folder: Path, *, has_ping: bool, output: str = "json") -> str:
        """`ktp probe` with an SSH client that goes into the namespace; of ping, iputils' or what busybox has."""
        tools = folder / "tools"
        tools.mkdir(exist_ok=True)
        if not has_ping:
            (tools / "ping").write_text(BUSYBOX)
            (tools / "ping").chmod(0o755)
        (folder / "ssh").write_text(SSH.format(netns=self.spaces["a"], path=f"{tools}:{os.environ['PATH']}"))
        (folder / "ssh").chmod(0o755)
        asked = [
            "--snapshot", str(RECORDED), "probe", CLUSTER, "--dial-recorded", "--from-nodes", "--to-pods",
            "--node-access", "ssh", "--node", "node-c", "--tries", "2", "--wait", "3", "-o", output,
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "ktp", *asked],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.stdout


@pytest.mark.parametrize(
    ("name", "has_ping"),
    # The quick suite asks two; `make test-kernel` asks all.
    [
        pytest.param(name, has_ping, marks=() if i == has_ping * 2 else pytest.mark.slow)
        for i, name in enumerate(WORLDS)
        for has_ping in (True, False)
    ],
)
def test_what_the_tunnel_carries(
    make_netns: Callable[[str], str], tmp_path: Path, name: str, has_ping: bool
) -> None:
    if has_ping and shutil.which("ping") is None:
        pytest.skip("needs ping of iputils")
    edits, carries = WORLDS[name]
    world = World(make_netns)
    for place, command in edits:
        world.run(place, command)
    with subprocess.Popen(
        ["ip", "netns", "exec", world.spaces["pod"], sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            said: dict[str, Any] = json.loads(world.probe(tmp_path, has_ping=has_ping))
            text = world.probe(tmp_path, has_ping=has_ping, output="text") if carries is False else ""
        finally:
            server.kill()
    validate(said)
    assert said["notes"] == []
    (row,) = (row for row in said["lengths"] if row["address"] == POD)
    assert (row["from"], row["pod"], row["node"]) == ("node-c", "test/nginx-log-0", "node-b")
    assert row["carries"] is carries, row
    assert {packet["bytes"] for packet in row["small"]} == {100}
    # Of a path that was told, the second packet may be shorter already.
    assert {packet["bytes"] for packet in row["full"]} <= {1450, 1400}
    assert len(row["small"]) == len(row["full"]) == 2
    # The connection's own packets are short: it opens where the tunnel carries anything.
    (dialled,) = (p for p in said["probes"] if p["address"] == POD)
    assert dialled["observed"]["symptom"] == ("times_out" if name == BLOCKED else "connects")
    assert dialled["predicted"]["symptom"] == "connects"
    direct = [f for f in said["findings"] if f["code"] == "KTP217" and f["nodes"] == ["node-c", "node-b"]]
    assert bool(direct) is (name == BLOCKED)
    found = [f for f in said["findings"] if f["code"] == "KTP220"]
    assert [f["node"] for f in found] == (["node-c"] if carries is False else [])
    if carries is False:
        assert "Packets from node-c to pods of other nodes" in text
        assert "0/2 of 1450 bytes" in text


def test_a_shell_other_than_ssh(make_netns: Callable[[str], str], tmp_path: Path) -> None:
    world = World(make_netns)
    enter = tmp_path / "enter"
    enter.write_text(f'#!/bin/sh\n[ "$1" = node-c ] && exec ip netns exec {world.spaces["a"]} sh\n')
    enter.chmod(0o755)
    asked = [
        "--snapshot", str(RECORDED), "probe", CLUSTER, "--dial-recorded", "--from-nodes", "--to-pods", "--tries", "2",
        "--wait", "3", "-o", "json", "--node-shell",
    ]  # fmt: skip

    def probe(shell: str, node: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ktp", *asked, shell, "--node", node]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    said = json.loads(probe(f"{enter} {{node}}", "node-c").stdout)
    assert {r["address"]: r["carries"] for r in said["lengths"]}[POD] is True
    # One that gives no shell there, and one that would make something.
    assert "ran no shell script" in probe("false {node}", "node-c").stderr
    assert "which --from-nodes does not" in probe("debug", "node-c").stderr
