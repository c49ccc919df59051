"""`btrsync array replace`: a new disk in the place of one that fails, is missing, or was away.

The kernel does it, and goes on by itself while the array is mounted, also after a power cut. So the new
disk is in the configuration before it begins, and the old one until it has ended.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.array import recording
from btrsync.array.adding import wanted_mapping
from btrsync.array.joining import (
    Joining,
    admit,
    close_mapping,
    member_on,
    open_new,
    with_member,
    writable_members,
)
from btrsync.errors import StorageError
from btrsync.system import btrfs_devices, disks, dmcrypt

if TYPE_CHECKING:
    from collections.abc import Callable

    from btrsync.array.joining import NewMember
    from btrsync.array.recording import Places
    from btrsync.array.setup import ArraySetup
    from btrsync.plan.array_member import MemberWish
    from btrsync.system.btrfs_devices import MountedMember
    from btrsync.system.btrfs_ioctl import ReplaceStatus
    from btrsync.system.dmcrypt import Wanted

BEGIN_TIMEOUT_S: Final = 60.0
FOLLOW_INTERVAL_S: Final = 0.5
RESIZE_TIMEOUT_S: Final = 600.0
LEAST_GROWTH_BYTES: Final = 1 << 20


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """old: the member by its disk in the configuration, or its devid. avoids_old: read from others."""

    old: str
    new: Path
    avoids_old: bool = False


class Replaced(msgspec.Struct, frozen=True, kw_only=True):
    """How a replacement ended; errors: what could not be read from any copy, and is lost."""

    devid: int
    mapping: str
    write_errors: int = 0
    uncorrectable_read_errors: int = 0
    notes: tuple[str, ...] = ()


def replace_argv(devid: int, device: Path, mount_point: Path, *, avoids_old: bool) -> list[str]:
    """Return the command that begins a replacement and leaves it to the kernel."""
    options = ["-r"] if avoids_old else []
    return ["btrfs", "replace", "start", *options, str(devid), str(device), str(mount_point)]


def replace_member(
    setup: ArraySetup,
    change: Change,
    wish: MemberWish,
    places: Places,
    others: dict[str, str],
    *,
    confirm: Callable[[NewMember], None],
    say: Callable[[str], None] = lambda _: None,
) -> Replaced:
    """Put a disk in the place of another in an open array, and follow it to its end.

    A run that was cut is gone on with by the next, whether or not the replacement has ended meanwhile.
    others: numbers of the disks of every array, but of `new`. Raises MemberRefusedError, StorageError,
    CommandError, ConfigError, LockedError.
    """
    with setup.lock():
        members = writable_members(with_member(setup, change.new))
        status = btrfs_devices.replacement(setup.config.mount_point)
        new = member_on(change.new, members)
        if status.is_running or status.is_suspended:
            if new is None or new.devid != 0:
                raise StorageError(
                    f"array {setup.name}: another replacement is at work",
                    hint=f"btrfs replace status {setup.config.mount_point}",
                )
            say("the replacement has begun already, and goes on")
        elif new is None or not _is_unfinished(setup, change, members):
            _begin(setup, change, wish, places, others, members, confirm, say)
        status = _follow(setup, say)
        if not status.is_finished:
            _take_back(setup, change, places)
            raise StorageError(
                f"array {setup.name}: the replacement was canceled, or broke off; {change.new} is no member",
                hint="dmesg | grep BTRFS tells why. With -28 the disks have too little unallocated space:"
                f" btrfs balance start -dusage=20 {setup.config.mount_point}",
            )
        return _end(setup, change, places, status, say)


def _begin(
    setup: ArraySetup,
    change: Change,
    wish: MemberWish,
    places: Places,
    others: dict[str, str],
    members: tuple[MountedMember, ...],
    confirm: Callable[[NewMember], None],
    say: Callable[[str], None],
) -> None:
    """Prepare the new disk, and let the kernel begin."""
    old = find_old(setup, change.old, members)
    if (there := member_on(change.new, members)) is not None:
        raise StorageError(
            f"array {setup.name}: {change.new} is a member already, with devid {there.devid}",
            hint="name a disk that is none; one that was away is left out by: btrsync array open --degraded",
        )
    wanted = wanted_mapping(setup, change.new)
    wish = msgspec.structs.replace(
        wish,
        needed_bytes=old.total_bytes,
        offset_bytes=setup.encryption.offset_sectors * dmcrypt.SECTOR_BYTES,
    )
    joining = Joining(wanted=wanted, wish=wish, places=places, others=others)
    found = admit(setup, joining, confirm, say)
    point = setup.config.mount_point
    before = btrfs_devices.replacement(point).started
    with ExitStack() as undo:
        device = open_new(setup, joining, found, undo, say)
        argv = replace_argv(old.devid, device, point, avoids_old=change.avoids_old)
        say(" ".join(argv))
        try:
            disks.run(argv, timeout_s=BEGIN_TIMEOUT_S)
            _wait_for_begin(setup, before)
        finally:
            status = btrfs_devices.replacement(point)
            if status.is_running or (status.is_finished and status.started != before):
                undo.pop_all()


def _take_back(setup: ArraySetup, change: Change, places: Places) -> None:
    """Close the new disk, and take it out of the configuration again unless it is the old one."""
    members = btrfs_devices.mounted_members(setup.config.mount_point)
    if member_on(change.new, members) is None:
        close_mapping(wanted_mapping(setup, change.new).name)
        if str(change.new) != change.old:
            recording.remove_member(places, setup.name, change.new)


def _wait_for_begin(setup: ArraySetup, before: int) -> None:
    """Wait until the kernel says that it has begun: the command leaves before, and tells of no failure."""
    deadline = time.monotonic() + BEGIN_TIMEOUT_S
    while btrfs_devices.replacement(setup.config.mount_point).started == before:
        if time.monotonic() > deadline:
            raise StorageError(f"array {setup.name}: the kernel did not begin the replacement", hint="dmesg")
        time.sleep(FOLLOW_INTERVAL_S / 10)


def find_old(setup: ArraySetup, old: str, members: tuple[MountedMember, ...]) -> MountedMember:
    """Return the member that is to be replaced. Raises StorageError if it cannot be told."""
    if old.isdecimal():
        found = next((one for one in members if one.devid == int(old)), None)
        if found is None:
            devids = ", ".join(str(one.devid) for one in members)
            raise StorageError(f"array {setup.name}: it has no devid {old}; it has {devids}")
        return found
    if old not in map(str, setup.config.members):
        raise StorageError(
            f"array {setup.name}: {old} is none of its members",
            hint=f"name it as members does: {', '.join(map(str, setup.config.members))}; or by its devid",
        )
    missing = [one for one in members if one.is_missing]
    found = member_on(Path(old), members) or (missing[0] if len(missing) == 1 else None)
    if found is None:
        raise StorageError(
            f"array {setup.name}: {old} is no member of what is mounted, and {len(missing)} are missing",
            hint="name the one to replace by its devid, as btrfs filesystem show"
            f" {setup.config.mount_point} has it",
        )
    return found


def _is_unfinished(setup: ArraySetup, change: Change, members: tuple[MountedMember, ...]) -> bool:
    """Return whether the kernel has replaced the disk, and what comes after was cut short."""
    if str(change.new) == change.old or change.new not in setup.config.members:
        return False
    if change.old in map(str, setup.config.members):
        return member_on(Path(change.old), members) is None
    return wanted_mapping(setup, change.new).name not in dmcrypt.mappings()


def _follow(setup: ArraySetup, say: Callable[[str], None]) -> ReplaceStatus:
    """Tell how far it is until it has ended, and return how it did."""
    told = -1
    while True:
        status = btrfs_devices.replacement(setup.config.mount_point)
        if not status.is_running:
            return status
        if status.per_mille // 10 != told:
            told = status.per_mille // 10
            say(f"{told} % replaced")
        time.sleep(FOLLOW_INTERVAL_S)


def _end(
    setup: ArraySetup, change: Change, places: Places, status: ReplaceStatus, say: Callable[[str], None]
) -> Replaced:
    """Use all of the new disk, close the old one's mapping, and let the new one have its name and place."""
    point = setup.config.mount_point
    both = with_member(setup, change.new)
    members = btrfs_devices.mounted_members(point)
    new = member_on(change.new, members)
    if new is None:
        raise StorageError(
            f"array {setup.name}: {change.new} is no member after the replacement", hint="dmesg"
        )
    if disks.size_bytes(Path(new.path)) - new.total_bytes >= LEAST_GROWTH_BYTES:
        argv = ["btrfs", "filesystem", "resize", f"{new.devid}:max", str(point)]
        say(" ".join(argv))
        disks.run(argv, timeout_s=RESIZE_TIMEOUT_S)
    old = _place(both, change, members)
    gone = [str(one.device) for one in both.wanted if one != old and member_on(one.device, members) is None]
    notes = [f"no member any more, to be taken out of members: {', '.join(gone)}"] if gone else []
    name = wanted_mapping(both, change.new).name
    if old is not None:
        close_mapping(old.name)
        recording.replace_member(places, setup.name, old.device, change.new)
        name = old.name
    now = next(one.name for one in dmcrypt.mappings().values() if one.device.name == Path(new.path).name)
    if now != name:
        say(f"renaming the mapping {now} to {name}")
        dmcrypt.rename_mapping(now, name)
        disks.run(["btrfs", "device", "scan", str(dmcrypt.MAPPER / name)], timeout_s=RESIZE_TIMEOUT_S)
    return Replaced(
        devid=new.devid,
        mapping=name,
        write_errors=status.write_errors,
        uncorrectable_read_errors=status.uncorrectable_read_errors,
        notes=tuple(notes),
    )


def _place(setup: ArraySetup, change: Change, members: tuple[MountedMember, ...]) -> Wanted | None:
    """Return the disk of the configuration that is no member any more, and the mapping that it had."""
    gone = [
        one for one in setup.wanted if one.device != change.new and member_on(one.device, members) is None
    ]
    named = [one for one in gone if str(one.device) == change.old]
    return named[0] if named else gone[0] if change.old.isdecimal() and len(gone) == 1 else None
