#!/usr/bin/env python3
"""What `ktp check --serve` costs a large node: `bench/checking.py [--services N] [--endpoints N] [--seconds N]`.

A network namespace gets the rules of a large cluster, a small API server sends a hundred changed endpoints a second,
and the memory and the CPU of ktp are read from /proc. Needs root.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(REPOSITORY / "bench"))

from large_cluster import write_cluster  # noqa: E402

from ktp.collect.snapshot import open_snapshot  # noqa: E402
from ktp.kubeproxy.synthesis_iptables import LocalMatch, RuleKnobs  # noqa: E402
from ktp.parse.snapshot import parse_snapshot  # noqa: E402
from tests.support.api_server import ApiServer  # noqa: E402
from tests.support.kube_rules import iptables_save  # noqa: E402
from tests.support.node_netns import become_node, inside  # noqa: E402

NETNS, NODE, ADDRESS = "ktp-bench-check", "worker-0007.example.net", "10.0.0.7"
INTERVAL = 60


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=6_000)
    parser.add_argument("--seconds", type=int, default=150)
    parser.add_argument("--changes", type=int, default=100, help="endpoints changed a second")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ktp-bench-"))
    try:
        write_cluster(folder / "c", 1000, arguments.services, arguments.endpoints)
        rules = iptables_save(
            parse_snapshot(open_snapshot(folder / "c")),
            NODE,
            RuleKnobs(local=LocalMatch("-s", "100.64.0.0/10")),
        )
        sys.stdout.write(f"{rules.count(chr(10))} lines of rules\n")
        subprocess.run(["ip", "netns", "add", NETNS], check=True)
        try:
            measure(folder, rules, arguments.seconds, arguments.changes)
        finally:
            subprocess.run(["ip", "netns", "del", NETNS], check=False)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, rules: str, seconds: int, changes: int) -> None:
    """Run ktp beside the churn, and say what it took."""
    become_node(NETNS, ADDRESS)
    subprocess.run(["ip", "-n", NETNS, "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "netns", "exec", NETNS, "iptables-nft-restore"], input=rules, text=True, check=True)
    with inside(NETNS):
        server = ApiServer(folder / "c")
    stop = threading.Event()
    with server.running():
        config = folder / "kubeconfig"
        config.write_text(
            json.dumps(
                {
                    "current-context": "x", "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )  # fmt: skip
        command = [
            "ip", "netns", "exec", NETNS, sys.executable, "-m", "ktp", "check", "--serve", "127.0.0.1:9497", "--node",
            NODE, "--interval", str(INTERVAL), "--kubeconfig", str(config),
        ]  # fmt: skip
        churn = threading.Thread(target=change, args=(server, changes, stop), daemon=True)
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as ktp:
            try:
                time.sleep(INTERVAL / 2)  # the first look is the dear one
                churn.start()
                before, begun = cpu(ktp.pid), time.monotonic()
                time.sleep(seconds)
                used, took = cpu(ktp.pid) - before, time.monotonic() - begun
                status = Path(f"/proc/{ktp.pid}/status").read_text()
                memory = {
                    line.split(":")[0]: int(line.split()[1]) // 1024
                    for line in status.splitlines()
                    if line.startswith(("VmRSS", "VmHWM"))
                }
                sys.stdout.write(
                    f"start {before:.1f} s of CPU; then {100 * used / took:.1f} % of a core over {took:.0f} s; "
                    f"{memory['VmRSS']} MB now, {memory['VmHWM']} MB at most\n"
                )
            finally:
                stop.set()
                ktp.send_signal(signal.SIGTERM)


def change(server: ApiServer, count: int, stop: threading.Event) -> None:
    """Change so many endpoints a second, without making kube-proxy change a rule: each moves to another zone."""
    parts = server.objects["endpointslices"]
    number = 0
    while not stop.wait(1):
        changed = []
        for _ in range(count):
            number += 7
            part = copy.deepcopy(parts[number % len(parts)])
            part["endpoints"][0]["zone"] = f"zone-{number % 3}"
            changed.append(part)
        server.put("endpointslices", *changed)


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and its ended children have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
