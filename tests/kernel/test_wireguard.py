"""WireGuard between two nodes beside the kernel: healthy, and broken in each way that ktp tells apart.

`make test-vm KERNEL=trixie` runs this under a kernel that has WireGuard.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from ktp.collect.wireguard import COLUMNS, wireguard_command, wireguard_dump, without_keys
from ktp.model.tunnel import TunnelFault
from tests.kernel.pair import A, B, Pair, World, compare, readings, runs

pytestmark = pytest.mark.kernel

PORT_A, PORT_B = 51821, 51820
PODS_A, PODS_B = "10.244.1.0/24", "10.244.2.0/24"
A6, B6 = "fd00:9::1", "fd00:9::2"
OVER_IPV6 = [
    ("a", f"ip addr add {A6}/64 dev eth1 nodad"), ("b", f"ip addr add {B6}/64 dev eth1 nodad"),
    ("a", f"wg set wg0 peer KEY_B endpoint [{B6}]:{PORT_B}"),
]  # fmt: skip
FIRST_HANDSHAKE = (
    "timeout 20 sh -c 'until wg show wg0 latest-handshakes | grep -q [1-9][0-9]*$; do sleep 0.2; done'"
)
# KEY_A and KEY_B are the nodes' public keys, OTHER is nobody's.
WORLDS: dict[str, World] = {
    "healthy": ([], None),
    "port blocked at the far end": (
        [("b", f"iptables-nft -A INPUT -p udp --dport {PORT_B} -j DROP")],
        f"-A INPUT -p udp -m udp --dport {PORT_B} -j DROP",
    ),
    "port rejected at the far end": (
        [("b", f"iptables-nft -A INPUT -p udp --dport {PORT_B} -j REJECT")],
        f"-A INPUT -p udp -m udp --dport {PORT_B} -j REJECT --reject-with icmp-port-unreachable",
    ),
    "blocked by its source port": (
        [("b", f"iptables-nft -A INPUT -p udp --sport {PORT_A} -j DROP")],
        f"-A INPUT -p udp -m udp --sport {PORT_A} -j DROP",
    ),
    "port blocked on its way out": (
        [("a", f"iptables-nft -A OUTPUT -p udp --dport {PORT_B} -j DROP")],
        f"-A OUTPUT -p udp -m udp --dport {PORT_B} -j DROP",
    ),
    "blocked by its mark": (
        [
            ("a", "iptables-nft -t mangle -A POSTROUTING -m mark --mark 0x7 -j DROP"),
            ("a", "wg set wg0 fwmark 7"),
        ],
        "-A POSTROUTING -m mark --mark 0x7 -j DROP",
    ),
    "the answers' mark is blocked": (
        [("b", "iptables-nft -A OUTPUT -m mark --mark 0x7 -j DROP"), ("b", "wg set wg0 fwmark 7")],
        "-A OUTPUT -m mark --mark 0x7 -j DROP",
    ),
    "another mark is blocked": (
        [("a", "iptables-nft -A OUTPUT -m mark --mark 0x7 -j DROP"), ("a", "wg set wg0 fwmark 8")],
        None,
    ),
    "no route for its mark": (
        [
            ("a", "wg set wg0 fwmark 7"),
            ("a", "ip rule add fwmark 7 table 100"),
            ("a", "ip route add unreachable default table 100"),
        ],
        "",
    ),
    "answers blocked": (
        [("a", f"iptables-nft -A INPUT -p udp --dport {PORT_A} -j DROP")],
        f"-A INPUT -p udp -m udp --dport {PORT_A} -j DROP",
    ),
    "answers blocked on their way out": (
        [("b", f"iptables-nft -A OUTPUT -p udp --sport {PORT_B} -j DROP")],
        f"-A OUTPUT -p udp -m udp --sport {PORT_B} -j DROP",
    ),
    "only answers may come in": (
        [
            ("a", "iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
            ("a", "iptables-nft -A INPUT -p udp -j DROP"),
        ],
        None,
    ),
    "the far end has begun": (
        [
            ("b", f"wg set wg0 peer KEY_A endpoint {A}:{PORT_A} persistent-keepalive 1"),
            ("b", FIRST_HANDSHAKE),
            ("b", "iptables-nft -A INPUT -m conntrack --ctstate NEW -p udp -j DROP"),
        ],
        None,
    ),
    "another port is blocked": ([("b", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")], None),
    "the address is of no peer": (
        [("a", "wg set wg0 peer KEY_B allowed-ips 10.99.0.0/16")],
        TunnelFault.NO_PEER,
    ),
    "the address is of another peer": (
        [("a", f"wg set wg0 peer OTHER endpoint {B}:{PORT_B} allowed-ips 10.244.2.4/30")],
        TunnelFault.KEYS_DIFFER,
    ),
    "no endpoint": (
        [("a", "wg set wg0 peer KEY_B remove"), ("a", f"wg set wg0 peer KEY_B allowed-ips {PODS_B}")],
        TunnelFault.NO_ENDPOINT,
    ),
    "the wrong far end": (
        [("a", f"wg set wg0 peer KEY_B endpoint 10.9.1.77:{PORT_B}")],
        TunnelFault.NO_SUCH_PEER,
    ),
    "another port": ([("b", "wg set wg0 listen-port 51999")], TunnelFault.OTHER_PORT),
    "another key": (
        [("b", "wg set wg0 peer KEY_A remove"), ("b", f"wg set wg0 peer OTHER allowed-ips {PODS_A}")],
        TunnelFault.KEYS_DIFFER,
    ),
    "the source is not allowed": (
        [("b", "wg set wg0 peer KEY_A allowed-ips 10.99.0.0/16")],
        TunnelFault.NOT_ALLOWED,
    ),
    "the far end's device is down": ([("b", "ip link set wg0 down")], TunnelFault.DEVICE_DOWN),
    "no device at the far end": ([("b", "ip link del wg0")], TunnelFault.NO_DEVICE),
    "into itself": ([("a", f"ip route add {B}/32 dev wg0")], TunnelFault.LOOP),
    "dropped where it comes out": (
        [("b", "iptables-nft -I FORWARD -i wg0 -j DROP")],
        "-A FORWARD -i wg0 -j DROP",
    ),
    "over IPv6": (OVER_IPV6, None),
    "blocked over IPv6": (
        [("b", f"ip6tables-nft -A INPUT -p udp --dport {PORT_B} -j DROP"), *OVER_IPV6],
        f"-A INPUT -p udp -m udp --dport {PORT_B} -j DROP",
    ),
}


class Wireguard(Pair):
    """The pair with WireGuard between its nodes."""

    def __init__(self, make_netns: Callable[[str], str]) -> None:
        self.secrets: list[str] = []
        self._keys = {"OTHER": _public(_print("wg genkey"))}
        super().__init__(make_netns, lambda _: self._lay())

    def _lay(self) -> None:
        for node, port, pods in (("a", PORT_A, "10.244.1.0"), ("b", PORT_B, "10.244.2.0")):
            self.run(node, "ip link add wg0 type wireguard")
            self.secrets.append(secret := _print("wg genkey"))
            self._keys[f"KEY_{node.upper()}"] = _public(secret)
            self.run(node, f"wg set wg0 listen-port {port} private-key /proc/self/fd/0", given=secret)
            self.do(node, f"ip addr add {pods}/32 dev wg0", "ip link set wg0 up")
        self.do(
            "a", f"wg set wg0 peer KEY_B endpoint {B}:{PORT_B} allowed-ips {PODS_B}", f"ip route add {PODS_B} dev wg0",
            "iptables-nft -t nat -A POSTROUTING -o wg0 -j MASQUERADE",
        )  # fmt: skip
        self.do("b", f"wg set wg0 peer KEY_A allowed-ips {PODS_A}", f"ip route add {PODS_A} dev wg0")

    def run(self, name: str, command: str, *, given: str = "") -> str:
        for word, key in self._keys.items():
            command = command.replace(word, key)
        return super().run(name, command, given=given)

    def read(self, name: str) -> dict[str, str]:
        columns = {column: self.run(name, wireguard_command(column)) for column in COLUMNS}
        return super().read(name) | {
            "wg.txt": wireguard_dump(columns),
            "ip6-route.json": self.run(name, "ip -6 -j route show table all"),
            "ip6tables-nft-save.txt": self.run(name, "ip6tables-nft-save") or "# no table\n",
        }


def _print(command: str, given: str = "") -> str:
    return subprocess.run(
        command.split(), input=given, capture_output=True, text=True, check=True
    ).stdout.strip()


def _public(secret: str) -> str:
    return _print("wg pubkey", secret)


@pytest.mark.parametrize("name", WORLDS)
def test_the_tunnel_carries_what_ktp_says_it_carries(name: str, make_netns: Callable[[str], str]) -> None:
    if not runs("ip link add wg0 type wireguard"):
        pytest.skip("this kernel has no WireGuard")
    compare(Wireguard(make_netns), *WORLDS[name])


def test_what_is_read_of_it_holds_no_private_key(make_netns: Callable[[str], str]) -> None:
    if not runs("ip link add wg0 type wireguard"):
        pytest.skip("this kernel has no WireGuard")
    pair = Wireguard(make_netns)
    pair.secrets.append(shared := _print("wg genpsk"))
    pair.run("a", "wg set wg0 peer KEY_B preshared-key /proc/self/fd/0", given=shared)
    dump = pair.run("a", "wg show all dump")
    assert all(secret in dump for secret in (pair.secrets[0], shared))
    local, sent, said = readings(pair.spaces["a"], "wg.txt")
    assert local == sent
    assert [line.split("\t")[1] for line in sent.splitlines()[:1]] == ["(hidden)"]
    assert without_keys(dump) + "\n" == sent
    assert not any(
        secret in text for secret in pair.secrets for text in (local, said.decode(errors="replace"))
    )
