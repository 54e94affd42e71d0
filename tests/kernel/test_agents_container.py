"""Cilium's command run from the node in its agent's container: a process in a mount namespace of its own, whose image has
the command, found by ktp itself and by the script of --node-access ssh.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

# What runs on the node, in its network namespace: reading it prints the files of the snapshot.
READ = """
import sys
from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import LocalRunner
from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
import subprocess
if sys.argv[1] == "local":
    found = collect_local_node("node-a", LocalRunner())
else:
    script = build_script(sudo=False, reach=None, command_timeout=20)
    done = subprocess.run(["sh", "-s"], input=script.text, capture_output=True, check=False)
    recording = parse_stream(done.stdout, script.mark)
    assert recording.complete, done.stderr
    found = collect_recorded("node-a", recording, reach=None, source="script", not_root=("", ""), why_cut="")
print(*(f"{name} {found.read(name)!r}" for name in found.names() if "/cilium/" in name), sep="\\n")
print(*(gap.message for gap in found.gaps if gap.kind == "data-plane"), sep="\\n")
"""
AGENT = """#!/bin/sh
case "$*" in
  version) echo "Daemon: 1.19.4, seen from $(cat /etc/hostname)" ;;
  *"-o json") echo '{}' ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture(params=["cilium-dbg", "cilium"])
def node(request: pytest.FixtureRequest, make_netns: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """The network namespace of a node on which an agent runs, whose image has the command under that name."""
    name = make_netns("agent")
    pair = "link add cilium_host type veth peer name cilium_net"
    subprocess.run(["ip", "-n", name, *pair.split()], check=True)
    image, etc = tmp_path / "bin", tmp_path / "etc"
    image.mkdir()
    etc.mkdir()
    (image / request.param).write_text(AGENT)
    (image / request.param).chmod(0o755)
    (etc / "hostname").write_text("the image\n")
    program = tmp_path / "cilium-agent"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    mounts = (
        f"mount -t overlay image -o lowerdir={image}:/usr/bin /usr/bin && "
        f"mount -t overlay image -o lowerdir={etc}:/etc /etc && echo ready && exec {program} 600"
    )
    agent = subprocess.Popen(
        ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", mounts],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert agent.stdout is not None
    if agent.stdout.readline() != "ready\n":
        pytest.skip("no overlay filesystem can be mounted here")
    yield name
    agent.kill()
    agent.communicate()


@pytest.mark.parametrize("by", ["local", "script"])
def test_ciliums_command_runs_in_its_agents_container(node: str, by: str) -> None:
    done = subprocess.run(
        ["ip", "netns", "exec", node, sys.executable, "-c", READ, by],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nodes/node-a/cilium/version.txt b'Daemon: 1.19.4, seen from the image\\n'" in done.stdout
    assert "nodes/node-a/cilium/bpf-lb-list.json b'{}\\n'" in done.stdout
    assert "failed" not in done.stdout


def test_without_ciliums_device_no_agent_is_looked_for(node: str) -> None:
    subprocess.run(["ip", "-n", node, "link", "del", "cilium_host"], check=True)
    for by in ("local", "script"):
        done = subprocess.run(
            ["ip", "netns", "exec", node, sys.executable, "-c", READ, by],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "/cilium/" not in done.stdout
