"""Pipes and sockets: their size, what waits in them, bytes moved from one to the next."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from btrsync.system import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


class End(int):
    """The descriptor of one end, closed once."""

    is_closed = False

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self)


@contextmanager
def pipe() -> Iterator[tuple[End, End]]:
    """Read end and write end; either may be closed inside."""
    ends = [End(fd) for fd in os.pipe()]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()


@contextmanager
def sockets() -> Iterator[tuple[End, End]]:
    """Two ends of a stream, as sshd gives them to a forced command."""
    ends = [End(end.detach()) for end in socket.socketpair()]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()


Ends = Callable[[], AbstractContextManager[tuple[End, End]]]


@contextmanager
def feeding(fd: int, content: bytes) -> Iterator[None]:
    """Somebody who writes while the test reads."""
    thread = threading.Thread(target=pipes.write_all, args=(fd, content), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=10)  # a test that failed must not wait for its other half


@contextmanager
def draining(fd: int, size_bytes: int, into: bytearray) -> Iterator[None]:
    """Somebody who reads while the test writes."""

    def drain() -> None:
        while len(into) < size_bytes:
            block = os.read(fd, MIB)
            if not block:
                return
            into.extend(block)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=10)  # a test that failed must not wait for its other half


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


@pytest.mark.parametrize(
    ("source", "destination"), [(pipe, pipe), (sockets, pipe), (pipe, sockets), (sockets, sockets)]
)
@pytest.mark.parametrize("blocking", [True, False])
def test_exactly_the_bytes_asked_for_pass(source: Ends, destination: Ends, blocking: bool) -> None:
    content = os.urandom(3 * MIB + 17)
    rest = b"and this stays"
    moved = bytearray()
    with source() as (source_read, source_write), destination() as (read_fd, write_fd):
        os.set_blocking(source_read, blocking)
        os.set_blocking(write_fd, blocking)
        with feeding(source_write, content + rest), draining(read_fd, len(content), moved):
            pipes.splice_exactly(source_read, write_fd, len(content))
        assert moved == content
        os.set_blocking(source_read, True)
        assert os.read(source_read, 100) == rest


def test_a_file_is_moved_into_a_pipe_and_out_again(tmp_path: Path) -> None:
    content = os.urandom(MIB // 2)
    (tmp_path / "from").write_bytes(content)
    with (
        (tmp_path / "from").open("rb") as source,
        (tmp_path / "to").open("wb") as destination,
        pipe() as (r, w),
    ):
        pipes.enlarge(w)
        pipes.splice_exactly(source.fileno(), w, len(content))
        pipes.splice_exactly(r, destination.fileno(), len(content))
    assert (tmp_path / "to").read_bytes() == content


def test_from_file_to_file_the_bytes_pass_through_a_buffer(tmp_path: Path) -> None:
    content = os.urandom(MIB + 1)
    (tmp_path / "from").write_bytes(content + b"more")
    with (tmp_path / "from").open("rb") as source, (tmp_path / "to").open("wb") as destination:
        pipes.splice_exactly(source.fileno(), destination.fileno(), len(content))
    assert (tmp_path / "to").read_bytes() == content


def test_a_file_open_for_appending_cannot_be_spliced_to_but_gets_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    with path.open("ab") as file, pipe() as (read_fd, write_fd):
        os.write(write_fd, b"after")
        with pytest.raises(OSError, match="Invalid argument"):
            os.splice(read_fd, file.fileno(), 5)
        pipes.splice_exactly(read_fd, file.fileno(), 5)
    assert path.read_bytes() == b"before after"


@pytest.mark.parametrize("destination", [pipe, sockets])
@pytest.mark.parametrize("source", [pipe, sockets])
def test_an_early_end_of_file_says_how_much_was_moved(source: Ends, destination: Ends) -> None:
    with pipe() as (source_read, source_write), destination() as (read_fd, write_fd):
        os.write(source_write, b"abc")
        source_write.close()
        with pytest.raises(pipes.EndedEarlyError, match="end of file after 3 of 10 bytes") as caught:
            pipes.splice_exactly(source_read, write_fd, 10)
        assert caught.value.moved_bytes == 3
        assert isinstance(caught.value, EOFError)
        assert os.read(read_fd, 10) == b"abc"


@pytest.mark.parametrize("source", [pipe, sockets])
def test_a_reader_who_left_is_a_broken_pipe(source: Ends) -> None:
    with source() as (source_read, source_write), pipe() as (read_fd, write_fd):
        os.write(source_write, b"abc")
        read_fd.close()
        with pytest.raises(BrokenPipeError):
            pipes.splice_exactly(source_read, write_fd, 3)


def test_nothing_to_move_touches_nothing() -> None:
    with pipe() as (read_fd, write_fd):
        os.set_blocking(read_fd, False)
        pipes.splice_exactly(read_fd, write_fd, 0)


def test_write_all_waits_for_a_slow_reader() -> None:
    content = os.urandom(2 * MIB)
    moved = bytearray()
    with pipe() as (read_fd, write_fd):
        os.set_blocking(write_fd, False)
        with draining(read_fd, len(content), moved):
            pipes.write_all(write_fd, content)
    assert moved == content
