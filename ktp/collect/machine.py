"""A machine that is asked by commands and files: this one, or in other modules one far away, or none at all."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ktp.collect.children import run_child
from ktp.collect.pod_namespaces import enter_container, local_namespaces
from ktp.model.record import dataclass

# Administration commands are often missing from the PATH of ordinary users and of cron.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
CILIUM_DEVICE = "/sys/class/net/cilium_host"
CILIUM_AGENT = "cilium-agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a command printed, and how it ended: `status` is its exit status, None if it took too long."""

    status: int | None
    stdout: bytes = b""
    stderr: bytes = b""


class Commands(Protocol):
    """What runs commands."""

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        """Run a command that `has_command` knows, without a shell and with LC_ALL=C."""

    def has_command(self, name: str) -> bool:
        """Whether there is an executable of that name."""


class CommandRunner(Commands, Protocol):
    """The little that is asked of a machine; this one, or in tests none at all."""

    def read_file(self, path: str) -> bytes:
        """The content of a file; OSError as `open` raises it."""

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`."""

    def hostnames(self) -> tuple[str, ...]:
        """The machine's names, the one that `hostname` prints first."""

    def is_root(self) -> bool:
        """Whether commands run as root."""

    def namespaces(self, addresses: Sequence[str]) -> dict[str, int]:
        """For each address that a network namespace other than the machine's own has, a process in it."""

    def agents_command(self) -> str:
        """What Cilium's command is run by in its agent's container, seen from the node; "" where there is no agent."""


class LocalRunner:
    """This machine, in the network namespace that ktp runs in."""

    def __init__(self) -> None:
        self._path = os.pathsep.join(part for part in (os.environ.get("PATH", ""), _SYSTEM_PATH) if part)
        self._environment = {**os.environ, "LC_ALL": "C", "PATH": self._path}

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        """Run a command without a shell and with LC_ALL=C; killed if it takes longer than `timeout` seconds."""
        program = shutil.which(command[0], path=self._path) or command[0]
        try:
            done = run_child([program, *command[1:]], timeout=timeout, environment=self._environment)
        except OSError as error:
            return CommandResult(status=127, stderr=(error.strerror or str(error)).encode())
        return CommandResult(
            status=done.status, stdout=b"" if done.status is None else done.stdout, stderr=done.stderr
        )

    def has_command(self, name: str) -> bool:
        """Whether there is an executable of that name."""
        return shutil.which(name, path=self._path) is not None

    def read_file(self, path: str) -> bytes:
        """The content of a file; OSError as `open` raises it."""
        return Path(path).read_bytes()

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`."""
        return Path(path).exists()

    def hostnames(self) -> tuple[str, ...]:
        """The machine's names, without asking DNS."""
        return (socket.gethostname(),)

    def is_root(self) -> bool:
        """Whether ktp runs as root."""
        return os.geteuid() == 0

    def namespaces(self, addresses: Sequence[str]) -> dict[str, int]:
        """For each address that another network namespace has, a process in it."""
        return local_namespaces(addresses)

    def agents_command(self) -> str:
        """By the first process that is called as the agent's program."""
        if not Path(CILIUM_DEVICE).exists():
            return ""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "comm").read_text().strip() != CILIUM_AGENT:
                    continue
                has_new_name = (process / "root/usr/bin/cilium-dbg").exists()  # from 1.15 on
            except OSError:
                continue  # it has ended, or is not ours to look into
            return f"{enter_container(int(process.name))} {'cilium-dbg' if has_new_name else 'cilium'}"
        return ""
