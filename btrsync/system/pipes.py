"""Pipes: their size, and what waits in them."""

from __future__ import annotations

import errno
import fcntl
import select
import struct
import termios
from typing import Final

PIPE_SIZE_BYTES: Final = 1024 * 1024
"""The largest pipe that a user without CAP_SYS_RESOURCE may ask for (fs.pipe-max-size)."""


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
