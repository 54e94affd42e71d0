"""The node that ktp runs on: which one it is, what is read of it, and that reading leaves no trace."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from ktp.collect.local_node import (
    CILIUM_FOLDER,
    CILIUM_READS,
    collect_local_node,
    local_node_name,
)
from ktp.collect.machine import CommandResult, LocalRunner
from ktp.model.capture import Capture, MemoryCapture

ADDRESSES = [{"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]}, {"addr_info": [{"local": "10.0.0.3"}]}]
READERS = {
    "ip -j addr": json.dumps(ADDRESSES),
    "ip -j rule": "[1]",
    "ip -6 -j rule": "[2]",
    "ip -j route show table all": "[3]",
    "ip -6 -j route show table all": "[4]",
    "ss -lntuH": "tcp LISTEN",
    "ip -j -d link": "[5]",
    "ip -j neigh": "[6]",
    "nft -j list ruleset": '{"nftables": [{"metainfo": {}}]}',
    "iptables-nft-save -c": "# nft v4",
    "ip6tables-nft-save -c": "# nft v6",
    "iptables-legacy-save -c": "# legacy v4",
    "ip6tables-legacy-save -c": "# legacy v6",
    "ipset save": "create s hash:ip",
    "ipvsadm -Sn": "-A -t 1.2.3.4:80",
    "nft list hooks": "family ip {",
}
PROC = {
    "/proc/net/ip_tables_names": b"",
    "/proc/net/ip6_tables_names": b"",
    "/proc/sys/net/ipv4/ip_forward": b"1\n",
}
PRESENT = {"/sys/module/ip_set", "/sys/module/nf_tables", "/proc/modules", "/proc/sys/net/ipv6"}
NO_LEGACY = b"# /proc/net/ip_tables_names lists no legacy table\n"


class FakeRunner:
    """A machine made of dictionaries that remembers which commands it ran."""

    def __init__(
        self,
        outputs: Mapping[str, str | CommandResult] = READERS,
        files: Mapping[str, bytes | OSError] = PROC,
        present: set[str] = PRESENT,
        *,
        hostname: str = "client",
        root: bool = True,
    ) -> None:
        self.outputs = dict(outputs)
        self.files = dict(files)
        self.present = present
        self.ran: list[str] = []
        self._hostname = hostname
        self._root = root

    def without(self, *commands: str) -> FakeRunner:
        """The same machine with some commands not installed."""
        self.outputs = {line: out for line, out in self.outputs.items() if line.split()[0] not in commands}
        return self

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        line = " ".join(command)
        self.ran.append(line)
        output = self.outputs[line]
        return (
            output if isinstance(output, CommandResult) else CommandResult(status=0, stdout=output.encode())
        )

    def namespaces(self, addresses: Sequence[str]) -> dict[str, int]:
        return {}

    def agents_command(self) -> str:
        return ""

    def has_command(self, name: str) -> bool:
        return any(line.split()[0] == name for line in self.outputs)

    def read_file(self, path: str) -> bytes:
        content = self.files.get(path, FileNotFoundError(2, "No such file or directory"))
        if isinstance(content, OSError):
            raise content
        return content

    def list_folder(self, path: str) -> list[str]:
        prefix = path + "/"
        return sorted({name[len(prefix) :].split("/")[0] for name in self.files if name.startswith(prefix)})

    def exists(self, path: str) -> bool:
        return path in self.present or path in self.files

    def hostnames(self) -> tuple[str, ...]:
        return (self._hostname,)

    def is_root(self) -> bool:
        return self._root


def read(capture: Capture, name: str) -> bytes:
    return capture.read(f"nodes/node-a/{name}")


# --------------------------------------------------------------------------------------------- which node it is


def cluster(*nodes: Mapping[str, object]) -> MemoryCapture:
    return MemoryCapture(files={"cluster/nodes.json": json.dumps({"items": nodes}).encode()})


def node(name: str, *addresses: str, boot_id: str | None = None) -> dict[str, object]:
    status: dict[str, object] = {
        "addresses": [{"type": "InternalIP", "address": address} for address in addresses]
        + [{"type": "Hostname", "address": name}]
    }
    if boot_id:
        status["nodeInfo"] = {"bootID": boot_id}
    return {"metadata": {"name": name}, "status": status}


BOOT_ID = {"/proc/sys/kernel/random/boot_id": b"this-boot\n"}


@pytest.mark.parametrize(
    ("nodes", "hostname", "expected"),
    [
        ([node("node-a", "10.0.0.3"), node("node-b", "10.0.0.4")], "client", "node-a"),
        ([node("node-b", "10.0.0.4")], "client", None),
        ([node("node-b", "10.0.0.4")], "node-b", "node-b"),
        ([node("node-b.example.org", "10.0.0.4")], "node-b", "node-b.example.org"),
        ([node("node-b", "10.0.0.4")], "Node-B.example.org", "node-b"),
        # An address says more than a name.
        ([node("node-b", "10.0.0.4"), node("node-a", "10.0.0.3")], "node-b", "node-a"),
        # Every machine has the loopback address.
        ([node("node-b", "127.0.0.1")], "client", None),
        # The same name or address on a machine that was booted at another time is another machine.
        ([node("node-a", "10.0.0.3", boot_id="another")], "node-a", None),
        ([node("node-a", "10.0.0.3", boot_id="this-boot")], "client", "node-a"),
        ([], "client", None),
    ],
)
def test_which_node_this_is(nodes: list[dict[str, object]], hostname: str, expected: str | None) -> None:
    runner = FakeRunner(files=BOOT_ID, hostname=hostname)
    assert local_node_name(cluster(*nodes), runner) == expected


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"items": [{"metadata": {}}]}'])
def test_without_nodes_this_is_none(content: bytes | None) -> None:
    files = {} if content is None else {"cluster/nodes.json": content}
    assert local_node_name(MemoryCapture(files=files), FakeRunner()) is None


def test_an_ipv6_address_is_compared_as_an_address() -> None:
    runner = FakeRunner({"ip -j addr": json.dumps([{"addr_info": [{"local": "fd00::3"}]}])})
    assert local_node_name(cluster(node("node-a", "fd00:0:0::3")), runner) == "node-a"


# ------------------------------------------------------------------------------------------------ what is read


def test_every_dump_has_its_file() -> None:
    runner = FakeRunner()
    capture = collect_local_node("node-a", runner)
    assert {name.removeprefix("nodes/node-a/"): capture.read(name) for name in capture.names()} == {
        "ip-addr.json": READERS["ip -j addr"].encode(),
        "ip-rule.json": b"[1]",
        "ip6-rule.json": b"[2]",
        "ip-route.json": b"[3]",
        "ip6-route.json": b"[4]",
        "ip-link.json": b"[5]",
        "ip-neigh.json": b"[6]",
        "ss.txt": b"tcp LISTEN",
        "nft-ruleset.json": READERS["nft -j list ruleset"].encode(),
        "nft-hooks.txt": b"family ip {",
        "iptables-nft-save.txt": b"# nft v4",
        "ip6tables-nft-save.txt": b"# nft v6",
        "iptables-legacy-save.txt": NO_LEGACY,
        "ip6tables-legacy-save.txt": NO_LEGACY.replace(b"ip_tables", b"ip6_tables"),
        "ipset-save.txt": b"create s hash:ip",
        "ipvsadm.txt": b"",
        "sysctl.txt": b"net.ipv4.ip_forward = 1\n"
        b"sysctl: cannot stat /proc/sys/net/bridge/bridge-nf-call-iptables: No such file or directory\n"
        b"sysctl: cannot stat /proc/sys/net/bridge/bridge-nf-call-ip6tables: No such file or directory\n",
    }
    assert capture.gaps == ()
    assert capture.source == "node node-a (this machine)"


def test_legacy_tables_are_read_only_where_there_are_some() -> None:
    runner = FakeRunner(files={**PROC, "/proc/net/ip_tables_names": b"nat\nfilter\n"})
    capture = collect_local_node("node-a", runner)
    assert read(capture, "iptables-legacy-save.txt") == b"# legacy v4"
    assert [line for line in runner.ran if "legacy" in line] == ["iptables-legacy-save -c"]


def test_a_kernel_without_legacy_tables_is_not_given_any() -> None:
    runner = FakeRunner(files={})
    assert read(collect_local_node("node-a", runner), "iptables-legacy-save.txt") == NO_LEGACY
    assert not [line for line in runner.ran if "legacy" in line]


def test_legacy_tables_without_the_command_are_a_gap() -> None:
    runner = FakeRunner(files={**PROC, "/proc/net/ip_tables_names": b"nat\n"}).without("iptables-legacy-save")
    capture = collect_local_node("node-a", runner)
    assert [gap.kind for gap in capture.gaps] == ["node-rules"]
    assert "legacy iptables tables nat, but no iptables-legacy-save" in capture.gaps[0].message


@pytest.mark.parametrize(
    ("version", "names", "expected"),
    [
        ("iptables v1.8.9 (nf_tables)", b"", b"# plain"),
        ("iptables v1.8.9 (legacy)", b"filter\n", b"# plain"),
        ("iptables v1.6.1", b"filter\n", b"# plain"),
        ("iptables v1.6.1", b"", NO_LEGACY),
    ],
)
def test_a_node_with_the_plain_command_only(version: str, names: bytes, expected: bytes) -> None:
    outputs = {"iptables --version": version, "ip6tables --version": version}
    outputs |= {"iptables-save -c": "# plain", "ip6tables-save -c": "# plain"}
    runner = FakeRunner({**READERS, **outputs}, {**PROC, "/proc/net/ip_tables_names": names})
    runner.without(
        *(f"{family}-{kind}-save" for family in ("iptables", "ip6tables") for kind in ("nft", "legacy"))
    )
    capture = collect_local_node("node-a", runner)
    assert read(capture, "iptables-save.txt") == expected
    assert ("iptables-save -c" in runner.ran) == (expected == b"# plain")
    assert capture.gaps == ()


def test_an_nftables_node_needs_no_iptables() -> None:
    ruleset = '{"nftables": [{"table": {"family": "ip", "name": "kube-proxy"}}]}'
    runner = FakeRunner({**READERS, "nft -j list ruleset": ruleset})
    runner.without(*(line.split()[0] for line in READERS if "tables-" in line))
    assert collect_local_node("node-a", runner).gaps == ()


def test_iptables_rules_in_nft_need_iptables() -> None:
    ruleset = '{"nftables": [{"table": {"family": "ip", "name": "nat", "handle": 1}}]}'
    runner = FakeRunner({**READERS, "nft -j list ruleset": ruleset}).without("iptables-nft-save")
    capture = collect_local_node("node-a", runner)
    assert [(gap.kind, gap.subject) for gap in capture.gaps] == [("iptables-nft", "node-a")]
    assert "iptables-nft-save" in str(capture.gaps[0].remedy)


def test_a_kernel_without_a_module_is_not_made_to_load_it() -> None:
    symbols = {"/proc/kallsyms": b"0000000000000000 T tcp_sendmsg\n"}
    runner = FakeRunner(files={**PROC, **symbols}, present={"/proc/modules", "/proc/sys/net/ipv6"})
    capture = collect_local_node("node-a", runner)
    assert not [line for line in runner.ran if line.startswith(("nft", "ipset", "ipvsadm")) or "nft" in line]
    assert json.loads(read(capture, "nft-ruleset.json")) == {"nftables": []}
    assert read(capture, "ipset-save.txt") == b""
    assert read(capture, "iptables-nft-save.txt") == b"# the kernel has no nf_tables\n"
    assert capture.gaps == ()


@pytest.mark.parametrize(
    "symbols",
    [
        {"/proc/kallsyms": b"0 t nf_tables_newrule\n0 t ip_set_create\n"},
        {"/proc/kallsyms": PermissionError(13, "Permission denied")},
        {"/proc/kallsyms": b""},
        {},
    ],
)
def test_where_the_kernel_may_have_it_the_command_is_asked(symbols: dict[str, bytes | OSError]) -> None:
    runner = FakeRunner(files={**PROC, **symbols}, present={"/proc/modules", "/proc/sys/net/ipv6"})
    collect_local_node("node-a", runner)
    assert {"nft -j list ruleset", "ipset save", "iptables-nft-save -c"} <= set(runner.ran)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, b""),
        (b"IP Virtual Server version 1.2.1\nProt LocalAddress\n  -> RemoteAddress\n", b""),
        (b"IP Virtual Server version 1.2.1\nProt\n  ->\nTCP  0A000001:0050 rr\n", b"-A -t 1.2.3.4:80"),
    ],
)
def test_ipvsadm_runs_only_where_there_is_ipvs(table: bytes | None, expected: bytes) -> None:
    runner = FakeRunner(files={**PROC, **({"/proc/net/ip_vs": table} if table is not None else {})})
    assert read(collect_local_node("node-a", runner), "ipvsadm.txt") == expected
    assert ("ipvsadm -Sn" in runner.ran) == bool(expected)


def test_ipvs_without_the_command_is_a_gap() -> None:
    runner = FakeRunner(files={**PROC, "/proc/net/ip_vs": b"1\n2\n3\nTCP\n"}).without("ipvsadm")
    assert [gap.kind for gap in collect_local_node("node-a", runner).gaps] == ["ipvs"]


@pytest.mark.parametrize(("rule", "kinds"), [("-m set --match-set s src", ["ipset"]), ("-j ACCEPT", [])])
def test_ipset_is_missed_only_where_a_rule_asks_a_set(rule: str, kinds: list[str]) -> None:
    runner = FakeRunner({**READERS, "iptables-nft-save -c": f"-A INPUT {rule}"}).without("ipset")
    assert [gap.kind for gap in collect_local_node("node-a", runner).gaps] == kinds


def test_sysctls_are_spelt_as_sysctl_does() -> None:
    files = {
        "/proc/sys/net/ipv4/ip_local_port_range": b"32768\t60999\n",
        "/proc/sys/net/ipv4/ip_local_reserved_ports": b"\n",
        "/proc/sys/net/ipv4/conf/eth0.100/rp_filter": b"2\n",
        "/proc/sys/net/ipv4/conf/all/route_localnet": b"1\n",
        "/proc/sys/net/ipv6/conf/all/forwarding": b"1\n",
        "/proc/sys/net/bridge/bridge-nf-call-iptables": b"1\n",
    }
    printed = read(collect_local_node("node-a", FakeRunner(files=files)), "sysctl.txt").decode()
    assert set(printed.splitlines()) == {
        "net.ipv4.ip_local_port_range = 32768\t60999",
        "net.ipv4.ip_local_reserved_ports = ",
        "net.ipv4.conf.eth0/100.rp_filter = 2",
        "net.ipv4.conf.all.route_localnet = 1",
        "net.ipv6.conf.all.forwarding = 1",
        "net.bridge.bridge-nf-call-iptables = 1",
        "sysctl: cannot stat /proc/sys/net/bridge/bridge-nf-call-ip6tables: No such file or directory",
    }


def test_what_a_bridge_does_is_not_concluded_where_no_sysctl_can_be_read() -> None:
    capture = collect_local_node("node-a", FakeRunner(files={}))
    assert not capture.has("nodes/node-a/sysctl.txt")
    assert "node-sysctl" in {gap.kind for gap in capture.gaps}


def test_a_kernel_without_ipv6_has_no_ipv6_routes() -> None:
    runner = FakeRunner(present=PRESENT - {"/proc/sys/net/ipv6"})
    capture = collect_local_node("node-a", runner)
    assert (read(capture, "ip6-route.json"), read(capture, "ip6-rule.json")) == (b"[]\n", b"[]\n")
    assert not [line for line in runner.ran if line.startswith("ip -6")]


def test_a_route_table_that_does_not_exist_is_empty() -> None:
    answer = CommandResult(status=2, stderr=b"Error: ipv4: FIB table does not exist.\nDump terminated\n")
    capture = collect_local_node("node-a", FakeRunner({**READERS, "ip -j route show table all": answer}))
    assert read(capture, "ip-route.json") == b"[]\n"
    assert capture.gaps == ()


# ---------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("ip", ["node-addresses", *["node-routes"] * 4]),
        ("ss", ["node-sockets"]),
        ("nft", ["nft"]),
        ("ipvsadm", []),
    ],
)
def test_a_missing_command_is_a_gap(command: str, kinds: list[str]) -> None:
    capture = collect_local_node("node-a", FakeRunner().without(command))
    assert [gap.kind for gap in capture.gaps] == kinds
    assert all(
        gap.message == f"the command {command} is not installed on node node-a" for gap in capture.gaps
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (CommandResult(status=None), "`ss -lntuH` took longer than 30 s on node node-a"),
        (
            CommandResult(status=1, stderr=b"cannot open\nmore\n"),
            "`ss -lntuH` failed: cannot open on node node-a",
        ),
        (CommandResult(status=3), "`ss -lntuH` failed: exit status 3 on node node-a"),
        (
            CommandResult(status=1, stdout=b"half", stderr=b"\xff"),
            "`ss -lntuH` failed: \ufffd on node node-a",
        ),
    ],
)
def test_a_command_that_fails_is_a_gap_and_no_file(answer: CommandResult, words: str) -> None:
    capture = collect_local_node("node-a", FakeRunner({**READERS, "ss -lntuH": answer}))
    assert [(gap.kind, gap.message) for gap in capture.gaps] == [("node-sockets", words)]
    assert not capture.has("nodes/node-a/ss.txt")


def test_not_being_root_is_one_gap() -> None:
    denied = CommandResult(status=1, stderr=b"Operation not permitted (you must be root)\n")
    outputs = READERS | {
        line: denied for line in READERS if line.startswith(("nft", "ipset")) or "tables" in line
    }
    names = {name: PermissionError(13, "Permission denied") for name in PROC if name.endswith("_names")}
    runner = FakeRunner(outputs, {**PROC, **names}, root=False)
    capture = collect_local_node("node-a", runner)
    assert [gap.kind for gap in capture.gaps] == ["node-rules"]
    assert "does not run as root" in capture.gaps[0].message
    assert capture.has("nodes/node-a/ip-addr.json")
    assert not [line for line in runner.ran if "legacy" in line]


# ---------------------------------------------------------------------------------------------- this machine


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRunner:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    return LocalRunner()


def test_a_command_speaks_english_and_bytes(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, "ktp-test", r"""echo "$LC_ALL $1"; printf '\377'; echo oops >&2; exit 3""")
    answer = runner.run(("ktp-test", "a b"), timeout=60)
    assert answer == CommandResult(status=3, stdout=b"C a b\n\xff", stderr=b"oops\n")


def test_a_command_that_hangs_is_killed(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, "ktp-test", "exec sleep 60")
    before = time.monotonic()
    assert runner.run(("ktp-test",), timeout=0.1).status is None
    assert time.monotonic() - before < 30


def test_commands_are_found_where_administrators_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    runner = LocalRunner()
    assert runner.has_command("sh")
    assert not runner.has_command("ktp-no-such-command")
    assert runner.run(("ktp-no-such-command",), timeout=1).status == 127


# --------------------------------------------------------------------------------------------------- the kernel

COLLECT = """
import json
from ktp.collect.local_node import collect_local_node
capture = collect_local_node("node-a")
print(json.dumps({
    "files": {name: capture.read(name).decode() for name in capture.names()},
    "gaps": [gap.message for gap in capture.gaps],
}))
"""
InNetns = Callable[..., str]


@pytest.fixture
def in_netns(make_netns: Callable[[str], str], repository: Path) -> InNetns:
    """Runs a command in one new network namespace and returns what it prints."""
    name = make_netns("collect")

    def run(*command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", name, *command],
            input=stdin, capture_output=True, text=True, cwd=repository, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def collected_in(in_netns: InNetns) -> tuple[dict[str, str], list[str]]:
    answer = json.loads(in_netns(sys.executable, "-c", COLLECT))
    return {name.removeprefix("nodes/node-a/"): text for name, text in answer["files"].items()}, answer[
        "gaps"
    ]


@pytest.mark.kernel
def test_looking_creates_no_table(in_netns: InNetns) -> None:
    files, gaps = collected_in(in_netns)
    assert gaps == []
    assert "lists no legacy table" in files["iptables-legacy-save.txt"]
    assert in_netns("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names") == ""
    assert in_netns("nft", "list", "ruleset") == ""


@pytest.mark.kernel
def test_what_creates_a_table_is_seen_by_this_test(in_netns: InNetns) -> None:
    """Shows that the test above can fail: this is the command that ktp must not run."""
    in_netns("iptables-legacy-save", "-t", "nat")
    assert in_netns("cat", "/proc/net/ip_tables_names") == "nat\n"


@pytest.mark.kernel
def test_rules_of_both_back_ends_are_read_and_left_as_they_are(in_netns: InNetns) -> None:
    in_netns("iptables-legacy", "-t", "nat", "-N", "KUBE-LEGACY")
    in_netns("iptables-nft", "-t", "nat", "-N", "KUBE-NFT")
    in_netns("ip6tables-nft", "-A", "INPUT", "-s", "fd00::1", "-j", "DROP")
    in_netns("nft", "add", "table", "inet", "own")
    in_netns("ipset", "create", "own", "hash:ip")

    def state() -> str:
        commands = (
            "iptables-legacy-save",
            "iptables-nft-save",
            "ip6tables-nft-save",
            "nft list ruleset",
            "ipset save",
        )
        text = "".join(in_netns(*command.split()) for command in commands)
        text += in_netns("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))

    before = state()
    files, gaps = collected_in(in_netns)
    assert state() == before
    assert gaps == []
    assert ":KUBE-LEGACY - [0:0]" in files["iptables-legacy-save.txt"]
    assert "KUBE-NFT" not in files["iptables-legacy-save.txt"]
    assert ":KUBE-NFT - [0:0]" in files["iptables-nft-save.txt"]
    assert "-A INPUT -s fd00::1/128 -j DROP" in files["ip6tables-nft-save.txt"]
    assert '"name": "own"' in files["nft-ruleset.json"]
    assert "create own hash:ip" in files["ipset-save.txt"]
    # The tables that exist are all that is read: filter was never made.
    assert "*filter" not in files["iptables-legacy-save.txt"]


@pytest.mark.kernel
def test_addresses_routes_sockets_and_sysctls_are_this_namespaces(in_netns: InNetns) -> None:
    in_netns("ip", "link", "add", "ktp0.7", "type", "veth", "peer", "name", "ktp1")
    in_netns("ip", "address", "add", "192.0.2.1/24", "dev", "ktp0.7")
    in_netns("ip", "link", "set", "ktp0.7", "up")
    in_netns("ip", "link", "set", "ktp1", "up")
    in_netns("ip", "route", "add", "198.51.100.0/24", "dev", "ktp0.7", "table", "100")
    in_netns("ip", "rule", "add", "fwmark", "0x4000", "table", "100")
    files, gaps = collected_in(in_netns)
    assert gaps == []
    addresses = [entry["local"] for link in json.loads(files["ip-addr.json"]) for entry in link["addr_info"]]
    assert "192.0.2.1" in addresses
    routes = json.loads(files["ip-route.json"])
    assert {"100"} == {route.get("table") for route in routes if route["dst"] == "198.51.100.0/24"}
    assert "0x4000" in {rule.get("fwmark") for rule in json.loads(files["ip-rule.json"])}
    assert json.loads(files["ip6-rule.json"])
    assert "net.ipv4.conf.ktp0/7.rp_filter = " in files["sysctl.txt"]
    assert "net.ipv4.ip_forward = " in files["sysctl.txt"]


# ------------------------------------------------------------------------------------------------- Cilium's maps


def with_cilium(command: str, **answers: str) -> FakeRunner:
    lines = {f"{command} {words}": CommandResult(status=1, stderr=b"no") for _, words, _ in CILIUM_READS}
    said = {f"{command} {words.replace('_', ' ')}": out for words, out in answers.items()}
    return FakeRunner({**READERS, **lines, **said})


def test_ciliums_command_is_asked_to_read_alone() -> None:
    runner = with_cilium("cilium-dbg", **{"version": "Daemon: 1.19.4\n", "bpf_lb_list_-o_json": "{}\n"})
    found = collect_local_node("node-a", runner)
    assert read(found, "cilium/version.txt") == b"Daemon: 1.19.4\n"
    assert read(found, "cilium/bpf-lb-list.json") == b"{}\n"
    asked = [line for line in runner.ran if line.startswith("cilium")]
    reading = {"status", "config", "version", "list", "get"}
    assert asked
    assert all(reading & set(line.split()) for line in asked)
    assert all(gap.kind == "data-plane" for gap in found.gaps)


def test_another_program_called_cilium_is_left_alone() -> None:
    """cilium-cli, on a workstation or a node, is no agent's: only the agent's image has the folder."""
    runner = with_cilium("cilium")
    found = collect_local_node("node-a", runner)
    assert not [line for line in runner.ran if line.startswith("cilium")]
    assert not found.gaps
    inside = with_cilium("cilium", version="Client: 1.14.2\n")
    inside.present = {*PRESENT, CILIUM_FOLDER}
    assert read(collect_local_node("node-a", inside), "cilium/version.txt") == b"Client: 1.14.2\n"
