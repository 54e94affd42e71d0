"""What a snapshot tells of a node's kube-proxy."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ktp.kubeproxy.node import ALL_DETECTORS, ALL_MODES, DetectLocal, ProxyMode, detect_modes, proxy_node
from ktp.kubeproxy.version import ANY_VERSION
from ktp.model.cluster import Cluster, Node
from ktp.model.host import Interface, InterfaceAddress, KubeProxyConfig, NodeState
from ktp.model.nftables import NftRuleset, NftTable
from ktp.model.ruleset import Backend, Chain, DictRuleset
from ktp.model.snapshot import Snapshot
from ktp.parse.iptables_save import parse_rule

IPVS_INTERFACE = Interface(
    name="kube-ipvs0", index=9, addresses=(InterfaceAddress(ip=ip_address("172.16.0.1"), prefixlen=32),)
)
ETH0 = Interface(name="eth0", index=2, addresses=(InterfaceAddress(ip=ip_address("10.0.0.3"), prefixlen=24),))
NFT = NftRuleset(tables=(NftTable(family="ip", name="kube-proxy"),))


def linked(to: str = "KUBE-NODEPORTS", comment: str = "node ports") -> DictRuleset:
    raw = [f'-A KUBE-SERVICES -m comment --comment "{comment}" -m addrtype --dst-type LOCAL -j {to}']
    chain = Chain("nat", "KUBE-SERVICES", raw, parse_rule)
    return DictRuleset("ip", Backend.NFT, "test", {"nat": {"KUBE-SERVICES": chain}})


@pytest.mark.parametrize(
    ("state", "modes"),
    [
        (None, ALL_MODES),
        (NodeState(name="n"), ALL_MODES),
        (NodeState(name="n", kube_proxy=KubeProxyConfig(mode="ipvs"), nft=NFT), (ProxyMode.IPVS,)),
        (NodeState(name="n", kube_proxy=KubeProxyConfig(mode="")), (ProxyMode.IPTABLES,)),
        (NodeState(name="n", kube_proxy=KubeProxyConfig(mode="userspace")), ALL_MODES),
        (NodeState(name="n", rulesets=(linked(),)), (ProxyMode.IPTABLES,)),
        (NodeState(name="n", rulesets=(linked("KUBE-NODE-PORT"),)), (ProxyMode.IPVS,)),
        (NodeState(name="n", rulesets=(linked(comment="no KUBE-NODE-PORT here"),)), (ProxyMode.IPTABLES,)),
        (NodeState(name="n", rulesets=(linked("ACCEPT", "-j KUBE-NODEPORTS"),)), ALL_MODES),
        (NodeState(name="n", nft=NFT), (ProxyMode.NFTABLES,)),
        (NodeState(name="n", interfaces=(ETH0, IPVS_INTERFACE)), (ProxyMode.IPVS,)),
        (NodeState(name="n", rulesets=(linked(),), nft=NFT), (ProxyMode.IPTABLES, ProxyMode.NFTABLES)),
    ],
)
def test_detect_modes(state: NodeState | None, modes: tuple[ProxyMode, ...]) -> None:
    assert detect_modes(state) == modes


@pytest.mark.parametrize(
    ("config", "detectors"),
    [
        (None, ALL_DETECTORS),
        (KubeProxyConfig(), (DetectLocal.NONE,)),
        (KubeProxyConfig(cluster_cidr="10.244.0.0/16"), (DetectLocal.CLUSTER_CIDR,)),
        (KubeProxyConfig(detect_local_mode="NodeCIDR"), (DetectLocal.NODE_CIDR,)),
        (KubeProxyConfig(detect_local_mode="BridgeInterface"), (DetectLocal.BRIDGE_INTERFACE,)),
    ],
)
def test_detectors(config: KubeProxyConfig | None, detectors: tuple[DetectLocal, ...]) -> None:
    node = Node(name="n", pod_cidrs=("10.244.1.0/24",))
    snapshot = Snapshot(
        cluster=Cluster(nodes={"n": node}), nodes={"n": NodeState(name="n", kube_proxy=config)}
    )
    assert proxy_node(snapshot, "n").detectors == detectors


def test_node_of_the_api_alone() -> None:
    node = Node(
        name="n",
        addresses=(("Hostname", "n"), ("ExternalIP", "198.51.100.3"), ("InternalIP", "10.0.0.3")),
        pod_cidrs=("10.244.1.0/24", "fd00:244:1::/64"),
        labels={"topology.kubernetes.io/zone": "zone-1"},
    )
    found = proxy_node(Snapshot(cluster=Cluster(nodes={"n": node})), "n")
    assert found.addresses == {ip_address("10.0.0.3"), ip_address("198.51.100.3")}
    assert found.primary_ips == (ip_address("10.0.0.3"),)
    assert found.pod_cidrs == (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64"))
    assert (found.zone, found.known_as, found.modes) == ("zone-1", "n", ALL_MODES)
    assert found.versions == ANY_VERSION


def test_configuration_and_state_of_the_node() -> None:
    config = KubeProxyConfig(
        hostname_override="ip-10-0-0-3",
        cluster_cidr="10.244.0.0/16,fd00:244::/32",
        node_port_addresses=("primary",),
        localhost_node_ports=False,
    )
    state = NodeState(
        name="n",
        interfaces=(ETH0, IPVS_INTERFACE),
        sysctls={"net.ipv4.conf.all.route_localnet": "0"},
        kube_proxy=config,
    )
    found = proxy_node(Snapshot(nodes={"n": state}), "n")
    assert found.known_as == "ip-10-0-0-3"
    assert found.addresses == {
        ip_address("10.0.0.3")
    }  # addresses of kube-ipvs0 are Services', not the node's
    assert found.cluster_cidrs == (ip_network("10.244.0.0/16"), ip_network("fd00:244::/32"))
    assert (found.node_port_addresses, found.localhost_node_ports) == (("primary",), False)
    assert found.route_localnet is False
