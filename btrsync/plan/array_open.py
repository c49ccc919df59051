"""Whether the members of an array, as their mappings show them, may be mounted: one verdict in a sentence.

Plain dm-crypt opens with any key, and btrfs mounts a disk that was away for a week without a word. So
what is mounted is decided here before, by the superblocks: each of this filesystem, the set complete,
none twice, all of one generation. One generation apart is what a power cut leaves, since a commit
writes the superblocks one after another; such an array is opened, and then scrubbed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from btrsync.plan.superblock import Absence, Superblock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

NORMAL_GENERATIONS_APART: Final = 1

Kind = Literal[
    "whole", "wrong_key", "wrong_disk", "damaged", "foreign", "unnamed", "doubled", "stale", "missing"
]


class MemberView(msgspec.Struct, frozen=True):
    """One configured disk and what its mapping shows; None where the disk is not there."""

    device: str
    shows: Superblock | Absence | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the members are together. sentence: what was found; remedy: what to do, None if whole.

    culprits: the disks it is about; usable: those to mount, if any may be; notes: what is odd and
    harmless; missing: how many members the filesystem has and nobody showed.
    """

    kind: Kind
    sentence: str
    remedy: str | None = None
    culprits: tuple[str, ...] = ()
    usable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: int = 0
    needs_scrub: bool = False

    @property
    def is_whole(self) -> bool:
        return self.kind == "whole"


def judge(views: Sequence[MemberView], uuid: UUID | None, *, accepts_stale: bool = False) -> Verdict:
    """Return the one verdict on the members, in the order of the configuration, the worst first.

    uuid: of the filesystem that is configured; None where none is yet, so that nothing is mounted.
    accepts_stale: a stale disk is no reason to refuse, and one to scrub.
    """
    return (
        _unreadable(views)
        or _foreign(views, uuid)
        or _doubled(views)
        or (None if accepts_stale else _stale(views))
        or _missing(views)
        or _whole(views)
    )


def judge_degraded(views: Sequence[MemberView], uuid: UUID | None) -> Verdict:
    """Return the verdict on what is left without the disks that are stale, noise, damaged or another's.

    "missing" with some that are usable may be mounted degraded, "whole" as ever; nothing else may.
    """
    while True:
        verdict = judge(views, uuid)
        if verdict.kind not in ("wrong_disk", "damaged", "foreign", "stale"):
            return verdict
        left = [MemberView(view.device, None) if view.device in verdict.culprits else view for view in views]
        if not any(_present(left)):
            return verdict
        views = left


def _unreadable(views: Sequence[MemberView]) -> Verdict | None:
    """Noise, which no member of any btrfs shows; where all show it, it is the key and not the disks."""
    there = [view for view in views if view.shows is not None]
    noise = [view.device for view in there if view.shows in ("no_magic", "too_short")]
    if noise and len(noise) == len(there):
        return Verdict(
            kind="wrong_key",
            sentence=f"no btrfs behind {_these(noise)}: wrong key, or wrong cipher, key size or offset",
            remedy="compare key and cipher with what the disks were made with; never mkfs for this: plain"
            " dm-crypt opens with any key, and mkfs.btrfs would write over the data without asking",
            culprits=tuple(noise),
        )
    if noise and _unseen(views):
        return Verdict(
            kind="wrong_disk",
            sentence=f"no btrfs behind {_these(noise)}, though the same key shows it behind the others:"
            f" {'a wrong disk' if len(noise) == 1 else 'wrong disks'}, or overwritten",
            remedy="compare members with ls -l /dev/disk/by-id; if the disk is new, or was overwritten,"
            " open with --degraded and give it back with btrsync array replace",
            culprits=tuple(noise),
        )
    damaged = tuple(view.device for view in there if view.shows == "damaged")
    if damaged:
        return Verdict(
            kind="damaged",
            sentence=f"the superblock on {_these(damaged)} is damaged: its checksum is wrong",
            remedy="btrfs rescue super-recover looks for the copies further on that device; read its manual"
            " before, and what the kernel log says of the disk",
            culprits=damaged,
        )
    return None


def _foreign(views: Sequence[MemberView], uuid: UUID | None) -> Verdict | None:
    of_fsid: dict[UUID, list[str]] = defaultdict(list)
    labels = {}
    for device, block in _present(views):
        of_fsid[block.fsid].append(device)
        labels[block.fsid] = f"{block.fsid}" + (f" ({block.label!r})" if block.label else "")
    if uuid is None and len(of_fsid) == 1:
        (found,) = of_fsid
        return Verdict(
            kind="unnamed",
            sentence=f"the disks hold the filesystem {labels[found]}, and the configuration names no uuid",
            remedy=f'if that is the array, write uuid = "{found}" into its table',
            culprits=tuple(of_fsid[found]),
        )
    others = {fsid: devices for fsid, devices in of_fsid.items() if fsid != uuid}
    if not others:
        return None
    culprits = tuple(device for devices in others.values() for device in devices)
    told = "; ".join(f"{_these(devices)}: {labels[fsid]}" for fsid, devices in others.items())
    if uuid is None or uuid not in of_fsid:
        wanted = f"not {uuid}" if uuid else "and the configuration names no uuid"
        return Verdict(
            kind="foreign",
            sentence=f"another filesystem than the configured one, {wanted}: {told}",
            remedy="correct members, or uuid, in the configuration",
            culprits=culprits,
        )
    return Verdict(
        kind="foreign",
        sentence=f"not of this array, though the same key opens it: {told}",
        remedy="correct members in the configuration",
        culprits=culprits,
    )


