"""IPsec between two nodes beside the kernel: healthy, and stopped in each way that ktp tells apart.

What needs no state is asked everywhere; `make test-vm` runs the rest under a kernel that has ESP.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ktp.collect.xfrm import READS, without_keys
from ktp.model.trace import Flow
from ktp.model.tunnel import TunnelFault
from ktp.parse.xfrm import parse_xfrm_states
from tests.kernel.pair import CLIENT, IPTABLES, POD, A, B, Pair, World, compare, readings, runs

pytestmark = pytest.mark.kernel

CLIENTS, PODS = "10.9.0.0/24", "10.244.2.0/24"
SPI_A, SPI_B = "0x2000", "0x1000"  # of what is sent to them
# What protects nothing has no key.
KEY = "enc 'ecb(cipher_null)' '' auth digest_null ''"
TO_B = f"src {A} dst {B} proto esp"
TO_A = f"src {B} dst {A} proto esp"
ENCAP = "encap espinudp 4500 4500 0.0.0.0"
# An IKE daemon's socket, which takes ESP out of UDP (UDP_ENCAP, UDP_ENCAP_ESPINUDP).
IKE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 4500)); s.setsockopt(17, 100, 2)
print("ready", flush=True); sys.stdin.read()
"""


def policy(direction: str, src: str, dst: str, ends: str, *, priority: int = 100, reqid: int = 1) -> str:
    tunnel = f"tmpl {ends} reqid {reqid} mode tunnel"
    return f"ip xfrm policy add src {src} dst {dst} dir {direction} priority {priority} {tunnel}"


def state(ends: str, spi: str, more: str = "") -> str:
    return f"ip xfrm state add {ends} spi {spi} reqid 1 mode tunnel {KEY} {more}"


def everywhere(*commands: str) -> list[tuple[str, str]]:
    return [(node, command) for command in commands for node in ("a", "b")]


