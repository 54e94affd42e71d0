"""A UDP connection that goes on to an endpoint that has gone, and the counters of a node that drops: real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from ktp.collect.nft_chains import Destination, Reach
from ktp.collect.passing import connection_commands, connection_file_command, counter_command
from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.diagnose.checks.ktp218_stale_entry import deletion
from ktp.diagnose.topology import topology_of
from ktp.model.diagnosis import Finding, Severity
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Flow, Symptom
from ktp.parse.passing import parse_connections, parse_counters
from tests.unit.diagnose.worlds import NFT, RECORDED, Asked, findings, recorded

pytestmark = pytest.mark.kernel

NODE, OLD, NEW, PORT = "10.9.8.1", "10.9.8.11", "10.9.8.12", 30053
# Each server answers with its own address; a client says whom it meets.
SERVE = f"""
import selectors, socket
found = selectors.DefaultSelector()
for address in ("{OLD}", "{NEW}"):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 53))
    found.register(s, selectors.EVENT_READ, address)
print("ready", flush=True)
while True:
    for key, _ in found.select():
        data, peer = key.fileobj.recvfrom(100)
        key.fileobj.sendto(key.data.encode(), peer)
"""
ASK = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", int(sys.argv[1])))
s.settimeout(5)
s.sendto(b"?", ("{NODE}", {PORT}))
print(s.recv(100).decode())
"""


