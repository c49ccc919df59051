"""The beginning of a stream that the server has already: proven to be the same, and passed over.

Nothing is read here: the caller takes as many bytes off `btrfs send` as it is told to, and gives them in,
or throws away unread what nobody needs to see. Headers are enough: each holds its command's CRC32C.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from btrsync.errors import PrefixMismatchError
from btrsync.stream.commands import COMMAND_HEADER
from btrsync.stream.head import STREAM_HEADER, parse_first_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from btrsync.stream.head import FirstCommand

LARGE_BLOCK_BYTES = 256 << 10
SMALL_BLOCK_BYTES = 4 << 10
"""Behind a large payload: the next command is probably one of its kind."""
SKIPPED_BYTES = 16 << 10
"""From this size on what is left of a payload is not read into memory."""

_SIZE = struct.Struct("<I")


class Stretch(Protocol):
    """What `btrsync.protocol.Proof` says: up to where, and with what digest."""

    @property
    def offset_bytes(self) -> int: ...
    @property
    def digest(self) -> bytes: ...


class Prefix:
    """Follows a stream from its very first byte to the offset of the last of `proofs`, never beyond.

    proofs: as a partial has them, oldest first. `first` is the stream's first command as soon as it is
    known: the digests do not cover it.
    """

    def __init__(self, proofs: Sequence[Stretch]) -> None:
        # Late: most runs go on with nothing.
        from hashlib import blake2b

        offsets = [0, *(proof.offset_bytes for proof in proofs)]
        if len(offsets) == 1 or any(a >= b for a, b in pairwise(offsets)):
            raise PrefixMismatchError(0, "what the server says of it proves nothing")
        self.first: FirstCommand | None = None
        self.offset_bytes = 0
        self._goal_bytes = offsets[-1]
        self._open = deque(proofs)
        self._head = b""
        self._carry = b""
        self._payload_bytes = 0
        """What is still to come of the payload that is being passed over."""
        self._block_bytes = LARGE_BLOCK_BYTES
        self._headers: list[bytes] = []
        self._hash = blake2b
        self._hasher = blake2b(digest_size=32)

    @property
    def is_proven(self) -> bool:
        """Whether all of it has been taken in and is the same; what follows is what the server lacks."""
        return not self._open and self.offset_bytes == self._goal_bytes

    def next_bytes(self) -> tuple[int, bool]:
        """Return how many bytes to take next at the most, and whether to `skip` them unread.

        0 once all is proven.
        """
        if self.first is None:
            return self._next_head_bytes(), False
        if self._payload_bytes >= SKIPPED_BYTES:
            return self._payload_bytes, True
        return min(self._goal_bytes - self.offset_bytes, self._block_bytes), False

    def feed(self, block: bytes) -> None:
        """Take in the next bytes of the stream; none of them: it has ended.

        Raises PrefixMismatchError where it is another stream than the proofs tell of, StreamError if it
        is none, ValueError at more than was asked for.
        """
        if len(block) > self.next_bytes()[0]:
            raise ValueError(f"{len(block)} bytes, only {self.next_bytes()[0]} were asked for")
        if not block:
            raise PrefixMismatchError(self.offset_bytes, "it ends before what the server has of it")
        if self.first is None:
            self._head += block
            self.first = parse_first_command(self._head)
        else:
            self._walk(block)

    def skip(self, size_bytes: int) -> None:
        """Take in that so many of the bytes to be skipped were thrown away."""
        if not 0 < size_bytes <= self._payload_bytes:
            raise ValueError(f"{size_bytes} bytes skipped of {self._payload_bytes}")
        self._payload_bytes -= size_bytes
        self.offset_bytes += size_bytes
        self._block_bytes = SMALL_BLOCK_BYTES

    def _next_head_bytes(self) -> int:
        fixed = STREAM_HEADER.size + COMMAND_HEADER.size
        if len(self._head) < fixed:
            return fixed - len(self._head)
        (payload_bytes,) = _SIZE.unpack_from(self._head, STREAM_HEADER.size)
        return fixed + int(payload_bytes) - len(self._head)

    def _walk(self, block: bytes) -> None:
        data = self._carry + block
        data_at = self.offset_bytes - len(self._carry)
        at = self._payload_bytes
        last = len(data) - COMMAND_HEADER.size
        until = self._open[0].offset_bytes - data_at if self._open else at + 1
        while at <= last:
            self._headers.append(data[at : at + COMMAND_HEADER.size])
            at += COMMAND_HEADER.size + _SIZE.unpack_from(data, at)[0]
            if at >= until:
                until = self._prove(data_at + at) - data_at
        self._hasher.update(b"".join(self._headers))
        self._headers.clear()
        self._carry = data[at:]
        self._payload_bytes = max(0, at - len(data))
        self.offset_bytes += len(block)
        self._block_bytes = min(2 * self._block_bytes, LARGE_BLOCK_BYTES)
        if self._carry and self.offset_bytes == self._goal_bytes:
            raise self._not_cut_there(self._goal_bytes)

    def _prove(self, offset_bytes: int) -> int:
        """Take in that a command ends at or behind the next proof; return where the one after it lies."""
        proof = self._open.popleft()
        self._hasher.update(b"".join(self._headers))
        self._headers.clear()
        if offset_bytes != proof.offset_bytes:
            raise self._not_cut_there(proof.offset_bytes)
        if self._hasher.digest() != proof.digest:
            raise PrefixMismatchError(proof.offset_bytes, "up to here it is another stream than before")
        self._hasher = self._hash(proof.digest, digest_size=32)
        return self._open[0].offset_bytes if self._open else self._goal_bytes + 1

    def _not_cut_there(self, offset_bytes: int) -> PrefixMismatchError:
        return PrefixMismatchError(offset_bytes, "no command of it ends where the server has it cut")
