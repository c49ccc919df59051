"""A link between two machines: Ethernet frames over datagram sockets, with a switch in the middle."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_BYTES = 1 << 16
BUFFER_BYTES = 4 << 20
ADDRESSES = ("10.77.0.1/24", "10.77.0.2/24")
MACS = ("52:54:00:77:00:01", "52:54:00:77:00:02")


class End:
    """One end of a link, for one machine: `socket` goes to it, and stays open when it crashes."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.address = ADDRESSES[number]
        self.mac = MACS[number]
        self.socket, self.inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for one in (self.socket, self.inner):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                one.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self.inner.setblocking(False)

    def close(self) -> None:
        self.socket.close()
        self.inner.close()


class Link:
    """A cable between two machines: `with Link() as link: Machine(…, link=link.ends[0]) …`.

    While it is blocked frames vanish, as with a cable that was cut: neither side is told.
    """

    def __init__(self) -> None:
        """Only prepare; entering lays the cable."""
        self.ends: Sequence[End] = ()
        self._is_blocked = threading.Event()
        self._thread: threading.Thread | None = None
        self._stop: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        """Start relaying."""
        self.ends = (End(self, 0), End(self, 1))
        self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._relay, args=(self._stop[1],), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop relaying and close every socket."""
        if self._stop is not None and self._thread is not None:
            self._stop[0].close()
            self._thread.join()
            self._stop[1].close()
        for end in self.ends:
            end.close()

    @property
    def is_blocked(self) -> bool:
        """Whether frames vanish."""
        return self._is_blocked.is_set()

    def block(self) -> None:
        """Let every frame vanish from now on."""
        self._is_blocked.set()

    def unblock(self) -> None:
        """Let frames pass again."""
        self._is_blocked.clear()

    def _relay(self, stop: socket.socket) -> None:
        pairs = {end.inner.fileno(): end.inner for end in self.ends}
        first, second = (end.inner for end in self.ends)
        other = {first.fileno(): second, second.fileno(): first}
        waiting = select.poll()
        for fd in (*pairs, stop.fileno()):
            waiting.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in waiting.poll()]
            if stop.fileno() in ready:
                return
            for fd in ready:
                self._drain(pairs[fd], other[fd])

    def _drain(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass on what is there. A full sink, or one whose machine is gone, loses frames as a switch does."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                frame = source.recv(FRAME_BYTES)
                if not self.is_blocked:
                    with contextlib.suppress(OSError):
                        sink.send(frame)
