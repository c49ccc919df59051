"""What a send will write, counted by `btrfs send --no-data`: before the send proper, or beside it."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from btrsync.errors import MACHINE_ERRNOS, BtrsyncError, CommandError, storage_error
from btrsync.plan.names import printable_name
from btrsync.stream.totals import Totals, TotalsCounter
from btrsync.system import pipes, process
from btrsync.system.priority import LOWEST_NICE, priority_argv

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

BLOCK_BYTES = 64 << 10
"""Small, for while a block is counted the thread that sends waits for the interpreter."""


def count_totals(argv: Sequence[str], *, wait: Callable[[int], None] | None = None) -> Totals:
    """Return what the send will do whose `--no-data` form is `argv`; takes as long as that.

    wait: called with a descriptor before each read, to wait for it and for what else may come; what it
    raises passes. Raises CommandError if the send fails, StreamError if it writes no stream without data.
    """
    totals = _count(argv, None, wait)
    assert totals is not None, "nobody could stop it"
    return totals


def printable_largest(totals: Totals) -> tuple[tuple[str, int], ...]:
    """Return the largest paths as a report shows them: names may be any bytes."""
    return tuple((printable_name(os.fsdecode(path)), size_bytes) for path, size_bytes in totals.largest)


class TotalsBeside:
    """A count beside a running send: `with TotalsBeside(argv) as totals: ... totals.value()`.

    argv: the `--no-data` form of that send; it runs with the lowest priority. delay_s: seconds until it
    begins, so that a small change pays nothing. Leaving the context ends it at once. What fails in it
    fails nothing else: then there are no totals, and `error` tells why.
    """

    def __init__(self, argv: Sequence[str], *, delay_s: float) -> None:
        self.error: BtrsyncError | None = None
        self._argv = [*priority_argv(LOWEST_NICE, "idle"), *argv]
        self._delay_s = delay_s
        self._totals: Totals | None = None
        self._thread = threading.Thread(target=self._run, name="totals", daemon=True)

    def __enter__(self) -> Self:
        self._hurry_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # A thread that gets a signal does not wake the main thread out of its call, so let this one get
        # none. It begins with the mask of who starts it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)
        os.close(self._hurry_fd)

    def value(self) -> Totals | None:
        """Return the totals if they are counted by now."""
        return self._totals

    def finish(self) -> Totals | None:
        """Begin if it has not, wait for the end of the count; None if it failed."""
        os.eventfd_write(self._hurry_fd, 1)
        self._thread.join()
        return self._totals

    def _run(self) -> None:
        wait = select.poll()
        wait.register(self._hurry_fd, select.POLLIN)
        wait.register(self._stop_fd, select.POLLIN)
        if any(fd == self._stop_fd for fd, _ in wait.poll(self._delay_s * 1000)):
            return
        try:
            self._totals = _count(self._argv, self._stop_fd)
        except BtrsyncError as error:
            self.error = error
        except OSError as error:
            if error.errno not in MACHINE_ERRNOS:
                raise
            self.error = storage_error(error)


def _count(
    argv: Sequence[str], stop_fd: int | None, await_input: Callable[[int], None] | None = None
) -> Totals | None:
    """Return the totals of `argv`; None if `stop_fd` became readable before its end."""
    counter = TotalsCounter()
    with ExitStack() as stack:
        read_fd, write_fd = os.pipe()
        try:
            # Left last: who writes no more to a reader is done with.
            stack.callback(os.close, read_fd)
            pipes.enlarge(write_fd)
            send = stack.enter_context(process.spawn(argv, stdout=write_fd))
        finally:
            os.close(write_fd)
        wait = select.poll()
        wait.register(read_fd, select.POLLIN)
        if stop_fd is not None:
            wait.register(stop_fd, select.POLLIN)
        while True:
            if await_input is not None:
                await_input(read_fd)
            if any(fd == stop_fd for fd, _ in wait.poll()):
                # In a thread that blocks all signals, so does the child: this one cannot be blocked.
                send.kill()
                return None
            block = os.read(read_fd, BLOCK_BYTES)
            if not block:
                break
            counter.feed(block)
        exit = send.wait()
    if exit.has_failed:
        raise CommandError(exit)
    return counter.totals()
