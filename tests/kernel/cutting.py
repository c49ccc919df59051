"""Streams cut at safe boundaries, and `btrfs receive` given the pieces, as a server does it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from btrsync.stream.head import FirstCommand, format_head, parse_first_command
from btrsync.stream.inspector import Boundary, Inspector
from btrsync.stream.pieces import END_COMMAND, format_resumption
from btrsync.system import btrfs
from harness import command
from tests.kernel.send_stream import commands_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from uuid import UUID


def first_of(stream: bytes) -> FirstCommand:
    """Return the first command of a stream."""
    first = parse_first_command(stream[:8192])
    assert first is not None
    return first


def boundaries_of(stream: bytes, clone_sources: Collection[UUID] = ()) -> list[Boundary]:
    """Return every safe boundary of a stream as the inspector tells them, oldest first."""
    first = first_of(stream)
    allowed = {first.parent_uuid, *clone_sources} - {None}
    start = Boundary(0, 0, b"")
    inspector = Inspector(
        first.stream_version, first.uuid, allowed_uuids=[each for each in allowed if each], start=start
    )
    found = [start]
    for each in commands_of(stream)[1:]:
        part = stream[each.offset_bytes : each.offset_bytes + each.size_bytes]
        assert inspector.feed(part) == (part, 0)
        if inspector.safe != found[-1]:
            found.append(inspector.safe)
    assert inspector.is_ended
    return found[1:]


def receive_in_pieces(
    stream: bytes, cuts: Sequence[int], into: Path, name: str, *, path: str | None = None
) -> Path:
    """Receive a stream cut at these offsets behind its first command; return where the whole is.

    path: of the programs, for another release of btrfs-progs.
    """
    first = first_of(stream)
    incoming, partial, staging = into / ".incoming", into / ".partial", b".incoming"
    head = format_head(first, path=staging)
    ends = [first.size_bytes, *(first.size_bytes + cut for cut in cuts), len(stream)]
    for begin, end in pairwise(ends):
        piece = stream[begin:end] + (END_COMMAND if end < len(stream) else b"")
        command.run(["btrfs", "receive", "-q", "-e", "-C", into], input=head + piece, path=path)
        if begin > first.size_bytes:
            btrfs.delete_subvolume(partial)
        if end == len(stream):
            break
        incoming.rename(partial)
        made = btrfs.subvolume(partial)
        head = format_resumption(
            first.stream_version, staging, first.uuid, first.ctransid, made.uuid, made.generation
        )
    incoming.rename(into / name)
    return into / name
