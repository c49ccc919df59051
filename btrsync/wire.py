"""One connection: frames over two file descriptors, with deadlines and heartbeats.

Both ends are symmetric. One thread reads and writes; a second one only sends heartbeats, so that a
busy end is not taken for a dead one. Send streams pass by `splice`, from pipe to pipe, without
entering Python. Both descriptors are non-blocking; whoever waits does so in `poll`, never longer than
the peer may be silent.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from btrsync.errors import BtrsyncError, ProtocolError, UnreachableError
from btrsync.protocol import (
    BANNER_BYTES,
    FRAME_HEADER,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    AnyMessage,
    Frame,
    FrameType,
    Progress,
    Versions,
    agree,
    decode,
    encode,
    format_banner,
    parse_banner,
    parse_frame_header,
)
from btrsync.system import pipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEARTBEAT_S = 5.0
SILENCE_S = 30.0
BANNER_TIMEOUT_S = 10.0
NOISE_BYTES = 1024
DROP_BYTES = 1 << 18
INBOX_MESSAGES = 16
HEARTBEAT = FRAME_HEADER.pack(FrameType.HEARTBEAT, 0)


class Data(NamedTuple):
    """A data frame arrived; its body is still to be taken with `Wire.take` or `Wire.read_body`."""

    size_bytes: int


class ClosedError(UnreachableError):
    """The other end closed the connection."""


class StopAskedError(BtrsyncError):
    """A signal asks to stop, and came while it may not interrupt: see `Wire.stoppable`."""

    retryable = True


class NoBannerError(ProtocolError):
    """The other end does not begin with a banner; `noise` is what it said instead."""

    def __init__(self, peer: str, noise: bytes) -> None:
        self.noise = noise
        said = noise.decode("utf-8", "backslashreplace").strip()[:200]
        super().__init__(
            f"{peer} said {said!r} instead of the btrsync banner",
            hint="the forced command must be `btrsync serve CLIENT` and nothing else may print:"
            " look at root's shell start-up files and /etc/ssh/sshrc there",
        )


class Wire:
    """A connection to `peer` (its name in errors) that reads `read_fd` and writes `write_fd`.

    The descriptors stay the caller's; they are made non-blocking. silence_s: seconds without a word
    after which the peer is dead; max_control_bytes: of one message from it. Raises UnreachableError
    when the peer is gone or silent, ProtocolError when it breaks the protocol.
    """

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        *,
        peer: str,
        silence_s: float = SILENCE_S,
        heartbeat_s: float = HEARTBEAT_S,
        max_control_bytes: int = MAX_CONTROL_BYTES,
    ) -> None:
        self.peer = peer
        self._max_control_bytes = max_control_bytes
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._silence_s = silence_s
        self._heartbeat_s = heartbeat_s
        self._stop_fd = -1
        self._stop_poll = select.poll()
        self._stop_error: Callable[[], BtrsyncError] = _stop_asked
        self._body_bytes = 0
        self._is_mid_frame = False
        self._inbox: list[AnyMessage] = []
        self._heard = time.monotonic()
        self._write_lock = threading.Lock()
        self._closing = threading.Event()
        self._heartbeats: threading.Thread | None = None
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._heartbeats is not None:
            self._heartbeats.join()

    # --- greeting -----------------------------------------------------------------------------

    def greet(self, versions: Versions, *, timeout_s: float = BANNER_TIMEOUT_S) -> int:
        """Exchange banners and return the protocol version that both ends speak.

        timeout_s: how long the other end's banner may take. Raises NoBannerError at anything else
        than a banner, UnreachableError at silence, ProtocolError without a common version.
        """
        self._write(format_banner(versions))
        deadline = time.monotonic() + timeout_s
        line = b""
        while len(line) < BANNER_BYTES and format_banner(versions)[:13].startswith(line[:13]):
            chunk = self._read_some(BANNER_BYTES - len(line), deadline)
            if not chunk:
                break
            line += chunk
        theirs = parse_banner(line)
        if theirs is None:
            if not line:
                raise ClosedError(f"{self.peer} closed the connection before the btrsync banner")
            raise NoBannerError(self.peer, line + self._noise())
        return agree(versions, theirs, peer=self.peer)

    def _read_some(self, size_bytes: int, deadline: float) -> bytes:
        while True:
            if not self._poll(self._read_fd, select.POLLIN, deadline - time.monotonic()):
                raise UnreachableError(
                    f"{self.peer} did not say the btrsync banner in time",
                    hint="is the forced command `btrsync serve CLIENT`?"
                    " Does a shell start-up file there wait for something?",
                )
            with contextlib.suppress(BlockingIOError):
                return self._read(size_bytes)

    def _read(self, size_bytes: int) -> bytes:
        try:
            return os.read(self._read_fd, size_bytes)
        except ConnectionResetError:
            # sshd gives a socket: it says so where a pipe just ends, if something of ours was not read.
            return b""

    def _noise(self) -> bytes:
        noise = b""
        deadline = time.monotonic() + 0.5
        while len(noise) < NOISE_BYTES and self._poll(
            self._read_fd, select.POLLIN, deadline - time.monotonic()
        ):
            chunk = self._read(NOISE_BYTES - len(noise))
            if not chunk:
                break
            noise += chunk
        return noise

    def start_heartbeats(self) -> None:
        """Send a heartbeat every few seconds from now on, whatever the main thread does."""
        self._heartbeats = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._heartbeats.start()

    def _beat(self) -> None:
        while not self._closing.wait(self._heartbeat_s):
            # A frame being written is a sign of life too, so never wait for the lock.
            if self._write_lock.acquire(blocking=False):
                try:
                    os.write(self._write_fd, HEARTBEAT)
                except BlockingIOError:
                    pass
                except OSError:
                    return
                finally:
                    self._write_lock.release()

    # --- messages -----------------------------------------------------------------------------

    def send(self, message: AnyMessage) -> None:
        """Send one control message."""
        self._write(encode(message))

    def receive(self) -> AnyMessage | Data:
        """Return the next message, or Data whose body must be taken before the next call."""
        if self._stop_fd >= 0:
            # A peer that is always ahead of us never lets us wait.
            self._heed_stop()
        while True:
            if self._inbox:
                return self._inbox.pop(0)
            frame = self._read_frame()
            if frame is not None:
                return frame

    def pending(self) -> AnyMessage | None:
        """Return a message that is already there, None if there is none; never waits for one."""
        while not self._inbox and self._poll(self._read_fd, select.POLLIN, 0):
            self._take_in()
        return self._inbox.pop(0) if self._inbox else None

    def wait_input(self, fd: int) -> bool:
        """Wait until `fd` can be read (True), or a message has come (False)."""
        while True:
            if self._inbox:
                return False
            ready = self._poll_two(fd, select.POLLIN, self._heard + self._silence_s)
            if self._read_fd in ready:
                self._take_in()
            elif time.monotonic() > self._heard + self._silence_s:
                # However much there is to read: what is not sent on at once says nothing of the peer.
                raise self._silent()
            if fd in ready:
                return True

    def pause(self, seconds: float) -> None:
        """Let time pass, until a message comes; the peer may not be silent meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._inbox and (now := time.monotonic()) < deadline:
            if self._poll(self._read_fd, select.POLLIN, min(deadline, self._heard + self._silence_s) - now):
                self._take_in()
            elif time.monotonic() > self._heard + self._silence_s:
                raise self._silent()

    def _take_in(self) -> None:
        frame = self._read_frame()
        if isinstance(frame, Data):
            raise ProtocolError(f"{self.peer} sent data that nobody asked for")
        if frame is not None:
            self._put_aside(frame)

    def _put_aside(self, message: AnyMessage) -> None:
        # In turn, a peer has one message on its way, or a failure beside it. Of how far it is only the
        # last one counts: over a slow line, many come while one frame goes.
        if isinstance(message, Progress):
            self._inbox = [other for other in self._inbox if not isinstance(other, Progress)]
        if len(self._inbox) >= INBOX_MESSAGES:
            raise ProtocolError(f"{self.peer} goes on sending and does not listen")
        self._inbox.append(message)

    def _read_frame(self) -> AnyMessage | Data | None:
        if self._body_bytes:
            raise ProtocolError(f"{self.peer} sent data that nobody asked for")
        header: Frame = parse_frame_header(
            self._read_exactly(FRAME_HEADER.size), peer=self.peer, max_control_bytes=self._max_control_bytes
        )
        if header.type == FrameType.HEARTBEAT:
            return None
        if header.type == FrameType.DATA:
            self._body_bytes = header.size_bytes
            return Data(header.size_bytes)
        return decode(self._read_exactly(header.size_bytes), peer=self.peer)

    def _read_exactly(self, size_bytes: int) -> bytes:
        parts: list[bytes] = []
        deadline = time.monotonic() + self._silence_s
        while size_bytes:
            try:
                part = self._read(size_bytes)
            except BlockingIOError:
                if not self._poll(self._read_fd, select.POLLIN, deadline - time.monotonic()):
                    raise self._silent() from None
                continue
            if not part:
                raise ClosedError(f"{self.peer} closed the connection in the middle of the conversation")
            parts.append(part)
            size_bytes -= len(part)
            self._heard = time.monotonic()
            deadline = self._heard + self._silence_s
        return b"".join(parts)

    def _write(self, block: bytes) -> None:
        with self._write_lock, self._whole_frame():
            self._write_locked(block)

    @contextlib.contextmanager
    def _whole_frame(self) -> Iterator[None]:
        # A signal may end a frame half-way: what came after it would be taken for its rest.
        if self._is_mid_frame:
            raise UnreachableError(f"the connection to {self.peer} was given up in the middle of a frame")
        self._is_mid_frame = True
        yield
        self._is_mid_frame = False

    def _write_locked(self, block: bytes) -> None:
        rest = memoryview(block)
        deadline = time.monotonic() + self._silence_s
        while rest:
            try:
                rest = rest[os.write(self._write_fd, rest) :]
            except BlockingIOError:
                self._wait_writable(deadline)
            except ConnectionError:
                raise ClosedError(f"{self.peer} closed the connection") from None

    def _wait_writable(self, deadline: float) -> None:
        """Wait until a frame's next bytes can go; what the peer says meanwhile proves it alive."""
        while True:
            # A data frame's body cannot be put aside: then the peer's silence is not seen, only time.
            can_listen = not self._body_bytes
            limit = max(deadline, self._heard + self._silence_s)
            ready = self._poll_two(self._write_fd, select.POLLOUT, limit, is_listening=can_listen)
            if self._read_fd in ready and can_listen:
                frame = self._read_frame()
                if frame is not None and not isinstance(frame, Data):
                    self._put_aside(frame)
            if self._write_fd in ready:
                return

    # --- send streams -------------------------------------------------------------------------

    def forward(self, source_fd: int, limit_bytes: int = MAX_DATA_BYTES) -> int:
        """Send what the pipe `source_fd` holds just now as one data frame; return its bytes.

        0 means end of file. Call it when `wait_input(source_fd)` says True. limit_bytes: 1 or more.
        """
        size_bytes = min(pipes.available_bytes(source_fd), limit_bytes, MAX_DATA_BYTES)
        if not size_bytes:
            return 0
        with self._write_lock, self._whole_frame():
            self._write_locked(FRAME_HEADER.pack(FrameType.DATA, size_bytes))
            rest = size_bytes
            while rest:
                moved = self._splice(source_fd, self._write_fd, rest)
                if moved is None:
                    self._wait_writable(time.monotonic() + self._silence_s)
                else:
                    rest -= moved
        return size_bytes

    def take(self, size_bytes: int, destination_fd: int) -> int:
        """Move some of the next `size_bytes` of the current body into the pipe `destination_fd`.

        Returns how many; 0 if the pipe is full, whoever is to empty it. Raises ClosedError if the peer
        is gone, and then nothing was moved by this call.
        """
        while True:
            moved = self._splice(self._read_fd, destination_fd, size_bytes)
            if moved is not None:
                self._body_bytes -= moved
                self._heard = time.monotonic()
                return moved
            if self._poll(self._read_fd, select.POLLIN, 0):
                return 0
            if not self._poll(self._read_fd, select.POLLIN, self._silence_s):
                raise self._silent()

    def _splice(self, source_fd: int, destination_fd: int, size_bytes: int) -> int | None:
        """Move up to `size_bytes` in the kernel; None if one of the two is not ready."""
        try:
            moved = os.splice(
                source_fd, destination_fd, size_bytes, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
            )
        except BlockingIOError:
            return None
        except BrokenPipeError:
            if destination_fd == self._write_fd:
                raise ClosedError(f"{self.peer} closed the connection") from None
            raise
        except ConnectionResetError:
            raise ClosedError(f"{self.peer} closed the connection") from None
        if not moved:
            raise ClosedError(f"{self.peer} closed the connection in the middle of a send stream")
        return moved

    def read_body(self, size_bytes: int) -> bytes:
        """Return the next bytes of the current body; for the small head of a stream."""
        block = self._read_exactly(min(size_bytes, self._body_bytes))
        self._body_bytes -= len(block)
        return block

    def drop_body(self) -> None:
        """Read the rest of the current body, if any, and forget it."""
        while self._body_bytes:
            self.read_body(DROP_BYTES)

    # --- waiting ------------------------------------------------------------------------------

    def _silent(self) -> UnreachableError:
        return UnreachableError(
            f"{self.peer} has been silent for {self._silence_s:.0f} s",
            hint="the link or that machine is gone; the next run puts it right by itself",
        )

    @contextlib.contextmanager
    def stoppable(self, stop_fd: int, error: Callable[[], BtrsyncError] | None = None) -> Iterator[None]:
        """The time in which StopAskedError ends every wait of ours once `stop_fd` can be read.

        error: makes the one to raise in its place. Only waits: what has been moved by then has been
        accounted for.
        """
        self._stop_fd = stop_fd
        self._stop_poll.register(stop_fd, select.POLLIN)
        self._stop_error = error or _stop_asked
        try:
            yield
        finally:
            self._stop_poll.unregister(stop_fd)
            self._stop_fd = -1

    def _heed_stop(self) -> None:
        if self._stop_poll.poll(0):
            raise self._stop_error()

    def _poll(self, fd: int, event: int, timeout_s: float) -> bool:
        return fd in self._wait({fd: event}, timeout_s)

    def _wait(self, events: dict[int, int], timeout_s: float) -> set[int]:
        poller = select.poll()
        for fd, event in events.items():
            poller.register(fd, event)
        if self._stop_fd >= 0:
            poller.register(self._stop_fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(0.0, timeout_s) * 1000)}
        if self._stop_fd in ready:
            raise self._stop_error()
        return ready

    def _poll_two(self, fd: int, event: int, deadline: float, *, is_listening: bool = True) -> set[int]:
        events = {fd: event} | ({self._read_fd: select.POLLIN} if is_listening else {})
        ready = self._wait(events, deadline - time.monotonic())
        if not ready:
            raise self._silent()
        return ready


def _stop_asked() -> BtrsyncError:
    return StopAskedError("this machine ended the transfer: it was asked to stop")
