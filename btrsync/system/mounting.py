"""mount(8) and umount(8), for a btrfs whose members the kernel knows.

Host commands used: `mount`, `umount`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from btrsync.errors import CommandError, StorageError
from btrsync.system import process
from btrsync.system.mounts import MOUNTINFO, Mount, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MOUNT_TIMEOUT_S: Final = 3600.0
"""Mounting replays a log and reads every block group: minutes on an array of large disks."""


def mount_argv(device: Path, mount_point: Path, options: Sequence[str]) -> list[str]:
    """Return the command that mounts a btrfs; fstab has no say in it."""
    words = ["-o", ",".join(options)] if options else []
    return ["mount", "-t", "btrfs", *words, "--", os.fspath(device), os.fspath(mount_point)]


def mount(device: Path, mount_point: Path, options: Sequence[str]) -> None:
    """Mount it. Raises StorageError with what mount said."""
    try:
        process.run(mount_argv(device, mount_point, options), timeout_s=MOUNT_TIMEOUT_S)
    except CommandError as error:
        raise StorageError(str(error), hint="the kernel log tells why: dmesg | grep BTRFS") from error


def remount(mount_point: Path, options: Sequence[str]) -> None:
    """Change these options of what is mounted. Raises StorageError with what mount said.

    Without a source for the others, mount(8) would take them from fstab, and fail over a line for another
    filesystem there.
    """
    try:
        words = ["--options-source", "mtab", "-o", ",".join(["remount", *options])]
        argv = ["mount", *words, "--", os.fspath(mount_point)]
        process.run(argv, timeout_s=MOUNT_TIMEOUT_S)
    except CommandError as error:
        raise StorageError(str(error), hint="the kernel log tells why: dmesg | grep BTRFS") from error


def unmount(mount_point: Path) -> None:
    """Unmount the topmost mount at `mount_point`, after all is written. Raises StorageError if it is busy."""
    try:
        process.run(["umount", "--", os.fspath(mount_point)], timeout_s=MOUNT_TIMEOUT_S)
    except CommandError as error:
        raise StorageError(
            str(error), hint=f"fuser -vm {mount_point} shows who uses it; exportfs -v, whether NFS does"
        ) from error


def btrfs_mounts(numbers: Iterable[str], mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """Return the mounts of btrfs whose source is one of these devices, by their numbers ("254:0").

    mountinfo: of any process; a source is looked up by its name here. A btrfs of several devices shows
    one of its own as source, it is not said which. Raises OSError.
    """
    wanted = set(numbers)
    return [
        found
        for found in parse_mountinfo(mountinfo.read_bytes())
        if found.fstype == "btrfs" and _number(found.source) in wanted
    ]


def mounts_at(mount_point: Path) -> list[Mount]:
    """Return what is mounted at a path, the topmost last. Raises OSError."""
    return [found for found in parse_mountinfo(MOUNTINFO.read_bytes()) if found.mount_point == mount_point]


def _number(source: str) -> str | None:
    try:
        found = os.stat(source)
    except OSError:
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
