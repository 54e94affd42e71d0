"""All rules of a large node: what is decoded here is what `iptables-nft-save` prints."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ktp.collect import nft_whole
from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import CommandResult, LocalRunner
from ktp.collect.nf_tables import NfTables
from ktp.collect.nft_chains import LARGE_CHAINS, ChainReader
from ktp.collect.nft_decode import Decoded, decode_rule
from ktp.collect.nft_whole import WHOLE_MARK, read_whole
from tests.support.node_netns import inside

pytestmark = pytest.mark.kernel
DATA = Path(__file__).resolve().parents[2] / "data"
HOOKS = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}


class CountingRunner(LocalRunner):
    """This machine; `ran` are the chains that a command was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        if "-S" in command:
            self.ran.append(command[command.index("-S") + 1])
        return super().run(command, timeout=timeout)


def load(netns: str, rules: Sequence[str], family: str = "ip", table: str = "nat") -> None:
    """Load rules of one table; chains are made as they are named."""
    names = dict.fromkeys(rule.split()[1] for rule in rules)
    text = [f"*{table}", *(f":{name} ACCEPT [0:0]" for name in HOOKS[table])]
    text += [f":{name} - [0:0]" for name in names if name not in HOOKS[table]]
    subprocess.run(
        ["ip", "netns", "exec", netns, f"{'ip6' if family == 'ip6' else 'ip'}tables-nft-restore"],
        input="\n".join([*text, *rules, "COMMIT", ""]).encode("utf-8", "surrogateescape"),
        check=True,
    )


def saved(netns: str, command: str = "iptables-nft-save") -> list[str]:
    """What the command prints, table by table in an order that does not tell."""
    done = subprocess.run(["ip", "netns", "exec", netns, command, "-c"], capture_output=True, check=True)
    return lines_of(done.stdout)


def lines_of(dump: bytes) -> list[str]:
    lines = [
        line for line in dump.decode("utf-8", "surrogateescape").splitlines() if not line.startswith("#")
    ]
    tables = "\n".join(lines).split("COMMIT")
    return sorted(table.strip() for table in tables if table.strip())


def whole(netns: str, command: str = "iptables-nft") -> tuple[list[str] | None, list[str]]:
    """The dump that ktp makes, and the chains that the command was asked for."""
    runner = CountingRunner()

    with inside(netns):
        dump = read_whole(ChainReader(runner, command, NfTables()))
    return None if dump is None else lines_of(dump), runner.ran


@pytest.fixture
def netns(make_netns: Callable[[str], str]) -> str:
    return make_netns("whole")


@pytest.mark.parametrize(
    "dump",
    sorted(DATA.glob("*/core-*nft*/nodes/*/ip*tables-nft-save.txt")),
    ids=lambda path: "/".join((*path.parts[-4:-1:2], path.name)),
)
def test_a_recorded_node(netns: str, dump: Path) -> None:
    command = dump.name.removesuffix("-save.txt")
    # What nfacct counts in would have to be made before.
    rules = b"\n".join(line for line in dump.read_bytes().split(b"\n") if b"-m nfacct" not in line)
    subprocess.run(["ip", "netns", "exec", netns, f"{command}-restore", "-c"], input=rules, check=True)
    ours, _ = whole(netns, command)
    assert ours == saved(netns, f"{command}-save")


