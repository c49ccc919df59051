"""Whether these disks may become the array, and what is done for it: made, gone on with, or refused.

Nothing is ever taken for empty. A disk of an array on plain dm-crypt shows no signature at all, so each
disk must be named to be written over; and a btrfs that is recognised, in the clear or behind the
configured key, must be named too, by its UUID.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

import msgspec

from btrsync.plan.array_open import MemberView, Verdict, judge
from btrsync.plan.disk_contents import (
    Disk,
    Layer,
    Use,
    is_damaged,
    superblocks,
    system_mounts,
    uses,
)
from btrsync.plan.profiles import profile_advice, profile_problem
from btrsync.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from btrsync.plan.superblock import Superblock

FRESH_GENERATION: Final = 10
"""mkfs.btrfs leaves the generation 6 (6.2) or 8 (6.14, 7.1; measured), and what is written adds to it."""
UNEVEN_FACTOR: Final = 2
IV_WRAPS_BYTES: Final = 2 << 40
"""`plain` counts sectors of 512 bytes in 32 bits. Source: crypt_iv_plain_gen(), drivers/md/dm-crypt.c."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. wipe: disks named to be written over, as they were typed, with their numbers.

    arrays: UUIDs of filesystems that may be written over; deactivates: end what the disks are used by.
    """

    wipe: dict[str, str] = {}
    arrays: tuple[UUID, ...] = ()
    deactivates: bool = False
    accepts_uneven: bool = False
    data: str = "single"
    metadata: str = "raid1"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured and recorded. unfinished: the UUID of a `create` that did not come to its end.

    others: the member of another array for the number of its device, as "arrays.NAME".
    """

    name: str
    uuid: UUID | None = None
    unfinished: UUID | None = None
    others: dict[str, str] = {}
    cipher: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """One reason why it is refused, and what to do."""

    words: str
    remedy: str


class CreatePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What would be done. "go_on": the filesystem is there, and only what belongs to it is completed.

    ends: uses that are ended before; after that the disks are looked at again, and planned for anew.
    """

    kind: Literal["make", "go_on"]
    problems: tuple[Problem, ...] = ()
    ends: tuple[Use, ...] = ()
    notes: tuple[str, ...] = ()


def plan_create(disks: Sequence[Disk], wish: Wish, known: Known) -> CreatePlan:
    """Return what `create` does with these disks; with problems, nothing is done."""
    verdict = _verdict(disks, known.uuid)
    if verdict is not None and verdict.is_whole and known.uuid not in wish.arrays:
        return CreatePlan(kind="go_on", notes=verdict.notes)
    ends = uses(disks)
    problems = [
        *_identity_problems(disks, known),
        *(problem for disk in disks for problem in disk_problems(disk)),
        *_size_problems(disks, wish),
        *_profile_problems(len(disks), wish),
        *use_problems(ends, deactivates=wish.deactivates),
        *array_problems(disks, wish.arrays, known, verdict),
        *_wipe_problems(disks, wish, known),
    ]
    return CreatePlan(
        kind="make", problems=tuple(problems), ends=tuple(ends), notes=tuple(_notes(disks, wish, known))
    )


def _verdict(disks: Sequence[Disk], uuid: UUID | None) -> Verdict | None:
    """Return how the disks stand as the configured array; None if not all could be looked at."""
    shown = [disk.shown for disk in disks]
    views = [MemberView(disk.member, layer.block) for disk, layer in zip(disks, shown, strict=True) if layer]
    return judge(views, uuid) if uuid and len(views) == len(disks) else None


def _identity_problems(disks: Sequence[Disk], known: Known) -> Iterator[Problem]:
    """Yield disks that are one, that lie on one another, or that are another array's."""
    seen: dict[str, str] = {}
    for disk in disks:
        other = seen.setdefault(disk.layer.number, disk.member)
        if other != disk.member:
            yield Problem(f"{other} and {disk.member} are one disk", "take one of them out of members")
    for disk in disks:
        above = {layer.number for layer in disk.layer.walk()} - {disk.layer.number}
        for other_disk in disks:
            if other_disk.layer.number in above:
                yield Problem(
                    f"{other_disk.member} lies on {disk.member}, the whole disk",
                    "name whole disks, or partitions, but not a disk beside its own partition",
                )
        for number in (disk.layer.number, *above):
            if number in known.others:
                yield Problem(
                    f"{disk.member} is a member of {known.others[number]}", "correct members of either array"
                )


def disk_problems(disk: Disk) -> Iterator[Problem]:
    """Yield why this disk is never written to, whatever is asked."""
    if points := system_mounts(disk):
        yield Problem(
            f"{disk.member} is this machine's own disk: it holds {', '.join(points)}",
            "compare members with ls -l /dev/disk/by-id",
        )
    if disk.keeps:
        yield Problem(
            f"{disk.member} holds {', '.join(disk.keeps)}, without which the array cannot be opened",
            "compare members with ls -l /dev/disk/by-id, or move it to another disk",
        )
    if disk.is_readonly:
        yield Problem(f"{disk.member} is read-only", "its switch, or: blockdev --setrw")
    if is_damaged(disk):
        yield Problem(
            f"{disk.member} shows a btrfs with a damaged superblock, whose UUID cannot be trusted",
            "btrfs rescue super-recover, if it is worth something; if not, remove it by hand with wipefs",
        )


