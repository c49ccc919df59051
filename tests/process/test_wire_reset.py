"""A wire over a socket, as sshd gives one to the forced command: its peer's end has another errno."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from btrsync.protocol import OUR_VERSIONS, Bye
from btrsync.wire import ClosedError, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    near, far = socket.socketpair()
    with near, far, Wire(near.fileno(), near.fileno(), peer="daisy") as wire:
        yield wire, far


def close_unread(wire: Wire, far: socket.socket) -> None:
    """Close the far end while something lies there unread: the near end gets ECONNRESET, not an end."""
    wire.send(Bye())
    far.close()


def test_a_peer_that_hangs_up_unread_has_closed_the_connection(pair: tuple[Wire, socket.socket]) -> None:
    wire, far = pair
    close_unread(wire, far)
    with pytest.raises(ClosedError):
        wire.receive()


def test_a_peer_that_hangs_up_before_its_banner_has_closed_the_connection(
    pair: tuple[Wire, socket.socket],
) -> None:
    wire, far = pair
    close_unread(wire, far)
    with pytest.raises(ClosedError):
        wire.greet(OUR_VERSIONS)


def test_a_peer_that_hangs_up_unread_ends_a_stream(pair: tuple[Wire, socket.socket]) -> None:
    wire, far = pair
    read_fd, write_fd = os.pipe()
    close_unread(wire, far)
    with pytest.raises(ClosedError):
        wire.take(10, write_fd)
    os.close(read_fd)
    os.close(write_fd)
