"""`btrsync array add`: one more disk for an array that is open."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.array.joining import Joining, admit, member_on, open_new, with_member, writable_members
from btrsync.errors import StorageError
from btrsync.system import disks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from btrsync.array.joining import NewMember
    from btrsync.array.recording import Places
    from btrsync.array.setup import ArraySetup
    from btrsync.plan.array_member import MemberWish
    from btrsync.system.dmcrypt import Wanted

ADD_TIMEOUT_S: Final = 3600.0


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """How `add` ended: whether the disk was made a member now, or was one already."""

    is_new: bool
    mapping: str


def wanted_mapping(setup: ArraySetup, disk: Path) -> Wanted:
    """Return the mapping that a disk has, or would have as the last member."""
    return next(one for one in with_member(setup, disk).wanted if one.device == disk)


def add_argv(device: Path, mount_point: Path) -> list[str]:
    """Return the command that makes a device a member of a mounted btrfs."""
    return ["btrfs", "device", "add", "--", str(device), str(mount_point)]


def add_member(
    setup: ArraySetup,
    disk: Path,
    wish: MemberWish,
    places: Places,
    others: dict[str, str],
    *,
    confirm: Callable[[NewMember], None],
    say: Callable[[str], None] = lambda _: None,
) -> Added:
    """Make a disk a member of an open array. A run that was cut is gone on with by the next.

    others: numbers of the disks of every array. Raises MemberRefusedError with every reason, StorageError,
    CommandError, ConfigError, LockedError; the disk is then no member, and not in the configuration.
    """
    with setup.lock():
        wanted = wanted_mapping(setup, disk)
        members = writable_members(with_member(setup, disk))
        if member_on(disk, members) is not None:
            return Added(is_new=False, mapping=wanted.name)
        if any(one.is_missing for one in members):
            raise StorageError(
                f"array {setup.name}: it is degraded, and is made whole first",
                hint=f"btrsync array replace {setup.name} OLD {disk}",
            )
        joining = Joining(wanted=wanted, wish=wish, places=places, others=others)
        found = admit(setup, joining, confirm, say)
        with ExitStack() as undo:
            device = open_new(setup, joining, found, undo, say)
            argv = add_argv(device, setup.config.mount_point)
            say(" ".join(argv))
            try:
                disks.run(argv, timeout_s=ADD_TIMEOUT_S)
            finally:
                if member_on(
                    disk, writable_members(with_member(setup, disk))
                ):  # also where the command was killed too late
                    undo.pop_all()
        return Added(is_new=True, mapping=wanted.name)
