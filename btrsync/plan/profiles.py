"""How data and metadata are spread over the disks of a new array, and what that means when one is lost.

Source: btrfs(5) and mkfs.btrfs(8), "PROFILES".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from btrsync.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COPIES: Final = {
    "single": 1, "raid0": 1, "dup": 2, "raid1": 2, "raid10": 2, "raid1c3": 3, "raid1c4": 4
}  # fmt: skip
"""How many copies each profile keeps. raid5 and raid6 are left out: btrfs(5) has them not for production."""
FEWEST_DISKS: Final = {
    "single": 1, "dup": 1, "raid0": 2, "raid1": 2, "raid10": 4, "raid1c3": 3, "raid1c4": 4
}  # fmt: skip
"""raid10 takes two since Linux 5.15, and mirrors nothing more than raid1 then."""


def default_metadata(disks: int) -> str:
    """Return the profile of metadata that mkfs.btrfs takes: with several disks, each block is on two."""
    return "raid1" if disks > 1 else "dup"


def lost_disks_survived(profile: str) -> int:
    """Return how many disks may be lost with every copy of something still there."""
    return 0 if profile in ("single", "raid0", "dup") else COPIES[profile] - 1


def room_bytes(profile: str, sizes: Sequence[int]) -> int:
    """Return about how much data fits, before metadata."""
    copies = COPIES[profile]
    if profile in ("single", "dup"):
        return sum(sizes) // copies
    ordered = sorted(sizes)
    if profile == "raid0":
        return ordered[0] * len(ordered)
    # A disk holds at most one copy: what is more than its share of the others stays empty.
    room = sum(ordered) // copies
    for largest in range(1, copies):
        room = min(room, sum(ordered[:-largest]) // (copies - largest))
    return room


def profile_problem(what: str, profile: str, disks: int) -> str | None:
    """Return why so many disks cannot have that profile; what: "data" or "metadata"."""
    needed = FEWEST_DISKS[profile]
    if disks < needed:
        return f"{what} in the profile {profile} needs {needed} disks, and the array has {disks}"
    return None


def profile_advice(data: str, metadata: str, sizes: Sequence[int]) -> Iterator[str]:
    """Yield what the choice means for these disks, and what else there is."""
    disks = len(sizes)
    room = room_bytes(data, sizes)
    yield f"data {data}, metadata {metadata}: room for about {format_size(room)}"
    survived = lost_disks_survived(data)
    if survived == 0:
        lost = "its files are gone" if disks == 1 else "the files that have a part on it are gone"
        if data == "raid0":
            lost = "nearly every file is gone"
        yield f"one disk lost is data lost: {lost}"
        if disks > 1:
            other = format_size(room_bytes("raid1", sizes))
            yield f"--data raid1 survives the loss of one disk, with room for about {other}"
    else:
        yield f"{_disks(survived)} may be lost without loss of data"
    if disks > 1 and lost_disks_survived(metadata) < max(1, survived):
        yield (
            f"metadata {metadata} survives the loss of {_disks(lost_disks_survived(metadata))}: less than"
            " it could, and without metadata no file is found"
        )
    elif disks > 2 and metadata == "raid1":
        yield "--metadata raid1c3 would survive the loss of two disks, for little room"
    unused = sum(sizes) - room * COPIES[data]
    if data != "single" and unused > sum(sizes) // 100:
        yield f"{format_size(unused)} of the disks stay unused: their sizes differ too much for {data}"


def _disks(count: int) -> str:
    return {0: "no disk", 1: "one disk"}.get(count, f"{count} disks")
