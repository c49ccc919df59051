"""One `btrfs receive` of a transfer, fed through a pipe, and never waited for longer than it may stand still.

It may stop reading or ending for good: a stopped process, a disk that hangs. So nothing here waits without a
limit, nor without a look at whether we are asked to stop.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from btrsync.errors import BtrsyncError, Exit, StalledError
from btrsync.system import btrfs, pipes, process
from btrsync.system.private import confined_argv, private_view
from btrsync.system.signals import stop_signals_blocked
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RECEIVE_TIMEOUT_S: Final = 600
STOPPING_S: Final = 20.0
"""How long it may stand still once we are asked to stop: who asks kills us in the end."""
FIRST_LOOK_S: Final = 0.02
LONGEST_LOOK_S: Final = 1.0
LONGEST_PAUSE_MS: Final = 8


class Care(NamedTuple):
    """How receive is run.

    priority: words before its argv; buffer_bytes: of the pipe into it; timeout_s: how long it may stand
    still.
    """

    priority: Sequence[str] = ()
    buffer_bytes: int = pipes.PIPE_SIZE_BYTES
    timeout_s: float = RECEIVE_TIMEOUT_S


class Piece:
    """One `btrfs receive` into `staging`; closing it ends that and deletes what has that name still.

    lock_fd: inherited by it. Whatever waits raises StalledError when receive neither took a byte nor ended
    for too long, StopAskedError when it did so after `stop_fd` (None for none) could be read; receive is dead
    then, or stuck: see `process.is_child_stuck`.
    """

    def __init__(self, directory: Path, staging: str, lock_fd: int, care: Care) -> None:
        self.staging = staging
        self.stop_fd: int | None = None
        self._path = directory / staging
        self._timeout_s = care.timeout_s
        self._is_stopping = False
        self._is_open = True
        self._failure: BtrsyncError | None = None
        with contextlib.ExitStack() as stack:
            stack.callback(self._delete)
            view = stack.enter_context(private_view(directory))
            argv = [*care.priority, *confined_argv(), *btrfs.receive_argv(view)]
            read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._write_fd, False)
            self._pause_ms = min(pipes.enlarge(self._write_fd, care.buffer_bytes) >> 20, LONGEST_PAUSE_MS)
            stack.callback(self._close_input)
            try:
                # It ends with its input: what it has can only be kept by who feeds it.
                with stop_signals_blocked():
                    self._receive = stack.enter_context(
                        process.spawn(argv, stdin=read_fd, pass_fds=(lock_fd,), umask=0o077)
                    )
            finally:
                os.close(read_fd)
            self._stack = stack.pop_all()

    def give(self, block: bytes | memoryview) -> None:
        """Write `block` into receive. BrokenPipeError passes."""
        rest = memoryview(block)
        while rest:
            try:
                rest = rest[os.write(self._write_fd, rest) :]
            except BlockingIOError:
                self._wait_for_room()

    def splice(self, source_fd: int, size_bytes: int) -> None:
        """Move as much, which is there, from the pipe `source_fd` into receive. BrokenPipeError passes."""
        while size_bytes:
            try:
                size_bytes -= os.splice(source_fd, self._write_fd, size_bytes)
            except BlockingIOError:
                self._wait_for_room()

    def end(self) -> Exit:
        """Wait for the end of receive, which has been given all of it or has stopped reading."""
        if self._failure is not None:
            raise self._failure
        with self._receive.end_fd() as end_fd:
            self._wait(end_fd, select.POLLIN, is_last=True)
        self._close_input()
        exit = self._receive.wait()
        return Exit(exit.argv, exit.returncode, exit.stderr, "btrfs receive")

    def close(self) -> None:
        self._close_input()
        self._stack.close()

    def _wait_for_room(self) -> None:
        if self._pause_ms:
            # A full pipe has room again with each page that is read. Not to be woken for each, let some of it
            # be read first: 1 ms for each MiB is less than receive needs for that. Its end is an event.
            wait = select.poll()
            wait.register(self._write_fd, 0)
            wait.poll(self._pause_ms)
        self._wait(self._write_fd, select.POLLOUT)

    def _wait(self, fd: int, event: int, *, is_last: bool = False) -> None:
        """Wait for `event` at `fd` while receive gets on; is_last: close its input once it took all of it."""
        if self._failure is not None:
            raise self._failure
        wait = select.poll()
        wait.register(fd, event)
        if self.stop_fd is not None and not self._is_stopping:
            wait.register(self.stop_fd, select.POLLIN)
        held_bytes, look_s, deadline = -1, FIRST_LOOK_S, 0.0
        while not (ready := [found for found, _ in wait.poll(look_s * 1000)]) or fd not in ready:
            if ready and self.stop_fd is not None:
                wait.unregister(self.stop_fd)
                self._is_stopping, self._timeout_s = True, min(self._timeout_s, STOPPING_S)
                held_bytes = -1
            was_bytes, held_bytes = held_bytes, self._held_bytes()
            if held_bytes != was_bytes:
                deadline = time.monotonic() + self._timeout_s
            elif time.monotonic() >= deadline:
                self._give_up()
            if is_last and not held_bytes:
                self._close_input()
            look_s = min(2 * look_s, LONGEST_LOOK_S)

    def _held_bytes(self) -> int:
        return pipes.available_bytes(self._write_fd) if self._is_open else 0

    def _give_up(self) -> None:
        words = f"btrfs receive stood still for {self._timeout_s:g} s"
        if self._receive.end():
            words += " and was killed"
            hint = "see `dmesg` and `btrfs device stats` there"
        else:
            words += " and cannot be killed: it hangs in the kernel"
            hint = "see `dmesg` there: a disk does not answer; nothing more is received until it does"
        if self._is_stopping:
            self._failure = StopAskedError(f"this machine was asked to stop, and {words}", hint=hint)
        else:
            self._failure = StalledError(words, hint=hint)
        raise self._failure

    def _close_input(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._write_fd)

    def _delete(self) -> None:
        # Where receive hangs we would hang as well: the sweep of a later run sees to it.
        if not process.is_child_stuck() and os.path.lexists(self._path):
            btrfs.delete_subvolume(self._path)