def _doubled(views: Sequence[MemberView]) -> Verdict | None:
    of_devid: dict[int, list[str]] = defaultdict(list)
    for device, block in _present(views):
        of_devid[block.devid].append(device)
    for devid, devices in of_devid.items():
        if len(devices) > 1:
            return Verdict(
                kind="doubled",
                sentence=f"{_these(devices)} are both the member with devid {devid}: one is a copy",
                remedy="take the copy out of members, and off the machine: btrfs would mount either",
                culprits=tuple(devices),
            )
    return None


def _stale(views: Sequence[MemberView]) -> Verdict | None:
    newest = _newest(views)
    stale = [
        (device, newest - block.generation)
        for device, block in _present(views)
        if newest - block.generation > NORMAL_GENERATIONS_APART
    ]
    if not stale:
        return None
    culprits = tuple(device for device, _ in stale)
    told = ", ".join(f"{device} is {behind} generations behind" for device, behind in stale)
    return Verdict(
        kind="stale",
        sentence=f"{told}: the array was written without it, and btrfs would mount it without a word",
        remedy="open with --degraded, which leaves it out, then give it back with btrsync array replace; or,"
        " if every profile keeps a second copy and nothing is without checksums, open with --accept-stale"
        " and scrub at once: scrub ends with 0 though it repaired, the device errors in status tell",
        culprits=culprits,
    )


def _missing(views: Sequence[MemberView]) -> Verdict | None:
    absent = tuple(view.device for view in views if view.shows is None)
    unseen = _unseen(views)
    present = list(_present(views))
    if not present:
        return Verdict(
            kind="missing",
            sentence=f"none of the disks is there: {', '.join(absent)}",
            remedy="connect them, or correct members in the configuration; ls -l /dev/disk/by-id",
            culprits=absent,
            missing=len(absent),
        )
    if not unseen:
        return None
    named = f": {', '.join(absent)} not there" if absent else ", and members names no more disks"
    return Verdict(
        kind="missing",
        sentence=f"{unseen} of {present[0][1].num_devices} members missing{named}",
        remedy="connect what is missing; or open with --degraded, which mounts read-only what is left: with"
        " data in the profile single, files on a missing disk give I/O errors",
        culprits=absent,
        usable=tuple(device for device, _ in present),
        missing=unseen,
    )


def _whole(views: Sequence[MemberView]) -> Verdict:
    present = list(_present(views))
    notes = []
    devids = [block.devid for _, block in present]
    if devids != sorted(devids):
        notes.append(
            f"the disks are in another order than in the array (devid {', '.join(map(str, devids))}):"
            " harmless, btrfs finds them by UUID"
        )
    if 0 in devids:
        notes.append("a replacement of a disk has not ended; it goes on when the array is mounted")
    absent = [view.device for view in views if view.shows is None]
    if absent:
        notes.append(
            f"{_these(absent)} not there, and the filesystem is complete without: take it out of members"
        )
    noise = [view.device for view in views if view.shows in ("no_magic", "too_short")]
    if noise:
        notes.append(
            f"{_these(noise)} left out: no btrfs there, and the filesystem is complete without. Where add or"
            " replace was broken off, run it again; otherwise take it out of members"
        )
    behind = [device for device, block in present if block.generation != _newest(views)]
    if behind and _stale(views):
        notes.append(f"{_these(behind)} stale, and taken up as asked: scrub the array before anything else")
    elif behind:
        notes.append(f"{_these(behind)} one generation behind, as after a power cut: scrub the array")
    count = len(present)
    return Verdict(
        kind="whole",
        sentence=f"all {count} members, generation {_newest(views)}"
        if count > 1
        else f"its one member, generation {_newest(views)}",
        usable=tuple(device for device, _ in present),
        notes=tuple(notes),
        needs_scrub=bool(behind),
    )


def mount_options(configured: str, block: Superblock) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options to mount with, and a word for each that was left out.

    The first free space cache is a word of the years before the free space tree: with the tree the
    kernel fails the mount ("cannot disable free-space-tree", 6.1 to 7.2, measured).
    """
    options = [word for word in configured.split(",") if word]
    dropped = [word for word in options if word in ("space_cache", "space_cache=v1", "nospace_cache")]
    if not block.has_free_space_tree or not dropped:
        return tuple(options), ()
    return (
        tuple(word for word in options if word not in dropped),
        tuple(
            f"{word} was left out of the options: this filesystem has a free space tree, which it contradicts"
            for word in dropped
        ),
    )


def _present(views: Sequence[MemberView]) -> Iterator[tuple[str, Superblock]]:
    for view in views:
        if isinstance(view.shows, Superblock):
            yield view.device, view.shows


def _newest(views: Sequence[MemberView]) -> int:
    return max((block.generation for _, block in _present(views)), default=0)


def _unseen(views: Sequence[MemberView]) -> int:
    """Return how many members the filesystem has beyond those seen, by its newest superblock.

    The target of a replacement, devid 0, is in nobody's count. Source: btrfs_init_dev_replace_tgtdev,
    fs/btrfs/dev-replace.c, which leaves the superblock's num_devices alone.
    """
    present = [block for _, block in _present(views)]
    if not present:
        return 0
    newest = max(present, key=lambda block: block.generation)
    return max(0, newest.num_devices - sum(block.devid != 0 for block in present))


def _these(devices: Sequence[str]) -> str:
    return " and ".join([", ".join(devices[:-1]), devices[-1]] if len(devices) > 1 else devices)
