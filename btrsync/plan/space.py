"""Whether there is room for what a send will write, decided before its first byte."""

from __future__ import annotations

import msgspec

from btrsync.plan.sizes import format_size

SURE_METADATA_SHARE = 1 / 1024
"""Of the data: a checksum of 4 bytes for each 4 KiB. It shrinks with the data."""
LIKELY_METADATA_SHARE = 0.02
"""With file extents, inodes and names of a tree of small files."""
HEADROOM_BYTES = 64 << 20
"""Left free for data and metadata, or 1 % of a small filesystem: a full btrfs cannot even delete."""


class Space(msgspec.Struct, frozen=True):
    """Room on a filesystem, in bytes.

    `available_bytes` is the kernel's estimate for data (statfs); the chunk figures count what is
    usable inside chunks already made, `unallocated_bytes` what no chunk has on any device (raw:
    a mirrored profile takes it twice).
    """

    total_bytes: int
    available_bytes: int
    data_free_bytes: int
    metadata_free_bytes: int
    unallocated_bytes: int


class SpaceProblem(msgspec.Struct, frozen=True):
    """Why what is to come will not fit; a warning where it yet may, for data shrinks by compression."""

    message: str
    is_warning: bool


def space_problem(
    total_bytes: int, is_compressing: bool, space: Space, quota_left_bytes: int | None
) -> SpaceProblem | None:
    """Return why `total_bytes` of data, before compression, do not fit, or None if they do.

    is_compressing: data takes less there than it has bytes, how much less nobody knows before, so that
    free space too small for it is a warning; quota_left_bytes: what the client may still write, before
    compression, None without a quota. Metadata refuses where what is sure will not fit.
    """
    size = format_size(total_bytes)
    if quota_left_bytes is not None and total_bytes > quota_left_bytes:
        left = format_size(max(0, quota_left_bytes))
        words = f"{size} are to be written, and the client's quota leaves {left}"
        return SpaceProblem(words, is_warning=False)
    headroom = min(HEADROOM_BYTES, space.total_bytes // 100)
    is_too_much = total_bytes + headroom > space.available_bytes
    available = format_size(space.available_bytes)
    if is_too_much and not is_compressing:
        return SpaceProblem(f"{size} are to be written, and {available} are free", is_warning=False)
    # What no chunk has yet serves data and metadata alike, and may have to be mirrored: half of it is sure.
    metadata_free = space.metadata_free_bytes + space.unallocated_bytes // 2
    sure = headroom + (0 if is_compressing else int(total_bytes * SURE_METADATA_SHARE))
    if metadata_free < headroom + int(total_bytes * LIKELY_METADATA_SHARE):
        return SpaceProblem(
            f"{size} are to be written, and only {format_size(metadata_free)} are free for their metadata",
            is_warning=metadata_free >= sure,
        )
    if is_too_much:
        words = f"{size} are to be written, before compression, and {available} are free"
        return SpaceProblem(words, is_warning=True)
    return None


def must_count_first(source_used_bytes: int, available_bytes: int | None) -> bool:
    """Tell whether a send must be counted before it begins, and not beside it.

    Beside it only where all that the source's filesystem holds would fit at the target: then the count
    can forbid nothing. available_bytes: free at the target or left of the quota; None if nobody knows.
    """
    return available_bytes is None or available_bytes <= source_used_bytes
