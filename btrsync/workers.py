"""Several tasks at once, in threads, while a signal may still interrupt the main thread."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from btrsync.system.signals import stop_signals_deferred
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

STOPPING_S = 30.0
"""How long tasks that are told to stop may take: a filesystem is synced meanwhile, for example."""
STUCK_STATUS = 1


def work(tasks: Iterable[Callable[[], None]], threads: int, stop: Callable[[], None]) -> None:
    """Do all tasks, the first ones first, so many at once; called in the main thread.

    stop: lets the tasks under way end soon, by StopAskedError. It is called when a signal asks to stop, which
    takes effect at the end, or when a task raises something else; that is raised at the end. Where a task
    does not end within `STOPPING_S` the process does: were this left, what that task uses would be closed,
    and the next file to be opened would have the number that it writes to.
    """
    crew = _Crew(tasks)
    members = [
        threading.Thread(target=crew.work, name=f"worker {number}", daemon=True) for number in range(threads)
    ]
    with stop_signals_deferred() as stop_fd:
        try:
            for member in members:
                member.start()
            crew.wait_for(len(members), stop_fd)
        finally:
            if crew.ended < len(members):
                crew.dismiss()
                stop()
            deadline = time.monotonic() + STOPPING_S
            for member in members:
                if member.ident is not None:
                    member.join(max(0.0, deadline - time.monotonic()))
            if stuck := sum(member.is_alive() for member in members):
                _abandon(stuck, stop_fd, crew.failures)
            crew.close()
        if crew.failures:
            raise crew.failures[0]


def _abandon(stuck: int, stop_fd: int, failures: list[BaseException]) -> NoReturn:
    """End this process without another word to anybody: its children meet the end of their pipes."""
    sys.stderr.write(f"btrsync: {stuck} at work did not stop within {STOPPING_S:g} s: ended all the same\n")
    for error in failures:
        sys.stderr.write(f"btrsync: {type(error).__name__}: {error}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    try:
        # The numbers of the signals that came. Source: `signal.set_wakeup_fd`.
        os._exit(128 + os.read(stop_fd, 1)[0])
    except BlockingIOError:
        os._exit(STUCK_STATUS)


class _Crew:
    """What the threads have in common."""

    def __init__(self, tasks: Iterable[Callable[[], None]]) -> None:
        self.failures: list[BaseException] = []
        self._tasks = deque(tasks)
        self.ended = 0
        self._lock = threading.Lock()
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def work(self) -> None:
        """Do one task after the other, in one thread of several."""
        try:
            while (task := self._next()) is not None:
                task()
        except StopAskedError:
            pass
        except BaseException as error:  # noqa: BLE001  whatever it is, the main thread raises it
            self.failures.append(error)
        finally:
            with self._lock:
                self.ended += 1
            os.write(self._write_fd, b"\0")

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            return self._tasks.popleft() if self._tasks else None

    def dismiss(self) -> None:
        """Let nobody begin another task."""
        with self._lock:
            self._tasks.clear()

    def wait_for(self, members: int, stop_fd: int) -> None:
        """Wait until so many have ended, or one has failed, or `stop_fd` can be read."""
        poller = select.poll()
        for fd in (self._read_fd, stop_fd):
            poller.register(fd, select.POLLIN)
        while self.ended < members and not self.failures:
            if any(fd == stop_fd for fd, _ in poller.poll()):
                return
            os.read(self._read_fd, 512)

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
