"""Several reads at once."""

from __future__ import annotations

import threading

import pytest

from ktp.collect.parallel import run_in_parallel


def test_results_come_in_the_order_of_the_tasks() -> None:
    later = threading.Event()

    def slow() -> int:
        assert later.wait(5)
        return 1

    def fast() -> int:
        later.set()
        return 2

    assert run_in_parallel([slow, fast], workers=2) == [1, 2]


def test_no_more_threads_than_workers_and_none_for_nothing() -> None:
    threads: set[str] = set()

    def task() -> None:
        threads.add(threading.current_thread().name)

    run_in_parallel([task] * 20, workers=3)
    assert 1 <= len(threads) <= 3
    assert run_in_parallel([]) == []


def test_the_first_failure_in_order_is_raised_once_all_have_ended() -> None:
    ended = []

    def fail(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError, match="first"):
        run_in_parallel(
            [lambda: ended.append(1), lambda: fail("first"), lambda: fail("second"), lambda: ended.append(2)]
        )
    assert ended == [1, 2]