# Each is decoded, and nothing else is asked of the command than one chain for each kind.
KNOWN = """
-A A -j B
-A A -g B
-A A -j ACCEPT
-A A -j RETURN
-A A -s 10.0.0.1/32 -j B
-A A ! -s 10.0.0.1/32 -d 10.96.0.0/12 -p tcp -j B
-A A -s 10.0.0.0/8 ! -d 10.1.0.0/16 -j B
-A A -d 10.1.2.0/23 -j B
-A A -p udp -m comment --comment plain_word-1 -j B
-A A -m comment --comment "a/b:http cluster IP" -j B
-A A -m comment --comment "it\\'s \\\\ \\"quoted\\" -c 1 2 -j X" -j B
-A A -m comment --comment "größe" -j B
-A A -d 10.96.0.1/32 -p tcp -m comment --comment "x y" -m tcp --dport 80 -j B
-A A -p tcp -m tcp ! --dport 80 -j B
-A A -p udp -m udp --sport 53 -j B
-A A -p sctp -m comment --comment "x y" -j B
-A A -m comment --comment "x y" -m statistic --mode random --probability 0.33333333349 -j B
-A A -m statistic --mode random ! --probability 0.50000000000 -j B
-A A -m statistic --mode random --probability 1.00000000000 -j B
-A A -m addrtype --dst-type LOCAL -j B
-A A -m addrtype ! --dst-type LOCAL -j B
-A A -m addrtype --src-type LOCAL -j B
-A A -p tcp -m comment --comment "x y" -m tcp -j DNAT --to-destination 10.1.1.1:8080
-A A -p udp -m udp -j DNAT --to-destination 10.1.1.1:53
-A A -p tcp -j DNAT --to-destination 10.1.1.1:53
-A A -m comment --comment "no target"
""".strip().splitlines()
# These are left to the command.
UNKNOWN = """
-A A -p icmp -j B
-A A ! -p tcp -j B
-A A -i eth0 -j B
-A A -s 10.0.0.1/255.0.0.255 -j B
-A A -m mark --mark 0x4000/0x4000 -j B
-A A -p tcp -m tcp --dport 80:90 -j B
-A A -p tcp -m tcp --sport 1 --dport 80 -j B
-A A -p tcp -m tcp --tcp-flags SYN,ACK SYN -j B
-A A -p tcp -m multiport --dports 80,90 -j B
-A A -m addrtype --dst-type LOCAL,UNICAST -j B
-A A -m addrtype --src-type LOCAL --dst-type LOCAL -j B
-A A -m addrtype --dst-type LOCAL --limit-iface-in -j B
-A A -m statistic --mode nth --every 3 --packet 0 -j B
-A A -m conntrack --ctstate NEW -j B
-A A -p tcp -j DNAT --to-destination 10.1.1.1
-A A -p tcp -j DNAT --to-destination 10.1.1.1-10.1.1.9:80
-A A -p tcp -j DNAT --to-destination 10.1.1.1:80-90
-A A -p tcp -j DNAT --to-destination 10.1.1.1:80 --random
-A A -j MARK --set-xmark 0x4000/0x4000
-A A -j MASQUERADE
-A A -f -j B
-A A -m recent --set --name X --mask 255.255.255.255 --rsource
""".strip().splitlines()


def decoded(netns: str, rule: str, family: str = "ip") -> Decoded | None:
    load(netns, [rule, "-A B -j RETURN"], family)
    with inside(netns):
        (found,) = NfTables().rules(family, "nat", "A")
    return decode_rule(family, found[4])


@pytest.mark.parametrize("rule", KNOWN)
def test_a_rule_that_is_decoded(netns: str, rule: str) -> None:
    found = decoded(netns, rule)
    assert found is not None
    assert f"-A A{found.matches}{found.target}" == rule
    assert whole(netns)[0] == saved(netns)


@pytest.mark.parametrize("rule", UNKNOWN)
def test_a_rule_that_is_left_to_the_command(netns: str, rule: str) -> None:
    assert decoded(netns, rule) is None
    ours, asked = whole(netns)
    assert ours == saved(netns)
    assert "A" in asked


@pytest.mark.parametrize(
    "rule",
    [
        "-A A ! -s fd00::/64 -d fd00:96::1/128 -p tcp -m tcp --dport 80 -j B",
        "-A A -s fd00:1:2:8::/61 -j B",
        "-A A -d ::ffff:10.0.0.1/128 -j B",
        "-A A -p tcp -m tcp -j DNAT --to-destination [fd00::1]:8080",
    ],
)
def test_a_rule_of_ipv6(netns: str, rule: str) -> None:
    found = decoded(netns, rule, "ip6")
    assert found is not None
    assert f"-A A{found.matches}{found.target}" == rule
    assert whole(netns, "ip6tables-nft")[0] == saved(netns, "ip6tables-nft-save")


