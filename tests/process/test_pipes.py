"""Pipes and sockets: their size, and what waits in them."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from btrsync.system import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@contextmanager
def open_pair(one: int, other: int) -> Iterator[tuple[int, int]]:
    try:
        yield one, other
    finally:
        os.close(one)
        os.close(other)


def pipe() -> AbstractContextManager[tuple[int, int]]:
    """Read end and write end."""
    return open_pair(*os.pipe())


def sockets() -> AbstractContextManager[tuple[int, int]]:
    """Two ends of a stream, as sshd gives them to a forced command."""
    one, other = socket.socketpair()
    return open_pair(one.detach(), other.detach())


def test_a_pipe_is_enlarged_to_a_mebibyte() -> None:
    with pipe() as (_, write_fd):
        assert pipes.enlarge(write_fd) == MIB
        assert fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ) == MIB


def test_enlarging_what_is_no_pipe_does_nothing(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, sockets() as (one, _):
        assert pipes.enlarge(file.fileno()) == 0
        assert pipes.enlarge(one) == 0


def test_a_pipe_that_holds_more_than_asked_for_keeps_its_size() -> None:
    with pipe() as (_, write_fd):
        pipes.enlarge(write_fd)
        os.write(write_fd, bytes(MIB // 2))
        assert pipes.enlarge(write_fd, 4096) == MIB


def test_available_bytes_are_those_that_can_be_read_at_once() -> None:
    with pipe() as (read_fd, write_fd):
        assert pipes.available_bytes(read_fd) == 0
        os.write(write_fd, b"twelve bytes")
        assert pipes.available_bytes(read_fd) == 12
    with sockets() as (one, other):
        os.write(one, b"twelve bytes")
        assert pipes.available_bytes(other) == 12


def test_a_pipe_is_waited_for_until_it_is_filled_or_ended_or_time_is_up() -> None:
    with pipe() as (read_fd, write_fd):
        began = time.monotonic()
        pipes.wait_filled(read_fd, 4, 0.2)
        assert time.monotonic() - began >= 0.15, "an open pipe with nothing in it"
        os.write(write_fd, b"four")
        began = time.monotonic()
        pipes.wait_filled(read_fd, 4, 60)
        assert time.monotonic() - began < 30
    with pipe() as (read_fd, write_fd), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pipes.wait_filled, read_fd, 4, 60)
        os.write(write_fd, b"two")
        os.dup2(read_fd, write_fd)  # nobody writes to it any more
        waiting.result(timeout=30)
