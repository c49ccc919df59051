"""The seams between the pieces in which `btrfs receive` is given one stream.

At a safe boundary a piece is ended by END_COMMAND: receive then finishes what it has as a read-only
partial. The next piece begins with `format_resumption()`, as an incremental stream from that partial,
and goes on with the stream's own commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from btrsync.stream.commands import COMMAND_HEADER, Kind
from btrsync.stream.head import FirstCommand, format_head

if TYPE_CHECKING:
    from uuid import UUID

END_COMMAND = COMMAND_HEADER.pack(0, Kind.END, 0x9DC96C50)
"""With its CRC32C: it is the same in every stream, for it has no payload."""


def format_resumption(
    stream_version: int, path: bytes, uuid: UUID, ctransid: int, parent_uuid: UUID, parent_ctransid: int
) -> bytes:
    """Return stream header and SNAPSHOT command with which a stream goes on from its partial.

    path: where receive is to make it, relative to its directory. uuid, ctransid: as the stream itself
    announces them. parent_uuid: the partial's own UUID (its received UUID is that of the whole);
    parent_ctransid: its generation, which receive does not look at.
    """
    first = FirstCommand(
        stream_version=stream_version,
        path=path,
        uuid=uuid,
        ctransid=ctransid,
        parent_uuid=parent_uuid,
        parent_ctransid=parent_ctransid,
        size_bytes=0,
    )
    return format_head(first, path=path)