def _size_problems(disks: Sequence[Disk], wish: Wish) -> Iterator[Problem]:
    smallest = min(disks, key=lambda disk: disk.layer.size_bytes)
    largest = max(disks, key=lambda disk: disk.layer.size_bytes)
    sizes = smallest.layer.size_bytes, largest.layer.size_bytes
    if sizes[0] * UNEVEN_FACTOR < sizes[1] and not wish.accepts_uneven:
        yield Problem(
            f"{smallest.member} has {format_size(sizes[0])} and {largest.member} {format_size(sizes[1])}:"
            " one of them is a wrong disk, perhaps",
            "compare members with lsblk; --uneven if it is meant so",
        )


def _profile_problems(disks: int, wish: Wish) -> Iterator[Problem]:
    for what, profile in (("data", wish.data), ("metadata", wish.metadata)):
        if words := profile_problem(what, profile, disks):
            yield Problem(words, f"choose another with --{what}")


def use_problems(found: Sequence[Use], *, deactivates: bool) -> Iterator[Problem]:
    """Yield what the disks are used by, unless all of it is to be ended and can be."""
    for use in found:
        if use.argv is None:
            yield Problem(use.words, "end it by its own tools")
        elif not deactivates:
            yield Problem(use.words, f"{' '.join(use.argv)}; --deactivate runs that")


def array_problems(
    disks: Sequence[Disk], named: Sequence[UUID], known: Known, verdict: Verdict | None = None
) -> Iterator[Problem]:
    """Yield each btrfs that is recognised and was not named; and a name that no disk shows.

    What a `create` that did not come to its end has made is none, as long as nothing can have been
    written to it.
    """
    found: dict[UUID, tuple[Superblock, list[str]]] = {}
    for disk in disks:
        for place, block in superblocks(disk):
            if block.fsid != known.unfinished or block.generation > FRESH_GENERATION:
                found.setdefault(block.fsid, (block, []))[1].append(place)
    for fsid, (block, places) in found.items():
        if fsid in named:
            continue
        what = f"the btrfs {fsid}{f' ({block.label!r})' if block.label else ''} is on {', '.join(places)}"
        if fsid == known.uuid:
            why = (
                f"this very array, though not complete: {verdict.sentence}"
                if verdict
                else "of this very array"
            )
            yield Problem(
                f"{what}: {why}",
                f"btrsync array open {known.name} says more; to write over it, name it too:"
                f" --wipe-array {fsid}",
            )
        else:
            yield Problem(
                what,
                f'if it is the array, write uuid = "{fsid}" into its table and open it; to write over it,'
                f" name it too: --wipe-array {fsid}",
            )
    for fsid in named:
        if fsid not in found:
            yield Problem(f"no disk shows the btrfs {fsid}", "take it out of --wipe-array")


def _wipe_problems(disks: Sequence[Disk], wish: Wish, known: Known) -> Iterator[Problem]:
    numbers = {disk.layer.number for disk in disks}
    for typed, number in wish.wipe.items():
        if number not in numbers:
            yield Problem(
                f"{typed} is no member of the array", "take it out of --wipe, or put it into members"
            )
    missing = [disk.member for disk in disks if disk.layer.number not in wish.wipe.values()]
    if missing:
        every = " ".join(disk.member for disk in disks)
        yield Problem(
            f"all that is on {', '.join(missing)} would be lost, and --wipe does not name"
            f" {'it' if len(missing) == 1 else 'them'}",
            f"if that is meant: btrsync array create {known.name} --wipe {every}",
        )


def _notes(disks: Sequence[Disk], wish: Wish, known: Known) -> Iterator[str]:
    if profile_problem("data", wish.data, len(disks)) is None:
        yield from profile_advice(wish.data, wish.metadata, [disk.layer.size_bytes for disk in disks])
    yield from cipher_notes(disks, known.cipher)
    for disk in disks:
        if disk.whole:
            yield f"{disk.member} is a partition of {disk.whole}: the rest of that disk is left alone"
    yield from group_notes(disks)


def cipher_notes(disks: Sequence[Disk], cipher: str | None) -> Iterator[str]:
    """Yield what the cipher means for disks of this size."""
    if cipher and cipher.endswith("-plain") and any(d.layer.size_bytes > IV_WRAPS_BYTES for d in disks):
        yield (
            f"{cipher} numbers sectors with 32 bits, which repeat every 2 TiB: equal data 2 TiB apart looks"
            f' equal on a disk. For a new array write cipher = "{cipher}64", which is the same below that'
        )


def group_notes(disks: Sequence[Disk]) -> Iterator[str]:
    """Yield volume groups that lose a disk here and have others elsewhere."""
    counts: dict[str, int] = {}
    totals: dict[str, int] = {}
    for disk in disks:
        layers: list[Layer] = [*disk.layer.walk(), *([disk.behind] if disk.behind else [])]
        for layer in layers:
            if layer.group is not None:
                counts[layer.group.name] = counts.get(layer.group.name, 0) + 1
                totals[layer.group.name] = layer.group.physical_volumes
    for group, count in counts.items():
        if count < totals[group]:
            yield f"the volume group {group} has {totals[group]} physical volumes, and {count} go here"
