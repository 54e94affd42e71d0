from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ktp.errors import EvidenceError
from ktp.model.host import KubeProxyConfig
from ktp.parse.kube_proxy_config import parse_kube_proxy_config

YAML = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: node-a
clusterCIDR: 10.244.0.0/16
nodePortAddresses: [10.0.0.0/24, primary]
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
featureGates: {NFTablesProxyMode: true}
healthzBindAddress: 0.0.0.0:10256
iptables:
  masqueradeAll: true
  masqueradeBit: 15
  localhostNodePorts: false
nftables: {masqueradeAll: false, masqueradeBit: 9}
"""
CONFIG = KubeProxyConfig(
    mode="iptables",
    hostname_override="node-a",
    cluster_cidr="10.244.0.0/16",
    node_port_addresses=("10.0.0.0/24", "primary"),
    masquerade_all=True,
    masquerade_bit=15,
    localhost_node_ports=False,
    detect_local_mode="BridgeInterface",
    bridge_interface="cni0",
    interface_name_prefix="veth",
    feature_gates={"NFTablesProxyMode": True},
    healthz_bind_address="0.0.0.0:10256",
    source="c.yaml",
)


def test_yaml() -> None:
    assert parse_kube_proxy_config(YAML.encode(), source="c.yaml") == CONFIG


def test_the_config_map_of_kubeadm() -> None:
    text = json.dumps({"kind": "ConfigMap", "data": {"kubeconfig.conf": "x", "config.conf": YAML}})
    assert parse_kube_proxy_config(text, source="c.yaml") == CONFIG


@pytest.mark.parametrize(
    ("mode", "expected"), [("iptables", (True, 15)), ("ipvs", (True, 15)), ("nftables", (False, 9))]
)
def test_the_mode_chooses_the_section(mode: str, expected: tuple[bool, int]) -> None:
    config = parse_kube_proxy_config(YAML.replace("mode: iptables", f"mode: {mode}"))
    assert (config.masquerade_all, config.masquerade_bit) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "KubeProxyConfiguration"}',
        '{"kind": "KubeProxyConfiguration", "mode": "", "clusterCIDR": "", "nodePortAddresses": [], "iptables": null}',
        "kind: KubeProxyConfiguration\nmode: ''\nnodePortAddresses: null\niptables:\n  masqueradeBit: null\n",
    ],
)
def test_empty_is_not_said(text: str) -> None:
    assert parse_kube_proxy_config(text, source="") == KubeProxyConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a KubeProxyConfiguration"),
        ("- a\n- b\n", "not a KubeProxyConfiguration"),
        ("kind: Pod\n", "its kind is Pod"),
        ("a: [1\n", "not valid YAML"),
        ('{"a": ', "not valid JSON"),
        ("mode: [x]\n", "a string was expected"),
        ("kind: ConfigMap\ndata: {}\n", "holds no configuration"),
    ],
)
def test_what_is_none_is_named(text: str, words: str) -> None:
    with pytest.raises(EvidenceError, match=words) as raised:
        parse_kube_proxy_config(text, source="n/kube-proxy-config.yaml")
    assert "n/kube-proxy-config.yaml" in raised.value.message


def test_json_needs_no_yaml() -> None:
    code = (
        "import sys; from ktp.parse.kube_proxy_config import parse_kube_proxy_config as p;"
        "p(b'{\"mode\": \"ipvs\"}'); sys.exit('yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_recorded_nodes(recorded_cases: tuple[Path, ...]) -> None:
    files = [path for case in recorded_cases for path in case.glob("nodes/*/kube-proxy-config.json")]
    assert files
    for file in files:
        config = parse_kube_proxy_config(file.read_bytes())
        assert config.mode in {"iptables", "nftables", "ipvs"}
        if config.detect_local_mode in (None, "ClusterCIDR"):
            assert config.cluster_cidr is not None
            assert config.cluster_cidr.startswith("10.244.0.0/16")
        assert config.masquerade_bit == 14
