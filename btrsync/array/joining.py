"""A disk that becomes a member of an open array: looked at, prepared, opened; or all as it was before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.array import recording
from btrsync.array.creating import wipe_commands
from btrsync.array.inspecting import inspect
from btrsync.array.recording import Places
from btrsync.errors import RefusedError, StorageError
from btrsync.plan.array_create import Known
from btrsync.plan.array_member import MemberPlan, MemberWish, plan_member
from btrsync.plan.disk_contents import Disk, describe
from btrsync.plan.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET
from btrsync.system import btrfs_devices, disks, dmcrypt, mounting
from btrsync.system.dmcrypt import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from btrsync.array.setup import ArraySetup
    from btrsync.plan.array_create import Problem
    from btrsync.system.btrfs_devices import MountedMember

END_TIMEOUT_S: Final = 600.0


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """A new member: its disk and mapping, the wish, and where changes are written down.

    others: numbers of the disks of every array, this one's too.
    """

    wanted: Wanted
    wish: MemberWish
    places: Places
    others: dict[str, str] = {}


class NewMember(msgspec.Struct, frozen=True, kw_only=True):
    """What was found on the disk, and what would be done to it."""

    disk: Disk
    plan: MemberPlan

    def contents(self) -> list[str]:
        """Return in words what the disk holds now."""
        return describe(self.disk)


class MemberRefusedError(RefusedError):
    """The disk may not become a member as it is; every reason with its remedy."""

    def __init__(self, name: str, found: NewMember, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"array {name}: nothing was changed. The disk holds now:"]
        lines += [f"  {line}" for line in found.contents()]
        for problem in problems:
            lines += [f"but {problem.words}", f"    {problem.remedy}"]
        super().__init__("\n".join(lines))


def writable_members(setup: ArraySetup) -> tuple[MountedMember, ...]:
    """Return the members of an array. Raises StorageError unless it is mounted in its place, and writable."""
    point = setup.config.mount_point
    numbers = [mapping.number for mapping in setup.open_mappings().values()]
    here = [mount for mount in mounting.btrfs_mounts(numbers) if mount.mount_point == point]
    if not here or btrfs_devices.mounted_fsid(point) != setup.config.uuid:
        raise StorageError(f"array {setup.name}: it is not open", hint=f"btrsync array open {setup.name}")
    if here[-1].is_readonly:
        raise StorageError(
            f"array {setup.name}: it is mounted read-only, and the kernel changes nothing on it then",
            hint=f"btrsync array open {setup.name} --degraded --read-write makes it writable, where every"
            " profile keeps another copy. With data in the profile single the kernel refuses that: save what"
            " can still be read, and create the array anew",
        )
    return btrfs_devices.mounted_members(point)


def with_member(setup: ArraySetup, disk: Path) -> ArraySetup:
    """Return the setup with one more disk, the last; as it is, if it has it."""
    if disk in setup.config.members:
        return setup
    config = msgspec.structs.replace(setup.config, members=(*setup.config.members, disk))
    return msgspec.structs.replace(setup, config=config)


def look_at(setup: ArraySetup, joining: Joining) -> NewMember:
    """Return what the disk holds and whether it may be written over; nothing is changed."""
    key = setup.config.key_file or setup.config.passphrase_file
    keeps = [joining.places.configuration, *([key] if key else [])]
    (disk,) = inspect(setup, [joining.wanted], keeps=keeps)
    known = Known(
        name=setup.name,
        uuid=setup.config.uuid,
        others=joining.others,
        cipher=setup.config.cipher if setup.encryption.type == "plain" else None,
    )
    return NewMember(disk=disk, plan=plan_member(disk, joining.wish, known))


def admit(
    setup: ArraySetup,
    joining: Joining,
    confirm: Callable[[NewMember], None],
    say: Callable[[str], None],
) -> NewMember:
    """Look at the disk, have it confirmed, and end what uses it. Raises MemberRefusedError."""
    found = look_at(setup, joining)
    if found.plan.problems:
        raise MemberRefusedError(setup.name, found, found.plan.problems)
    confirm(found)
    if found.plan.ends:
        for use in found.plan.ends:
            say(shlex.join(use.argv or ()))
            disks.run(use.argv or (), timeout_s=END_TIMEOUT_S)
        found = look_at(setup, joining)
        if found.plan.problems or found.plan.ends:
            raise MemberRefusedError(setup.name, found, found.plan.problems)
    return found


def open_new(
    setup: ArraySetup, joining: Joining, found: NewMember, undo: ExitStack, say: Callable[[str], None]
) -> Path:
    """Write the disk into the configuration, prepare it, open its mapping, and return that.

    First the configuration: a disk that it names and that is no member yet keeps no array from being
    opened, while a member that it does not name would.
    """
    wanted = joining.wanted
    if wanted.device not in setup.config.members:
        recording.add_member(joining.places, setup.name, wanted.device)
        undo.callback(recording.remove_member, joining.places, setup.name, wanted.device)
    close_mapping(wanted.name)
    for argv in wipe_commands(setup, found.disk):
        say(shlex.join(argv))
        disks.run(argv, timeout_s=END_TIMEOUT_S)
    if setup.encryption.type == "luks2":
        dmcrypt.format_luks2(wanted.device, setup.encryption, setup.needed_key())
    else:
        # A former member, seen through its mapping, would be taken for that member come back.
        at = setup.encryption.offset_sectors * dmcrypt.SECTOR_BYTES + SUPERBLOCK_OFFSET
        disks.write_zeros(wanted.device, at, SUPERBLOCK_BYTES)
    dmcrypt.open_mappings([wanted], setup.encryption, setup.needed_key())
    undo.callback(close_mapping, wanted.name)
    dmcrypt.make_nodes([wanted.name])
    device = dmcrypt.MAPPER / wanted.name
    disks.run(disks.wipe_argv(str(device)), timeout_s=END_TIMEOUT_S)
    return device


def member_on(disk: Path, members: tuple[MountedMember, ...]) -> MountedMember | None:
    """Return the member that lies on a disk, whatever its mapping is called; None if there is none."""
    try:
        number = dmcrypt.device_number(disk)
    except StorageError:
        return None
    above = {one.number for one in dmcrypt.mappings().values() if one.below == number}
    there = [one for one in members if not one.is_missing]
    return next((one for one in there if dmcrypt.device_number(Path(one.path)) in above), None)


def close_mapping(name: str) -> None:
    """Close a mapping if it is open; nobody uses it."""
    found = dmcrypt.mappings().get(name)
    if found is not None:
        btrfs_devices.forget([found.device])
        dmcrypt.close_mappings([found])
