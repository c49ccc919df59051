r"""The bytes of a send stream: header, first command, its CRC. Blocks in, values and blocks out.

Layout (fs/btrfs/send.h): "btrfs-stream\0", le32 version; then commands: le32 payload length, le16
type, le32 CRC32C (seed 0, no final xor, over the header with CRC 0 and the payload); a payload is
attributes: le16 type, le16 length, data. The first command is SUBVOL (full) or SNAPSHOT (incremental).
"""

from __future__ import annotations

import functools
import struct
from uuid import UUID

import msgspec

from btrsync.errors import StreamError

MAGIC = b"btrfs-stream\0"
STREAM_HEADER = struct.Struct("<13sI")
COMMAND_HEADER = struct.Struct("<IHI")
ATTRIBUTE_HEADER = struct.Struct("<HH")
MAX_FIRST_COMMAND_BYTES = 8192
"""A first command holds a path of at most 4096 bytes and four short attributes."""
NEWEST_STREAM_VERSION = 2

COMMAND_SUBVOL = 1
COMMAND_SNAPSHOT = 2
ATTRIBUTE_UUID = 1
ATTRIBUTE_CTRANSID = 2
ATTRIBUTE_PATH = 15
ATTRIBUTE_CLONE_UUID = 20
ATTRIBUTE_CLONE_CTRANSID = 21


class FirstCommand(msgspec.Struct, frozen=True):
    """What a stream says of the subvolume that it makes. `parent_uuid` is that of a SNAPSHOT."""

    stream_version: int
    path: bytes
    uuid: UUID
    ctransid: int
    parent_uuid: UUID | None
    parent_ctransid: int | None
    size_bytes: int
    """Of stream header and first command together: the stream goes on behind them."""


@functools.cache
def _crc_table() -> tuple[int, ...]:
    # Made when first needed: a run that finds nothing to do rewrites no command.
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def crc32c(block: bytes) -> int:
    """Return the CRC32C of a small block as send streams use it: seed 0, no final xor."""
    table, crc = _crc_table(), 0
    for byte in block:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def parse_first_command(head: bytes) -> FirstCommand | None:
    """Return the first command of a stream that begins with `head`; None if more of it is needed.

    Raises StreamError if this is no send stream, or one that begins otherwise than a send does.
    """
    if not MAGIC.startswith(head[: len(MAGIC)]):
        raise StreamError(0, "this is not a btrfs send stream")
    if len(head) < STREAM_HEADER.size + COMMAND_HEADER.size:
        return None
    _, version = STREAM_HEADER.unpack_from(head)
    if not 1 <= version <= NEWEST_STREAM_VERSION:
        raise StreamError(len(MAGIC), f"stream version {version}; 1 to {NEWEST_STREAM_VERSION} are known")
    offset = STREAM_HEADER.size
    size_bytes, command, crc = COMMAND_HEADER.unpack_from(head, offset)
    if command not in (COMMAND_SUBVOL, COMMAND_SNAPSHOT):
        raise StreamError(offset, f"begins with command {command} instead of SUBVOL or SNAPSHOT")
    if size_bytes > MAX_FIRST_COMMAND_BYTES:
        raise StreamError(offset, f"its first command of {size_bytes} bytes is too large")
    end = offset + COMMAND_HEADER.size + size_bytes
    if len(head) < end:
        return None
    payload = head[offset + COMMAND_HEADER.size : end]
    if crc32c(COMMAND_HEADER.pack(size_bytes, command, 0) + payload) != crc:
        raise StreamError(offset, "the CRC of its first command is wrong")
    return _first_command(version, command, payload, end)


def _first_command(version: int, command: int, payload: bytes, end: int) -> FirstCommand:
    start = end - len(payload)
    attributes = _parse_attributes(payload, start)
    wanted = {ATTRIBUTE_PATH, ATTRIBUTE_UUID, ATTRIBUTE_CTRANSID}
    if command == COMMAND_SNAPSHOT:
        wanted |= {ATTRIBUTE_CLONE_UUID, ATTRIBUTE_CLONE_CTRANSID}
    if attributes.keys() != wanted:
        raise StreamError(
            start, f"its first command has the attributes {sorted(attributes)}, not {sorted(wanted)}"
        )
    for kind, length in (
        (ATTRIBUTE_UUID, 16),
        (ATTRIBUTE_CTRANSID, 8),
        (ATTRIBUTE_CLONE_UUID, 16),
        (ATTRIBUTE_CLONE_CTRANSID, 8),
    ):
        if kind in attributes and len(attributes[kind]) != length:
            raise StreamError(
                start, f"attribute {kind} of its first command has {len(attributes[kind])} bytes"
            )
    is_snapshot = command == COMMAND_SNAPSHOT
    return FirstCommand(
        stream_version=version,
        path=attributes[ATTRIBUTE_PATH],
        uuid=UUID(bytes=attributes[ATTRIBUTE_UUID]),
        ctransid=int.from_bytes(attributes[ATTRIBUTE_CTRANSID], "little"),
        parent_uuid=UUID(bytes=attributes[ATTRIBUTE_CLONE_UUID]) if is_snapshot else None,
        parent_ctransid=int.from_bytes(attributes[ATTRIBUTE_CLONE_CTRANSID], "little")
        if is_snapshot
        else None,
        size_bytes=end,
    )


def _parse_attributes(payload: bytes, start: int) -> dict[int, bytes]:
    attributes: dict[int, bytes] = {}
    offset = 0
    while offset < len(payload):
        if offset + ATTRIBUTE_HEADER.size > len(payload):
            raise StreamError(start + offset, "an attribute of its first command is cut short")
        kind, length = ATTRIBUTE_HEADER.unpack_from(payload, offset)
        offset += ATTRIBUTE_HEADER.size
        if offset + length > len(payload) or kind in attributes:
            raise StreamError(start + offset, "an attribute of its first command is cut short or doubled")
        attributes[kind] = payload[offset : offset + length]
        offset += length
    return attributes


def format_head(first: FirstCommand, *, path: bytes) -> bytes:
    """Return stream header and first command with `path` in place of the name that was announced.

    So a sender's name never reaches `btrfs receive`. Attribute order as in send_subvol_begin(),
    fs/btrfs/send.c.
    """
    attributes = [
        (ATTRIBUTE_PATH, path),
        (ATTRIBUTE_UUID, first.uuid.bytes),
        (ATTRIBUTE_CTRANSID, first.ctransid.to_bytes(8, "little")),
    ]
    command = COMMAND_SUBVOL
    if first.parent_uuid is not None and first.parent_ctransid is not None:
        command = COMMAND_SNAPSHOT
        attributes += [
            (ATTRIBUTE_CLONE_UUID, first.parent_uuid.bytes),
            (ATTRIBUTE_CLONE_CTRANSID, first.parent_ctransid.to_bytes(8, "little")),
        ]
    payload = b"".join(ATTRIBUTE_HEADER.pack(kind, len(value)) + value for kind, value in attributes)
    crc = crc32c(COMMAND_HEADER.pack(len(payload), command, 0) + payload)
    return (
        STREAM_HEADER.pack(MAGIC, first.stream_version)
        + COMMAND_HEADER.pack(len(payload), command, crc)
        + payload
    )
