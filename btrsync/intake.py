"""A send stream's way from the wire through the inspector into `btrfs receive`.

Commands are read in blocks while they are small; the data of large writes goes on from pipe to pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from btrsync.stream.head import parse_first_command
from btrsync.stream.inspector import Inspector
from btrsync.system import pipes

if TYPE_CHECKING:
    from btrsync.target import Incoming
    from btrsync.wire import Data, Wire

LARGE_BLOCK_BYTES = 256 << 10
SMALL_BLOCK_BYTES = 4 << 10
"""Behind the data of a large write: the next command is probably one, and its data is better not read."""


class Intake:
    """Takes one stream for `incoming` off `wire`, frame by frame. `size_bytes` counts what came."""

    def __init__(self, wire: Wire, incoming: Incoming) -> None:
        self.size_bytes = 0
        self._wire = wire
        self._incoming = incoming
        self._head = b""
        self._inspector: Inspector | None = None
        self._unseen_bytes = 0
        self._block_bytes = LARGE_BLOCK_BYTES

    def take(self, frame: Data) -> None:
        """Pass on a data frame's body.

        Raises StreamError at a command that may not reach receive, and what stopped receive if it
        stopped reading.
        """
        self.size_bytes += frame.size_bytes
        rest_bytes = frame.size_bytes
        try:
            while rest_bytes:
                if self._unseen_bytes:
                    part_bytes = min(rest_bytes, self._unseen_bytes)
                    self._wire.take(part_bytes, self._incoming.write_fd)
                    self._unseen_bytes -= part_bytes
                else:
                    block = self._wire.read_body(min(rest_bytes, self._block_bytes))
                    part_bytes = len(block)
                    self._give(block)
                rest_bytes -= part_bytes
        except BrokenPipeError:
            raise self._incoming.failure() from None

    def is_whole(self) -> bool:
        """Tell whether the stream has come to its END."""
        return self._inspector is not None and self._inspector.is_ended

    def _give(self, block: bytes) -> None:
        if self._inspector is None:
            self._head += block
            first = parse_first_command(self._head)
            if first is None:
                return
            self._incoming.begin_stream(first)
            begin = self._incoming.begin
            parent = [begin.send_parent] if begin.send_parent else []
            self._inspector = Inspector(first, allowed_uuids=[*parent, *begin.clone_sources])
            block = self._head[first.size_bytes :]
        passed = self._inspector.feed(block)
        if passed.block:
            pipes.write_all(self._incoming.write_fd, passed.block)
        self._unseen_bytes = passed.unseen_bytes
        if passed.unseen_bytes:
            self._block_bytes = SMALL_BLOCK_BYTES
        else:
            self._block_bytes = min(2 * self._block_bytes, LARGE_BLOCK_BYTES)
