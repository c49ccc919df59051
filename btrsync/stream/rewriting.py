"""Clones from the send parent as writes, for a `btrfs receive` that cannot find its own original.

btrfs-progs before 6.10.1 look for what a CLONE names among received UUIDs only. Where the send parent was
never received, but is what the other side once received, they fail (process_clone(), cmds/receive.c;
btrfs-progs 28eb473c). Clones inside of what is being received are found by all, and stay.

Everything else keeps its bytes. Offsets are those of the stream as it came: so partials and proofs stay
valid whatever becomes of it here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from btrsync.errors import StreamError
from btrsync.stream.checksum import bulk_crc32c
from btrsync.stream.commands import ATTRIBUTE_HEADER, COMMAND_HEADER, Attribute, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

WRITE_BYTES = 48 << 10
"""As `btrfs send` does in version 1, where the length of an attribute has 16 bits."""

_NUMBER = 8
_CLONE = int(Kind.CLONE)


class _Clone(NamedTuple):
    path: bytes
    offset_bytes: int
    size_bytes: int
    source: bytes
    source_offset_bytes: int


class Rewriter:
    """Follows one stream behind the inspector; `written_bytes` counts what it has made of clones.

    uuid: what the stream makes: clones from that stay. read: gives so many bytes of the send parent's file at
    a path, from an offset on; limit_bytes: of clones that may become writes.
    """

    def __init__(
        self,
        stream_version: int,
        uuid: UUID,
        read: Callable[[bytes, int, int], bytes],
        *,
        limit_bytes: int,
    ) -> None:
        self.written_bytes = 0
        self._version = stream_version
        self._uuid = uuid.bytes
        self._read = read
        self._limit_bytes = limit_bytes
        self._grown_bytes = 0
        self._growth: deque[tuple[int, int]] = deque()
        """By how much what is given on has grown, behind which offset."""

    def feed(self, block: bytes, at_bytes: int) -> Iterator[bytes]:
        """Return what to give on for `block`, which begins at a command, `at_bytes` into the stream.

        Its last command may be a write whose data follows unseen. Raises StreamError at a clone that
        makes no sense; what `read` raises while the result is walked.
        """
        clones: list[tuple[int, int, _Clone]] = []
        at, end = 0, len(block)
        while at < end:
            size_bytes, kind, _ = COMMAND_HEADER.unpack_from(block, at)
            behind = at + COMMAND_HEADER.size + size_bytes
            if kind == _CLONE:
                clone = self._parse(block[at + COMMAND_HEADER.size : behind], at_bytes + at)
                if clone is not None:
                    clones.append((at, behind, clone))
                    self._grow(clone, behind - at, at_bytes + behind)
            at = behind
        return self._rewritten(block, clones)

    def position(self, offset_bytes: int) -> int:
        """Return how much was, or will have been, given on up to an offset between two commands.

        Never before an offset that was asked for earlier.
        """
        while self._growth and self._growth[0][0] <= offset_bytes:
            self._grown_bytes = self._growth.popleft()[1]
        return offset_bytes + self._grown_bytes

    def _parse(self, payload: bytes, at_bytes: int) -> _Clone | None:
        found: dict[int, bytes] = {}
        at = 0
        while at < len(payload):
            kind, length = ATTRIBUTE_HEADER.unpack_from(payload, at)
            at += ATTRIBUTE_HEADER.size
            if kind in found or kind == Attribute.DATA:
                # From version 2 on the inspector takes all that stands behind DATA for data, and checks none.
                raise StreamError(at_bytes, "a CLONE has data, or an attribute twice")
            found[kind] = payload[at : at + length]
            at += length
        if found.get(Attribute.CLONE_UUID) == self._uuid:
            return None
        numbers = [
            found.get(kind, b"")
            for kind in (Attribute.FILE_OFFSET, Attribute.CLONE_LEN, Attribute.CLONE_OFFSET)
        ]
        if any(len(number) != _NUMBER for number in numbers):
            raise StreamError(at_bytes, "a CLONE does not say what it clones, or where")
        offset_bytes, size_bytes, source_offset_bytes = (int.from_bytes(word, "little") for word in numbers)
        self.written_bytes += size_bytes
        if not size_bytes or self.written_bytes > self._limit_bytes:
            raise StreamError(at_bytes, "it clones nothing, or more than was announced")
        return _Clone(
            found[Attribute.PATH], offset_bytes, size_bytes, found[Attribute.CLONE_PATH], source_offset_bytes
        )

    def _grow(self, clone: _Clone, command_bytes: int, behind_bytes: int) -> None:
        writes = -(-clone.size_bytes // WRITE_BYTES)
        made_bytes = clone.size_bytes + writes * (COMMAND_HEADER.size + len(self._attributes(clone, 0, 0)))
        before = self._growth[-1][1] if self._growth else self._grown_bytes
        self._growth.append((behind_bytes, before + made_bytes - command_bytes))

    def _rewritten(self, block: bytes, clones: list[tuple[int, int, _Clone]]) -> Iterator[bytes]:
        at = 0
        for begin, behind, clone in clones:
            yield block[at:begin]
            yield from self._writes(clone)
            at = behind
        yield block[at:]

    def _writes(self, clone: _Clone) -> Iterator[bytes]:
        for done_bytes in range(0, clone.size_bytes, WRITE_BYTES):
            size_bytes = min(WRITE_BYTES, clone.size_bytes - done_bytes)
            data = self._read(clone.source, clone.source_offset_bytes + done_bytes, size_bytes)
            payload = self._attributes(clone, clone.offset_bytes + done_bytes, size_bytes) + data
            crc = bulk_crc32c(COMMAND_HEADER.pack(len(payload), Kind.WRITE, 0) + payload)
            yield COMMAND_HEADER.pack(len(payload), Kind.WRITE, crc) + payload

    def _attributes(self, clone: _Clone, offset_bytes: int, size_bytes: int) -> bytes:
        """Return a WRITE's attributes up to its data; from version 2 on that has no length."""
        head = ATTRIBUTE_HEADER.pack(Attribute.DATA, size_bytes)
        return b"".join((
            ATTRIBUTE_HEADER.pack(Attribute.PATH, len(clone.path)),
            clone.path,
            ATTRIBUTE_HEADER.pack(Attribute.FILE_OFFSET, _NUMBER),
            offset_bytes.to_bytes(_NUMBER, "little"),
            head if self._version == 1 else head[:2],
        ))  # fmt: skip
