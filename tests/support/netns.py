"""Work within a network namespace, in a thread of this process."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def within(netns: str, work: Callable[[], T]) -> T:
    """What `work` returns in the namespace. Sockets that it opens, and threads that it starts, stay there."""
    done: list[T] = []
    failed: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(descriptor)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=enter_and_work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