def inside(where: str, *words: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", where, *words], capture_output=True, text=True, check=True)
    return done.stdout


def between(node: str, client: str, server: str) -> None:
    """A node that forwards between a client (10.9.8.2) and a server (10.9.7.2)."""
    for device, other, net in (("eth0", client, "10.9.8"), ("eth1", server, "10.9.7")):
        inside(node, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", other)
        for where, name, last in ((node, device, 1), (other, "eth0", 2)):
            inside(where, "ip", "addr", "add", f"{net}.{last}/24", "dev", name)
            inside(where, "ip", "link", "set", name, "up")
        inside(other, "ip", "route", "add", "default", "via", f"{net}.1")
    inside(node, "sysctl", "-w", "net.ipv4.ip_forward=1")


def test_a_connection_outlives_its_endpoint(make_netns: Callable[[str], str]) -> None:
    node, client = make_netns("pn"), make_netns("pc")

    inside(node, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
    for where, addresses in ((node, (NODE, OLD, NEW)), (client, ("10.9.8.2",))):
        for address in addresses:
            inside(where, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        inside(where, "ip", "link", "set", "eth0", "up")
    rule = ["PREROUTING", "-p", "udp", "--dport", str(PORT), "-j", "DNAT", "--to-destination"]
    inside(node, "iptables", "-t", "nat", "-A", *rule, f"{OLD}:53")
    reach = Reach(destinations=(Destination(protocol="udp", port=PORT),))
    (listing,) = connection_commands(reach)
    with subprocess.Popen(
        ["ip", "netns", "exec", node, sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            ask = (sys.executable, "-c", ASK)
            assert inside(client, *ask, "40001").strip() == OLD
            inside(node, "iptables", "-t", "nat", "-R", rule[0], "1", *rule[1:], f"{NEW}:53")
            assert inside(client, *ask, "40001").strip() == OLD
            assert inside(client, *ask, "40002").strip() == NEW
            entries = {e.original.sport: e for e in parse_connections(inside(node, *listing))}
            assert {port: str(e.reply.src) for port, e in entries.items()} == {40001: OLD, 40002: NEW}
            assert (str(entries[40001].original.dst), entries[40001].original.dport) == (NODE, PORT)
            inside(node, *deletion(entries[40001]).split())
            script = build_script(sudo=False, reach=reach, command_timeout=10, counters=1)
            done = subprocess.run(
                ["ip", "netns", "exec", node, "sh"], input=script.text, capture_output=True, check=True
            )
            read = collect_recorded(
                "node-a",
                parse_stream(done.stdout, script.mark),
                reach=reach,
                source="",
                not_root=("", ""),
                why_cut="",
                counters=1,
            )
            files = {name.rpartition("/")[2]: content for name, content in read.files.items()}
            assert {e.original.sport for e in parse_connections(files["conntrack.txt"])} == {40002}
            assert parse_counters(files["netstat.txt"]) is not None
            (left,) = parse_connections(inside(node, *listing))
            assert left.original.sport == 40002
            assert inside(client, *ask, "40001").strip() == NEW
        finally:
            server.kill()


def test_what_a_node_drops_is_counted(make_netns: Callable[[str], str]) -> None:
    node, client = make_netns("pn"), make_netns("pc")

    inside(node, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
    for where, address in ((node, NODE), (client, "10.9.8.2")):
        inside(where, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        inside(where, "ip", "link", "set", "eth0", "up")
    inside(node, "sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=1")
    inside(client, "ip", "addr", "add", "10.77.0.1/32", "dev", "eth0")
    # The node would not answer a neighbour solicitation from that address either.
    mac = subprocess.run(
        ["ip", "netns", "exec", node, "cat", "/sys/class/net/eth0/address"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    inside(client, "ip", "neigh", "add", NODE, "lladdr", mac, "dev", "eth0")
    bad = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.77.0.1', 0)); "
        + (f"[s.sendto(b'?', ('{NODE}', 9)) for _ in range(7)]")
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", node, *counter_command(2)], stdout=subprocess.PIPE, text=True
    ) as reading:
        assert reading.stdout is not None
        first = reading.stdout.readline()  # the first reading has begun
        rest_of_first = [reading.stdout.readline()]
        while "clashres" not in rest_of_first[-1] and "searched" not in rest_of_first[-1]:
            rest_of_first.append(reading.stdout.readline())
        inside(client, sys.executable, "-c", bad)
        text = first + "".join(rest_of_first) + reading.stdout.read()
    counters = parse_counters(text)
    assert counters is not None
    assert counters.moved("TcpExt.IPReversePathFilter") == 7
    assert counters.seconds is not None
    assert 1.9 < counters.seconds < 60


# A connection through the node, and then segments far outside its window (TCP_REPAIR tells where that is).
ASTRAY = """
import socket, struct, sys
c = socket.create_connection(("10.9.7.2", 8080), timeout=5)
c.sendall(b"a"), c.recv(1)
c.setsockopt(socket.IPPROTO_TCP, 19, 1)
c.setsockopt(socket.IPPROTO_TCP, 20, 2)
seq = (c.getsockopt(socket.IPPROTO_TCP, 21) + 0x40000000) & 0xFFFFFFFF
c.setsockopt(socket.IPPROTO_TCP, 20, 1)
ack = c.getsockopt(socket.IPPROTO_TCP, 21) & 0xFFFFFFFF
head = struct.pack("!HHIIBBHHH", c.getsockname()[1], 8080, seq, ack, 0x50, 0x10, 500, 0, 0)
whole = socket.inet_aton("10.9.8.2") + socket.inet_aton("10.9.7.2") + struct.pack("!BBH", 0, 6, len(head)) + head
total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
total = (total & 0xFFFF) + (total >> 16)
head = head[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for _ in range(5):
    raw.sendto(head, ("10.9.7.2", 0))
"""
ECHO = """
import socket
s = socket.create_server(("10.9.7.2", 8080))
print("ready", flush=True)
held = []
while True:
    held.append(s.accept()[0])
    held[-1].sendall(held[-1].recv(1))
"""


@pytest.mark.parametrize(("liberal", "lost"), [(0, 5), (1, 0)])
def test_segments_outside_the_window(liberal: int, lost: int, make_netns: Callable[[str], str]) -> None:
    """What KTP221 says: they are INVALID, counted as such and dropped by kube-proxy's rule, where that is asked of all."""
    node, client, server = (make_netns(name) for name in ("wn", "wc", "ws"))

    between(node, client, server)
    inside(node, "sysctl", "-w", f"net.netfilter.nf_conntrack_tcp_be_liberal={liberal}")
    inside(node, "iptables", "-N", "KUBE-FORWARD")
    inside(node, "iptables", "-A", "FORWARD", "-j", "KUBE-FORWARD")
    inside(node, "iptables", "-A", "KUBE-FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    reading = ("cat", "/proc/net/stat/nf_conntrack")
    with subprocess.Popen(
        ["ip", "netns", "exec", server, sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True
    ) as echo:
        assert echo.stdout is not None
        try:
            assert echo.stdout.readline() == "ready\n"
            before = inside(node, *reading)
            inside(client, sys.executable, "-c", ASTRAY)
            after = inside(node, *reading)
        finally:
            echo.kill()
    counters = parse_counters(before + after)
    assert counters is not None
    assert counters.moved("nf_conntrack.invalid") == lost
    (dropped,) = (t for t in inside(node, "iptables-save", "-c").splitlines() if "INVALID" in t)
    assert dropped.startswith(f"[{lost}:")


ALL_PORTS = """
import socket, sys
held, met = [], []
for _ in range(int(sys.argv[1])):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    held.append(s)
    s.sendto(b"?", ("10.9.7.2", 53))
    try:
        s.recv(1)
        met.append("answered")
    except TimeoutError:
        met.append("silence")
print(*met)
"""
ANSWER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("10.9.7.2", 53))
print("ready", flush=True)
while True:
    s.sendto(b"!", s.recvfrom(9)[1])
"""


@pytest.mark.parametrize(("clients", "lost"), [(4, 0), (6, 2)])
def test_no_port_is_left_for_masquerading(clients: int, lost: int, make_netns: Callable[[str], str]) -> None:
    """What KTP219 says of insert_failed: beyond the rule's four ports packets are dropped, and counted so."""
    node, client, server = (make_netns(name) for name in ("mn", "mc", "ms"))
    between(node, client, server)
    inside(node, "iptables", "-t", "nat", "-A", "POSTROUTING", "-p", "udp", "-o", "eth1", "-j", "MASQUERADE", "--to-ports", "5000-5003")  # fmt: skip
    reading = ("cat", "/proc/net/stat/nf_conntrack")
    with subprocess.Popen(
        ["ip", "netns", "exec", server, sys.executable, "-c", ANSWER], stdout=subprocess.PIPE, text=True
    ) as answering:
        assert answering.stdout is not None
        try:
            assert answering.stdout.readline() == "ready\n"
            before = inside(node, *reading)
            met = inside(client, sys.executable, "-c", ALL_PORTS, str(clients)).split()
            after = inside(node, *reading)
        finally:
            answering.kill()
    assert met == ["answered"] * 4 + ["silence"] * lost
    counters = parse_counters(before + after)
    assert counters is not None
    assert counters.moved("nf_conntrack.insert_failed") == counters.moved("nf_conntrack.drop") == lost


SERVE_PODS = """
import socket, sys, threading
def serve(s, name):
    while True:
        s.sendto(name.encode(), s.recvfrom(9)[1])
for name in sys.argv[1:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((name, 5353))
    threading.Thread(target=serve, args=(s, name)).start()
print("ready", flush=True)
"""
ASK_SERVICE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", int(sys.argv[1])))
s.settimeout(2)
s.sendto(b"?", ("10.0.0.10", 30011))
try:
    print(s.recv(100).decode())
except TimeoutError:
    print("silence")
"""
POD, OLD_POD = "10.244.2.29", "10.244.2.99"


def test_what_ktp_says_of_a_stale_entry(make_netns: Callable[[str], str]) -> None:
    """kube-proxy's own rules, a pod that is replaced, a client that keeps its port; then the cure that ktp prints."""
    node, client, pods = (make_netns(name) for name in ("sn", "sc", "sp"))
    for device, other in (("eth0", client), ("eth1", pods)):
        inside(node, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", other)
        inside(node, "ip", "link", "set", device, "up")
        inside(other, "ip", "link", "set", "eth0", "up")
    for where, device, address in (
        (node, "eth0", "10.0.0.10/24"), (client, "eth0", "10.0.0.100/24"), (node, "eth1", "10.244.2.1/24"),
        (pods, "eth0", f"{POD}/24"), (pods, "eth0", f"{OLD_POD}/24"),
    ):  # fmt: skip
        inside(where, "ip", "addr", "add", address, "dev", device)
    inside(pods, "ip", "route", "add", "default", "via", "10.244.2.1")
    inside(node, "sysctl", "-w", "net.ipv4.ip_forward=1")
    # The kernel's objects that those rules count by (nfacct) are not in a save.
    saved = re.sub(r" -m nfacct --nfacct-name +\S+", "", (RECORDED / "nodes/node-b" / NFT).read_text())

    def program(rules: str) -> None:
        command = ["ip", "netns", "exec", node, "iptables-nft-restore"]
        subprocess.run(command, input=rules, text=True, check=True)

    def ask(port: int) -> str:
        return inside(client, sys.executable, "-c", ASK_SERVICE, str(port)).strip()

    def with_entries(entries: str) -> Snapshot:
        return recorded({("node-b", "conntrack.txt"): lambda _: entries})

    def diagnosed(entries: str) -> list[Finding]:
        return findings(Asked(with_entries(entries), "edge/udp-local").diagnosis(), "KTP218")

    reach = Reach(destinations=(Destination(protocol="udp", port=30011),))
    program(saved.replace(f"{POD}:5353", f"{OLD_POD}:5353"))
    with subprocess.Popen(
        ["ip", "netns", "exec", pods, sys.executable, "-c", SERVE_PODS, POD, OLD_POD],
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        try:
            assert serving.stdout.readline() == "ready\n"
            assert ask(40053) == OLD_POD
            program(saved)
            inside(pods, "ip", "addr", "del", f"{OLD_POD}/24", "dev", "eth0")
            assert (ask(40053), ask(40054)) == ("silence", POD)
            (listing,) = connection_commands(reach)
            read = {inside(node, *words) for words in (listing, connection_file_command(reach))}
            for entries in read:
                (finding,) = diagnosed(entries)
                assert finding.severity is Severity.WARNING
                assert "10.0.0.100:40053 " in finding.message
                walker = Walker(topology_of(with_entries(entries)))
                flow = Flow(
                    dst="10.0.0.10",
                    port=30011,
                    protocol="udp",
                    src="10.0.0.100",
                    via="node-b",
                    source_port=40053,
                )
                assert answer_flow(walker, flow).symptom is Symptom.TIMES_OUT
                assert answer_flow(walker, replace(flow, source_port=40054)).symptom is Symptom.CONNECTS
            (cure,) = finding.fixes
            assert cure.command is not None
            inside(node, *cure.command.split())
            assert ask(40053) == POD
            assert diagnosed(inside(node, *listing)) == []
        finally:
            serving.kill()
