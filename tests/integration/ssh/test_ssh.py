"""Nodes read through a real OpenSSH client and server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ktp.collect.local_node import collect_local_node
from ktp.collect.ssh import SshSettings, collect_over_ssh
from ktp.errors import EvidenceError, UsageError
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture
from tests.support.processes import left_behind, wait_for_processes
from tests.support.ssh_server import USER, SshLab, why_no_sshd

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(why_no_sshd() is not None, reason=f"a real sshd {why_no_sshd()}"),
]

RULES = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-NODEPORTS - [0:0]
-A PREROUTING -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "test/web" -m tcp --dport 31015 -j DNAT --to-destination 10.244.1.2:80
COMMIT
"""


def nodes_json(*names: str, address: str = "192.0.2.1") -> MemoryCapture:
    items = [
        {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}
        for name in names
    ]
    return MemoryCapture(files={"cluster/nodes.json": json.dumps({"items": items}).encode()})


def collect(
    lab: SshLab,
    *names: str,
    timeout: float = 15,
    user: str | None = None,
    options: tuple[str, ...] = (),
    sudo: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> MemoryCapture:
    settings = SshSettings(user=user, options=options, sudo=sudo, timeout=timeout, program=lab.program)
    return collect_over_ssh(nodes_json(*names), names, settings, on_progress=on_progress)


def only_gap(capture: Capture) -> EvidenceGap:
    assert len(capture.gaps) == 1, capture.gaps
    return capture.gaps[0]


def files_of(capture: Capture, node: str) -> dict[str, bytes]:
    prefix = f"nodes/{node}/"
    return {
        name.removeprefix(prefix): capture.read(name) for name in capture.names() if name.startswith(prefix)
    }


# ------------------------------------------------------------------------------------------------- what is read


def test_a_node_far_away_is_read_as_this_machine_is(lab: SshLab) -> None:
    """The login leads to this very machine, so both ways must find the same."""
    far = collect(lab, "node-a")
    near = collect_local_node("node-a")
    assert far.gaps == near.gaps
    # Sockets, neighbours' timers and other tests' interfaces change from one look to the next.
    steady = ("ipset-save.txt", "ipvsadm.txt", "iptables-legacy-save.txt", "ip-rule.json", "ip6-rule.json")
    assert files_of(far, "node-a").keys() == files_of(near, "node-a").keys()
    for name in steady:
        assert files_of(far, "node-a")[name] == files_of(near, "node-a")[name], name
    key = "net.ipv4.ip_local_port_range"
    lines = {
        where: [
            line
            for line in files_of(capture, "node-a")["sysctl.txt"].splitlines()
            if line.startswith(key.encode())
        ]
        for where, capture in (("far", far), ("near", near))
    }
    assert lines["far"] == lines["near"] != []
    assert far.source == "node node-a by ssh"


@pytest.mark.parametrize("count", [1, 10, pytest.param(50, marks=pytest.mark.slow)])
def test_many_nodes_at_once(lab: SshLab, count: int) -> None:
    names = [f"node-{number}" for number in range(count)]
    steps: list[tuple[int, int, str]] = []
    # One round trip each: what they do there is the same every time, so the quickest command stands for it.
    read = collect(lab, *names, timeout=60, on_progress=lambda *step: steps.append(step))
    assert read.gaps == ()
    assert set(read.node_names()) == set(names)
    assert [done for done, _, _ in steps] == list(range(count + 1))
    assert {total for _, total, _ in steps} == {count}
    assert {node for _, _, node in steps} == {"", *names}


def test_rules_of_a_node_in_its_own_namespace(lab: SshLab, make_netns: Callable[[str], str]) -> None:
    netns = make_netns("ssh")
    subprocess.run(["ip", "netns", "exec", netns, "iptables-nft-restore"], input=RULES.encode(), check=True)
    lab.node("own-rules", netns=netns)
    read = collect(lab, "own-rules")
    assert read.gaps == ()
    text = files_of(read, "own-rules")["iptables-nft-save.txt"].decode()
    assert '--comment "test/web" -m tcp --dport 31015 -j DNAT --to-destination 10.244.1.2:80' in text


def test_reading_leaves_a_node_as_it_was(lab: SshLab, make_netns: Callable[[str], str]) -> None:
    netns = make_netns("ssh")

    def inside(*command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, text=True, check=True
        )
        return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#"))

    inside("iptables-nft-restore", stdin=RULES)
    inside("nft", "add", "table", "inet", "own")
    inside("ipset", "create", "some", "hash:ip")
    scratch = lab.node("unchanged", netns=netns)

    def state() -> dict[str, str]:
        commands = (
            "iptables-nft-save -c",
            "ip6tables-nft-save",
            "nft list ruleset",
            "ipset save",
            "ip rule",
            "ip addr",
        )
        found = {command: inside(*command.split()) for command in commands}
        for file in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"):
            found[file] = inside("cat", file)
        found["sysctls"] = inside(
            "sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|netfilter|bridge)\.(?!.*(stat|count|flush))"
        )
        modules = Path("/proc/modules")
        found["modules"] = (
            "\n".join(sorted(line.split()[0] for line in modules.read_text().splitlines()))
            if modules.exists()
            else ""
        )
        found["files"] = "\n".join(sorted(str(path) for path in scratch.rglob("*")))
        return found

    before = state()
    read = collect(lab, "unchanged")
    assert read.gaps == ()
    assert state() == before
    assert before["files"] == ""
    assert before["/proc/net/ip_tables_names"] == ""


def test_a_host_without_iptables(lab: SshLab) -> None:
    hidden = lab.folder / "empty"
    hidden.mkdir()
    lab.node("bare", setup="mount --bind /mnt/empty /usr/sbin")
    read = collect(lab, "bare")
    assert read.has("nodes/bare/ip-addr.json")
    assert not read.has("nodes/bare/iptables-nft-save.txt")
    assert {gap.kind for gap in read.gaps} >= {"nft"}
    assert all(
        "is not installed on node bare" in gap.message or "iptables" in gap.message for gap in read.gaps
    )


# ------------------------------------------------------------------------------------------------ not as root


def test_an_ordinary_user_reads_what_it_may(lab: SshLab, make_netns: Callable[[str], str]) -> None:
    netns = make_netns("ssh")
    lab.node("plain-user", netns=netns, user=USER)
    read = collect(lab, "plain-user")
    gap = only_gap(read)
    assert gap.message == (
        "the user of the SSH login is not root, and so the packet rules of node plain-user cannot be read"
    )
    assert gap.remedy == "give --sudo, or --ssh-user root"
    assert read.has("nodes/plain-user/ip-addr.json")


def fake_sudo(lab: SshLab, name: str, body: str) -> Path:
    """A sudo that says what sudo 1.9 says."""
    folder = lab.folder / name
    folder.mkdir()
    (folder / "sudo").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "sudo").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("sudo: a password is required", "sudo on node {node} asks for a password"),
        ("sudo: a terminal is required to read the password; either use the -S option", "sudo on node {node} asks for a password"),
        ("Sorry, user ktpuser may not run sudo on node.", "sudo on node {node} refuses (Sorry, user ktpuser may not run sudo on node)"),
    ],
)  # fmt: skip
def test_sudo_that_does_not_let_us(lab: SshLab, says: str, message: str) -> None:
    node = f"sudo-{uuid.uuid4().hex[:6]}"
    asked = lab.folder / f"asked-{node}"
    folder = fake_sudo(lab, f"bin-{node}", f"echo \"$*\" >> /tmp/asked; echo '{says}' >&2; exit 1")
    scratch = lab.node(node, user=USER, path_first=folder)
    gap = only_gap(collect(lab, node, sudo=True))
    assert gap.message.startswith(message.format(node=node) + ", and so the packet rules")
    assert (scratch / "asked").read_text() == "-n -l\n", (
        "a refusal is asked for once, and never for a password"
    )
    assert not asked.exists()


