"""A vxlan between two nodes beside the kernel: healthy, and broken in each way that ktp tells apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ktp.model.tunnel import TunnelFault
from tests.kernel.pair import A, B, Pair, World, compare

pytestmark = pytest.mark.kernel

MAC_A, MAC_B = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
WORLDS: dict[str, World] = {
    "healthy": ([], None),
    "port blocked at the far end": (
        [("b", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")],
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "port rejected at the far end": (
        [("b", "iptables-nft -A INPUT -p udp --dport 8472 -j REJECT")],
        "-A INPUT -p udp -m udp --dport 8472 -j REJECT --reject-with icmp-port-unreachable",
    ),
    "port blocked on its way out": (
        [("a", "iptables-nft -A OUTPUT -p udp --dport 8472 -j DROP")],
        "-A OUTPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "answers blocked": (
        [("a", "iptables-nft -A INPUT -p udp --dport 8472 -j DROP")],
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
    ),
    "another port is blocked": ([("b", "iptables-nft -A INPUT -p udp --dport 4789 -j DROP")], None),
    "no neighbour entry": ([("a", "ip neigh del 10.244.2.0 dev flannel.1")], TunnelFault.NO_NEIGHBOUR),
    "no forwarding entry": (
        [("a", f"bridge fdb del {MAC_B} dev flannel.1 dst {B}")],
        TunnelFault.NO_FORWARDING_ENTRY,
    ),
    "the wrong far end": (
        [
            ("a", f"bridge fdb del {MAC_B} dev flannel.1 dst {B}"),
            ("a", f"bridge fdb append {MAC_B} dev flannel.1 dst 10.9.1.77"),
        ],
        TunnelFault.NO_SUCH_PEER,
    ),
    "another VNI": (
        [
            ("b", "ip link del flannel.1"),
            ("b", f"ip link add flannel.1 address {MAC_B} type vxlan id 7 local {B} dev eth1 dstport 8472 nolearning"),
            ("b", "ip addr add 10.244.2.0/32 dev flannel.1"),
            ("b", "ip link set flannel.1 up"),
        ],
        TunnelFault.NO_DEVICE,
    ),
    "the far end's device is down": ([("b", "ip link set flannel.1 down")], TunnelFault.DEVICE_DOWN),
}  # fmt: skip


def lay(pair: Pair) -> None:
    for node, own, pods, far, mac, far_mac, far_own in (
        ("a", A, "10.244.1.0", "10.244.2.0", MAC_A, MAC_B, B),
        ("b", B, "10.244.2.0", "10.244.1.0", MAC_B, MAC_A, A),
    ):
        pair.do(
            node, f"ip link add flannel.1 address {mac} type vxlan id 1 local {own} dev eth1 dstport 8472 nolearning",
            f"ip addr add {pods}/32 dev flannel.1", "ip link set flannel.1 up",
            f"ip route add {far}/24 via {far} dev flannel.1 onlink",
            f"ip neigh add {far} lladdr {far_mac} dev flannel.1 nud permanent",
            f"bridge fdb append {far_mac} dev flannel.1 dst {far_own}",
        )  # fmt: skip
    pair.run("a", "iptables-nft -t nat -A POSTROUTING -o flannel.1 -j MASQUERADE")


@pytest.mark.parametrize(
    "name",
    # The quick suite asks every third; `make test-kernel` asks all.
    [n if i % 3 == 1 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(WORLDS)],
)
def test_the_tunnel_carries_what_ktp_says_it_carries(name: str, make_netns: Callable[[str], str]) -> None:
    compare(Pair(make_netns, lay), *WORLDS[name])
