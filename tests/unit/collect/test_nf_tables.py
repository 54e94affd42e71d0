"""nf_tables asked over netlink: what it says is what nft and iptables list."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import LocalRunner
from ktp.collect.nf_tables import ChainSize, NfTables
from ktp.collect.nft_chains import Destination, Reach
from tests.support.node_netns import inside

pytestmark = pytest.mark.kernel


def nft(netns: str, *words: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", netns, "nft", *words], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def netns(make_netns: Callable[[str], str]) -> str:
    return make_netns("nf")


@pytest.fixture
def kernel(netns: str) -> Iterator[NfTables]:
    with inside(netns):
        opened = NfTables()
    yield opened
    opened.close()


RULES = """
table ip nat {
	map ports { type inet_service : verdict; elements = { 80 : jump user, 81 : jump user } }
	chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; jump user; tcp dport vmap @ports; }
	chain user { counter; counter; counter; }
	chain empty { }
}
table ip6 nat { }
table inet filter {
	chain in { type filter hook input priority 0; policy drop; }
}
"""


def test_nothing_is_there_at_first(kernel: NfTables) -> None:
    assert kernel.tables() == {}
    assert kernel.chain("ip", "nat", "PREROUTING") is None


def test_tables_and_chains(netns: str, kernel: NfTables) -> None:
    nft(netns, "-f", "-", text=RULES)
    assert kernel.tables() == {("ip", "nat"): 4, ("ip6", "nat"): 0, ("inet", "filter"): 1}
    assert kernel.chain("ip", "nat", "PREROUTING") == ChainSize(2, "ACCEPT")
    # Three rules, one jump, two elements of a map.
    assert kernel.chain("ip", "nat", "user") == ChainSize(6)
    assert kernel.chain("ip", "nat", "empty") == ChainSize(0)
    assert kernel.chain("inet", "filter", "in") == ChainSize(0, "DROP")
    assert kernel.chain("ip6", "nat", "user") is None
    assert kernel.chain("ip", "none", "user") is None


def test_many_tables_come_in_several_messages(netns: str, kernel: NfTables) -> None:
    names = [f"table-with-a-rather-long-name-{number:04}" for number in range(1500)]
    nft(netns, "-f", "-", text="".join(f"table ip {name} {{ }}\n" for name in names))
    assert kernel.tables() == {("ip", name): 0 for name in names}


def test_every_change_is_another_generation(netns: str, kernel: NfTables) -> None:
    before = kernel.generation()
    assert kernel.generation() == before
    nft(netns, "add", "table", "ip", "t")
    changed = kernel.generation()
    assert changed != before
    nft(netns, "list", "ruleset")
    assert kernel.generation() == changed


def test_asking_changes_nothing(netns: str, kernel: NfTables) -> None:
    nft(netns, "-f", "-", text=RULES)
    listed, generation = nft(netns, "-a", "list", "ruleset"), kernel.generation()
    kernel.tables()
    kernel.chain("ip", "nat", "POSTROUTING")
    assert kernel.generation() == generation
    assert nft(netns, "-a", "list", "ruleset") == listed


@pytest.mark.parametrize("port", [30007, 31500])
def test_a_large_node_reads_the_same_with_the_kernel_asked(netns: str, port: int) -> None:
    services = range(1200)
    rules = ["*nat", *(f":{hook} ACCEPT [0:0]" for hook in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))]
    rules += [
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        *(f":KUBE-EXT-{n} - [0:0]" for n in services),
    ]
    rules += ["-A PREROUTING -j KUBE-SERVICES"]
    rules += [
        f"-A KUBE-SERVICES -d 10.96.{n >> 8}.{n & 255}/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-{n}"
        for n in services
    ]
    rules += ["-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"]
    rules += [
        f'-A KUBE-NODEPORTS -p tcp -m comment --comment "ns/s-{n} -c 1 2" -m tcp --dport {30000 + n} -j KUBE-EXT-{n}'
        for n in services
    ]
    rules += [f"-A KUBE-EXT-{n} -p tcp -j DNAT --to-destination 10.244.0.{n & 255}:8080" for n in services]
    subprocess.run(
        ["ip", "netns", "exec", netns, "iptables-nft-restore"],
        input="\n".join([*rules, "COMMIT", ""]).encode(),
        check=True,
    )
    reach = Reach(destinations=(Destination(protocol="tcp", port=port),))

    with inside(netns):
        found = [collect_local_node("n", LocalRunner(), reach=reach, kernel=k) for k in (None, NfTables)]
    without, with_kernel = (
        {name: each.read(name) for name in each.names() if "iptables" in name} for each in found
    )
    assert with_kernel == without
    assert (f"-j KUBE-EXT-{port - 30000}\n".encode() in without["nodes/n/iptables-nft-save.txt"]) == (
        port == 30007
    )
