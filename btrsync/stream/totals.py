"""What a send will write, counted from the stream of `btrfs send --no-data`.

That stream has an UPDATE_EXTENT command for each range of data instead of the data. Their sizes add up
exactly to what the stream of the same version writes, before compression (send_extent_data(), send_hole(),
fs/btrfs/send.c; tests/kernel/test_totals.py). New holes are zeros in version 1; in version 2 newer kernels
punch them: the sizes of these FALLOCATE commands are what version 1 would write more. What a stream clones
is on the other side already, and not counted.

All that a send says of one file stands together, so only the file at hand and the largest are remembered:
memory does not grow with the stream.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import msgspec

from btrsync.errors import StreamError
from btrsync.stream.commands import ATTRIBUTE_HEADER, COMMAND_HEADER, Attribute, Kind
from btrsync.stream.head import parse_first_command

MAX_COMMAND_BYTES = 128 << 10
"""Without data, the longest command is an extended attribute of 64 KiB with a path."""
LARGEST = 10
PUNCH_HOLE = 0x02
"""FALLOC_FL_PUNCH_HOLE, linux/falloc.h."""

_OTHERS = frozenset({Kind.MKNOD, Kind.MKFIFO, Kind.MKSOCK, Kind.SYMLINK})
_CHANGING = frozenset({Kind.UPDATE_EXTENT, Kind.CLONE, Kind.FALLOCATE, Kind.TRUNCATE})
# As plain numbers, for the loop: looking up a member takes longer than all else there.
_PATH, _MKFILE, _LINK, _TRUNCATE = map(int, (Attribute.PATH, Kind.MKFILE, Kind.LINK, Kind.TRUNCATE))
_RARE = frozenset({Kind.END, Kind.WRITE, Kind.ENCODED_WRITE})
_FOLLOWED = _CHANGING | {Kind.MKFILE, Kind.RENAME, Kind.LINK}


class Totals(msgspec.Struct, frozen=True):
    """What a send will do.

    data_bytes: of data, before compression, in a stream of the version that was counted; punched_bytes: of
    holes that are zeros, and so data, in version 1; cloned_bytes: that the other side takes from what it
    has. files: regular files made, or there already and with other content now; directories, others: made;
    removed: names that go. largest: paths with the most data, the largest first, with their bytes.
    """

    data_bytes: int
    punched_bytes: int
    cloned_bytes: int
    files: int
    directories: int
    others: int
    removed: int
    largest: tuple[tuple[bytes, int], ...]

    def written_bytes(self, stream_version: int) -> int:
        """Return how much data a stream of this version writes; at least 2 was counted, or this version."""
        return self.data_bytes + (self.punched_bytes if stream_version == 1 else 0)


class _File(NamedTuple):
    """A file with data. Smaller ones come first; of equal ones, that which came later."""

    size_bytes: int
    order: int
    path: bytes


class TotalsCounter:
    """Counts over the blocks of one stream without data."""

    def __init__(self) -> None:
        self.data_bytes = 0
        self._punched_bytes = 0
        self._cloned_bytes = 0
        self._files = 0
        self._counts = {Kind.MKDIR: 0, Kind.UNLINK: 0, Kind.RMDIR: 0} | dict.fromkeys(_OTHERS, 0)
        self._offset_bytes = 0
        self._carry = b""
        self._has_begun = False
        self._is_ended = False
        # The names of the file made last: made as o257-9-0, it gets its own before its data comes.
        self._made: set[bytes] = set()
        self._path = b""
        self._path_bytes = 0
        self._largest: list[_File] = []
        # Those, and every directory above one: if one of these is renamed, so is a large file.
        self._watched: set[bytes] = set()

    def feed(self, block: bytes) -> None:
        """Take the next block of the stream. Raises StreamError if it is none, or one with data."""
        data = self._carry + block if self._carry else block
        at = 0
        if not self._has_begun:
            first = parse_first_command(data)
            if first is None:
                self._carry = data
                return
            self._has_begun = True
            at = first.size_bytes
        counts, header_bytes, unpack = self._counts, COMMAND_HEADER.size, COMMAND_HEADER.unpack_from
        while at + header_bytes <= len(data):
            size_bytes, kind, _ = unpack(data, at)
            end = at + header_bytes + size_bytes
            if size_bytes > MAX_COMMAND_BYTES or self._is_ended:
                problem = f"a command of {size_bytes} bytes in a stream without data"
                raise StreamError(
                    self._offset_bytes + at, "it goes on behind its END" if self._is_ended else problem
                )
            if end > len(data):
                break
            if kind in _FOLLOWED:
                self._follow(kind, data, at + header_bytes, end)
            elif kind in counts:
                counts[kind] += 1
            elif kind in _RARE:
                if kind != Kind.END:
                    raise StreamError(self._offset_bytes + at, "it has data, and should have none")
                self._is_ended = True
                self._finish_file()
            at = end
        self._carry = data[at:]
        self._offset_bytes += at

    def totals(self) -> Totals:
        """Return what was counted. Raises StreamError if the stream was cut."""
        if not self._is_ended:
            raise StreamError(self._offset_bytes, "it ends without an END command")
        return Totals(
            data_bytes=self.data_bytes,
            punched_bytes=self._punched_bytes,
            cloned_bytes=self._cloned_bytes,
            files=self._files,
            directories=self._counts[Kind.MKDIR],
            others=sum(self._counts[kind] for kind in _OTHERS),
            removed=self._counts[Kind.UNLINK] + self._counts[Kind.RMDIR],
            largest=tuple((file.path, file.size_bytes) for file in sorted(self._largest, reverse=True)),
        )

    def _attributes(self, data: bytes, at: int, end: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while at < end:
            if at + ATTRIBUTE_HEADER.size > end:
                raise self._error(at)
            kind, length = ATTRIBUTE_HEADER.unpack_from(data, at)
            at += ATTRIBUTE_HEADER.size
            found[kind] = data[at : at + length]
            at += length
        if at != end:
            raise self._error(at)
        return found

    def _error(self, at: int) -> StreamError:
        return StreamError(self._offset_bytes + at, "an attribute is cut short, or a path missing")

    def _follow(self, kind: int, data: bytes, at: int, end: int) -> None:
        """Take in a command. All but CLONE have the path first, and most are not looked at any further."""
        begin = at + ATTRIBUTE_HEADER.size
        if begin > end:
            raise self._error(at)
        attribute, length = ATTRIBUTE_HEADER.unpack_from(data, at)
        if attribute == _PATH:
            at = begin + length
            path = data[begin:at]
        else:
            path = self._attributes(data, at, end).get(_PATH, b"")
        if at > end or not path:
            raise self._error(at)
        if kind in _CHANGING:
            if path != self._path:
                self._finish_file()
                self._path = path
                if path not in self._made:
                    self._files += 1
            if kind != _TRUNCATE:
                self._count(kind, self._attributes(data, at, end))
        elif kind == _MKFILE:
            self._finish_file()
            self._files += 1
            self._made = {path}
        elif kind == _LINK:
            if self._attributes(data, at, end).get(Attribute.PATH_LINK) in self._made:
                self._made.add(path)
        else:
            self._rename(path, self._attributes(data, at, end).get(Attribute.PATH_TO, b""))

    def _count(self, kind: int, found: dict[int, bytes]) -> None:
        if kind == Kind.UPDATE_EXTENT:
            size_bytes = _number(found, Attribute.SIZE)
            self.data_bytes += size_bytes
            self._path_bytes += size_bytes
        elif kind == Kind.CLONE:
            self._cloned_bytes += _number(found, Attribute.CLONE_LEN)
        elif _number(found, Attribute.FALLOCATE_MODE) & PUNCH_HOLE:
            self._punched_bytes += _number(found, Attribute.SIZE)

    def _rename(self, old: bytes, new: bytes) -> None:
        if old in self._made:
            self._made.discard(old)
            self._made.add(new)
        self._path = _renamed(self._path, old, new)
        if old in self._watched:
            self._largest = [file._replace(path=_renamed(file.path, old, new)) for file in self._largest]
            self._watch()

    def _finish_file(self) -> None:
        """Let the file at hand be one of the largest, if it is."""
        if self._path_bytes:
            file = _File(self._path_bytes, -self._files, self._path)
            if len(self._largest) < LARGEST:
                heapq.heappush(self._largest, file)
                self._watch()
            elif heapq.heappushpop(self._largest, file) is not file:
                self._watch()
        self._path, self._path_bytes = b"", 0

    def _watch(self) -> None:
        self._watched = set()
        for file in self._largest:
            path = file.path
            while path:
                self._watched.add(path)
                path = path.rpartition(b"/")[0]


def _number(found: dict[int, bytes], attribute: Attribute) -> int:
    return int.from_bytes(found.get(attribute, b""), "little")


def _renamed(path: bytes, old: bytes, new: bytes) -> bytes:
    """Return what `path` is called after `old`, itself or a directory above it, became `new`."""
    return new + path[len(old) :] if path == old or path.startswith(old + b"/") else path