def test_rules_drawn_by_lot(netns: str) -> None:
    lot = random.Random(7)
    rules = []
    for number in range(2500):
        protocol = lot.choice(("tcp", "udp"))
        words = [f"-A C{lot.randrange(300)}"]
        for option in ("-s", "-d"):
            if lot.random() < 0.5:
                bits = lot.choice((32, 32, 24, 16, 8, lot.randrange(1, 33)))
                address = lot.randrange(1 << 32) >> (32 - bits) << (32 - bits)
                dotted = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
                words.append(f"{lot.choice(('', '', '! '))}{option} {dotted}/{bits}")
        port = lot.random() < 0.5
        if port:
            words.append(f"-p {protocol}")
        if lot.random() < 0.7:
            words.append(
                f'-m comment --comment "{"".join(lot.choices("ab-_/: x.$%", k=lot.randrange(1, 40)))}"'
            )
        if lot.random() < 0.3:
            words.append(f"-m statistic --mode random --probability {lot.random():.11f}")
        if port:
            words.append(f"-m {protocol} {lot.choice(('', '! '))}--dport {lot.randrange(65536)}")
        words.append("-j " + lot.choice(("ACCEPT", "RETURN", f"C{300 + number % 100}")))
        rules.append(" ".join(words))
    load(netns, [*rules, *(f"-A C{n} -j RETURN" for n in range(300, 400))])

    with inside(netns):
        kernel = NfTables()
        found = {name: kernel.rules("ip", "nat", name) for _, name, _ in kernel.chains("ip")}
    assert [n for n, each in found.items() for rule in each if decode_rule("ip", rule[4]) is None] == []
    assert whole(netns)[0] == saved(netns)


def test_a_drop(netns: str) -> None:
    load(netns, ["-A A -s 10.0.0.1/32 -j DROP", "-A INPUT -j A"], table="filter")
    assert whole(netns)[0] == saved(netns)


def test_words_that_the_nodes_iptables_puts_otherwise(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of iptables than this decoder knows: what it prints is right."""
    load(netns, ["-A A -s 10.0.0.1/32 -j B", "-A B -s 10.0.0.2/32 -j C", "-A C -p tcp -j RETURN"])

    def otherwise(family: str, expressions: bytes) -> Decoded | None:
        found = decode_rule(family, expressions)
        return found and replace(found, matches=found.matches.replace(" -s ", " --source "))

    monkeypatch.setattr(nft_whole, "decode_rule", otherwise)
    ours, asked = whole(netns)
    assert ours == saved(netns)
    assert {"A", "B"} <= set(asked)


def test_too_many_chains_of_other_kinds(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(netns, [f"-A C{n} -j MARK --set-xmark 0x1/0x1" for n in range(4)])
    assert whole(netns)[0] == saved(netns)
    monkeypatch.setattr(nft_whole, "MOST_BY_COMMAND", 3)
    assert whole(netns)[0] is None


def test_somebody_elses_base_chain(netns: str) -> None:
    load(netns, ["-A A -j RETURN"])
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            netns,
            "nft",
            "add chain ip nat other { type filter hook input priority 5; }",
        ],
        check=True,
    )
    assert whole(netns)[0] is None


def test_rules_that_change_meanwhile(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(netns, ["-A A -j RETURN"])
    told = iter([1, 2, 3, 3])
    monkeypatch.setattr(ChainReader, "generation", lambda _: next(told))
    assert whole(netns)[0] == saved(netns)
    told = iter(range(100))
    assert whole(netns)[0] is None


def test_a_large_node_is_read_so_and_left_as_it_is(netns: str) -> None:
    load(netns, [f'-A KUBE-SVC-{n} -m comment --comment "s {n}" -j RETURN' for n in range(LARGE_CHAINS + 10)])
    with inside(netns):
        before = NfTables().generation()
        capture = collect_local_node("n")
        after = NfTables().generation()
    dump = capture.read("nodes/n/iptables-nft-save.txt")
    assert dump.startswith(WHOLE_MARK.encode())
    assert lines_of(dump) == saved(netns)
    assert after == before