WRAPPED = [
    ("a", "IKE"), ("b", "IKE"),
    *everywhere("ip xfrm state flush", state(TO_B, SPI_B, ENCAP), state(TO_A, SPI_A, ENCAP)),
]  # fmt: skip
MASQUERADE = ("a", f"{IPTABLES} -t nat -A POSTROUTING -o eth1 -j MASQUERADE")
BLOCK = "ip xfrm policy add src {} dst {} dir {} action block priority 1"
WORLDS: dict[str, World] = {
    "healthy": ([], None),
    "ESP blocked at the far end": ([("b", f"{IPTABLES} -A INPUT -p esp -j DROP")], "-A INPUT -p esp -j DROP"),
    "ESP blocked on its way out": ([("a", f"{IPTABLES} -A OUTPUT -p esp -j DROP")], "-A OUTPUT -p esp -j DROP"),
    "answers blocked": ([("a", f"{IPTABLES} -A INPUT -p esp -j DROP")], "-A INPUT -p esp -j DROP"),
    "only answers may come in": (
        [
            ("a", f"{IPTABLES} -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
            ("a", f"{IPTABLES} -A INPUT -p esp -j DROP"),
        ],
        None,
    ),
    "UDP is blocked": ([("b", f"{IPTABLES} -A INPUT -p udp -j DROP")], None),
    "dropped where it comes out": (
        [("b", f"{IPTABLES} -I FORWARD -s {CLIENT} -j DROP")], f"-A FORWARD -s {CLIENT}/32 -j DROP",
    ),
    "marked as ESP, dropped by the mark": (
        [
            ("b", f"{IPTABLES} -I FORWARD -m mark --mark 0x7 -j DROP"),
            ("b", f"{IPTABLES} -t mangle -A PREROUTING -p esp -j MARK --set-mark 7"),
        ],
        "-A FORWARD -m mark --mark 0x7 -j DROP",
    ),
    "dropped as what came by IPsec": (
        [
            ("b", f"{IPTABLES} -I FORWARD -m policy --dir in --pol none -j RETURN"),
            ("b", f"{IPTABLES} -A FORWARD -m policy --dir in --pol ipsec -j DROP"),
            ("b", f"{IPTABLES} -D FORWARD -p tcp -j ACCEPT"),
        ],
        "-A FORWARD -m policy --dir in --pol ipsec -j DROP",
    ),
    "dropped as what is to be protected": (
        [
            ("a", f"{IPTABLES} -t mangle -A POSTROUTING -m policy --dir out --pol ipsec -j DROP"),
            ("a", f"{IPTABLES} -t mangle -I POSTROUTING -p esp -m policy --dir out --pol ipsec -j ACCEPT"),
        ],
        "-A POSTROUTING -m policy --dir out --pol ipsec -j DROP",
    ),
    "ESP itself is nothing to be protected": (
        [
            ("a", f"{IPTABLES} -t mangle -A OUTPUT -p esp -m policy --dir out --pol ipsec -j DROP"),
            ("b", f"{IPTABLES} -A INPUT -p esp -m policy --dir in --pol ipsec -j DROP"),
            ("a", f"{IPTABLES} -t mangle -A POSTROUTING -o eth1 -p tcp -m policy --dir out --pol none -j DROP"),
        ],
        None,
    ),
    "no state at the far end": ([("b", f"ip xfrm state delete {TO_B} spi {SPI_B}")], TunnelFault.NO_STATE),
    "another SPI at the far end": (
        [("b", f"ip xfrm state delete {TO_B} spi {SPI_B}"), ("b", state(TO_B, "0x1001"))],
        TunnelFault.NO_STATE,
    ),
    "no state to send with": ([("a", f"ip xfrm state delete {TO_B} spi {SPI_B}")], TunnelFault.NO_STATE),
    "no state for answers": ([("b", f"ip xfrm state delete {TO_A} spi {SPI_A}")], TunnelFault.NO_STATE),
    "nothing lets it in": (
        [("b", f"ip xfrm policy delete src {CLIENTS} dst {PODS} dir fwd")],
        TunnelFault.NO_POLICY,
    ),
    "another request is let in": (
        [
            ("b", f"ip xfrm policy delete src {CLIENTS} dst {PODS} dir fwd"),
            ("b", policy("fwd", CLIENTS, PODS, TO_B, reqid=2)),
        ],
        TunnelFault.NO_POLICY,
    ),
    "answers are not protected": (
        [("b", f"ip xfrm policy delete src {PODS} dst {CLIENTS} dir out")],
        TunnelFault.UNPROTECTED,
    ),
    "excepted on its way out": (
        [("a", f"ip xfrm policy add src {CLIENT} dst {POD} dir out priority 1")],
        TunnelFault.UNPROTECTED,
    ),
    "the wrong far end": (
        [
            ("a", policy("out", CLIENT, POD, f"src {A} dst 10.9.1.77 proto esp", priority=1)),
            ("a", state(f"src {A} dst 10.9.1.77 proto esp", SPI_B)),
        ],
        TunnelFault.NO_SUCH_PEER,
    ),
    "masqueraded into a policy": (
        [
            MASQUERADE,
            *everywhere("ip xfrm policy flush"),
            ("a", policy("out", A, PODS, TO_B)), ("a", policy("fwd", PODS, A, TO_A)), ("a", policy("fwd", PODS, CLIENTS, TO_A)),
            ("b", policy("fwd", A, PODS, TO_B)), ("b", policy("out", PODS, A, TO_A)),
        ],
        None,
    ),
    "masqueraded out of the policy": ([MASQUERADE], None),
    "wrapped in UDP": (WRAPPED, None),
    "UDP that wraps it is blocked": (
        [("b", f"{IPTABLES} -A INPUT -p udp --dport 4500 -j DROP"), *WRAPPED],
        "-A INPUT -p udp -m udp --dport 4500 -j DROP",
    ),
    "wrapped at one end alone": ([("b", "IKE"), *WRAPPED[2:], ("a", "ip xfrm state flush"), ("a", state(TO_B, SPI_B))],
                                 TunnelFault.NO_STATE),
}  # fmt: skip
# Worlds without any state.
STATELESS: dict[str, World] = {
    "no states": ([], TunnelFault.NO_STATE),
    "blocked on its way out": ([("a", BLOCK.format(CLIENT, POD, "out"))], TunnelFault.BLOCKED),
    "blocked where it comes in": (
        [("a", "ip xfrm policy flush"), ("b", BLOCK.format(CLIENT, POD, "fwd"))],
        TunnelFault.BLOCKED,
    ),
    "answers are blocked": (
        [("a", "ip xfrm policy flush"), ("b", "ip xfrm policy flush"), ("b", BLOCK.format(POD, CLIENT, "out"))],
        TunnelFault.BLOCKED,
    ),
    "not protected": ([("a", "ip xfrm policy flush")], TunnelFault.UNPROTECTED),
    "excepted everywhere": (
        [
            ("a", f"ip xfrm policy add src {CLIENT} dst {POD} dir out priority 1"),
            ("b", f"ip xfrm policy add src {CLIENT} dst {POD} dir fwd priority 1"),
            ("b", f"ip xfrm policy add src {POD} dst {CLIENT} dir out priority 1"),
            ("a", f"ip xfrm policy add src {POD} dst {CLIENT} dir fwd priority 1"),
        ],
        None,
    ),
    "of others": (
        [*everywhere("ip xfrm policy flush"), ("a", policy("out", "10.8.0.0/16", PODS, TO_B))],
        None,
    ),
    "for another mark": (
        [
            *everywhere("ip xfrm policy flush"),
            ("a", BLOCK.format(CLIENT, POD, "out") + " mark 7 mask 0xff"),
        ],
        None,
    ),
    "for its mark": (
        [
            *everywhere("ip xfrm policy flush"),
            ("a", f"{IPTABLES} -t mangle -A PREROUTING -p tcp -j MARK --set-mark 7"),
            ("a", BLOCK.format(CLIENT, POD, "out") + " mark 7 mask 0xff"),
        ],
        TunnelFault.BLOCKED,
    ),
    "for another protocol": (
        [*everywhere("ip xfrm policy flush"), ("a", f"ip xfrm policy add src {CLIENT} dst {POD} proto udp dir out action block")],
        None,
    ),
    "masqueraded into what is blocked": (
        [MASQUERADE, *everywhere("ip xfrm policy flush"), ("a", BLOCK.format(A, POD, "out"))],
        TunnelFault.BLOCKED,
    ),
}  # fmt: skip


class Ipsec(Pair):
    """The pair with a route between its nodes, and IPsec for what goes by it."""

    def __init__(self, make_netns: Callable[[str], str], *, stateless: bool) -> None:
        self._stateless = stateless
        self.programs: list[subprocess.Popen[str]] = []
        super().__init__(make_netns, lambda _: self._lay())

    def _lay(self) -> None:
        self.do(
            "a", f"ip route add {PODS} via {B} dev eth1", policy("out", CLIENTS, PODS, TO_B),
            policy("fwd", PODS, CLIENTS, TO_A), f"{IPTABLES} -A FORWARD -p tcp -j ACCEPT",
        )  # fmt: skip
        self.do(
            "b", f"ip route add {CLIENTS} via {A} dev eth1", policy("fwd", CLIENTS, PODS, TO_B),
            policy("out", PODS, CLIENTS, TO_A),
        )  # fmt: skip
        if not self._stateless:
            for node in ("a", "b"):
                self.do(node, state(TO_B, SPI_B), state(TO_A, SPI_A))

    def run(self, name: str, command: str, *, given: str = "") -> str:
        if command != "IKE":
            return super().run(name, command, given=given)
        program = subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[name], sys.executable, "-c", IKE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.programs.append(program)
        assert program.stdout is not None
        return program.stdout.readline()

    def read(self, name: str) -> dict[str, str]:
        return super().read(name) | {file: self.run(name, command) for file, command in READS}


@pytest.fixture
def pair(make_netns: Callable[[str], str]) -> Iterator[Callable[..., Ipsec]]:
    made: list[Ipsec] = []

    def make(*, stateless: bool) -> Ipsec:
        made.append(Ipsec(make_netns, stateless=stateless))
        return made[-1]

    yield make
    for each in made:
        for program in each.programs:
            program.kill()
            program.communicate()


@pytest.mark.parametrize("name", WORLDS)
def test_what_ipsec_protects_comes_where_ktp_says(name: str, pair: Callable[..., Ipsec]) -> None:
    if not runs(state(TO_B, SPI_B)):
        pytest.skip("this kernel has no ESP")
    compare(pair(stateless=False), *WORLDS[name])


@pytest.mark.parametrize(
    "name",
    # The quick suite asks every third; `make test-kernel` asks all.
    [n if i % 3 == 1 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(STATELESS)],
)
def test_what_policies_stop_without_a_state(name: str, pair: Callable[..., Ipsec]) -> None:
    compare(pair(stateless=True), *STATELESS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (policy("out", A, POD, TO_B), TunnelFault.NO_STATE),
        (BLOCK.format(A, POD, "out"), TunnelFault.BLOCKED),
        (BLOCK.format(POD, A, "in"), TunnelFault.BLOCKED),
        (policy("in", POD, A, TO_A), TunnelFault.UNPROTECTED),
        (BLOCK.format(POD, A, "fwd"), None),
    ],
)
def test_a_process_of_the_node_is_told_what_policies_say(
    command: str, fault: TunnelFault | None, pair: Callable[..., Ipsec]
) -> None:
    compare(pair(stateless=True), [("a", command)], fault, Flow(dst=POD, port=80, from_node="a"))


def test_what_is_read_of_it_holds_no_key(make_netns: Callable[[str], str]) -> None:
    secret = "0x0102030405060708090a0b0c0d0e0f1011121314"
    command = f"ip xfrm state add {TO_B} spi {SPI_B} mode tunnel aead 'rfc4106(gcm(aes))' {secret} 128"
    if not runs(command):
        pytest.skip("this kernel has no ESP with AES-GCM")
    space = make_netns("x")
    subprocess.run(["ip", "netns", "exec", space, "sh", "-c", command], check=True)
    local, sent, said = readings(space, "ip-xfrm-state.txt")
    assert local == sent
    assert parse_xfrm_states(sent)[0].spi == int(SPI_B, 0)
    assert secret not in local + said.decode(errors="replace")
    assert len(parse_xfrm_states(without_keys(sent))) == 1
