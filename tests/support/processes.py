"""Which processes there are: what a test leaves behind shows by a word of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path


def processes_with(token: str, but: int | None = None) -> list[Sequence[bytes]]:
    """The command lines that hold `token`, but this process's own and that of `but`."""
    found: list[Sequence[bytes]] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in {os.getpid(), but}:
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(token.encode() in word for word in words):
                found.append(words)
    return found


def wait_for_processes(token: str, number: int, *, seconds: float = 60) -> int:
    """How many there are once there are `number` of them, or when the time is up."""
    until = time.monotonic() + seconds
    while (there := len(processes_with(token))) < number and time.monotonic() < until:
        time.sleep(0.02)
    return there


def left_behind(token: str, *, seconds: float = 20) -> list[Sequence[bytes]]:
    """Those that are still there after a while: the kernel takes its time over a killed one."""
    until = time.monotonic() + seconds
    while (there := processes_with(token)) and time.monotonic() < until:
        time.sleep(0.02)
    return there