def test_without_sudo_on_the_node(lab: SshLab) -> None:
    if shutil.which("sudo"):
        pytest.skip("this machine has sudo")
    lab.node("no-sudo", user=USER)
    assert only_gap(collect(lab, "no-sudo", sudo=True)).message.startswith("there is no sudo on node no-sudo")


def test_commands_go_through_sudo(lab: SshLab) -> None:
    """This sudo cannot make anybody root, but what it is asked to run can be seen."""
    folder = fake_sudo(lab, "bin-granted", 'echo "$*" >> /tmp/asked; shift; [ "$1" = -l ] || exec "$@"')
    scratch = lab.node("sudo-granted", user=USER, path_first=folder)
    collect(lab, "sudo-granted", sudo=True)
    asked = (scratch / "asked").read_text().splitlines()
    assert asked[0] == "-n -l"
    assert all(line.startswith("-n ") for line in asked)
    assert "-n nft list flowtables" in asked
    by_itself = [line for line in asked if line.split()[1] in {"ip", "ss", "sh"}]
    assert all(line.startswith("-n ip xfrm ") for line in by_itself), "only root is told of IPsec's policies"


# --------------------------------------------------------------------------------------------------- failures


def test_an_unknown_host_key_is_not_accepted(lab: SshLab) -> None:
    lab.write_known_hosts()
    gap = only_gap(collect(lab, "node-a"))
    assert (
        gap.message == "the host key of node node-a (192.0.2.1) is not known, and ktp accepts none by itself"
    )
    assert gap.remedy == "connect once by hand: ssh 192.0.2.1, and compare the fingerprint that it shows"
    assert (lab.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key(lab: SshLab) -> None:
    lab.write_known_hosts("other_host")
    before = (lab.folder / "known_hosts").read_text()
    gap = only_gap(collect(lab, "node-a"))
    assert gap.message.startswith("the host key of node node-a is not the one in known_hosts")
    assert (lab.folder / "known_hosts").read_text() == before


def test_a_refused_key(lab: SshLab) -> None:
    gap = only_gap(
        collect(
            lab,
            "node-a",
            options=(f"IdentityFile={lab.folder / 'stranger'}", "IdentitiesOnly=yes", "User=nobody"),
        )
    )
    assert gap.message == "node node-a refused the login: no key that ssh offers is accepted there"


def test_a_login_without_a_shell(lab: SshLab) -> None:
    lab.node("no-shell", user="nobody")
    gap = only_gap(collect(lab, "no-shell"))
    assert gap.message.startswith("node no-shell lets ssh in but runs no shell script (exit status 1: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("Port=1",), "refuses connections to its SSH port"),
        (("HostName=no-such-host.invalid",), "does not resolve here"),
        (("NoSuchOption=1",), "ssh does not accept its configuration or an --ssh-option"),
    ],
)
def test_what_ssh_says_becomes_a_sentence(lab: SshLab, options: tuple[str, ...], words: str) -> None:
    gap = only_gap(collect(lab, "node-a", options=options))
    assert words in gap.message
    assert gap.kind == "node-rules"
    assert gap.subject == "node-a"


