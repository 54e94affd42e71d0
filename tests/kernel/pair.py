"""Two nodes with a tunnel between them, a client of the one and a pod on the other, in network namespaces.

What becomes of a connection from the client to the pod is asked ktp, by what is read of the nodes, and the kernel.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.capture import MemoryCapture
from ktp.model.effect import Untunnelled
from ktp.model.trace import Flow, FlowAnswer
from ktp.model.tunnel import TunnelFault
from ktp.parse.snapshot import parse_snapshot

A, B, POD, CLIENT = "10.9.1.1", "10.9.1.2", "10.244.2.5", "10.9.0.2"
# User-mode Linux has the legacy tables alone.
IPTABLES = os.environ.get("KTP_IPTABLES", "iptables-nft")
READS = {
    "ip-addr.json": "ip -j addr", "ip-link.json": "ip -j -d link", "ip-neigh.json": "ip -j neigh",
    "bridge-fdb.json": "bridge -j fdb", "ip-rule.json": "ip -j rule", "ip-route.json": "ip -j route show table all",
    "ss.txt": "ss -lntuH", f"{IPTABLES}-save.txt": f"{IPTABLES}-save",
    "sysctl.txt": "sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter",
}  # fmt: skip
DIAL = """
import socket
s = socket.socket(); s.settimeout(1.5)
try:
    s.connect(("%s", 80)); print("connects")
except TimeoutError: print("times_out")
except ConnectionRefusedError: print("refused")
except OSError: print("unreachable")
"""
SERVE = """
import socket
s = socket.socket(); s.bind(("0.0.0.0", 80)); s.listen(); print("ready", flush=True)
while True: s.accept()[0].close()
"""
FLOW = Flow(dst=POD, port=80, src=CLIENT, via="a")
World = tuple[list[tuple[str, str]], TunnelFault | str | None]
"""What is done to the pair (on node "a" or "b"), and which fault or rule ktp is to name; "": a route; None: it connects."""


class Pair:
    """A client, node a with it and the tunnel, node b behind the tunnel with a pod."""

    def __init__(self, make_netns: Callable[[str], str], lay: Callable[[Pair], None]) -> None:
        """`lay` makes the tunnel between the nodes."""
        self.spaces = {name: make_netns(f"t{name}") for name in ("client", "a", "b", "pod")}
        for one, dev, other, peer in (
            ("client", "eth0", "a", "eth0"), ("a", "eth1", "b", "eth1"), ("pod", "eth0", "b", "vpod"),
        ):  # fmt: skip
            there = self.spaces[other]
            self.run(one, f"ip link add {dev} type veth peer name {peer} netns {there}")
        for node, own in (("a", A), ("b", B)):
            self.do(
                node,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
                f"ip addr add {own}/24 dev eth1",
                "ip link set eth1 up",
            )
        lay(self)
        self.do("a", "ip addr add 10.9.0.1/24 dev eth0", "ip link set eth0 up")
        self.do(
            "client", f"ip addr add {CLIENT}/24 dev eth0", "ip link set eth0 up",
            "ip route add default via 10.9.0.1",
        )  # fmt: skip
        self.do(
            "b", "ip link set vpod up", f"ip route add {POD}/32 dev vpod", "ip addr add 169.254.1.1/32 dev vpod",
            # Without any rule its saving command prints nothing at all, as where nothing was read.
            f"{IPTABLES} -A FORWARD -p tcp -j ACCEPT",
        )  # fmt: skip
        self.do(
            "pod", f"ip addr add {POD}/32 dev eth0", "ip link set eth0 up", "ip route add 169.254.1.1 dev eth0",
            "ip route add default via 169.254.1.1 dev eth0",
        )  # fmt: skip

    def do(self, name: str, *commands: str) -> None:
        """Several commands, by one shell: starting one takes long in a virtual machine."""
        self.run(name, "sh -ec " + shlex.quote("\n".join(commands)))

    def run(self, name: str, command: str, *, given: str = "") -> str:
        """What a command prints in a namespace; it must succeed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.spaces[name], *shlex.split(command)],
            capture_output=True, text=True, check=False, input=given,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def read(self, name: str) -> dict[str, str]:
        """The files of a node."""
        return {file: self.run(name, command) for file, command in READS.items()}

    def answer(self, flow: Flow = FLOW) -> FlowAnswer:
        """What ktp says."""
        files = {"cluster/services.json": json.dumps({"items": []}).encode()}
        for name in ("a", "b"):
            files |= {f"nodes/{name}/{file}": text.encode() for file, text in self.read(name).items()}
        snapshot = parse_snapshot(MemoryCapture(files=files))
        assert [gap.message for gap in snapshot.gaps if gap.kind == "node-file"] == []
        states = {n: replace(s, place_unread=False) for n, s in snapshot.nodes.items()}
        addresses = {(4, int(ip_address(ip))): node for ip, node in ((A, "a"), (B, "b"))}
        pod = {(4, int(ip_address(POD))): Attached(name="test/web", node="b")}
        walker = Walker(Topology(nodes=states, attached=pod, node_addresses=addresses))
        return answer_flow(walker, flow)

    def dial(self, who: str = "client") -> str:
        """What the client meets, or another."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.spaces[who], sys.executable, "-c", DIAL % POD],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()


@functools.cache
def runs(command: str) -> bool:
    """Whether a command succeeds in a network namespace of its own: whether the kernel has what it asks for."""
    return (
        subprocess.run(["unshare", "-n", "sh", "-c", command], capture_output=True, check=False).returncode
        == 0
    )


def readings(namespace: str, file: str) -> tuple[str, str, bytes]:
    """A file of a node as it is read on the node itself, and by the script that is sent there; and all that this says."""
    words = f"from ktp.collect.local_node import collect_local_node as c; print(c('a').read('nodes/a/{file}').decode())"
    inside = ["ip", "netns", "exec", namespace]
    local = subprocess.run(
        [*inside, sys.executable, "-c", words], capture_output=True, check=True, text=True
    ).stdout
    script = build_script(sudo=False, reach=None, command_timeout=60)
    said = subprocess.run([*inside, "sh", "-s"], input=script.text, capture_output=True, check=True).stdout
    recording = parse_stream(said, script.mark)
    assert recording.complete
    capture = collect_recorded("a", recording, reach=None, source="", not_root=("", ""), why_cut="")
    return local, capture.read(f"nodes/a/{file}").decode() + "\n", said


def compare(
    pair: Pair,
    commands: Sequence[tuple[str, str]],
    fault: TunnelFault | str | None,
    flow: Flow = FLOW,
) -> None:
    """Do `commands`, and see that both answer alike and that ktp names `fault`; a rule is of the first one's node."""
    for node, command in commands:
        pair.run(node, command)
    server = subprocess.Popen(
        ["ip", "netns", "exec", pair.spaces["pod"], sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        answer, met = pair.answer(flow), pair.dial(flow.from_node or "client")
    finally:
        server.kill()
        server.communicate()
    assert (answer.symptom.value, met == "connects") == (met, fault is None), answer.reason
    if fault is None:
        return
    decided = answer.decided_by
    assert decided is not None
    if not fault:
        assert decided.kind == "route"
        return
    assert decided.step is not None
    if isinstance(fault, TunnelFault):
        assert [e.fault for e in decided.step.effects if isinstance(e, Untunnelled)] == [fault]
    else:
        assert (decided.rule, decided.node) == (fault, commands[0][0])
