"""Pipes: their size, what waits in them, and bytes moved from one to the next inside the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
from typing import Final

PIPE_SIZE_BYTES: Final = 1024 * 1024
"""The largest pipe that a user without CAP_SYS_RESOURCE may ask for (fs.pipe-max-size)."""

COPY_BLOCK_BYTES: Final = 256 * 1024


class EndedEarlyError(EOFError):
    """The source ended before all bytes were moved; `moved_bytes` had been."""

    def __init__(self, moved_bytes: int, wanted_bytes: int) -> None:
        self.moved_bytes = moved_bytes
        super().__init__(f"end of file after {moved_bytes} of {wanted_bytes} bytes")


def enlarge(fd: int, size_bytes: int = PIPE_SIZE_BYTES) -> int:
    """Make the pipe `fd` as large as allowed, up to `size_bytes`, and return its size in bytes.

    Never fails: a smaller pipe is only slower, and what is no pipe at all returns 0. Refused are
    enlargements above the user's quota (fs.pipe-user-pages-soft). Source: pipe(7), F_SETPIPE_SZ.
    """
    while size_bytes >= select.PIPE_BUF:
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes)
        except OSError as error:
            if error.errno == errno.EBUSY:  # more lies in it than would fit: it is large already
                return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            if error.errno != errno.EPERM:
                return 0
            size_bytes //= 2
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def available_bytes(fd: int) -> int:
    """Return how many bytes can be read from `fd` (a pipe, socket or terminal) without waiting."""
    answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def wait_filled(fd: int, size_bytes: int, limit_s: float) -> None:
    """Wait until the pipe `fd` holds `size_bytes`, nobody can write to it any more, or `limit_s` is over."""
    # There is no event for so much: look ever more rarely. The end of the writers is one (poll(2), POLLHUP).
    wait = select.poll()
    wait.register(fd, 0)
    pause_s = limit_s / 16
    while limit_s > 0 and available_bytes(fd) < size_bytes:
        if wait.poll(1000 * pause_s):
            return
        limit_s -= pause_s
        pause_s = min(2 * pause_s, limit_s)


def splice_exactly(source_fd: int, destination_fd: int, n_bytes: int) -> None:
    """Move exactly `n_bytes` from one descriptor to the other, inside the kernel where possible.

    Where neither is a pipe, or the kernel cannot splice the pair, the bytes pass through one
    buffer. Waits on descriptors that do not block. Raises EndedEarlyError at end of file, with the
    number of bytes moved; BrokenPipeError passes through. Source: splice(2).
    """
    moved = 0
    while moved < n_bytes:
        try:
            count = os.splice(source_fd, destination_fd, n_bytes - moved)
        except BlockingIOError:
            _wait_for_either(source_fd, destination_fd)
            continue
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _copy_exactly(source_fd, destination_fd, n_bytes, moved)
            return
        if count == 0:
            raise EndedEarlyError(moved, n_bytes)
        moved += count


def _copy_exactly(source_fd: int, destination_fd: int, n_bytes: int, moved: int) -> None:
    buffer = memoryview(bytearray(min(COPY_BLOCK_BYTES, n_bytes - moved)))
    while moved < n_bytes:
        try:
            count = os.readv(source_fd, [buffer[: n_bytes - moved]])
        except BlockingIOError:
            _wait(source_fd, select.POLLIN)
            continue
        if count == 0:
            raise EndedEarlyError(moved, n_bytes)
        write_all(destination_fd, buffer[:count])
        moved += count


def write_all(fd: int, block: bytes | bytearray | memoryview) -> None:
    """Write the whole `block`, waiting on a descriptor that does not block; BrokenPipeError passes."""
    rest = memoryview(block)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def _wait_for_either(source_fd: int, destination_fd: int) -> None:
    # splice does not tell which side would have blocked. To wait for both at once would spin while
    # the other is ready, so wait for each in turn: neither can become unready behind our back.
    _wait(source_fd, select.POLLIN)
    _wait(destination_fd, select.POLLOUT)


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