def test_a_host_that_hangs_costs_its_timeout_and_no_other_node(lab: SshLab) -> None:
    token = f"ktp-test-{uuid.uuid4().hex}"
    lab.add_host("hanging", f"ProxyCommand sh -c 'sleep 300; : {token}'")
    before = time.monotonic()
    read = collect(lab, "hanging", "node-a", timeout=2)
    assert time.monotonic() - before < 60
    gap = only_gap(read)
    assert gap.subject == "hanging"
    assert (
        "did not answer within 2 s over ssh" in gap.message
        or "does not answer on its SSH port" in gap.message
    )
    assert read.node_names() == ("node-a",)
    assert left_behind(token) == []


def test_a_command_that_hangs_on_the_node_costs_the_rest(lab: SshLab) -> None:
    folder = lab.folder / "bin-slow"
    folder.mkdir()
    (folder / "nft").write_text("#!/bin/sh\nexec sleep 300\n")
    (folder / "nft").chmod(0o755)
    lab.node("slow", path_first=folder)
    read = collect(lab, "slow", timeout=2)
    assert read.has("nodes/slow/ip-addr.json")
    assert [gap.message for gap in read.gaps if "took longer than" in gap.message]


@pytest.mark.parametrize("size", [3500, 6000])
def test_an_answer_that_is_cut_is_no_shorter_dump(lab: SshLab, size: int) -> None:
    node = f"cut-{size}"
    lab.node(node, after=f"| dd bs=1 count={size} 2>/dev/null")
    read = collect(lab, node, timeout=5)
    gap = only_gap(read)
    assert "broke off" in gap.message or "ssh to node" in gap.message
    # An empty dump would say that there are no rules.
    assert not [name for name in read.names() if "tables" in name or "ruleset" in name]


