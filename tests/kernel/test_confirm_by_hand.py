"""Every command under "Confirm by hand" on the pages of the findings can be pasted as it stands, and shows something.

Those for a node run on one: a network namespace with the address and the rules of the article's node-b. Those of kubectl
run against a stand-in that knows what kubectl knows; curl, tcpdump and the tools of other data planes are only read by
the shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.app.settings import demo_path
from ktp.diagnose.checks import ALL_CHECKS
from ktp.diagnose.checks.ktp902_probe_disagrees import CHECK as PROBE
from tests.support.node_netns import become_node

pytestmark = pytest.mark.kernel

PLACES = {
    "NAMESPACE": "test", "SELECTOR": "app=nginx", "KUBE-PROXY-POD": "kube-proxy-x", "POD-IP": "10.244.1.10",
    "POD-NETWORK": "10.244.1.0/24", "NODE-IP": "10.0.0.10", "MY-IP": "10.0.0.100", "CLIENT": "10.0.0.100",
    "IFACE": "eth0", "HEALTHCHECKNODEPORT": "30206", "NODEPORT": "31015", "TARGETPORT": "80", "ADDRESS": "10.0.0.10",
    "NODE": "node-b", "NAME": "nginx-externaltrafficpolicy", "POD": "nginx-0", "PORT": "31015",
}  # fmt: skip
PLACE = re.compile(
    r"(?<![\w-])(?:" + "|".join(sorted(map(re.escape, PLACES), key=len, reverse=True)) + r")(?![\w-])"
)
ON_A_NODE = frozenset((
    "iptables", "iptables-save", "iptables-legacy-save", "iptables-nft-save", "nft", "ip", "sysctl", "ss", "conntrack",
    "nstat", "update-alternatives",
))  # fmt: skip
BAD = re.compile(
    r"usage:|unknown option|unrecognized|invalid option|syntax error|bad argument|not found", re.IGNORECASE
)
RESOURCES = frozenset(
    (
        "pods", "pod", "svc", "services", "endpoints", "endpointslices", "nodes", "node", "configmap",
        "networkpolicies", "networkpolicy", "ciliumnetworkpolicies", "ipaddresspools", "l2advertisements",
        "bgpadvertisements", "servicel2statuses", "leases",
    )
)  # fmt: skip
KUBECTL = """#!/usr/bin/env python3
import re, sys
verb, *words = sys.argv[1:]
flags = {"-n": 1, "-l": 1, "-o": 1, "-A": 0, "--show-labels": 0}
assert verb in ("get", "describe", "logs", "top"), verb
names = []
while words:
    word = words.pop(0)
    if word.startswith("-"):
        taken = [words.pop(0) for _ in range(flags[word])]
        if word == "-o":
            form, _, value = taken[0].partition("=")
            assert form in ("wide", "yaml", "json", "jsonpath", "custom-columns", "name"), form
            assert form not in ("jsonpath", "custom-columns") or value, "no template"
            assert value.count("{") == value.count("}") and (form != "jsonpath" or "{" in value), value
            assert not (form == "wide" and names[:1] == ["endpointslices"]), "shows no node"
    else:
        names.append(word)
assert verb == "logs" or set(names[0].split(",")) <= %r, names
print("Conditions conditions addresses nodeName nodePortAddresses hostnameOverride node x")
"""


def commands() -> Iterator[tuple[str, str]]:
    for check in (*ALL_CHECKS, PROBE):
        section = re.search(r"# Confirm by hand\n(.*?)\n# ", check.page, re.DOTALL)
        for line in (section[1] if section else "").splitlines():
            if line.startswith("    "):
                yield check.code, line.strip()


def filled(command: str) -> str:
    return PLACE.sub(lambda m: PLACES[m[0]], command)


def programs(command: str) -> set[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, fresh = set(), True
    for word in lexer:
        if fresh:
            found.add(word)
        fresh = word in ("|", ";", "||", "&&")
    return found


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "kubectl"
    program.write_text(KUBECTL % (set(RESOURCES),))
    program.chmod(0o755)
    return folder


@pytest.fixture
def node(make_netns: Callable[[str], str]) -> str:
    if shutil.which("iptables-legacy-restore") is None:
        pytest.skip("iptables-legacy-restore is not installed")
    namespace = make_netns("hand")
    become_node(namespace, "10.0.0.10", demo_path() / "nodes/node-b/iptables-legacy-save.txt")
    return namespace


def test_commands_can_be_pasted(node: str, kubectl: Path) -> None:
    wrong = {
        command: words
        for _, command in dict.fromkeys(commands())
        if (words := problem(command, node, kubectl))
    }
    assert not wrong


def problem(command: str, node: str, kubectl: Path) -> str:
    """What is wrong with a command, "" for nothing."""
    if command.endswith("\\"):
        return "goes on in the next line, which the page indents"
    line = filled(command)
    if subprocess.run(["bash", "-n", "-c", line], check=False).returncode:
        return "is no shell command"
    known = programs(line)
    if not known <= {*ON_A_NODE, "kubectl", "grep", "head", "tail", "wc"}:
        return ""
    if any(shutil.which(program) is None for program in known - {"kubectl"}):
        return ""
    environment = {**os.environ, "PATH": f"{kubectl}:{os.environ['PATH']}", "LC_ALL": "C"}
    done = subprocess.run(
        ["ip", "netns", "exec", node, "bash", "-c", line],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # grep finds nothing where there is no fault; what is asked for may not exist on this machine.
    missing = "No such" in done.stderr or "cannot stat" in done.stderr
    bad = done.returncode not in (0, 1, 2, 255) or "Traceback" in done.stderr
    return done.stderr if bad or (BAD.search(done.stderr) and not missing) else ""


def test_what_is_wrong_is_noticed(node: str, kubectl: Path) -> None:
    for command in (
        "kubectl get endpointslices -o wide",
        "iptables -t nat -Z -q",
        "sysctl --nonsense",
        "grep 'x",
        "x \\",
    ):
        assert problem(command, node, kubectl), command


def test_the_page_of_the_main_case_shows_what_it_says(node: str) -> None:
    """KTP501's grep finds the rules of node-b that the page speaks of."""
    command = next(c for code, c in commands() if code == "KTP501" and c.startswith("iptables-save"))
    line = filled(command).replace("iptables-save", "iptables-legacy-save", 1)
    done = subprocess.run(
        ["ip", "netns", "exec", node, "bash", "-c", line], capture_output=True, text=True, check=False
    )
    assert "KUBE-XLB-" in done.stdout
    assert "has no local endpoints" in done.stdout
