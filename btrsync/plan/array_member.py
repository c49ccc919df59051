"""Whether a disk may become a member of an array that is open: added to it, or in the place of another."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from btrsync.plan.array_create import (
    Known,
    Problem,
    array_problems,
    cipher_notes,
    disk_problems,
    group_notes,
    use_problems,
)
from btrsync.plan.disk_contents import Disk, Use, uses
from btrsync.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator


class MemberWish(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: wipes: all that is on the new disk may be lost. needed_bytes: its least size.

    offset_bytes: what of the disk is left alone, at its beginning.
    """

    wipes: bool = False
    arrays: tuple[UUID, ...] = ()
    deactivates: bool = False
    needed_bytes: int = 0
    offset_bytes: int = 0


class MemberPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What stands against it, and what is ended before."""

    problems: tuple[Problem, ...] = ()
    ends: tuple[Use, ...] = ()
    notes: tuple[str, ...] = ()


def plan_member(disk: Disk, wish: MemberWish, known: Known) -> MemberPlan:
    """Return whether this disk may be written over; known.others: numbers of the disks of every array."""
    ends = uses([disk])
    problems = [
        *_member_problems(disk, known),
        *disk_problems(disk),
        *_size_problems(disk, wish),
        *use_problems(ends, deactivates=wish.deactivates),
        *array_problems([disk], wish.arrays, known),
    ]
    if not wish.wipes:
        problems.append(
            Problem(f"all that is on {disk.member} would be lost", "if that is meant, say so with --wipe")
        )
    notes = (*cipher_notes([disk], known.cipher), *group_notes([disk]))
    return MemberPlan(problems=tuple(problems), ends=tuple(ends), notes=notes)


def _member_problems(disk: Disk, known: Known) -> Iterator[Problem]:
    for layer in disk.layer.walk():
        if layer.number in known.others:
            yield Problem(
                f"{disk.member} is a member of {known.others[layer.number]}, or that lies on it",
                "name another disk",
            )


def _size_problems(disk: Disk, wish: MemberWish) -> Iterator[Problem]:
    usable = disk.layer.size_bytes - wish.offset_bytes
    if usable < wish.needed_bytes:
        yield Problem(
            f"{disk.member} has {format_size(usable)}, and the disk in whose place it comes"
            f" {format_size(wish.needed_bytes)}",
            "name a disk that is as large, or make the old member smaller: btrfs filesystem resize",
        )
