"""Legacy tables read through libiptc, and libxtables as an oracle for ktp's own parser."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.children import ChildResult
from ktp.collect.iptc_reader import read_legacy_tables
from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import CommandResult
from ktp.model.ruleset import Ruleset
from ktp.parse.iptables_save import open_ruleset
from tests.support.iptables_rules import render_rule
from tests.unit.collect.test_local_node import PROC, FakeRunner

needs_iptc = pytest.mark.skipif(importlib.util.find_spec("iptc") is None, reason="needs python-iptables")
RECORDED = Path(__file__).resolve().parents[2] / "data"
Inside = Callable[..., str]

RULES = r"""*filter
:INPUT ACCEPT [3:252]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:WEB - [0:0]
[5:300] -A INPUT -s 10.0.0.0/8 ! -d 10.1.2.3/32 -i eth+ -p udp -m udp --dport 53 -m comment --comment "a \"b\" -j X" -j WEB
[0:0] -A INPUT -i lo -p tcp -m tcp --sport 1:1024 --tcp-flags SYN,RST SYN -m multiport --dports 80,443,8000:8010 -j ACCEPT
[0:0] -A INPUT ! -i eth0 -p tcp -f -j DROP
[0:0] -A INPUT -p icmp -m icmp --icmp-type 8 -m limit --limit 5/sec --limit-burst 7 -m conntrack ! --ctstate RELATED,ESTABLISHED -j NFLOG --nflog-group 5
[0:0] -A FORWARD -m mark --mark 0x4000/0x4000 -m comment --comment "kubernetes forwarding rules" -g KUBE-FORWARD
[0:0] -A FORWARD -m addrtype --dst-type LOCAL -m statistic --mode random --probability 0.50000000000 -j REJECT --reject-with icmp-port-unreachable
[0:0] -A FORWARD -s 10.0.0.0/255.0.255.0 -m iprange --src-range 10.0.0.1-10.0.0.9 -j LOG --log-prefix "x -j Y " --log-level 7
[0:0] -A FORWARD -m recent --set --name K --mask 255.255.255.255 --rsource
[0:0] -A FORWARD
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SEP-A - [0:0]
[0:0] -A POSTROUTING -s 10.244.0.0/16 ! -o cni0 -j MASQUERADE --random-fully
[7:420] -A KUBE-SEP-A -p tcp -m comment --comment "test/web:http" -m tcp -j DNAT --to-destination 10.244.1.2:80
COMMIT
"""


@pytest.fixture
def inside(make_netns: Callable[[str], str], repository: Path) -> Inside:
    name = make_netns("iptc")

    def run(*command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", name, *command],
            input=stdin, capture_output=True, text=True, cwd=repository, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def read_by_libiptc(inside: Inside, family: str = "iptables") -> str:
    return inside(sys.executable, "-m", "ktp.collect.iptc_reader", family)


def model_of(text: str) -> dict[str, object]:
    """All that a dump says, each rule in ktp's own words."""
    rules: Ruleset = open_ruleset(text.encode(), source="x")
    out: dict[str, object] = {}
    for table in rules.tables():
        for name in rules.chain_names(table):
            chain = rules.chain(table, name)
            assert chain is not None
            assert not [rule.error for rule in chain if rule.error]
            counters = chain.counters if chain.policy else None
            out[f"{table} {name}"] = (chain.policy, counters, [render_rule(rule) for rule in chain])
    return out


@needs_iptc
@pytest.mark.kernel
def test_libiptc_and_our_parser_read_the_same_rules_alike(inside: Inside) -> None:
    inside("iptables-legacy-restore", "-c", stdin=RULES)
    ours = model_of(inside("iptables-legacy-save", "-c"))
    assert model_of(read_by_libiptc(inside)) == ours
    assert model_of(RULES) == ours


@needs_iptc
@pytest.mark.kernel
def test_rules_of_kube_proxy_as_recorded(inside: Inside) -> None:
    dumps = sorted(RECORDED.glob("**/iptables-legacy-save.txt"), key=lambda path: path.stat().st_size)
    dumps = [dump for dump in dumps if "match-set" not in dump.read_text() and "*nat" in dump.read_text()]
    if not dumps:
        pytest.skip("no recorded legacy rules")
    inside("iptables-legacy-restore", "-c", stdin=dumps[-1].read_text())
    assert model_of(read_by_libiptc(inside)) == model_of(inside("iptables-legacy-save", "-c"))


