"""ktp only reads: every system call of a run on a node is looked at, and the node is the same afterwards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from ktp.collect.nft_chains import Destination, Reach
from ktp.collect.passing import connection_file_command
from ktp.collect.remote_script import build_script
from tests.integration.conftest import DEMO, TOKEN
from tests.support.api_server import ApiServer
from tests.support.node_netns import become_node, inside

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

SERVICE = "test/nginx-externaltrafficpolicy"
RULES = DEMO / "nodes/node-b/iptables-legacy-save.txt"
CALLS = (
    "open,openat,openat2,creat,unlink,unlinkat,mkdir,mkdirat,rmdir,rename,renameat,renameat2,link,linkat,symlink,"
    "symlinkat,mknod,mknodat,truncate,ftruncate,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,setxattr,"
    "fsetxattr,utimensat,mount,umount2,init_module,finit_module,delete_module,bpf,sethostname,setsockopt,sendto,"
    "sendmsg,sendmmsg,execve"
)
# A file of the node that is opened to be written to, or made; /dev/null and terminals are none.
WRITES = re.compile(r'\b(?:open(?:at|at2)?|creat)\((?:[^"]*)"(?!/dev/)[^"]*", (?:\{flags=)?[A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC)')  # fmt: skip
# Files and modules, and what netfilter, routing and IPVS are changed by (linux/netfilter*, rtnetlink.h, ip_vs.h).
CHANGES = re.compile(
    r"\b(?:creat|unlink|unlinkat|mkdir|mkdirat|rmdir|rename|renameat2?|link|linkat|symlink|symlinkat|mknod|mknodat|"
    r"f?truncate|f?chmod|fchmodat|l?f?chown|fchownat|f?setxattr|utimensat|mount|umount2|(?:f?init|delete)_module|bpf|"
    r"sethostname)\("
    r"|NFT_MSG_(?:NEW|DEL|DESTROY)|IPSET_CMD_(?:CREATE|DESTROY|FLUSH|RENAME|SWAP|ADD|DEL)\b|IPCTNL_MSG_CT_(?:NEW|DELETE)"
    r"|RTM_(?:NEW|DEL|SET)|IP6?T_SO_SET|ARPT_SO_SET|IP_VS_SO_SET|SOL_IP(?:V6)?, 0x40"
    r'|execve\("[^"]*/(?:modprobe|insmod|rmmod|sysctl|kmod)"'
)


def changes(trace: Path) -> list[str]:
    """The calls that write or change something, of those that did not fail."""
    lines = trace.read_text(errors="replace").splitlines()
    return [line for line in lines if (WRITES.search(line) or CHANGES.search(line)) and " = -1 E" not in line]


def traced(
    netns: str, folder: Path, command: Sequence[str], kubeconfig: str = ""
) -> tuple[int, list[str], str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1", "KUBECONFIG": kubeconfig,
    }  # fmt: skip
    trace = folder / "trace"
    done = subprocess.run(
        ["ip", "netns", "exec", netns, "strace", "-f", "-qq", "-s", "512", "-e", f"trace={CALLS}", "-o", str(trace), *command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert list(home.iterdir()) == []
    return done.returncode, changes(trace), done.stdout + done.stderr


def state_of(netns: str) -> dict[str, str]:
    def inside_it(*command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], capture_output=True, text=True, check=True
        )
        lines = (line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#"))
        return re.sub(
            r"\[\d+:\d+\]|packets \d+ bytes \d+", "", "".join(lines)
        )  # traffic counts, as it should

    commands = (
        "iptables-nft-save",
        "ip6tables-nft-save",
        "nft list ruleset",
        "ipset save",
        "ip rule",
        "ip -4 route show table all",
    )
    found = {command: inside_it(*command.split()) for command in commands}
    for file in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"):
        found[file] = inside_it("cat", file)
    found["sysctls"] = inside_it(
        "sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|netfilter)\.(?!.*(stat|count|flush))"
    )
    modules = Path("/proc/modules")
    found["modules"] = modules.read_text() if modules.exists() else ""
    return found


@pytest.fixture
def node(make_netns: Callable[[str], str]) -> str:
    """A node whose kube-proxy uses iptables-nft, with a set and a table of somebody else."""
    netns = make_netns("reads")
    become_node(netns, "10.0.0.10")
    plain = re.sub(r"^\[\d+:\d+\] ", "", RULES.read_text(), flags=re.MULTILINE)
    subprocess.run(["ip", "netns", "exec", netns, "iptables-nft-restore"], input=plain, text=True, check=True)
    for command in ("ipset create some hash:ip", "nft add table inet own"):
        subprocess.run(["ip", "netns", "exec", netns, *command.split()], check=True)
    return netns


def diagnosed(node: str, objects: Path, folder: Path, *words: str) -> tuple[int, list[str], str]:
    """`ktp diagnose` on the node, of a cluster with these API objects."""
    with inside(node):
        server = ApiServer(objects, token=TOKEN)
    config = folder / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "current-context": "x",
                "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )
    ktp = (
        sys.executable,
        "-m",
        "ktp",
        "diagnose",
        "svc",
        SERVICE,
        "--node",
        "node-b",
        "--node-access",
        "local",
        "-v",
    )
    with server.running():
        return traced(node, folder, [*ktp, *words], str(config))


@pytest.mark.parametrize(
    "legacy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["nft alone", "legacy too"]
)
def test_no_system_call_changes_the_node(node: str, legacy: bool, tmp_path: Path, repository: Path) -> None:
    if legacy:
        subprocess.run(["ip", "netns", "exec", node, "iptables-legacy", "-t", "nat", "-N", "OLD"], check=True)
    before = state_of(node)
    assert before["/proc/net/ip_tables_names"] == ("nat\n" if legacy else "")
    status, changed, said = diagnosed(node, DEMO, tmp_path)
    assert (status, changed) == (1, [])
    assert "iptables-nft" in said
    assert state_of(node) == before


def test_what_passes_is_read_and_nothing_else(node: str, tmp_path: Path) -> None:
    """--counters, and the entries of UDP ports: by ktp, by the script that other nodes run, and without conntrack(8)."""
    subprocess.run(
        ["ip", "netns", "exec", node, "iptables-nft", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW"],
        check=True,
    )
    send = (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('10.0.0.99', 31015))"
    )
    subprocess.run(["ip", "netns", "exec", node, sys.executable, "-c", send], check=True)
    before, tracked = state_of(node), entries_of(node)
    assert "dport=31015" in tracked
    objects = tmp_path / "objects"
    shutil.copytree(DEMO, objects)
    for file in ("services", "endpointslices", "endpoints"):
        path = objects / "cluster" / f"{file}.json"
        path.write_text(path.read_text().replace('"TCP"', '"UDP"'))
    _, changed, _ = diagnosed(node, objects, tmp_path, "--counters", "1")
    trace = (tmp_path / "trace").read_text()
    assert changed == []
    assert re.search(r'execve\("[^"]*/conntrack", \["[^"]*conntrack", "-L"', trace)
    assert re.search(r'execve\("[^"]*/cat", \["cat", "/proc/uptime"', trace)
    reach = Reach(destinations=(Destination(protocol="udp", port=31015),))
    script = tmp_path / "read.sh"
    script.write_bytes(build_script(sudo=False, reach=reach, command_timeout=20, counters=1).text)
    for command in (("sh", str(script)), connection_file_command(reach)):
        status, changed, said = traced(node, tmp_path, command)
        assert (status, changed) == (0, [])
        assert "dport=31015" in said
    assert (state_of(node), entries_of(node)) == (before, tracked)


def entries_of(node: str) -> str:
    """What the node tracks, without how long still and by how many references."""
    done = subprocess.run(
        ["ip", "netns", "exec", node, "conntrack", "-L", "-p", "udp"],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.sub(r"(?m)^(udp +17) \d+| use=\d+$", r"\1", done.stdout)


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("iptables-nft -t nat -N NEW", "NFT_MSG_NEWCHAIN"),
        ("iptables-legacy -t nat -N NEW", "SO_SET"),
        ("ip route add 198.51.100.0/24 dev lo", "RTM_NEWROUTE"),
        ("ipset create more hash:ip", "IPSET_CMD_CREATE"),
        ("touch FOLDER/made", "O_CREAT"),
        ("mkdir FOLDER/made", "mkdir("),
    ],
    ids=lambda words: words.partition(" ")[0],
)
def test_what_changes_something_is_seen_by_this_test(
    node: str, command: str, shows: str, tmp_path: Path
) -> None:
    words = [word.replace("FOLDER", str(tmp_path)) for word in command.split()]
    status, changed, said = traced(node, tmp_path, words)
    assert status == 0, said
    assert shows in "\n".join(changed)
