"""Pods' network namespaces read on a machine, by ktp itself and by the script of --node-access ssh: found by address,
read by the node's own programs, and left as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktp.collect import pod_namespaces
from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import LocalRunner
from ktp.collect.pod_namespaces import addresses_of, local_namespaces, pods_to_read
from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
from ktp.model.capture import MemoryCapture
from ktp.parse.snapshot import parse_snapshot

pytestmark = pytest.mark.kernel

# Addresses of documentation: no interface of the machine itself has them. Each of pytest's processes has its own, since
# pods are found by address.
_OWN = 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
ONE, ONE6, OTHER, GONE = (
    f"198.51.100.{_OWN + 1}",
    f"2001:db8::{_OWN + 1}",
    f"198.51.100.{_OWN + 2}",
    f"198.51.100.{_OWN + 3}",
)
PODS = {ONE: "test_web-0", ONE6: "test_web-0", OTHER: "test_web-1"}
LISTEN = """
import socket, sys, time
s = socket.socket(); s.bind((sys.argv[1], 8080)); s.listen(); print("ready", flush=True); time.sleep(600)
"""


@pytest.fixture
def pods(make_netns: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """Two pods that run: the namespaces' names by their folders."""
    made, running = {}, []
    for folder, own, listens in (
        ("test_web-0", (f"{ONE}/32", f"{ONE6}/128"), "0.0.0.0"),
        ("test_web-1", (f"{OTHER}/32",), "127.0.0.1"),
    ):
        made[folder] = name = make_netns("pod")
        subprocess.run(
            ["ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"], check=True
        )
        subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
        for address in own:
            subprocess.run(["ip", "-n", name, "addr", "add", address, "dev", "eth0", "nodad"], check=True)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", LISTEN, listens],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    subprocess.run(
        ["ip", "netns", "exec", made["test_web-1"], "iptables-nft", "-A", "INPUT", "-p", "udp", "-j", "DROP"],
        check=True,
    )
    yield made
    for server in running:
        server.kill()
        server.communicate()


def by_ktp() -> MemoryCapture:
    return collect_local_node("node-a", LocalRunner(), pods=PODS)


def by_script() -> MemoryCapture:
    script = build_script(sudo=False, reach=None, command_timeout=20, pods=PODS)
    done = subprocess.run(["sh", "-s"], input=script.text, capture_output=True, check=False)
    recording = parse_stream(done.stdout, script.mark)
    assert recording.complete, done.stderr
    return collect_recorded(
        "node-a", recording, reach=None, source="script", not_root=("", ""), why_cut="", pods=PODS
    )


@pytest.mark.parametrize("collect", [by_ktp, by_script])
def test_pods_are_read_on_their_node(collect: Callable[[], MemoryCapture], pods: dict[str, str]) -> None:
    assert pods
    capture = collect()
    assert not [gap for gap in capture.gaps if gap.kind == "pod-namespace"]
    files = {
        **{name: capture.read(name) for name in capture.names()},
        "cluster/services.json": b'{"items": []}',
    }
    state = parse_snapshot(MemoryCapture(files=files)).nodes["node-a"]
    assert set(state.pods) == {"test/web-0", "test/web-1"}
    one, other = state.pods["test/web-0"], state.pods["test/web-1"]
    assert [(str(s.ip), s.port) for s in other.sockets or ()] == [("127.0.0.1", 8080)]
    assert [(s.ip, s.port) for s in one.sockets or ()] == [(None, 8080)]
    own = {str(a.ip) for i in one.interfaces or () for a in i.addresses}
    assert {ONE, ONE6} <= own
    assert one.routes
    assert one.sysctls is not None
    assert one.sysctls["net.ipv4.ip_forward"] == "0"
    rules = [str(r.text) for s in other.rulesets for r in s.chain("filter", "INPUT") or ()]
    assert "-A INPUT -p udp -j DROP" in rules
    assert not any("198.51.100" in str(a.ip) for i in state.interfaces or () for a in i.addresses)


@pytest.mark.parametrize("collect", [by_ktp, by_script])
def test_a_pod_that_has_ended_is_a_gap(
    collect: Callable[[], MemoryCapture], pods: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pods
    monkeypatch.setitem(PODS, GONE, "test_gone-0")
    capture = collect()
    gaps = [gap for gap in capture.gaps if gap.kind == "pod-namespace"]
    assert [gap.message for gap in gaps] == [
        "the network namespace of pod test/gone-0 could not be read on node node-a"
    ]
    assert any("/pods/test_web-0/" in name for name in capture.names())


def test_nothing_is_left_in_a_pod(pods: dict[str, str]) -> None:
    def state() -> dict[str, str]:
        reads = (
            "ip -d link",
            "ip addr",
            "iptables-nft-save",
            "nft list ruleset",
            "ss -lntua",
            "sysctl -a",
        )
        return {
            f"{name} {command}": subprocess.run(
                ["ip", "netns", "exec", name, *command.split()], capture_output=True, text=True, check=True
            ).stdout
            for name in pods.values()
            for command in reads
        }

    noise = ("Generated by", "Completed on", "conntrack_count", "random.", "inode", "fs.", "kernel.", "vm.")

    def plain(texts: dict[str, str]) -> dict[str, list[str]]:
        return {
            k: [line for line in t.splitlines() if not any(word in line for word in noise)]
            for k, t in texts.items()
        }

    before = state()
    by_ktp()
    by_script()
    assert plain(state()) == plain(before)


def test_addresses_as_the_kernel_lists_them() -> None:
    trie = Path("/proc/self/net/fib_trie").read_text()
    inet6 = Path("/proc/self/net/if_inet6")
    found = addresses_of(trie, inet6.read_text() if inet6.exists() else "")
    assert "127.0.0.1" in found
    assert not local_namespaces(["127.0.0.2"])


def test_which_pods_are_read() -> None:
    def pod(name: str, ip: str, node: str = "a", **spec: object) -> dict[str, object]:
        return {
            "metadata": {"namespace": "test", "name": name}, "spec": {"nodeName": node, **spec},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        }  # fmt: skip

    ended = pod("ended", "10.0.0.4")
    ended["status"] = {"phase": "Succeeded", "podIP": "10.0.0.4"}
    pods = [pod("one", "10.0.0.1"), pod("other", "10.0.0.2"), pod("host", "10.9.0.1", hostNetwork=True),
            pod("far", "10.0.1.1", "b"), ended]  # fmt: skip
    target = {"kind": "Pod", "namespace": "test", "name": "one"}
    files = {
        "cluster/pods.json": json.dumps({"items": pods}).encode(),
        "cluster/endpointslices.json": json.dumps(
            {"items": [{"endpoints": [{"targetRef": target}]}]}
        ).encode(),
    }
    capture = MemoryCapture(files=files)
    assert pods_to_read(capture, every=False) == {"a": {"10.0.0.1": "test_one"}}
    assert pods_to_read(capture, every=True) == {
        "a": {"10.0.0.1": "test_one", "10.0.0.2": "test_other"}, "b": {"10.0.1.1": "test_far"},
    }  # fmt: skip
    assert pods_to_read(capture, every=True, most=1)["a"] == {"10.0.0.1": "test_one"}
    assert pods_to_read(MemoryCapture(files={}), every=True) == {}
    assert pod_namespaces.MOST_PODS >= 1
