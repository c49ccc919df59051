"""`btrsync serve` and a client that holds a key and means ill: what it can spoil is its own."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from btrsync.errors import ProtocolError, RefusedError
from btrsync.protocol import (
    FRAME_HEADER,
    MAX_REQUEST_BYTES,
    Committed,
    Failed,
    FrameType,
    Hello,
    encode,
)
from harness import command
from tests.kernel.test_serve import connected, ended

if TYPE_CHECKING:
    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

LARGEST_KIB = 64 << 10


def memory_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1])


def shout(client: Client, block: bytes, *, times: int) -> int:
    """Write and never read, until the server has had enough; return the most memory it took, in KiB."""
    rest, most = memoryview(block * times), 0
    deadline = time.monotonic() + 20
    while rest and time.monotonic() < deadline:
        if client.server.poll() is not None:
            return most
        most = max(most, memory_kib(client.server.pid))
        try:
            if select.select([], [client.write_fd], [], 0.2)[1]:
                rest = rest[os.write(client.write_fd, rest[: 1 << 16]) :]
        except BrokenPipeError:
            return most
    raise AssertionError("the server goes on listening")


def test_a_client_that_shouts_and_never_listens_is_cut_off_before_it_fills_the_memory(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        most = shout(client, encode(place.begin("s1", name="../" + "x" * 3000)), times=5000)
        assert ended(client) == ProtocolError.exit_status
        assert "does not listen" in client.server.stderr_tail()
        assert most < LARGEST_KIB


def test_a_request_larger_than_any_is_refused_before_it_is_read(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        os.write(client.write_fd, FRAME_HEADER.pack(FrameType.CONTROL, MAX_REQUEST_BYTES + 1))
        assert client.expect(Failed).exit_status == ProtocolError.exit_status
        assert ended(client) == ProtocolError.exit_status


def test_the_longest_request_that_a_configuration_allows_is_read(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        sources = [UUID(int=number) for number in range(64)]
        answer = client.send(place.begin("s1", name="n" * 128, job="j" * 64, clone_sources=sources), b"")
        assert isinstance(answer, Failed)
        assert answer.exit_status == RefusedError.exit_status


@pytest.mark.parametrize("run_id", ["x" * 1000, "two\nlines"])
def test_a_run_id_that_could_fill_or_spoil_the_lock_file_is_refused(place: Place, run_id: str) -> None:
    with connected(place) as client:
        client.wire.send(Hello(run_id, "test", "0", 1))
        assert client.expect(Failed).exit_status == ProtocolError.exit_status
    assert place.listing() == []


def test_what_a_client_says_cannot_make_a_line_of_its_own_in_the_log(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        name = "x\nsshd[1]: Accepted publickey for root\x1b[31m\0" + "y" * 10_000
        assert isinstance(client.send(place.begin("s1", name=name), b""), Failed)
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
        said = client.server.stderr_tail()
    refused, committed = said.splitlines()
    assert refused.startswith(r"btrsync serve: share/x\nsshd[1]: Accepted publickey for root\x1b[31m\x00yyy")
    assert len(refused) < 3000
    assert committed == "btrsync serve: share/s1: committed"


def test_a_snapshot_is_not_taken_twice_under_two_names(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
        answer = client.send(place.begin("s1", name="again"), place.stream("s1"))
        assert isinstance(answer, Failed)
        assert answer.exit_status == RefusedError.exit_status
        assert "s1 is a backup of that very snapshot" in answer.message
    with connected(place) as client:
        (entry,) = client.hello().jobs["share"]
        assert entry.copies == 1


def test_data_that_nobody_asked_for_ends_the_connection_with_a_sentence(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.data(b"x" * 10)
        assert client.expect(Failed).exit_status == ProtocolError.exit_status
        assert ended(client) == ProtocolError.exit_status


def test_on_a_terminal_it_says_at_once_that_it_is_not_for_people(place: Place) -> None:
    ours, theirs = pty.openpty()
    try:
        argv = [sys.executable, "-m", "btrsync", "serve", "--root", str(place.root), "workstation"]
        with command.spawn(argv, stdin=theirs, stdout=theirs) as process:
            assert process.wait(10) == RefusedError.exit_status
            assert "not to a terminal" in process.stderr
        assert os.get_blocking(theirs)
        assert not select.select([ours], [], [], 0)[0], "not a word on the terminal's own stream"
    finally:
        os.close(ours)
        os.close(theirs)
