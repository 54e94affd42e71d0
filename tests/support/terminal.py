"""A command in a pseudo-terminal of its own: what it shows, and keys for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence
from pathlib import Path


class Terminal:
    """Runs a command in the foreground of a new terminal; `shown` is all that it wrote there so far."""

    def __init__(self, command: Sequence[str], *, cwd: Path) -> None:
        self.shown = ""
        self._status: int | None = None
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            try:
                os.chdir(cwd)
                os.environ["TERM"] = "xterm"
                os.execvp(command[0], list(command))
            finally:
                os._exit(127)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))

    def __enter__(self) -> Terminal:
        """Begins; the end of the block ends the command."""
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)

    def press(self, keys: str) -> None:
        """Type; Ctrl-C is "\\x03"."""
        os.write(self._descriptor, keys.encode())

    def until(self, words: str, *, seconds: float = 20) -> None:
        """Wait until `words` are shown."""
        end = time.monotonic() + seconds
        while words not in self.shown:
            assert self._read(end - time.monotonic()), f"{words!r} is not in {self.shown!r}"

    def wait(self, *, seconds: float = 20) -> int:
        """Wait for the end; the exit status."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        assert time.monotonic() < end, f"it does not end, and shows {self.shown!r}"
        _, status = os.waitpid(self._pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def _read(self, seconds: float) -> bool:
        """Take what is shown next; False at the end, or when the time is up."""
        if seconds <= 0 or not select.select([self._descriptor], [], [], seconds)[0]:
            return False
        try:
            chunk = os.read(self._descriptor, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)
