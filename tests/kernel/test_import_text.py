"""What other collectors leave of a node, in their layouts: the same node as ktp reads itself, of one namespace.

The layouts follow sosreport (sos/report/plugins/networking.py, firewall_tables.py) and the EKS log collector
(log-collector-script/linux/eks-log-collector.sh).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.dataplane.host import Host
from ktp.dataplane.nft import nft_base_chains
from ktp.model.host import NodeState
from ktp.model.ruleset import Backend
from ktp.parse.snapshot import parse_snapshot
from tests.support.node_netns import become_node

pytestmark = pytest.mark.kernel

DEMO = Path(__file__).resolve().parents[2] / "ktp" / "demo" / "article"
NODE = "node-b"
LOCAL = "test/nginx-externaltrafficpolicy"
SOS = {
    "sos_commands/networking/ip_-o_addr": "ip -o addr",
    "sos_commands/networking/ip_-a_link": "ip -s -d link",  # no addresses, and sorted before those
    "sos_commands/networking/ip_-b_link": "ip link",
    "sos_commands/networking/ip_-d_address": "ip -d address",
    "sos_commands/networking/ip_route_show_table_all": "ip route show table all",
    "sos_commands/networking/ip_-6_route_show_table_all": "ip -6 route show table all",
    "sos_commands/networking/ip_-4_rule_list": "ip -4 rule list",
    "sos_commands/networking/ip_-6_rule_list": "ip -6 rule list",
    "sos_commands/networking/ss_-peaonmi": "ss -peaonmi",
    "sos_commands/kernel/sysctl_-a": "sysctl -a",
    "sos_commands/firewall_tables/iptables_-t_nat_-nvL": "iptables-legacy -t nat -nvL",
    "sos_commands/firewall_tables/iptables_-vnxL": "iptables-legacy -vnxL",
    "sos_commands/firewall_tables/iptables_-t_mangle_-nvL": "iptables-legacy -t mangle -nvL",
    "sos_commands/firewall_tables/ip6tables_-t_nat_-nvL": "ip6tables-legacy -t nat -nvL",
    "sos_commands/firewall_tables/ip6tables_-vnxL": "ip6tables-legacy -vnxL",
    # Of a pod's namespace: it is not the node's.
    "sos_commands/networking/namespaces/x/ip_netns_exec_x_ip_-d_address_show": "ip -d address show dev lo",
    "sos_commands/networking/namespaces/x/ip_netns_exec_x_iptables-save": "iptables-legacy-save -t raw",
}
EKS = {
    "networking/iptables-save.txt": "iptables-legacy-save",
    "networking/ip6tables-save.txt": "ip6tables-legacy-save",
    "networking/iptables-nat.txt": "iptables-legacy --wait 1 --numeric --verbose --list --table nat",
    "networking/iptables.txt": "iptables-legacy --wait 1 --numeric --verbose --list",
    "networking/iprule.txt": "ip rule show",
    "networking/ip6rule.txt": "ip -6 rule show",
    "networking/iproute.txt": "ip route show table all",
    "networking/ip6route.txt": "ip -6 route show table all",
    "sysctls/sysctl_all.txt": "sysctl --all",
}


LISTEN = """
import socket
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
tcp.bind(("", 10250)); tcp.listen(); udp.bind(("", 8472)); print("ready", flush=True); input()
"""


@pytest.fixture
def netns(make_netns: Callable[[str], str]) -> Iterator[str]:
    name = make_netns("import")
    become_node(name, "10.0.0.10", DEMO / "nodes" / NODE / "iptables-legacy-save.txt")
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    printed(name, "sysctl -w net.ipv4.ip_forward=1")
    # As every node has, a program that listens for TCP and one for UDP.
    with subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-c", LISTEN],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as kubelet:  # fmt: skip
        assert kubelet.stdout is not None
        assert kubelet.stdout.readline() == "ready\n"
        # An IPv6 address gets its routes when nobody else is found to have it, which takes two seconds.
        settled = time.monotonic() + 20
        while b"tentative" in printed(name, "ip -6 addr") and time.monotonic() < settled:
            time.sleep(0.1)
        yield name
        kubelet.communicate("\n")


def printed(netns: str, command: str) -> bytes:
    return subprocess.run(
        ["ip", "netns", "exec", netns, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    ).stdout


def ktp(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ktp", *words], capture_output=True, text=True, check=False)


def imported(netns: str, tmp_path: Path, folder: str, layout: Mapping[str, str]) -> NodeState:
    """The node of a snapshot made of the demo's objects and the collector's folder; its diagnosis is the demo's."""
    source = tmp_path / "source"
    shutil.copytree(DEMO / "cluster", source / "objects")
    nodes = json.loads((source / "objects/nodes.json").read_text())
    for item in nodes["items"]:
        if item["metadata"]["name"] == NODE:
            item["spec"]["providerID"] = "aws:///eu-west-1a/i-0abc123def"
    (source / "objects/nodes.json").write_text(json.dumps(nodes))
    for name, command in layout.items():
        path = source / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(printed(netns, command))
    done = ktp("snapshot", "import", str(source), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = ktp("--snapshot", str(tmp_path / "out"), "diagnose", "svc", LOCAL, "--node", NODE, "-o", "json")
    report = json.loads(found.stdout)
    assert [f["code"] for f in report["findings"] if f["severity"] == "error"] == ["KTP501"]
    (cell,) = [
        row["external"]
        for each in report["frontends"]
        if each["kind"] == "nodePort"
        for row in each["nodes"]
        if row["node"] == NODE
    ]
    assert (cell["symptom"], cell["basis"]) == ("times_out", "rules")
    return parse_snapshot(open_snapshot(tmp_path / "out")).nodes[NODE]


def own(netns: str, tmp_path: Path) -> NodeState:
    """The same node as ktp reads it."""
    folder = tmp_path / "own"
    (folder / "nodes" / NODE).mkdir(parents=True)
    shutil.copytree(DEMO / "cluster", folder / "cluster")
    for file, command in (
        ("ip-addr.json", "ip -j -d addr"), ("ip-route.json", "ip -j route show table all"),
        ("ip6-route.json", "ip -6 -j route show table all"), ("ip-rule.json", "ip -j rule"),
        ("ip6-rule.json", "ip -6 -j rule"), ("ss.txt", "ss -lntuH"), ("iptables-save.txt", "iptables-legacy-save -c"),
    ):  # fmt: skip
        (folder / "nodes" / NODE / file).write_bytes(printed(netns, command))
    return parse_snapshot(open_snapshot(folder)).nodes[NODE]


def rules(state: NodeState) -> dict[tuple[str, str], list[object]]:
    """What each chain does: matches and targets, whatever the spelling."""
    (ruleset,) = [r for r in state.rulesets if r.family == "ip"]
    return {
        (table, name): [(sorted(map(repr, rule.matches)), rule.target) for rule in chain]
        for table in ("nat", "filter", "mangle")
        for name in ruleset.chain_names(table)
        if (chain := ruleset.chain(table, name)) is not None
    }


def test_a_sosreport(netns: str, tmp_path: Path) -> None:
    found, told = imported(netns, tmp_path, f"sosreport-{NODE}-2026-11-27-abc", SOS), own(netns, tmp_path)
    for field in ("interfaces", "routes", "rules4", "rules6", "sockets"):
        assert getattr(found, field) == getattr(told, field), field
    assert found.sysctls is not None
    assert found.sysctls["net.ipv4.ip_forward"] == "1"
    assert rules(found).keys() == rules(told).keys()
    assert {name: len(chain) for name, chain in rules(found).items()} == {
        name: len(chain) for name, chain in rules(told).items()
    }


def _of_sosreport(netns: str, tmp_path: Path, command: str) -> NodeState:
    """The node of a sosreport on which `iptables` is that command, and nft's listing in it."""
    layout = {name: words.replace("iptables-legacy", command) for name, words in SOS.items()}
    layout["sos_commands/firewall_tables/nft_-a_list_ruleset"] = "nft -a list ruleset"
    return imported(netns, tmp_path, f"sosreport-{NODE}-2026-11-27-abc", layout)


def test_whose_rules_a_sosreport_lists(netns: str, tmp_path: Path) -> None:
    """`iptables -nvL` does not say whose rules it lists; nft's listing tells, and no rule is walked twice or left out."""
    dump = printed(netns, "iptables-legacy-save")
    # Beside kube-proxy's rules in legacy: what another program left in iptables-nft applies as well.
    printed(netns, "iptables-nft -A INPUT -p tcp --dport 9 -j DROP")
    found = _of_sosreport(netns, tmp_path / "legacy", "iptables-legacy")
    (listed,) = found.rulesets_of("ip")
    assert listed.backend is Backend.LEGACY
    assert [chain.table for chain in nft_base_chains(Host(found), 4) if chain.hook == "INPUT"] == [
        "ip filter"
    ]

    for table in ("nat", "filter", "mangle"):
        for option in ("-F", "-X"):
            printed(netns, f"iptables-legacy -t {table} {option}")
    subprocess.run(
        ["ip", "netns", "exec", netns, "iptables-nft-restore"], input=dump, stderr=subprocess.DEVNULL, check=True
    )  # fmt: skip
    found = _of_sosreport(netns, tmp_path / "nft", "iptables-nft")
    (listed,) = found.rulesets_of("ip")
    assert listed.backend is Backend.NFT
    assert nft_base_chains(Host(found), 4) == []

    # A chain of nft's own in a table of iptables-nft is no part of what iptables lists, and its only one that is not.
    chain = "{ type nat hook prerouting priority -90; }"
    printed(netns, f"nft add chain ip nat own {chain}; add rule ip nat own tcp dport 9 redirect to :10")
    found = _of_sosreport(netns, tmp_path / "both", "iptables-nft")
    (listed,) = found.rulesets_of("ip")
    assert listed.backend is Backend.NFT
    assert [chain.listed_as("ip", chain.hook) for chain in nft_base_chains(Host(found), 4)] == [
        ("ip", "nat", "own")
    ]


def test_an_archive_of_the_eks_log_collector(netns: str, tmp_path: Path) -> None:
    """Its folder is called by the instance, which the Node's providerID names."""
    found, told = (
        imported(netns, tmp_path, "eks_i-0abc123def_2026-11-27_1200-UTC_0.7.8", EKS),
        own(netns, tmp_path),
    )
    assert (found.routes, found.rules4, found.rules6) == (told.routes, told.rules4, told.rules6)
    assert found.interfaces is None  # it has ifconfig alone
    assert rules(found) == rules(replace(told))


def test_what_is_understood_in_part_is_left_out(netns: str, tmp_path: Path) -> None:
    """`ip route` without the table of the node's own addresses, a listing without its other tables."""
    layout = {
        **{name: command for name, command in SOS.items() if "iptables_-vnxL" not in name},
        "sos_commands/networking/ip_route_show_table_all": "ip route",
        "sos_commands/networking/ip_-6_route_show_table_all": "ip -6 route",
    }
    source = tmp_path / "source"
    shutil.copytree(DEMO / "cluster", source / "objects")
    for name, command in layout.items():
        path = source / f"sosreport-{NODE}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(printed(netns, command))
    assert ktp("snapshot", "import", str(source), str(tmp_path / "out")).returncode == 0
    names = {path.name for path in (tmp_path / "out/nodes" / NODE).iterdir()}
    assert names == {
        "ip-addr.json",
        "ip-rule.json",
        "ip6-rule.json",
        "ss.txt",
        "sysctl.txt",
        "ip6tables-save.txt",
    }