@needs_iptc
@pytest.mark.kernel
def test_ip6tables(inside: Inside) -> None:
    inside("ip6tables-legacy", "-A", "INPUT", "!", "-s", "fd00::/8", "-p", "ipv6-icmp", "-j", "ACCEPT")
    assert "-A INPUT ! -s fd00::/8 -p ipv6-icmp -j ACCEPT" in inside("ip6tables-legacy-save", "-c")
    assert model_of(read_by_libiptc(inside, "ip6tables")) == model_of(inside("ip6tables-legacy-save", "-c"))


@needs_iptc
@pytest.mark.kernel
def test_reading_makes_no_table(inside: Inside) -> None:
    inside("iptables-legacy", "-A", "INPUT", "-j", "NFLOG")
    assert "-A INPUT -j NFLOG" in read_by_libiptc(inside)
    assert inside("cat", "/proc/net/ip_tables_names") == "filter\n"
    assert inside("cat", "/proc/net/ip6_tables_names") == ""
    assert read_by_libiptc(inside, "ip6tables").count("\n") == 1


HIDDEN = """
import json
from ktp.collect import local_node, machine
class Without(machine.LocalRunner):
    def has_command(self, name):
        return "tables" not in name and super().has_command(name)
capture = local_node.collect_local_node("n", Without(), legacy_reader=local_node._read_with_iptc)
print(json.dumps({name: capture.read(name).decode() for name in capture.names() if "legacy" in name}))
"""


@needs_iptc
@pytest.mark.kernel
def test_a_node_without_iptables_legacy_save(inside: Inside) -> None:
    inside(
        "iptables-legacy",
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        "31015",
        "-j",
        "DNAT",
        "--to",
        "1.2.3.4:80",
    )
    files = json.loads(inside(sys.executable, "-c", HIDDEN))
    assert (
        "-A PREROUTING -p tcp -m tcp --dport 31015 -j DNAT --to-destination 1.2.3.4:80"
        in files["nodes/n/iptables-legacy-save.txt"]
    )
    assert inside("cat", "/proc/net/ip_tables_names") == "nat\n"


def without_command() -> FakeRunner:
    return FakeRunner(files={**PROC, "/proc/net/ip_tables_names": b"nat\n"}).without("iptables-legacy-save")


def test_what_libiptc_gives_is_used_where_the_command_is_missing() -> None:
    asked: list[str] = []

    def reader(family: str) -> CommandResult:
        asked.append(family)
        return CommandResult(status=0, stdout=b"*nat\nCOMMIT\n")

    capture = collect_local_node("n", without_command(), legacy_reader=reader)
    assert capture.read("nodes/n/iptables-legacy-save.txt") == b"*nat\nCOMMIT\n"
    assert asked == ["iptables"]
    assert capture.gaps == ()


@pytest.mark.parametrize(("tables", "command"), [(b"", True), (b"nat\n", False)])
def test_it_is_never_asked_otherwise(tables: bytes, command: bool) -> None:
    def reader(family: str) -> CommandResult:
        raise AssertionError(family)

    runner = FakeRunner(files={**PROC, "/proc/net/ip_tables_names": tables})
    if command:
        runner.without("iptables-legacy-save")
    collect_local_node("n", runner, legacy_reader=reader)


def test_its_failure_is_a_gap() -> None:
    failed = CommandResult(status=1, stderr=b"python-iptables cannot read the iptables tables: no libip4tc")
    capture = collect_local_node("n", without_command(), legacy_reader=lambda family: failed)
    (gap,) = capture.gaps
    assert gap.message == (
        "the kernel has the legacy iptables tables nat, but no iptables-legacy-save is installed "
        "(python-iptables cannot read the iptables tables: no libip4tc) on node n"
    )
    assert "ktp[iptc]" in str(gap.remedy)


def test_without_the_package_the_child_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[3])])
    monkeypatch.setattr(sys, "executable", getattr(sys, "_base_executable", sys.executable))
    answer = read_legacy_tables("iptables", timeout=20)
    assert isinstance(answer, ChildResult)
    assert answer.status == 1
    assert answer.stderr.startswith(b"python-iptables cannot read the iptables tables: ")
