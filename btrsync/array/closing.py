"""`btrsync array close`: unmount, let the kernel forget the members, close the mappings; never by force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from btrsync.errors import CommandError, StorageError
from btrsync.system import btrfs_devices, dmcrypt, mounting, users

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from btrsync.array.setup import ArraySetup
    from btrsync.system.dmcrypt import Mapping
    from btrsync.system.users import User

MAX_USERS_NAMED = 8


class Closed(msgspec.Struct, frozen=True):
    """How `close` ended; `mappings`: the names of those that it closed."""

    outcome: Literal["closed", "already_closed"]
    mappings: tuple[str, ...] = ()


class ArrayBusyError(StorageError):
    """The array is in use; `users` says by whom."""

    def __init__(self, name: str, what: str, found: Sequence[User], *, hint: str) -> None:
        self.users = tuple(found)
        told = ", ".join(str(user) for user in found[:MAX_USERS_NAMED])
        more = f" and {len(found) - MAX_USERS_NAMED} more" if len(found) > MAX_USERS_NAMED else ""
        super().__init__(f"array {name}: {what} {told}{more}", hint=hint)


def close_array(setup: ArraySetup, *, say: Callable[[str], None] = lambda _: None) -> Closed:
    """Close an array, whole or half open. Nothing is changed while anyone uses it.

    Raises ArrayBusyError that names the users, StorageError, CommandError, LockedError.
    """
    with setup.lock():
        found = list(setup.open_mappings().values())
        if not found:
            return Closed("already_closed")
        numbers = [mapping.number for mapping in found]
        _refuse_other_mounts(setup, numbers)
        _refuse_users(setup, numbers)
        while mounting.btrfs_mounts(numbers):  # one may be mounted over another
            say(f"unmounting {setup.config.mount_point}")
            mounting.unmount(setup.config.mount_point)
        _refuse_namespaces(setup, numbers)
        say(f"closing {len(found)} mappings")
        btrfs_devices.forget([mapping.device for mapping in found])
        _close(setup, list(reversed(found)))
        return Closed("closed", tuple(mapping.name for mapping in found))


def plan_close(setup: ArraySetup) -> list[str]:
    """Return the commands that `close_array` would run now; looks only."""
    found = list(setup.open_mappings().values())
    lines = [
        f"umount {one.mount_point}" for one in mounting.btrfs_mounts(mapping.number for mapping in found)
    ]
    lines += [f"btrfs device scan --forget {mapping.device}" for mapping in found]
    return lines + [f"cryptsetup close {mapping.name}" for mapping in reversed(found)]


def _refuse_other_mounts(setup: ArraySetup, numbers: Sequence[str]) -> None:
    point = setup.config.mount_point
    others = [str(one.mount_point) for one in mounting.btrfs_mounts(numbers) if one.mount_point != point]
    if others:
        raise StorageError(
            f"array {setup.name}: it is also mounted at {', '.join(others)}",
            hint=f"umount {' '.join(others)}",
        )
    there = mounting.mounts_at(point)
    if there and there[-1] not in mounting.btrfs_mounts(numbers) and mounting.btrfs_mounts(numbers):
        raise StorageError(
            f"array {setup.name}: {there[-1].source} is mounted over it at {point}", hint=f"umount {point}"
        )


def _refuse_users(setup: ArraySetup, numbers: Sequence[str]) -> None:
    found = users.users_of(numbers)
    if found:
        hint = "end them, or wait: a backup in progress is btrsync or btrfs; nothing was changed"
        raise ArrayBusyError(setup.name, "in use by", found, hint=hint)


def _refuse_namespaces(setup: ArraySetup, numbers: Sequence[str]) -> None:
    """A mount namespace that was made while it was mounted, and is none of ours to reach, holds it."""
    found = users.namespaces_of(numbers)
    if found:
        raise ArrayBusyError(
            setup.name,
            "unmounted here, but still mounted in the mount namespace of",
            found,
            hint="end that process, or unmount it there: nsenter -m -t PID umount"
            f" {setup.config.mount_point}; then close again",
        )


def _close(setup: ArraySetup, found: Sequence[Mapping]) -> None:
    try:
        dmcrypt.close_mappings(found)
    except CommandError as error:
        above = [name for mapping in found for name in dmcrypt.holders(mapping.device)]
        hint = f"in use by {', '.join(above)}" if above else "something still has a device open: lsof"
        raise CommandError(error.exit, hint=f"{hint}; btrsync array close {setup.name} goes on") from error
