"""A minimal speaker of btrsync's wire, to say what a client that means ill could say. See docs/protocol.md.

32 bytes of banner each way; then frames: a byte for the type, le32 for the length, the payload. A control
frame holds one message, a MessagePack map with its `type`.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from typing import TYPE_CHECKING, Any, Self

import msgspec

from harness.rehearsal.problems import StepFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.command import Process
    from harness.host import Host

BANNER_BYTES = 32
HEADER = struct.Struct("<BI")
CONTROL, DATA = 1, 2
SILENCE_S = 30.0
PASSED_OVER = ("waiting", "progress")


class Speaker:
    """The client's end of one connection: `say` a message, give `data`, `hear` an answer."""

    def __init__(self, process: Process, read_fd: int, write_fd: int) -> None:
        self._process = process
        self._read_fd = read_fd
        self._write_fd = write_fd

    @classmethod
    @contextlib.contextmanager
    def by_ssh(cls, host: Host, argv: Sequence[str | Path]) -> Iterator[Self]:
        """A greeted connection over the `ssh` of `argv`, run on `host`."""
        with contextlib.ExitStack() as stack:
            child_read_fd, write_fd = os.pipe()
            read_fd, child_write_fd = os.pipe()
            for fd in (write_fd, read_fd):
                stack.callback(os.close, fd)
            try:
                process = stack.enter_context(host.spawn(argv, stdin=child_read_fd, stdout=child_write_fd))
            finally:
                os.close(child_read_fd)
                os.close(child_write_fd)
            made = cls(process, read_fd, write_fd)
            # Its own versions are the ones that we claim to speak.
            os.write(write_fd, made._read(BANNER_BYTES))
            yield made

    def say(self, kind: str, **fields: object) -> None:
        """Send one message."""
        self._frame(CONTROL, msgspec.msgpack.encode({"type": kind, **fields}))

    def data(self, block: bytes) -> None:
        """Send bytes of a stream, at most 1 MiB."""
        self._frame(DATA, block)

    def hear(self, *kinds: str) -> dict[str, Any]:
        """Return the next message, which must be one of these; what only keeps us waiting is passed over."""
        while True:
            kind, size_bytes = HEADER.unpack(self._read(HEADER.size))
            payload = self._read(size_bytes)
            message: dict[str, Any] = msgspec.msgpack.decode(payload) if kind == CONTROL else {}
            if message.get("type") in kinds:
                return message
            if message and message["type"] not in PASSED_OVER:
                raise StepFailed(
                    f"the server said {message['type']}, not {' or '.join(kinds)}", [str(message)]
                )

    def _frame(self, kind: int, payload: bytes) -> None:
        left = memoryview(HEADER.pack(kind, len(payload)) + payload)
        while left:
            left = left[os.write(self._write_fd, left) :]

    def _read(self, size_bytes: int) -> bytes:
        found = b""
        while len(found) < size_bytes:
            if not select.select([self._read_fd], [], [], SILENCE_S)[0]:
                raise StepFailed(
                    f"the server was silent for {SILENCE_S:g} s", self._process.stderr.splitlines()
                )
            block = os.read(self._read_fd, size_bytes - len(found))
            if not block:
                raise StepFailed("the server hung up", self._process.stderr.splitlines())
            found += block
        return found
