"""`btrsync array open`: open the mappings, prove what they show, mount it; or leave all as it was.

The proof comes before the mount, since plain dm-crypt opens with any key and btrfs mounts a stale disk
without a word. Nothing here makes a filesystem or writes to a disk.
"""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from btrsync.errors import BtrsyncError, StorageError
from btrsync.plan.array_open import MemberView, Verdict, judge, judge_degraded, mount_options
from btrsync.plan.superblock import Superblock
from btrsync.system import btrfs_devices, dmcrypt, mounting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from btrsync.array.setup import ArraySetup
    from btrsync.system.dmcrypt import Mapping, Wanted

Outcome = Literal["opened", "already_open", "made_writable"]


class OpenOptions(msgspec.Struct, frozen=True, kw_only=True):
    """is_degraded: without disks that are missing, read-only; is_writable: and then writable.

    accepts_stale: with a disk that was away while the others were written.
    """

    is_degraded: bool = False
    is_writable: bool = False
    accepts_stale: bool = False


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """How `open` ended: what was found, in a sentence, and what is worth a word."""

    outcome: Outcome
    sentence: str
    mount_point: Path
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_degraded: bool = False
    needs_scrub: bool = False


class ArrayRefusedError(StorageError):
    """The members must not be mounted as they are; `verdict` says why."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(f"array {name}: {verdict.sentence}; nothing was mounted", hint=verdict.remedy)


def open_array(
    setup: ArraySetup, options: OpenOptions, *, say: Callable[[str], None] = lambda _: None
) -> Opened:
    """Open and mount an array; what this call opened is closed again if it cannot be mounted.

    say: told what is being done. Raises ArrayRefusedError with the verdict, StorageError, CommandError,
    LockedError.
    """
    with setup.lock():
        return _already_open(setup, options) or _open(setup, options, say)


def plan_open(setup: ArraySetup, options: OpenOptions) -> list[str]:
    """Return in words what `open_array` would do, with the commands; looks only, and opens nothing."""
    open_now = setup.open_mappings()
    if _mounted(setup, list(open_now.values())):
        return [f"{setup.config.mount_point} is mounted already"]
    lines = []
    key = setup.key or dmcrypt.Key(Path("CREDENTIAL"), setup.config.passphrase_credential is not None)
    for wanted in setup.wanted:
        if wanted.name in open_now:
            lines.append(f"{wanted.name} is open already")
        elif not wanted.device.exists():
            lines.append(f"{wanted.device} is not there")
        else:
            argv = shlex.join(dmcrypt.open_argv(wanted, setup.encryption, key))
            lines.append(argv + (f" < {shlex.quote(str(key.file))}" if key.is_passphrase else ""))
    devices = [dmcrypt.MAPPER / wanted.name for wanted in setup.wanted]
    lines.append("look at each superblock, and go on only if they are the whole array")
    lines.append(shlex.join(["btrfs", "device", "scan", *map(str, devices)]))
    words = [word for word in setup.config.options.split(",") if word]
    words += ["degraded", "ro"] if options.is_degraded else []
    lines.append(shlex.join(mounting.mount_argv(devices[0], setup.config.mount_point, words)))
    return lines


def _already_open(setup: ArraySetup, options: OpenOptions) -> Opened | None:
    """Return how it stands if it is mounted where it belongs, made writable if that is asked."""
    point = setup.config.mount_point
    found = setup.open_mappings()
    if not _mounted(setup, list(found.values())):
        return None
    fsid = btrfs_devices.mounted_fsid(point)
    if fsid != setup.config.uuid:
        raise StorageError(
            f"array {setup.name}: {point} holds the filesystem {fsid}, not {setup.config.uuid}",
            hint=f"umount {point}, or correct uuid in the configuration",
        )
    missing = [member for member in btrfs_devices.mounted_members(point) if member.is_missing]
    notes = [f"{len(missing)} members are missing from it: close and open it to take them up"] * bool(missing)
    outcome: Outcome = "already_open"
    if options.is_degraded and options.is_writable and mounting.mounts_at(point)[-1].is_readonly:
        mounting.remount(point, ["rw"])
        outcome = "made_writable"
    return Opened(
        outcome=outcome,
        sentence=f"is open at {point}",
        mount_point=point,
        notes=tuple(notes),
        is_degraded=bool(missing),
    )


def _mounted(setup: ArraySetup, found: Sequence[Mapping]) -> bool:
    """Return whether the array is mounted at its place. Raises StorageError if that place is another's."""
    point = setup.config.mount_point
    there = mounting.mounts_at(point)
    ours = mounting.btrfs_mounts(one.number for one in found)
    if there and there[-1] in ours:
        return True
    if there:
        raise StorageError(
            f"array {setup.name}: {there[-1].source} is mounted at {point}",
            hint=f"umount {point}, or name another mount_point",
        )
    if ours:
        raise StorageError(
            f"array {setup.name}: it is mounted at {ours[0].mount_point}, not at {point}",
            hint=f"umount {ours[0].mount_point}",
        )
    if not point.is_dir():
        raise StorageError(
            f"array {setup.name}: the mount point {point} is no directory", hint=f"mkdir -p {point}"
        )
    return False


def _open(setup: ArraySetup, options: OpenOptions, say: Callable[[str], None]) -> Opened:
    with ExitStack() as undo:
        there = _there(setup)
        say(f"opening {len(there)} of {len(setup.wanted)} disks")
        _open_missing(setup, there, undo)
        views = list(_views(setup, there))
        verdict = _judge(setup, options, views)
        say(verdict.sentence)
        devices = _leave_out(setup, verdict)
        btrfs_devices.scan(devices)
        undo.callback(btrfs_devices.forget, devices)
        opened = _mount(setup, options, verdict, views, devices, undo)
        undo.pop_all()
        return opened


