"""A send stream's way from the wire through the inspector into `btrfs receive`.

Commands are read in blocks while they are small; the data of large writes goes on from pipe to pipe.
Receive is given the stream only up to the newest safe boundary, the rest waits in a pipe of ours: so
wherever the line breaks, what receive has can be ended and kept.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from btrsync.errors import BtrsyncError, StreamError
from btrsync.protocol import PartialEntry, Progress, Proof
from btrsync.stream.head import parse_first_command
from btrsync.stream.inspector import Boundary, Inspector
from btrsync.system import pipes

if TYPE_CHECKING:
    from btrsync.incoming import Incoming
    from btrsync.protocol import Stream
    from btrsync.stream.rewriting import Rewriter
    from btrsync.wire import Data, Wire

LARGE_BLOCK_BYTES = 256 << 10
SMALL_BLOCK_BYTES = 4 << 10
"""Behind the data of a large write: the next command is probably one, and its data is better not read."""
PROGRESS_INTERVAL_S = 1.0


class Intake:
    """Takes one stream for `incoming` off `wire`, frame by frame; a context manager.

    stream: how the client sends it; checkpoint_bytes, checkpoint_s: how much of the stream, and for how
    long, may be lost with a power cut, 0 for however much; limit_bytes: of data that the whole stream
    may write; rewriter: of what receive cannot do, None for nothing. `size_bytes` counts what came in this
    transfer.
    """

    def __init__(
        self,
        wire: Wire,
        incoming: Incoming,
        stream: Stream,
        *,
        checkpoint_bytes: int,
        checkpoint_s: float,
        limit_bytes: int | None = None,
        rewriter: Rewriter | None = None,
    ) -> None:
        self.size_bytes = 0
        self.total_bytes = incoming.begin.total_bytes
        """Of data that the stream will write: it may become known while it comes."""
        self._wire = wire
        self._incoming = incoming
        self._stream = stream
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpoint_s = checkpoint_s
        self._limit_bytes = limit_bytes
        self._rewriter = rewriter
        self._hold = _Hold()
        self._head = b""
        self._inspector: Inspector | None = None
        self._unseen_bytes = 0
        self._block_bytes = LARGE_BLOCK_BYTES
        self._given_bytes = 0
        """Offset in the stream, as receive is given it, up to which receive has it."""
        self._checkpointed = Boundary(0, 0, b"")
        self._checkpointed_s = self._told_s = time.monotonic()
        if incoming.goes_on is not None:
            self._go_on(incoming.goes_on.entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hold.close()

    @property
    def data_bytes(self) -> int:
        """The bytes of data that the stream has written so far, before compression."""
        return self._inspector.data_bytes if self._inspector else 0

    @property
    def checkpointed_bytes(self) -> int:
        """Up to where in the stream it is kept for sure."""
        return self._checkpointed.offset_bytes

    def take(self, frame: Data) -> None:
        """Pass on a data frame's body.

        Raises StreamError at a command that may not reach receive, and what stopped receive if it
        stopped reading; what the wire raises when the line breaks, and then `keep` may be called.
        """
        rest_bytes = frame.size_bytes
        while rest_bytes:
            if self._unseen_bytes:
                part_bytes = self._wire.take(min(rest_bytes, self._unseen_bytes), self._hold.write_fd)
                self._hold.held_bytes += part_bytes
                self._unseen_bytes -= part_bytes
                if not part_bytes:
                    self._overrun()
            else:
                block = self._wire.read_body(min(rest_bytes, self._block_bytes))
                part_bytes = len(block)
                self._inspect(block)
            rest_bytes -= part_bytes
            self.size_bytes += part_bytes
        self._tell()

    def is_whole(self) -> bool:
        """Tell whether the stream has come to its END."""
        return self._inspector is not None and self._inspector.is_ended

    def keep(self) -> int:
        """End the transfer where it is, keep what there is, and return up to where in the stream.

        Raises what `Incoming.keep` does; the last checkpoint is kept then.
        """
        boundary = self._inspector.safe if self._inspector else self._checkpointed
        has_more = boundary.offset_bytes > self._checkpointed.offset_bytes
        try:
            if has_more and self._given_bytes == self._position(boundary):
                self._incoming.keep(self._entry(boundary))
                return boundary.offset_bytes
        except BtrsyncError:
            self._incoming.keep(None)
            raise
        self._incoming.keep(None)
        return self._checkpointed.offset_bytes

    def _go_on(self, entry: PartialEntry) -> None:
        start = Boundary(entry.offset_bytes, entry.data_bytes, entry.proofs[-1].digest)
        if (entry.stream_version, entry.is_compressed) != (
            self._stream.stream_version,
            self._stream.is_compressed,
        ):
            raise StreamError(entry.offset_bytes, "it goes on in another stream version, or other flags")
        assert self._incoming.goes_on is not None
        self._incoming.go_on(self._incoming.goes_on)
        self._begin(self._stream.stream_version, start)

    def _begin(self, stream_version: int, start: Boundary) -> None:
        begin = self._incoming.begin
        parent = [begin.send_parent] if begin.send_parent else []
        self._inspector = Inspector(
            stream_version, begin.uuid,
            allowed_uuids=[*parent, *begin.clone_sources], limit_bytes=self._limit_bytes, start=start,
        )  # fmt: skip
        self._given_bytes = start.offset_bytes
        self._checkpointed = start

    def _inspect(self, block: bytes) -> None:
        if self._inspector is None:
            self._head += block
            first = parse_first_command(self._head)
            if first is None:
                return
            if first.stream_version != self._stream.stream_version:
                raise StreamError(
                    0, f"it is of version {first.stream_version}, {self._stream.stream_version} was announced"
                )
            self._incoming.start(first)
            # Counted from behind the first command, whose length is that of the snapshot's name.
            self._begin(first.stream_version, Boundary(0, 0, b""))
            block, self._head = self._head[first.size_bytes :], b""
        assert self._inspector is not None
        at_bytes = self._inspector.offset_bytes
        passed = self._inspector.feed(block)
        if self._rewriter is None:
            self._give(passed.block)
        else:
            for part in self._rewriter.feed(passed.block, at_bytes):
                self._give(part)
        self._unseen_bytes = passed.unseen_bytes
        if passed.unseen_bytes:
            self._block_bytes = SMALL_BLOCK_BYTES
        else:
            self._block_bytes = min(2 * self._block_bytes, LARGE_BLOCK_BYTES)
        if self._is_checkpoint_due():
            self._checkpoint()

    def _give(self, block: bytes) -> None:
        """Give receive what is held, and of `block`, up to the newest safe boundary; hold the rest."""
        assert self._inspector is not None
        safe_bytes = self._position(self._inspector.safe)
        self._release(min(safe_bytes - self._given_bytes, self._hold.held_bytes))
        rest = memoryview(block)
        now_bytes = min(safe_bytes - self._given_bytes, len(rest))
        if not self._hold.held_bytes and now_bytes > 0:
            self._incoming.give(rest[:now_bytes])
            self._given_bytes += now_bytes
            rest = rest[now_bytes:]
        while rest:
            put_bytes = self._hold.put(rest)
            rest = rest[put_bytes:]
            if not put_bytes:
                self._overrun()

    def _position(self, boundary: Boundary) -> int:
        """Return where a boundary lies in the stream as receive is given it."""
        if self._rewriter is None:
            return boundary.offset_bytes
        return self._rewriter.position(boundary.offset_bytes)

    def _release(self, size_bytes: int) -> None:
        if size_bytes > 0:
            self._incoming.splice(self._hold.read_fd, size_bytes)
            self._hold.held_bytes -= size_bytes
            self._given_bytes += size_bytes

    def _overrun(self) -> None:
        # More between two safe boundaries than the pipe holds: receive gets it, and until the next one
        # a broken line costs what came since the last checkpoint.
        self._release(self._hold.held_bytes)

    def _is_checkpoint_due(self) -> bool:
        assert self._inspector is not None
        safe_bytes = self._inspector.safe.offset_bytes
        ahead_bytes = safe_bytes - self._checkpointed.offset_bytes
        if not ahead_bytes or self._inspector.is_ended:
            return False
        if self._given_bytes != self._position(self._inspector.safe):
            return False
        age_s = time.monotonic() - self._checkpointed_s
        is_far = 0 < self._checkpoint_bytes <= ahead_bytes
        return is_far or 0 < self._checkpoint_s <= age_s

    def _checkpoint(self) -> None:
        assert self._inspector is not None
        boundary = self._inspector.safe
        self._incoming.checkpoint(self._entry(boundary))
        self._checkpointed = boundary
        self._checkpointed_s = time.monotonic()
        self._told_s = 0.0

    def _entry(self, boundary: Boundary) -> PartialEntry:
        begin, before = self._incoming.begin, self._incoming.goes_on
        return PartialEntry(
            begin.name, begin.uuid, begin.ctransid, begin.send_parent, list(begin.clone_sources),
            self._stream.stream_version, self._stream.is_compressed,
            [*(before.entry.proofs if before else ()), Proof(boundary.offset_bytes, boundary.digest)],
            boundary.data_bytes, self.total_bytes, datetime.now(UTC),
        )  # fmt: skip

    def _tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self._wire.send(Progress(self._checkpointed.offset_bytes, self.data_bytes))


class _Hold:
    """The pipe in which a stream waits for its next safe boundary."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.write_fd, False)
        pipes.enlarge(self.write_fd)
        self.held_bytes = 0

    def put(self, block: memoryview) -> int:
        """Take what there is room for of `block`; return how much that is."""
        try:
            put_bytes = os.write(self.write_fd, block)
        except BlockingIOError:
            return 0
        self.held_bytes += put_bytes
        return put_bytes

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)
