"""A node as a network namespace: its address, its recorded rules, and being in it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def become_node(netns: str, address: str, rules: Path | None = None) -> None:
    """Give the namespace the node's address, and the rules of a recorded dump of iptables-legacy."""
    for command in (
        "link add eth0 type veth peer name far", "link set far up", f"address add {address}/24 dev eth0", "link set eth0 up",
        "route add default dev eth0",
    ):  # fmt: skip
        subprocess.run(["ip", "-n", netns, *command.split()], check=True)
    if rules is not None:
        subprocess.run(
            ["ip", "netns", "exec", netns, "iptables-legacy-restore", "-c"],
            input=rules.read_bytes(),
            check=True,
        )


@contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread, and the threads and processes that it starts, are in the namespace until the block ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {netns}")

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)
