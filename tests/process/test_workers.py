"""Tasks at once in threads: all are done, one that fails ends the others, and so does a signal.

Nothing is ever closed under a task: the descriptor's number would be another file's next.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from btrsync.wire import StopAskedError
from btrsync.workers import work
from harness import command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

TIMEOUT_S = 10.0


STUCK = """
import os, signal, sys, threading
from btrsync import workers

workers.STOPPING_S = 0.2
{handling}
def stuck():
    {beginning}
    threading.Event().wait()

try:
    workers.work([stuck, *{others}], 2, lambda: None)
finally:
    print("closing what stuck uses", flush=True)
"""
HANDLING = """
def handle(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, handle)
"""


class Stopped(BaseException):
    """What a signal raises here."""


@pytest.fixture
def stop_signal() -> Iterator[signal.Signals]:
    """A signal that raises Stopped in the main thread."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, handle)
    yield signal.SIGTERM
    signal.signal(signal.SIGTERM, before)


class Task:
    """Waits until it is told to stop, and ends as a delivery does."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.is_asked = threading.Event()
        self.has_ended = False

    def __call__(self) -> None:
        self.has_begun.set()
        assert self.is_asked.wait(TIMEOUT_S), "nobody said stop"
        self.has_ended = True
        raise StopAskedError("asked")


def test_all_tasks_are_done_so_many_at_once_and_the_first_ones_first() -> None:
    begun: list[int] = []
    meeting = threading.Barrier(3, timeout=TIMEOUT_S)

    def task(number: int) -> None:
        begun.append(number)
        # Passed only by three at the same time.
        meeting.wait()

    before = threading.active_count()
    work([lambda number=number: task(number) for number in range(6)], 3, lambda: None)  # type: ignore[misc]
    assert sorted(begun[:3]) == [0, 1, 2]
    assert sorted(begun) == list(range(6))
    assert threading.active_count() == before


def test_a_signal_ends_the_wait_though_another_thread_is_given_it(stop_signal: signal.Signals) -> None:
    task, never = Task(), Task()

    def strike() -> None:
        assert task.has_begun.wait(TIMEOUT_S)
        signal.pthread_kill(threading.get_ident(), stop_signal)
        task()

    with pytest.raises(Stopped):
        work([task, strike, never], 2, task.is_asked.set)
    assert task.has_ended
    assert not never.has_begun.is_set()


def test_a_task_that_fails_ends_the_others_and_is_what_is_raised() -> None:
    task, never = Task(), Task()

    def fail() -> None:
        assert task.has_begun.wait(TIMEOUT_S)
        raise ZeroDivisionError("a bug")

    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        work([task, fail, never], 2, task.is_asked.set)
    assert task.has_ended
    assert not never.has_begun.is_set()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_signal_that_comes_while_a_failure_is_cleaned_up_waits_for_the_task(
    stop_signal: signal.Signals,
) -> None:
    task = Task()

    def stop() -> None:
        signal.raise_signal(stop_signal)
        threading.Timer(0.1, task.is_asked.set).start()

    def fail() -> None:
        assert task.has_begun.wait(TIMEOUT_S)
        raise ZeroDivisionError("a bug")

    with pytest.raises(Stopped):
        work([task, fail], 2, stop)
    assert task.has_ended


@pytest.mark.parametrize(
    ("handling", "beginning", "others", "status", "word"),
    [
        (HANDLING, "os.kill(os.getpid(), signal.SIGTERM)", "[]", 128 + signal.SIGTERM, "1 at work"),
        ("", "pass", "[lambda: 1 / 0]", 1, "ZeroDivisionError"),
    ],
    ids=["a signal", "a failure"],
)
def test_a_task_that_does_not_stop_ends_the_process_before_what_it_uses_is_closed(
    handling: str, beginning: str, others: str, status: int, word: str
) -> None:
    script = STUCK.format(handling=handling, beginning=beginning, others=others)
    done = command.run([sys.executable, "-c", script], ok=(status,), timeout_s=TIMEOUT_S)
    assert "closing" not in done.stdout
    assert "did not stop within 0.2 s" in done.stderr
    assert word in done.stderr
