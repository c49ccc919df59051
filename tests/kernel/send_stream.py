"""A reader of send streams, just enough to cut them at a command and to add up what they carry.

Source of the format: fs/btrfs/send.h of Linux: `btrfs-stream\\0`, le32 version; a command is le32 length,
le16 type, le32 crc and the attributes; an attribute is le16 type, le16 length and its data (in version 2
the data of DATA runs to the end of the command).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER_BYTES = 17
COMMAND_HEADER = struct.Struct("<IHI")
SUBVOL, SNAPSHOT, WRITE, CLONE, UTIMES, END, UPDATE_EXTENT = 1, 2, 15, 16, 20, 21, 22
FALLOCATE, ENCODED_WRITE = 23, 25
_SIZE, _DATA = 4, 19


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a stream: where it begins, its type, its attributes by number."""

    offset_bytes: int
    type: int
    attributes: dict[int, bytes]
    size_bytes: int


def version_of(stream: bytes) -> int:
    """Return the protocol version that a stream announces."""
    return int(struct.unpack_from("<I", stream, 13)[0])


def commands_of(stream: bytes) -> list[Command]:
    """Return every command of a whole stream; struct.error if it is cut inside one."""
    found: list[Command] = []
    offset = HEADER_BYTES
    while offset < len(stream):
        length, kind, _crc = COMMAND_HEADER.unpack_from(stream, offset)
        payload = stream[offset + COMMAND_HEADER.size : offset + COMMAND_HEADER.size + length]
        size = COMMAND_HEADER.size + length
        found.append(Command(offset, kind, _attributes_of(payload, version_of(stream)), size))
        offset += size
    return found


def data_bytes(stream: bytes) -> int:
    """Return how many bytes of file content the WRITE commands of a stream carry."""
    return sum(len(each.attributes[_DATA]) for each in commands_of(stream) if each.type == WRITE)


def announced_bytes(stream: bytes) -> int:
    """Return the sum of the UPDATE_EXTENT commands of a stream made with --no-data."""
    extents = (each.attributes[_SIZE] for each in commands_of(stream) if each.type == UPDATE_EXTENT)
    return sum(int.from_bytes(size, "little") for size in extents)


def _attributes_of(payload: bytes, version: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(payload):
        (kind,) = struct.unpack_from("<H", payload, offset)
        if version >= 2 and kind == _DATA:
            found[kind] = payload[offset + 2 :]
            break
        (length,) = struct.unpack_from("<H", payload, offset + 2)
        found[kind] = payload[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return found
