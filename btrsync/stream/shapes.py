"""How the kernel's send lays out its most common commands: those are read at once, not by attribute."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from btrsync.stream.commands import ATTRIBUTE_HEADER, Attribute, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

START = struct.Struct("<IH4xHH")
"""A command's header without its CRC, and the header of its first attribute."""

_PATH_TO = int(Attribute.PATH_TO)
_TIMES = ((Attribute.ATIME, 12), (Attribute.MTIME, 12), (Attribute.CTIME, 12))
_LAYOUTS: tuple[tuple[Kind, tuple[tuple[Attribute, int], ...]], ...] = (
    (Kind.MKFILE, ((Attribute.INO, 8),)),
    (Kind.MKDIR, ((Attribute.INO, 8),)),
    (Kind.UNLINK, ()),
    (Kind.RMDIR, ()),
    (Kind.TRUNCATE, ((Attribute.SIZE, 8),)),
    (Kind.CHMOD, ((Attribute.MODE, 8),)),
    (Kind.CHOWN, ((Attribute.UID, 8), (Attribute.GID, 8))),
    (Kind.UTIMES, _TIMES),
    (Kind.UTIMES, (*_TIMES, (Attribute.OTIME, 12))),
)
FIXED: dict[int, tuple[Callable[[bytes, int], tuple[int, ...]], tuple[int, ...]]] = {
    (kind << 32) + sum(4 + size for _, size in layout): (
        struct.Struct("<" + "".join(f"HH{size}x" for _, size in layout)).unpack_from,
        tuple(int(value) for each in layout for value in each),
    )
    for kind, layout in _LAYOUTS
}
"""By kind, shifted by 32 bits, plus the bytes behind the path: what reads the attributes' headers there
(fs/btrfs/send.c, send_chown() and its like), and what it must find.
"""

WRITE_TAIL = struct.Struct("<HH8xHH")
WRITE_START = (int(Attribute.FILE_OFFSET), 8, int(Attribute.DATA))
"""What WRITE_TAIL must find behind a write's path. The length of DATA follows, in version 1 alone."""


def written_bytes(data: bytes, behind: int, end: int, stream_version: int) -> int:
    """Return how much a whole WRITE with its path before `behind` writes; -1 if it is laid out otherwise."""
    if behind + WRITE_TAIL.size > end:
        return -1
    *start, data_bytes = WRITE_TAIL.unpack_from(data, behind)
    if tuple(start) != WRITE_START:
        return -1
    if stream_version >= 2:
        return end - behind - 14
    return data_bytes if behind + WRITE_TAIL.size + data_bytes == end else -1


def names_another(data: bytes, behind: int, end: int) -> bool:
    """Tell whether nothing but PATH_TO stands behind the path of a RENAME."""
    if behind + ATTRIBUTE_HEADER.size > end:
        return False
    attribute, length = ATTRIBUTE_HEADER.unpack_from(data, behind)
    return bool(attribute == _PATH_TO and behind + ATTRIBUTE_HEADER.size + length == end)