def test_a_name_that_is_an_option_is_not_given_to_ssh(lab: SshLab, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    names = (f"-oProxyCommand=touch {marker}", "a b", "user@node", "ssh://node", "$(touch x)", "node%h", "")
    read = collect(lab, *names)
    assert [gap.subject for gap in read.gaps] == list(names)
    assert all("is no host name, and so ktp did not connect to it" in gap.message for gap in read.gaps)
    assert not marker.exists()


def test_an_address_that_is_an_option_is_not_given_to_ssh(lab: SshLab, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    capture = nodes_json("node-a", address=f"-oProxyCommand=touch {marker}")
    read = collect_over_ssh(capture, ["node-a"], SshSettings(program=lab.program))
    assert read.gaps == ()
    assert not marker.exists()


@pytest.mark.parametrize("user", ["-oProxyCommand=x", "a b", ""])
def test_a_user_that_is_no_name(user: str) -> None:
    with pytest.raises(UsageError, match="is no user name"):
        SshSettings(user=user)


@pytest.mark.parametrize("option", ["-F", "Port", "=1"])
def test_an_option_that_is_none(option: str) -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        SshSettings(options=(option,))


def test_without_an_ssh_client() -> None:
    with pytest.raises(EvidenceError, match="the SSH client '/nowhere/ssh' cannot be run"):
        collect_over_ssh(nodes_json("a"), ["a"], SshSettings(program=("/nowhere/ssh",)))


# --------------------------------------------------------------------------------------------------- where to


def test_a_name_that_the_user_configured_comes_before_the_address(lab: SshLab) -> None:
    lab.add_host("configured", "ServerAliveInterval 7")
    lab.write_known_hosts()
    assert "node configured is" in only_gap(collect(lab, "configured")).message
    assert "node other (192.0.2.1) is" in only_gap(collect(lab, "other")).message


# ---------------------------------------------------------------------------------------------------- the end

INTERRUPTED = """
import sys
from ktp.collect.ssh import SshSettings, collect_over_ssh
from ktp.model.capture import MemoryCapture
names = [f"hanging-{n}" for n in range(5)]
print("ready", flush=True)
collect_over_ssh(MemoryCapture(files={}), names, SshSettings(program=("ssh", "-F", sys.argv[1]), timeout=60))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_an_interrupt_leaves_no_process(
    lab: SshLab, repository: Path, number: signal.Signals, status: int
) -> None:
    token = f"ktp-test-{uuid.uuid4().hex}"
    config = lab.folder / f"config-{token}"
    config.write_text(f"Host *\n  ProxyCommand sh -c 'sleep 300; : {token}'\n")
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=repository,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    assert wait_for_processes(token, 5) >= 5
    child.send_signal(number)
    assert child.wait(5) == status
    child.stdout.close()
    assert left_behind(token) == []