def _there(setup: ArraySetup) -> list[Wanted]:
    """Return the disks that are there. Raises StorageError if two names are one disk."""
    seen: dict[str, Wanted] = {}
    for wanted in setup.wanted:
        if not os.path.lexists(wanted.device):
            continue
        other = seen.setdefault(dmcrypt.device_number(wanted.device), wanted)
        if other is not wanted:
            raise StorageError(
                f"array {setup.name}: {other.device} and {wanted.device} are one disk",
                hint="take one of them out of members",
            )
    return list(seen.values())


def _open_missing(setup: ArraySetup, there: Sequence[Wanted], undo: ExitStack) -> None:
    """Open what is not open yet; what a killed run left half open is completed."""
    found = setup.open_mappings()
    for wanted in there:
        mapping = found.get(wanted.name)
        if mapping is None:
            continue
        if mapping.target is None:
            dmcrypt.close_mappings([mapping])
            del found[wanted.name]
        elif why := dmcrypt.difference(mapping, wanted.device, setup.encryption):
            raise StorageError(
                f"array {setup.name}: the mapping {wanted.name} is open already, and {why}",
                hint=f"cryptsetup close {wanted.name}, or choose another mapping_prefix",
            )
    if not all(wanted.name in found for wanted in there):
        to_open = [wanted for wanted in there if wanted.name not in found]
        for wanted in to_open:
            if above := dmcrypt.holders(wanted.device):
                raise StorageError(
                    f"array {setup.name}: {wanted.device} is in use already, by {', '.join(above)}",
                    hint=f"if that is a mapping of the array by another name: cryptsetup close {above[0]}",
                )
        dmcrypt.open_mappings(to_open, setup.encryption, setup.needed_key())
        undo.callback(_close_again, setup, [wanted.name for wanted in to_open])
    dmcrypt.make_nodes([wanted.name for wanted in there])


def _close_again(setup: ArraySetup, names: Sequence[str]) -> None:
    """Close what this run opened, while its own error is on its way; what cannot be closed is left."""
    found = setup.open_mappings()
    try:
        dmcrypt.close_mappings([found[name] for name in names if name in found])
    except BtrsyncError:
        return  # the next open finds it half open, and completes it


def _views(setup: ArraySetup, there: Sequence[Wanted]) -> Iterator[MemberView]:
    names = {wanted.name for wanted in there}
    for wanted in setup.wanted:
        shows = btrfs_devices.read_superblock(dmcrypt.MAPPER / wanted.name) if wanted.name in names else None
        yield MemberView(str(wanted.device), shows)


def _judge(setup: ArraySetup, options: OpenOptions, views: Sequence[MemberView]) -> Verdict:
    """Return the verdict if something may be mounted. Raises ArrayRefusedError."""
    uuid = setup.config.uuid
    verdict = judge(views, uuid, accepts_stale=options.accepts_stale)
    if verdict.is_whole:
        return verdict
    if options.is_degraded:
        verdict = judge_degraded(views, uuid)
    if options.is_degraded and verdict.usable:
        return verdict
    raise ArrayRefusedError(setup.name, verdict)


def _leave_out(setup: ArraySetup, verdict: Verdict) -> list[Path]:
    """Return the devices to mount, after all others were closed, so that the kernel cannot take them up."""
    usable = [wanted.name for wanted in setup.wanted if str(wanted.device) in verdict.usable]
    others = [one for name, one in setup.open_mappings().items() if name not in usable]
    btrfs_devices.forget([one.device for one in others])
    dmcrypt.close_mappings(others)
    return [dmcrypt.MAPPER / name for name in usable]


def _mount(
    setup: ArraySetup,
    options: OpenOptions,
    verdict: Verdict,
    views: Sequence[MemberView],
    devices: Sequence[Path],
    undo: ExitStack,
) -> Opened:
    point = setup.config.mount_point
    block = next(view.shows for view in views if isinstance(view.shows, Superblock))
    words, notes = mount_options(setup.config.options, block)
    is_degraded = not verdict.is_whole
    if is_degraded:
        words = (*words, "degraded", "rw" if options.is_writable else "ro")
    mounting.mount(devices[0], point, words)
    undo.callback(mounting.unmount, point)
    _check_mounted(setup, devices)
    if any(any(member.errors) for member in btrfs_devices.mounted_members(point)):
        notes = (*notes, f"devices have counted errors: btrsync array status {setup.name}")
    return Opened(
        outcome="opened",
        sentence=verdict.sentence,
        mount_point=point,
        options=words,
        notes=(*verdict.notes, *notes),
        is_degraded=is_degraded,
        needs_scrub=verdict.needs_scrub,
    )


def _check_mounted(setup: ArraySetup, devices: Sequence[Path]) -> None:
    """Raise StorageError if the kernel mounted another filesystem, or took up a device that is not ours.

    A copy of a member elsewhere in the machine has the same UUIDs, and the kernel takes either.
    """
    point = setup.config.mount_point
    fsid = btrfs_devices.mounted_fsid(point)
    if fsid != setup.config.uuid:
        raise StorageError(f"array {setup.name}: what was mounted is {fsid}, not {setup.config.uuid}")
    numbers = {dmcrypt.device_number(device) for device in devices}
    for member in btrfs_devices.mounted_members(point):
        if not member.is_missing and dmcrypt.device_number(Path(member.path)) not in numbers:
            raise StorageError(
                f"array {setup.name}: the kernel took {member.path} for its member with devid {member.devid}:"
                " it is a copy of one, and not among members",
                hint=f"btrfs device scan --forget {member.path}, then open it again",
            )
