"""Several reads at once: what collection waits for is other machines and processes, not this one."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

S = TypeVar("S")
T = TypeVar("T")
_LOOK_UP = 0.2

# (done, in all, what was just done); called from several threads, one at a time.
OnProgress: TypeAlias = "Callable[[int, int, str], None]"


def run_each(
    items: Sequence[S],
    work: Callable[[S], T],
    *,
    workers: int,
    on_progress: OnProgress | None = None,
    name: Callable[[S], str] = str,
) -> list[T]:
    """What `work` makes of each item, in their order, several at once; `on_progress` is told of each, by its `name`."""
    done = 0
    lock = threading.Lock()

    def told(item: S) -> T:
        nonlocal done
        result = work(item)
        with lock:
            done += 1
            if on_progress is not None:
                on_progress(done, len(items), name(item))
        return result

    return run_in_parallel([partial(told, item) for item in items], workers=max(1, workers))


def run_in_parallel(tasks: Sequence[Callable[[], T]], *, workers: int = 8) -> list[T]:
    """The results of all tasks in their order, run by up to `workers` threads.

    Raises the exception of the first task, in order, that failed, once all have ended. The threads are
    daemons, and so Ctrl-C ends the program at once and does not wait for a server that does not answer.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
        waiting.put(index)
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}

    def work() -> None:
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results[index] = tasks[index]()
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
                failures[index] = error

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        # With a limit, for a signal that comes just before the wait begins does not end it: Python's own handlers run
        # only when this thread goes on (CPython, Doc/library/signal.rst, "Execution of Python signal handlers").
        while thread.is_alive():
            thread.join(_LOOK_UP)
    if failures:
        raise failures[min(failures)]
    return [results[index] for index in range(len(tasks))]
