"""What of a send stream may reach `btrfs receive`: every command is read before receive reads it.

`btrfs receive` runs as root and trusts its stream. The inspector stands before it and refuses, at the
first wrong command: a second subvolume, a path that leads out of the subvolume, or through a symbolic
link or into a device that this stream made, a clone from what was not agreed, unknown or oversized
commands, what comes after END, more data than was announced. The bytes of large writes pass without being
looked at.

Only the shape is checked here that decides where a command reaches; whether it makes sense is left to
receive and the kernel. Links and devices that the send parent holds, or what came before a transfer that
goes on, are not known here: in receive's mount namespace they lead nowhere (`btrsync.system.private`).

It also tells where the stream may be cut. A *safe boundary* lies behind a UTIMES command, between two
data commands of one path, and before END; never between a SET_XATTR of security.capability and the CHOWN
or UTIMES that follows it. For what receive keeps from one command to the next is the file open for
writing, which it opens again, and up to btrfs-progs 5.10 the capability that it sets once more behind the
next CHOWN, which clears it (process_set_xattr() and process_chown(), cmds/receive.c before 81d8ea93).
Kernels before 5.8 send all that a capability's file holds between the two; later ones send CHOWN first
and the file's own UTIMES next (89efda52e6b6, fs/btrfs/send.c). UTIMES of directories, sent late by kernels
since 6.3, stand behind a file's last command, or between its names and its attributes and data
(process_recorded_refs(), trim_dir_utimes_cache()): there receive keeps nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from btrsync.errors import StreamError
from btrsync.stream.commands import ATTRIBUTE_HEADER, COMMAND_HEADER, Attribute, Kind
from btrsync.stream.doors import DOORS, OPENING, Doors
from btrsync.stream.shapes import FIXED, START, names_another, written_bytes

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Collection
    from uuid import UUID

MAX_COMMAND_BYTES = 128 << 10
"""A path or two of 4 KiB and an extended attribute of 64 KiB fit easily."""
MAX_DATA_COMMAND_BYTES = 1 << 20
"""`btrfs send` writes at most 48 KiB (version 1) or 144 KiB (version 2) at once."""
MAX_PATH_BYTES = 4095
WAITING_HEADERS = 4096
PASSED_UNSEEN_BYTES = 16 << 10
"""From this size on the data of a write is not read into memory."""

# Plain integers, as they stand in a stream: to find those is quicker.
_PATH, _PATH_TO = int(Attribute.PATH), int(Attribute.PATH_TO)
_WRITE, _RENAME, _CHOWN, _UTIMES = map(int, (Kind.WRITE, Kind.RENAME, Kind.CHOWN, Kind.UTIMES))
_WRITES = frozenset((_WRITE, int(Kind.ENCODED_WRITE)))
_DATA_KINDS = _WRITES.union(map(int, (Kind.CLONE, Kind.FALLOCATE, Kind.UPDATE_EXTENT)))
_TURNS = frozenset(map(int, (Kind.SET_XATTR, Kind.CHOWN, Kind.UTIMES, Kind.END)))
_CAPABILITY = b"security.capability"
_LAST_KIND = {1: Kind.UPDATE_EXTENT, 2: Kind.ENCODED_WRITE}
_PATHS: dict[int, tuple[Attribute, ...]] = {
    Kind.RENAME: (Attribute.PATH, Attribute.PATH_TO),
    Kind.LINK: (Attribute.PATH, Attribute.PATH_LINK),
    Kind.CLONE: (Attribute.PATH, Attribute.CLONE_PATH),
}
_ONE_PATH: tuple[Attribute, ...] = (Attribute.PATH,)
_LINKING = DOORS.union(map(int, (Kind.LINK, Kind.UNLINK, Kind.RENAME)))
_OPENING_ONE = OPENING - {Kind.CLONE, Kind.CHMOD}
"""Those that prove their path for the next command too: CHMOD may name a device that nothing may open."""
_PUNCH_HOLE = 2
_LE16 = struct.Struct("<H")


class Boundary(msgspec.Struct, frozen=True):
    """A place between two commands, and what the stream has written up to it.

    offset_bytes: from behind the stream's first command, which a renamed snapshot changes. data_bytes:
    before compression. digest: BLAKE2b, of 32 bytes, over the digest of the boundary where reading began
    and every command header since. Behind the first command itself it is Boundary(0, 0, b"").
    """

    offset_bytes: int
    data_bytes: int
    digest: bytes


class Passed(NamedTuple):
    """What may go on: `block`, and then the next `unseen_bytes` of the stream as they come."""

    block: bytes
    unseen_bytes: int


class Inspector:
    """Reads one stream behind its first command, or from where it goes on.

    uuid: what the stream makes, as it names it. allowed_uuids: those that a clone may come from besides,
    as the stream names them: send parent and clone sources. limit_bytes: of data that the stream may
    write in all, None for no limit. start: where reading begins; its digest begins the chain.

    `data_bytes` counts what the stream writes, before compression, `offset_bytes` what was let pass.
    """

    def __init__(
        self,
        stream_version: int,
        uuid: UUID,
        *,
        allowed_uuids: Collection[UUID],
        limit_bytes: int | None = None,
        start: Boundary,
    ) -> None:
        # Late: to begin a run costs nothing of it.
        from hashlib import blake2b

        self.offset_bytes = start.offset_bytes
        self.data_bytes = start.data_bytes
        self.is_ended = False
        self._version = stream_version
        self._max_bytes = {
            kind: MAX_DATA_COMMAND_BYTES if kind in _WRITES else MAX_COMMAND_BYTES
            for kind in range(Kind.MKFILE, _LAST_KIND[stream_version] + 1)
        }
        self._uuid = uuid.bytes
        self._clone_uuids = {uuid.bytes for uuid in allowed_uuids} | {uuid.bytes}
        self._limit_bytes = limit_bytes
        self._most_bytes = 1 << 63 if limit_bytes is None else limit_bytes
        self._carry = b""
        self._last_path: bytes | None = None
        self._doors = Doors()
        self._payload_bytes = 0
        self._data_path: bytes | None = None
        self._capability_path: bytes | None = None
        self._safe: Boundary | None = start
        self._folded = start.offset_bytes, start.data_bytes
        self._mark = start.offset_bytes, start.data_bytes, 0
        self._headers: list[bytes] = []
        self._hasher: hashlib.blake2b = blake2b(start.digest, digest_size=32)
        self._ahead: hashlib.blake2b | None = None
        """With the headers behind the newest safe boundary that have become too many to keep."""

    @property
    def safe(self) -> Boundary:
        """The newest safe boundary, from `start` on, in what was let pass.

        A boundary between two data commands is known when the path of the second one is, even if its data
        is still to come. Once the stream has ended, it is the one before END.
        """
        if self._safe is None:
            self._safe = Boundary(*self._folded, self._hasher.copy().digest())
        return self._safe

    def feed(self, block: bytes) -> Passed:
        """Return what of `block`, and of what was held back before it, may go on.

        Raises StreamError at the first command that may not, with its offset in the stream.
        """
        data = self._carry + block if self._carry else block
        at = self._take_plain(data, 0)
        while at + COMMAND_HEADER.size <= len(data):
            size_bytes, kind, _ = COMMAND_HEADER.unpack_from(data, at)
            end = at + COMMAND_HEADER.size + size_bytes
            self._check_header(kind, size_bytes, at)
            if end > len(data):
                is_large = end - len(data) >= PASSED_UNSEEN_BYTES
                if not is_large or not self._is_data_all_that_is_left(kind, data, at, end):
                    break
                self._carry = b""
                self._fold()
                self.offset_bytes += end
                return Passed(data, end - len(data))
            self._check_command(kind, data, at, end)
            at = self._take_plain(data, end)
        if self.is_ended and at < len(data):
            raise self._error(at, "it goes on behind its END")
        self._carry = data[at:]
        self._fold()
        self.offset_bytes += at
        return Passed(data[:at], 0)

    # One loop with nothing called that need not be: this is what a stream of small files costs.
    def _take_plain(self, data: bytes, at: int) -> int:  # noqa: C901, PLR0912, PLR0915
        """Take in the commands from `at` on, as long as they are whole and laid out as the kernel does.

        Returns where the first other one begins: that one is read attribute by attribute, and refused
        there if it must be.
        """
        if self.is_ended:
            return at
        available, unpack, shapes = len(data), START.unpack_from, FIXED
        doors, version, most_bytes = self._doors.kinds, self._version, self._most_bytes
        offset_bytes, headers = self.offset_bytes, self._headers
        data_bytes = written = self.data_bytes
        last, data_path, capability = self._last_path, self._data_path, self._capability_path
        while at + 14 <= available:
            size_bytes, kind, attribute, path_bytes = unpack(data, at)
            end = at + 10 + size_bytes
            behind = at + 14 + path_bytes
            if attribute != _PATH or behind > end or end > available:
                break
            if kind == _WRITE:
                written = data_bytes + written_bytes(data, behind, end, version)
                if written < data_bytes or size_bytes > MAX_DATA_COMMAND_BYTES or written > most_bytes:
                    break
            elif kind == _RENAME:
                if not names_another(data, behind, end):
                    break
            elif doors and kind in _LINKING:
                break
            else:
                shape = shapes.get((kind << 32) + end - behind)
                if shape is None or shape[0](data, behind) != shape[1]:
                    break
            path = data[at + 14 : behind]
            if path != last:
                spelt = b"/" + path + b"/"
                if b"/." in spelt or b"//" in spelt or b"\0" in path or path_bytes > MAX_PATH_BYTES:
                    self._check_path(path, at)
                if doors:
                    self._check_doors(kind, path, at)
                    last = path if kind in _OPENING_ONE else None
                else:
                    last = path
            if kind == _RENAME:
                self._check_path(new := data[behind + 4 : end], at)
                if doors:
                    self._check_doors(kind, new, at)
                    self._doors.follow(kind, {_PATH: path, _PATH_TO: new})
                    last = None
            if kind == _WRITE:
                if path == data_path and capability is None:
                    self._mark = offset_bytes + at, data_bytes, len(headers)
                data_path, data_bytes = path, written
            else:
                data_path = None
                if kind == _UTIMES:
                    if capability is None or capability == path:
                        capability = None
                        self._mark = offset_bytes + end, data_bytes, len(headers) + 1
                elif kind == _CHOWN:
                    capability = None
            headers.append(data[at : at + 10])
            at = end
        self.data_bytes, self._last_path = data_bytes, last
        self._data_path, self._capability_path = data_path, capability
        return at

    def _error(self, at: int, problem: str) -> StreamError:
        return StreamError(self.offset_bytes + at, problem)

    def _check_header(self, kind: int, size_bytes: int, at: int) -> None:
        if self.is_ended:
            raise self._error(at, "it goes on behind its END")
        limit = self._max_bytes.get(kind)
        if limit is None:
            if kind in (Kind.SUBVOL, Kind.SNAPSHOT):
                raise self._error(at, "it begins a second subvolume")
            raise self._error(at, f"command {kind} is unknown in version {self._version}")
        if size_bytes > limit:
            raise self._error(at, f"{Kind(kind).name} of {size_bytes} bytes; at most {limit} are taken")

    def _is_data_all_that_is_left(self, kind: int, data: bytes, at: int, end: int) -> bool:
        """Check a write whose data is not all here yet; False if more than that is missing."""
        if kind not in _WRITES:
            return False
        found = self._attributes(data, at, len(data), end)
        if found is None:
            return False
        self._check_attributes(kind, found, at)
        self._follow(kind, found, data, at, end)
        return True

    def _check_command(self, kind: int, data: bytes, at: int, end: int) -> None:
        found = self._attributes(data, at, end, end)
        if found is None:
            raise self._error(at, f"an attribute of its {Kind(kind).name} is cut short")
        self._check_attributes(kind, found, at)
        self._follow(kind, found, data, at, end)

    def _attributes(self, data: bytes, at: int, available: int, end: int) -> dict[int, bytes] | None:
        """Return a command's attributes but for its DATA; None if one is not whole before `available`.

        DATA must be the last one: only then is it known that nothing hides behind what passes unseen.
        """
        found: dict[int, bytes] = {}
        self._payload_bytes = 0
        position = at + COMMAND_HEADER.size
        while position < end:
            if position + _LE16.size > available:
                return None
            (kind,) = _LE16.unpack_from(data, position)
            if kind in found:
                raise self._error(at, f"attribute {kind} stands twice in one command")
            if kind == Attribute.DATA and self._version >= 2:
                self._payload_bytes = end - position - _LE16.size
                return found
            if position + ATTRIBUTE_HEADER.size > available:
                return None
            _, length = ATTRIBUTE_HEADER.unpack_from(data, position)
            position += ATTRIBUTE_HEADER.size
            if position + length > end:
                raise self._error(at, f"attribute {kind} is longer than its command")
            if kind == Attribute.DATA:
                if position + length != end:
                    raise self._error(at, "attributes stand behind the data of a write")
                self._payload_bytes = length
                return found
            if position + length > available:
                return None
            found[kind] = data[position : position + length]
            position += length
        return found

    def _follow(self, kind: int, found: dict[int, bytes], data: bytes, at: int, end: int) -> None:
        """Take in a command that may pass: what it writes, where it may be cut, its header."""
        if kind in _DATA_KINDS:
            path = found[Attribute.PATH]
            if path == self._data_path and self._capability_path is None:
                self._mark_safe(at)
            self._data_path = path
            self._count(kind, found, at)
        else:
            self._data_path = None
            if kind in _TURNS:
                self._turn(kind, found, at, end)
        self._headers.append(data[at : at + COMMAND_HEADER.size])

    def _turn(self, kind: int, found: dict[int, bytes], at: int, end: int) -> None:
        if kind == Kind.UTIMES:
            if self._capability_path in (None, found[Attribute.PATH]):
                self._capability_path = None
                self._mark_safe(end, behind=1)
        elif kind == Kind.CHOWN:
            self._capability_path = None
        elif kind == Kind.END:
            self.is_ended = True
            self._mark_safe(at)
        elif found.get(Attribute.XATTR_NAME) == _CAPABILITY:
            self._capability_path = found[Attribute.PATH]

    def _mark_safe(self, at: int, *, behind: int = 0) -> None:
        # behind: 1 where the header of the command that is being taken in belongs before the boundary.
        self._mark = self.offset_bytes + at, self.data_bytes, len(self._headers) + behind

    def _fold(self) -> None:
        """Hash the headers up to the newest safe boundary, once a block."""
        offset_bytes, data_bytes, count = self._mark
        if offset_bytes != self._folded[0]:
            self._hasher = self._hashed(self._headers[:count])
            self._ahead = None
            del self._headers[:count]
            self._mark = offset_bytes, data_bytes, 0
            self._folded = offset_bytes, data_bytes
            self._safe = None
        if len(self._headers) > WAITING_HEADERS:
            self._ahead = self._hashed(self._headers)
            self._headers.clear()

    def _hashed(self, headers: list[bytes]) -> hashlib.blake2b:
        hasher = self._ahead or self._hasher.copy()
        hasher.update(b"".join(headers))
        return hasher

    def _count(self, kind: int, found: dict[int, bytes], at: int) -> None:
        if kind == _WRITE:
            self.data_bytes += self._payload_bytes
        elif kind == Kind.ENCODED_WRITE:
            size_bytes = _number(found, Attribute.UNENCODED_FILE_LEN)
            # Receive decompresses all of the latter, if the kernel does not take it (decompress_and_write()).
            most_bytes = max(size_bytes, _number(found, Attribute.UNENCODED_LEN))
            if not size_bytes or most_bytes > MAX_DATA_COMMAND_BYTES:
                raise self._error(at, f"an ENCODED_WRITE of {most_bytes} bytes when decompressed")
            self.data_bytes += size_bytes
        elif kind == Kind.FALLOCATE and not _number(found, Attribute.FALLOCATE_MODE) & _PUNCH_HOLE:
            self.data_bytes += _number(found, Attribute.SIZE)
        if self._limit_bytes is not None and self.data_bytes > self._limit_bytes:
            raise self._error(at, f"it writes more than the {self._limit_bytes} bytes that were announced")

    def _check_attributes(self, kind: int, found: dict[int, bytes], at: int) -> None:
        for attribute in _PATHS.get(kind, _ONE_PATH) if kind != Kind.END else ():
            path = found.get(attribute)
            if path is None:
                raise self._error(at, f"{Kind(kind).name} without attribute {attribute.name}")
            # Most commands name the path of the one before.
            if path != self._last_path:
                self._check_path(path, at)
                if self._doors.kinds and not self._is_foreign(attribute, found):
                    self._check_doors(kind, path, at)
                self._last_path = path if kind in _OPENING_ONE else None
        if kind == Kind.CLONE and found.get(Attribute.CLONE_UUID) not in self._clone_uuids:
            raise self._error(at, "it clones from a subvolume that was not agreed")
        if kind in _LINKING:
            self._doors.follow(kind, found)
            self._last_path = None

    def _check_path(self, path: bytes, at: int) -> None:
        if path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
            raise self._error(at, f"the path {_shown(path)} is absolute, has a NUL, or is too long")
        if b"/." in path or b"//" in path or path.startswith(b".") or path.endswith(b"/"):
            parts = path.split(b"/")
            if b".." in parts:
                raise self._error(at, f"the path {_shown(path)} leads out of the subvolume")
            # Each file must have one spelling here: what the stream has made is known by its own.
            if b"." in parts or b"" in parts:
                raise self._error(at, f"the path {_shown(path)} is not spelt as send does")

    def _is_foreign(self, attribute: Attribute, found: dict[int, bytes]) -> bool:
        """Tell whether a path is one of another subvolume, where this stream has made nothing."""
        return attribute == Attribute.CLONE_PATH and found.get(Attribute.CLONE_UUID) != self._uuid

    def _check_doors(self, kind: int, path: bytes, at: int) -> None:
        if door := self._doors.on_the_way(path, kind):
            what = "symbolic link" if self._doors.is_link(door) else "device"
            raise self._error(at, f"the path {_shown(path)} leads through the {what} {_shown(door)}")


def _number(found: dict[int, bytes], attribute: Attribute) -> int:
    return int.from_bytes(found.get(attribute, b""), "little")


def _shown(path: bytes) -> str:
    return repr(path[:200])[1:]
