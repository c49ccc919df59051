"""Block devices as members of btrfs: their superblocks, the kernel's list of them, how they do when mounted.

Host commands used: `btrfs`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from btrsync.errors import StorageError
from btrsync.plan.superblock import (
    SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET,
    Absence,
    Superblock,
    parse_superblock,
)
from btrsync.system import btrfs_ioctl, process

if TYPE_CHECKING:
    from collections.abc import Sequence

SYSFS: Final = Path("/sys/fs/btrfs")
SCRUB_RECORDS: Final = Path("/var/lib/btrfs")
SCAN_TIMEOUT_S: Final = 60.0


class MountedMember(msgspec.Struct, frozen=True):
    """One device of a mounted filesystem. errors: of write, read, flush, corruption, generation."""

    devid: int
    path: str
    total_bytes: int
    used_bytes: int
    errors: tuple[int, ...]
    is_missing: bool


class Allocation(msgspec.Struct, frozen=True):
    """Chunks of one kind, "data", "metadata" or "system", in one profile."""

    kind: str
    profile: str
    total_bytes: int
    used_bytes: int


def read_superblock(device: Path) -> Superblock | Absence:
    """Return the superblock of a device, or why there is none. Raises StorageError if it cannot be read."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # What the disk holds, and not what somebody read of it before.
            os.posix_fadvise(fd, SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES, os.POSIX_FADV_DONTNEED)
            return parse_superblock(os.pread(fd, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET))
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot read {device}: {os.strerror(error.errno or 0).lower()}",
            hint="the kernel log tells whether the disk is failing: dmesg",
        ) from error


def scan(devices: Sequence[Path]) -> None:
    """Tell the kernel of these members and of no others; without, it finds only the device it mounts.

    What it remembers of mappings that were closed is dropped first: it knows a member by its path, and
    forgets it again when another one comes under the number that the path had before, so that the mount
    fails with ENOENT (6.12, measured). Raises CommandError.
    """
    forget(devices)
    process.run(["btrfs", "device", "scan", *map(os.fspath, devices)], timeout_s=SCAN_TIMEOUT_S)


def forget(devices: Sequence[Path]) -> None:
    """Let the kernel forget these members, if it knew them and they are not mounted; never fails."""
    for device in devices:
        # Status 1: it did not know it, or it is mounted.
        argv = ["btrfs", "device", "scan", "--forget", os.fspath(device)]
        process.run(argv, ok=(0, 1), timeout_s=SCAN_TIMEOUT_S)


def mounted_fsid(path: Path) -> UUID | None:
    """Return the UUID of the btrfs that holds `path`, None if it is another filesystem."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return UUID(bytes=btrfs_ioctl.filesystem_info(fd).fsid)
        finally:
            os.close(fd)
    except OSError:
        return None


def mounted_members(path: Path) -> tuple[MountedMember, ...]:
    """Return the devices of the btrfs mounted at `path`, missing ones too. Raises StorageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fsid = UUID(bytes=btrfs_ioctl.filesystem_info(fd).fsid)
            return tuple(
                MountedMember(
                    device.devid,
                    device.path,
                    device.total_bytes,
                    device.used_bytes,
                    btrfs_ioctl.error_counters(fd, device.devid),
                    _is_missing(fsid, device),
                )
                for device in btrfs_ioctl.devices(fd)
            )
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot read the devices of {path}: {os.strerror(error.errno or 0).lower()}"
        ) from error


def _is_missing(fsid: UUID, device: btrfs_ioctl.Device) -> bool:
    """Return whether a mounted filesystem lacks a device.

    The path does not tell: of one that was seen before it is its old name (6.1) or "<missing disk>" (6.12,
    measured), else empty. Nor does the kernel's own mark alone: it goes when udev has the kernel look at a
    mapping of the disk that came back, though that is not taken up, and closed again (6.12, measured).
    """
    if not os.path.exists(device.path):
        return True
    try:
        return (SYSFS / str(fsid) / "devinfo" / str(device.devid) / "missing").read_text().strip() == "1"
    except OSError:  # before Linux 5.6
        return not device.path.startswith("/")


def allocations(path: Path) -> tuple[Allocation, ...]:
    """Return what is allocated of the btrfs at `path`, for each kind and profile. Raises StorageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = btrfs_ioctl.chunks(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot read the chunks of {path}: {os.strerror(error.errno or 0).lower()}"
        ) from error
    return tuple(
        Allocation(kind, chunk.profile, chunk.total_bytes, chunk.used_bytes)
        for chunk in chunks
        for kind, is_it in (
            ("data", chunk.holds_data),
            ("metadata", chunk.holds_metadata),
            ("system", chunk.holds_system),
        )
        if is_it
    )


def replacement(path: Path) -> btrfs_ioctl.ReplaceStatus:
    """Return how the last replacement of a device stands. Raises StorageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return btrfs_ioctl.replace_status(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot read of replacements on {path}: {os.strerror(error.errno or 0)}"
        ) from error


def scrubbed_bytes(path: Path) -> dict[int, int]:
    """Return what a running scrub has read of each device that it is still at, by devid; {} if none is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = {one.devid: btrfs_ioctl.scrubbed_bytes(fd, one.devid) for one in btrfs_ioctl.devices(fd)}
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"cannot read of a scrub on {path}: {os.strerror(error.errno or 0)}") from error
    return {devid: count for devid, count in found.items() if count is not None}


def scrub_record(fsid: UUID, directory: Path = SCRUB_RECORDS) -> str | None:
    """Return what btrfs-scrub(8) has written down of the last scrub, None if there was none."""
    try:
        return (directory / f"scrub.status.{fsid}").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
