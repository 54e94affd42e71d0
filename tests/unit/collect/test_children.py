"""Child processes end with the question, in time and with all of their own children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ktp.collect.children import allow_children, ending_children, run_child, stop_children
from tests.support.processes import left_behind, wait_for_processes


def test_what_goes_in_and_out_is_exact() -> None:
    content = os.urandom(3_000_000)
    done = run_child(["cat"], timeout=60, stdin=content)
    assert (done.status, done.stdout, done.stderr) == (0, content, b"")


def test_status_and_errors() -> None:
    done = run_child(["sh", "-c", "echo out; echo err >&2; exit 5"], timeout=60)
    assert (done.status, done.stdout, done.stderr) == (5, b"out\n", b"err\n")


def test_a_child_that_reads_nothing_may_be_given_something() -> None:
    assert run_child(["true"], timeout=60, stdin=b"x" * 1_000_000).status == 0


def test_a_timeout_keeps_what_was_printed_and_ends_the_whole_group() -> None:
    before = time.monotonic()
    done = run_child(["sh", "-c", "echo first; sleep 60 & echo $!; wait"], timeout=1.5)
    assert time.monotonic() - before < 30
    assert done.status is None
    first, child = done.stdout.split()
    assert first == b"first"
    assert ends_soon(int(child))


def ends_soon(pid: int) -> bool:
    """Whether the process is gone within a while: the kernel takes its time over a killed one."""
    before = time.monotonic()
    while is_alive(pid):
        if time.monotonic() - before > 20:
            return False
        time.sleep(0.01)
    return True


def test_a_grandchild_does_not_outlive_the_command() -> None:
    done = run_child(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], timeout=60)
    assert done.status == 0
    assert ends_soon(int(done.stdout))


def test_one_that_leaves_its_session_and_keeps_stderr_is_not_waited_for() -> None:
    """As a ControlPersist master of OpenSSH before 8.5."""
    before = time.monotonic()
    done = run_child(["sh", "-c", "setsid sleep 60 >/dev/null </dev/null & echo $!"], timeout=50)
    took = time.monotonic() - before
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.status == 0
    assert took < 40


def test_too_much_output_ends_it() -> None:
    done = run_child(["cat", "/dev/zero"], timeout=60, limit=1_000_000)
    assert done.overflowed
    assert done.status is None
    assert 1_000_000 <= len(done.stdout) < 2_000_000


def test_stopping_ends_all_and_starts_none() -> None:
    results = []
    token = f"ktp-stopping-{os.getpid()}"
    threads = [
        threading.Thread(
            target=lambda: results.append(run_child(["sh", "-c", f"sleep 60; : {token}"], timeout=60))
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    assert wait_for_processes(token, 5) >= 5  # one more while a shell forks
    try:
        stop_children()
        for thread in threads:
            thread.join(30)
        assert [result.status for result in results] == [None] * 5
        assert run_child(["true"], timeout=60).status is None
    finally:
        allow_children()
    assert run_child(["true"], timeout=60).status == 0


def test_an_error_does_not_stop_what_comes_later() -> None:
    with pytest.raises(ValueError, match="x"), ending_children():
        raise ValueError("x")
    assert run_child(["true"], timeout=60).status == 0


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        run_child(["/nowhere/command"], timeout=60)


INTERRUPTED = """
import sys
from ktp.collect.children import ending_children, run_child
from ktp.collect.parallel import run_in_parallel
with ending_children():
    print("ready", flush=True)
    run_in_parallel([lambda: run_child(["sh", "-c", f"sleep 60; : {sys.argv[1]}"], timeout=60)] * 20, workers=4)
"""


@pytest.mark.parametrize("number", [2, 15, 1])
def test_a_signal_leaves_nothing(number: int, repository: Path) -> None:
    token = f"ktp-children-{os.getpid()}-{number}"
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, token],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=repository,
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert wait_for_processes(f"sleep 60; : {token}", 4) >= 4
    child.send_signal(number)
    assert child.wait(60) == (-2 if number == 2 else 128 + number)
    child.stdout.close()
    assert left_behind(token) == []


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
