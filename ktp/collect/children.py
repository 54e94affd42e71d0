"""Child processes that never outlive the question: each has a process group of its own, and all can be ended.

A group of its own, because `ssh` and `sudo` start further processes, and killing the first would leave those.
The price is that Ctrl-C in the terminal no longer reaches the children: whoever waits for them ends them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any

from ktp.model.record import dataclass

MAX_OUTPUT = 1 << 30  # a node of a million rules prints 170 MB
_GRACE = 0.5
_LOOK_UP = 0.2
_READ_SIZE = 1 << 16
_MAX_STDERR = 1 << 20

_lock = threading.Lock()
_live: set[int] = set()
_stopping = False


# What to write to a program that has printed this: nothing while it has more to say.
Answer = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """How a child ended: `status` is None where it was ended for taking too long or printing too much.

    What it had printed until then is kept.
    """

    status: int | None
    stdout: bytes
    stderr: bytes
    overflowed: bool = False


def run_child(
    command: Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    answer: Answer | None = None,
    environment: Mapping[str, str] | None = None,
    limit: int = MAX_OUTPUT,
    folder: str | None = None,
    spare: bool = False,
) -> ChildResult:
    """Run a command without a shell in a session of its own; OSError where it cannot be started.

    With `answer`, stdin stays open behind `stdin`: it is given what the command prints and says what comes next.

    With `spare`, a command that ends by itself may leave something running: a ControlPersist master of `ssh` needs
    the ProxyCommand or the jump host's client that its connection goes through.

    stderr goes to a nameless file and not to a pipe: a ControlPersist master that `ssh` leaves behind may keep
    it open (OpenSSH before 8.5), and waiting for its end would be waiting for that master.
    """
    deadline = time.monotonic() + timeout
    with _nameless_file() as errors:
        child = _start(command, bool(stdin), environment, errors.fileno(), folder)
        if child is None:
            return ChildResult(status=None, stdout=b"", stderr=b"")
        try:
            stdout, end = _exchange(child, stdin, answer, deadline, limit)
            if end is None and not _has_ended(child, deadline):
                end = "timeout"
        finally:
            _end_group(child, spare=spare)
        errors.seek(0)
        stderr = errors.read(_MAX_STDERR)
    status = child.returncode if end is None and not _stopping else None
    return ChildResult(status=status, stdout=stdout, stderr=stderr, overflowed=end == "overflow")


def _nameless_file() -> IO[bytes]:
    """In memory, where the system has such files: a node's disk is not touched, not even for a moment."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("ktp"), "w+b")
    return tempfile.TemporaryFile()


def stop_children() -> None:
    """End every child with its group, and start none any more until `allow_children`."""
    global _stopping  # noqa: PLW0603 - processes are global too
    with _lock:
        _stopping = True
        groups = tuple(_live)
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        with _lock:
            if not _live.intersection(groups):
                return
        time.sleep(0.01)
    _signal(groups, signal.SIGKILL)


def allow_children() -> None:
    """Let children be started again."""
    global _stopping  # noqa: PLW0603
    with _lock:
        _stopping = False


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """Within this block no way of ending ktp but SIGKILL leaves a child: Ctrl-C, SIGTERM, SIGHUP, an exception."""
    allow_children()
    in_main = threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)} if in_main else {}
    )
    # A signal that was set to be ignored (nohup) stays so.
    for number in [number for number, handler in before.items() if handler == signal.SIG_DFL]:
        signal.signal(number, _exit)
    try:
        yield
    except BaseException as error:
        stop_children()
        if isinstance(error, Exception):
            allow_children()  # all work has ended; after Ctrl-C other threads may still want to begin some
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait until a child that has been started is known, so that it can be ended too.

    By handlers of Python's and not by a mask, which the child would inherit; where one is ignored, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread
        return
    held: list[int] = []
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            before[number] = signal.signal(number, lambda arrived, _frame: held.append(arrived))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for arrived in held:
            signal.raise_signal(arrived)


def _start(
    command: Sequence[str],
    with_stdin: bool,
    environment: Mapping[str, str] | None,
    errors: int,
    folder: str | None,
) -> subprocess.Popen[bytes] | None:
    with _signals_held(), _lock:
        if _stopping:
            return None
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if with_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        _live.add(child.pid)
    return child


def _exchange(
    child: subprocess.Popen[bytes], stdin: bytes, answer: Answer | None, deadline: float, limit: int
) -> tuple[bytes, str | None]:
    """What the child prints, and None, "timeout" or "overflow" for how that ended."""
    assert child.stdout is not None
    chunks: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return b"".join(chunks), "timeout"
            # A signal that comes just before the wait begins does not end it: see run_in_parallel.
            for key, _ in selector.select(min(left, _LOOK_UP)):
                if key.fileobj is child.stdin:
                    try:
                        stdin = stdin[os.write(key.fd, stdin[:_READ_SIZE]) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        stdin = b""  # it reads no more: what it prints tells why
                    if not stdin:
                        selector.unregister(key.fileobj)
                        if answer is None:
                            with contextlib.suppress(OSError):
                                child.stdin.close()
                    continue
                chunk = os.read(key.fd, _READ_SIZE)
                if not chunk:
                    return b"".join(chunks), None
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    return b"".join(chunks), "overflow"
                if answer is not None and child.stdin is not None and (more := answer(chunk)):
                    if not stdin:
                        selector.register(child.stdin, selectors.EVENT_WRITE)
                    stdin += more


def _has_ended(child: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether the child ends before the deadline; it is not reaped, so that its number stays its own."""
    pause = 0.0005
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def _end_group(child: subprocess.Popen[bytes], *, spare: bool) -> None:
    """End the child and whatever it left in its group, and reap it last: until then nobody gets its number."""
    ended = _has_ended(child, 0.0)
    if not ended:
        _signal((child.pid,), signal.SIGTERM)
        _has_ended(child, time.monotonic() + _GRACE)
    if not (ended and spare):
        _signal((child.pid,), signal.SIGKILL)
    with _lock:
        _live.discard(child.pid)
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _signal(groups: Sequence[int], number: int) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
