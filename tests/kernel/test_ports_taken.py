"""A node whose source ports for masquerading are used up, with real connections; and what ktp says of the next one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ktp.collect.nft_chains import Destination, Reach
from ktp.collect.passing import connection_commands
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.capture import MemoryCapture
from ktp.model.effect import PortsTaken
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.parse.snapshot import parse_snapshot
from tests.kernel.test_passing import between, inside

pytestmark = pytest.mark.kernel

CLIENT, SERVER, PORT = "10.9.8.2", "10.9.7.2", 8080
READS = {
    "ip-addr.json": "ip -j addr", "ip-route.json": "ip -j route show table all", "ip-rule.json": "ip -j rule",
    "sysctl.txt": "sysctl net.ipv4.ip_forward",
}  # fmt: skip
SERVE = f"""
import selectors, socket
found = selectors.DefaultSelector()
tcp = socket.create_server(("{SERVER}", {PORT}))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("{SERVER}", {PORT}))
found.register(tcp, selectors.EVENT_READ)
found.register(udp, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in found.select():
        if key.fileobj is tcp:
            found.register(tcp.accept()[0], selectors.EVENT_READ)
        elif key.fileobj is udp:
            udp.sendto(b"!", udp.recvfrom(9)[1])
        elif not key.fileobj.recv(9):
            found.unregister(key.fileobj)
            key.fileobj.close()
"""
# Opens a connection for each line, and says what came of it; "end" closes the last one.
HOLD = f"""
import socket, sys
held = []
for line in sys.stdin:
    if line.strip() == "end":
        held.pop().close()
        print("ended", flush=True)
        continue
    is_tcp = line.strip() == "tcp"
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM)
    s.settimeout(1.5)
    held.append(s)
    try:
        s.connect(("{SERVER}", {PORT}))
        if not is_tcp:
            s.send(b"?")
            s.recv(9)
        print("connects", flush=True)
    except TimeoutError:
        print("times_out", flush=True)
"""


class World:
    def __init__(self, make_netns: Callable[[str], str], rule: str) -> None:
        self.node, self.client, self.server = (make_netns(name) for name in ("un", "uc", "us"))
        between(self.node, self.client, self.server)
        # User-mode Linux has no chains of nat in nf_tables.
        words = ["-t", "nat", "-A", "POSTROUTING", "-o", "eth1", *rule.split()]
        done = subprocess.run(["ip", "netns", "exec", self.node, "iptables-nft", *words], check=False)
        self.backend = "nft" if done.returncode == 0 else "legacy"
        if self.backend == "legacy":
            inside(self.node, "iptables-legacy", *words)
        inside(self.node, f"iptables-{self.backend}", "-A", "FORWARD", "-j", "ACCEPT")

    @contextmanager
    def talking(self) -> Iterator[Callable[[str], str]]:
        prefix = ("ip", "netns", "exec")
        with subprocess.Popen(
            [*prefix, self.server, sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
        ) as serving, subprocess.Popen(
            [*prefix, self.client, sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as holding:  # fmt: skip
            assert serving.stdout is not None
            assert holding.stdin is not None
            assert holding.stdout is not None
            wanted, told = holding.stdin, holding.stdout
            assert serving.stdout.readline() == "ready\n"

            def ask(word: str) -> str:
                print(word, file=wanted, flush=True)
                return told.readline().strip()

            try:
                yield ask
            finally:
                holding.kill()
                serving.kill()

    def says(self, protocol: str) -> FlowAnswer:
        """What ktp says of the next connection, by what it reads."""
        reach = Reach(destinations=(Destination(protocol=protocol, port=PORT),))
        (listing,) = connection_commands(reach, counters=True)
        files = {
            f"nodes/n/{file}": inside(self.node, *words.split()).encode() for file, words in READS.items()
        }
        save = f"iptables-{self.backend}-save"
        files[f"nodes/n/{save}.txt"] = inside(self.node, save).encode()
        files["nodes/n/conntrack.txt"] = inside(self.node, *listing).encode()
        files["cluster/services.json"] = b'{"items": []}'
        nodes = {
            n: replace(s, place_unread=False)
            for n, s in parse_snapshot(MemoryCapture(files=files)).nodes.items()
        }
        topology = Topology(
            nodes=nodes,
            attached={(4, int(ip_address(SERVER))): Attached(name="test/web", node="n")},
            node_addresses={(4, int(ip_address("10.9.8.1"))): "n"},
        )
        flow = Flow(dst=SERVER, port=PORT, protocol=protocol, src=CLIENT, via="n")
        return answer_flow(Walker(topology), flow)


def shown(answer: FlowAnswer) -> list[tuple[int, int, bool]]:
    return [
        (e.taken, e.of, e.may_be_left)
        for path in answer.paths
        for hop in path.hops
        for step in hop.steps
        for e in step.effects
        if isinstance(e, PortsTaken)
    ]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    "rule",
    [
        "-p {} -j MASQUERADE --to-ports 5000-5003", "-p {} -j MASQUERADE --to-ports 5000-5003 --random",
        "-p {} -j SNAT --to-source 10.9.7.1:5000-5003",
    ],
)  # fmt: skip
def test_the_last_port_and_the_one_after_it(
    make_netns: Callable[[str], str], rule: str, protocol: str
) -> None:
    world = World(make_netns, rule.format(protocol))
    with world.talking() as ask:
        for number in range(5):
            said = world.says(protocol)
            assert said.symptom is (Symptom.CONNECTS if number < 4 else Symptom.TIMES_OUT), (
                number,
                said.reason,
            )
            assert shown(said) == ([] if number < 4 else [(4, 4, False)])
            assert ask(protocol) == said.symptom.value, number


def test_many_ports_are_left(make_netns: Callable[[str], str]) -> None:
    """Without --to-ports nothing is used up by a few, whatever net.ipv4.ip_local_port_range says."""
    world = World(make_netns, "-p tcp -j MASQUERADE")
    inside(world.node, "sysctl", "-w", "net.ipv4.ip_local_port_range=5000 5003")
    with world.talking() as ask:
        assert [ask("tcp") for _ in range(8)] == ["connects"] * 8
        said = world.says("tcp")
        assert (said.symptom, shown(said)) == (Symptom.CONNECTS, [])


def test_a_connection_that_has_ended(make_netns: Callable[[str], str]) -> None:
    """It holds its port, and may lose it."""
    world = World(make_netns, "-p tcp -j MASQUERADE --to-ports 5000-5003")
    with world.talking() as ask:
        assert [ask("tcp") for _ in range(4)] == ["connects"] * 4
        assert world.says("tcp").symptom is Symptom.TIMES_OUT
        assert ask("end") == "ended"
        until = time.monotonic() + 20
        while (
            "TIME_WAIT" not in inside(world.node, "conntrack", "-L", "-p", "tcp") and time.monotonic() < until
        ):
            time.sleep(0.02)
        said = world.says("tcp")
        assert (said.symptom, shown(said)) == (Symptom.UNKNOWN, [(4, 4, True)])
        # Linux 6.18 gives it again where the new connection's sequence number is behind the old one's.
        assert ask("tcp") in ("connects", "times_out")
