"""The ioctls of btrfs that pybtrfs has not, and syncfs: descriptors in, values out, OSError as it comes.

Numbers and layouts are those of <linux/btrfs.h>; all structures are packed as they stand there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

import msgspec

IOC_SYNC: Final = 0x9408
IOC_SUBVOL_CREATE: Final = 0x5000940E
IOC_SPACE_INFO: Final = 0xC0109414
IOC_DEV_INFO: Final = 0xD000941E
IOC_FS_INFO: Final = 0x8400941F
IOC_SCRUB_PROGRESS: Final = 0xC400941D
IOC_GET_DEV_STATS: Final = 0xC4089434
IOC_DEV_REPLACE: Final = 0xCA289435

VOL_ARGS_BYTES: Final = 4096
FS_INFO_BYTES: Final = 1024
DEV_INFO_BYTES: Final = 4096
DEV_PATH_AT: Final = DEV_INFO_BYTES - 1024
SCRUB_BYTES: Final = 1024
SCRUB_PROGRESS_AT: Final = 32
REPLACE_BYTES: Final = 2600
REPLACE_CMD_STATUS: Final = 1
DEV_STATS_BYTES: Final = 1032
DEV_STATS_COUNTERS: Final = 5
SPACE_SLOTS: Final = 64
"""Kinds of chunk times profiles: a handful, and a few more while a balance converts."""

BLOCK_GROUP_DATA: Final = 1
BLOCK_GROUP_SYSTEM: Final = 2
BLOCK_GROUP_METADATA: Final = 4
PROFILES: Final = {
    1 << 3: "raid0", 1 << 4: "raid1", 1 << 5: "dup", 1 << 6: "raid10",
    1 << 7: "raid5", 1 << 8: "raid6", 1 << 9: "raid1c3", 1 << 10: "raid1c4",
}  # fmt: skip
SPACE_INFO_GLOBAL_RSV: Final = 1 << 49
"""Not chunks, but a reserve inside those of metadata, listed beside them."""


class FilesystemInfo(msgspec.Struct, frozen=True):
    """struct btrfs_ioctl_fs_info_args, as far as it is used here."""

    highest_devid: int
    device_count: int
    fsid: bytes


class Device(msgspec.Struct, frozen=True):
    """struct btrfs_ioctl_dev_info_args; `used_bytes` is what chunks take on it, `path` empty if missing."""

    devid: int
    used_bytes: int
    total_bytes: int
    path: str = ""

    @property
    def unallocated_bytes(self) -> int:
        return self.total_bytes - self.used_bytes


class Chunks(msgspec.Struct, frozen=True):
    """struct btrfs_ioctl_space_info: all chunks of one kind and profile together."""

    flags: int
    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def profile(self) -> str:
        """How it is spread over devices, in the words of mkfs.btrfs: "single" without a flag."""
        return next((name for flag, name in PROFILES.items() if self.flags & flag), "single")

    @property
    def holds_data(self) -> bool:
        return bool(self.flags & BLOCK_GROUP_DATA)

    @property
    def holds_system(self) -> bool:
        return bool(self.flags & BLOCK_GROUP_SYSTEM)

    @property
    def holds_metadata(self) -> bool:
        return bool(self.flags & BLOCK_GROUP_METADATA) and not self.flags & SPACE_INFO_GLOBAL_RSV


def syncfs(fd: int) -> None:
    """Write out the filesystem of `fd`; fails also for what could not be written since it was opened."""
    import ctypes  # late: it is slow to import, and the server needs it at a commit only

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def commit(fd: int) -> None:
    """Commit the running transaction and wait for it (BTRFS_IOC_SYNC)."""
    fcntl.ioctl(fd, IOC_SYNC)


def create_subvolume(directory_fd: int, name: str) -> None:
    """Make a subvolume in a directory (BTRFS_IOC_SUBVOL_CREATE, struct btrfs_ioctl_vol_args)."""
    block = bytearray(VOL_ARGS_BYTES)
    struct.pack_into(f"=q{VOL_ARGS_BYTES - 8}s", block, 0, 0, os.fsencode(name))
    fcntl.ioctl(directory_fd, IOC_SUBVOL_CREATE, block)


def filesystem_info(fd: int) -> FilesystemInfo:
    """Return BTRFS_IOC_FS_INFO; OSError with ENOTTY where `fd` is not on btrfs."""
    block = bytearray(FS_INFO_BYTES)
    fcntl.ioctl(fd, IOC_FS_INFO, block)
    highest, count, fsid = struct.unpack_from("=QQ16s", block)
    return FilesystemInfo(highest, count, fsid)


def devices(fd: int) -> list[Device]:
    """Return BTRFS_IOC_DEV_INFO of every device of the filesystem, missing ones too."""
    info = filesystem_info(fd)
    found: list[Device] = []
    for devid in range(info.highest_devid + 1):  # 0 is the target of a replace in progress
        block = bytearray(DEV_INFO_BYTES)
        struct.pack_into("=Q", block, 0, devid)
        try:
            fcntl.ioctl(fd, IOC_DEV_INFO, block)
        except OSError as error:
            if error.errno != errno.ENODEV:  # a device was removed: its number stays unused
                raise
            continue
        used, total = struct.unpack_from("=QQ", block, 24)
        path = bytes(block[DEV_PATH_AT:]).split(b"\0")[0].decode(errors="surrogateescape")
        found.append(Device(devid, used, total, path))
    return found


def error_counters(fd: int, devid: int) -> tuple[int, ...]:
    """Return BTRFS_IOC_GET_DEV_STATS: errors of write, read, flush, corruption and generation."""
    block = bytearray(DEV_STATS_BYTES)
    struct.pack_into("=QQQ", block, 0, devid, DEV_STATS_COUNTERS, 0)
    fcntl.ioctl(fd, IOC_GET_DEV_STATS, block)
    return struct.unpack_from(f"={DEV_STATS_COUNTERS}Q", block, 24)


def chunks(fd: int) -> list[Chunks]:
    """Return BTRFS_IOC_SPACE_INFO: what is allocated and used, for each kind and profile."""
    block = bytearray(16 + 24 * SPACE_SLOTS)
    struct.pack_into("=QQ", block, 0, SPACE_SLOTS, 0)
    fcntl.ioctl(fd, IOC_SPACE_INFO, block)
    _, found = struct.unpack_from("=QQ", block)
    return [Chunks(*struct.unpack_from("=QQQ", block, 16 + 24 * i)) for i in range(min(found, SPACE_SLOTS))]


class ReplaceStatus(msgspec.Struct, frozen=True):
    """struct btrfs_ioctl_dev_replace_status_params; `started` in seconds since 1970."""

    state: int
    per_mille: int
    started: int
    stopped: int
    write_errors: int
    uncorrectable_read_errors: int

    @property
    def is_running(self) -> bool:
        return self.state == 1

    @property
    def is_finished(self) -> bool:
        return self.state == 2

    @property
    def is_suspended(self) -> bool:
        return self.state == 4


def replace_status(fd: int) -> ReplaceStatus:
    """Return how the last replacement of a device stands (BTRFS_IOC_DEV_REPLACE)."""
    block = bytearray(REPLACE_BYTES)
    struct.pack_into("=Q", block, 0, REPLACE_CMD_STATUS)
    fcntl.ioctl(fd, IOC_DEV_REPLACE, block)
    return ReplaceStatus(*struct.unpack_from("=6Q", block, 16))


def scrubbed_bytes(fd: int, devid: int) -> int | None:
    """Return what a running scrub has read of one device (BTRFS_IOC_SCRUB_PROGRESS), None if none is."""
    block = bytearray(SCRUB_BYTES)
    struct.pack_into("=Q", block, 0, devid)
    try:
        fcntl.ioctl(fd, IOC_SCRUB_PROGRESS, block)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ENODEV):
            return None
        raise
    _, _, data, tree = struct.unpack_from("=4Q", block, SCRUB_PROGRESS_AT)
    return int(data) + int(tree)
