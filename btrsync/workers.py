"""Several tasks at once, in threads, while a signal may still interrupt the main thread."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STOPPING_S = 30.0
"""How long tasks that are told to stop may take: a filesystem is synced meanwhile, for example."""


def work(tasks: Iterable[Callable[[], None]], threads: int, stop: Callable[[], None]) -> None:
    """Do all tasks, the first ones first, so many at once; called in the main thread.

    stop: lets the tasks under way end soon, by StopAskedError. It is called when a signal's exception
    interrupts the wait for them, or when one of them raises something else; that is raised at the end.
    """
    crew = _Crew(tasks)
    members = [
        threading.Thread(target=crew.work, name=f"worker {number}", daemon=True) for number in range(threads)
    ]
    try:
        with crew.woken_by_signals():
            for member in members:
                member.start()
            crew.wait_for(len(members))
        if crew.failures:
            raise crew.failures[0]
    finally:
        if any(member.is_alive() for member in members):
            crew.dismiss()
            stop()
        deadline = time.monotonic() + STOPPING_S
        for member in members:
            if member.ident is not None:
                member.join(max(0.0, deadline - time.monotonic()))
        if not any(member.is_alive() for member in members):
            crew.close()


class _Crew:
    """What the threads have in common."""

    def __init__(self, tasks: Iterable[Callable[[], None]]) -> None:
        self.failures: list[BaseException] = []
        self._tasks = deque(tasks)
        self._ended = 0
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
                self._ended += 1
            os.write(self._write_fd, b"\0")

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            return self._tasks.popleft() if self._tasks else None

    def dismiss(self) -> None:
        """Let nobody begin another task."""
        with self._lock:
            self._tasks.clear()

    def wait_for(self, members: int) -> None:
        """Wait until so many have ended, or one has failed."""
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN)
        while self._ended < members and not self.failures:
            # Where a signal has come, whichever thread took it, its handler runs behind this call.
            poller.poll()
            os.read(self._read_fd, 512)

    @contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """The time in which a signal ends our wait, whichever thread the kernel gives it to."""
        before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
