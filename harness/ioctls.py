"""The kernel calls about files that Python's os module has not: clone, dedupe, flags, subvolumes.

Each takes descriptors, starts no process and raises OSError. (Arguments over 1,024 bytes are bytearrays:
fcntl.ioctl takes no longer bytes.) Sources: linux/fs.h, linux/falloc.h,
linux/btrfs.h; the layouts are those of 64-bit little-endian machines.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

EMPTY_SUBVOLUME_INODE = 2
"""Inode of the empty directory that a snapshot shows in place of a nested subvolume."""

SUBVOLUME_ROOT_INODE = 256
"""Inode of the root directory of every subvolume."""

IMMUTABLE = 0x10
APPEND_ONLY = 0x20
NO_COW = 0x800000

_BTRFS_SUPER_MAGIC = 0x9123683E
_FICLONERANGE = 0x4020940D
_FIDEDUPERANGE = 0xC0189436
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
_BTRFS_IOC_SNAP_DESTROY = 0x5000940F
_BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417
_BTRFS_SUBVOL_RDONLY = 2
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def is_btrfs(fd: int) -> bool:
    """Say whether the file or directory lies on btrfs."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer))
    return int(struct.unpack_from("l", buffer)[0]) == _BTRFS_SUPER_MAGIC


def clone_range(
    source_fd: int, target_fd: int, *, source_offset: int = 0, length: int = 0, target_offset: int = 0
) -> None:
    """Let bytes of one file share the extents of another (FICLONERANGE), all in bytes.

    length: 0 means to the end of the source. Offsets are multiples of the block size, and so is
    the length, unless it ends at the end of the source.
    """
    argument = struct.pack("qQQQ", source_fd, source_offset, length, target_offset)
    fcntl.ioctl(target_fd, _FICLONERANGE, argument)


def dedupe_range(
    source_fd: int, target_fd: int, *, source_offset: int = 0, length: int, target_offset: int = 0
) -> int:
    """Let equal bytes of two files share extents (FIDEDUPERANGE); return the bytes that now do.

    0 if the bytes differ. At most 16 MiB are done at once.
    """
    heading = struct.pack("QQHHI", source_offset, length, 1, 0, 0)
    argument = bytearray(heading + struct.pack("qQQiI", target_fd, target_offset, 0, 0, 0))
    fcntl.ioctl(source_fd, _FIDEDUPERANGE, argument)
    deduped, status = struct.unpack_from("Qi", argument, len(heading) + 16)
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return int(deduped) if status == 0 else 0


def inode_flags(fd: int) -> int:
    """Return the inode flags, as chattr sets them."""
    answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("q", 0))
    return int(struct.unpack_from("i", answer)[0])


def set_inode_flags(fd: int, *, add: int = 0, remove: int = 0) -> None:
    """Set and clear inode flags: IMMUTABLE, APPEND_ONLY, NO_COW (only on what is empty)."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("q", inode_flags(fd) & ~remove | add))


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a hole in a file without changing its size; bytes."""
    _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def preallocate(fd: int, offset: int, length: int, *, keep_size: bool) -> None:
    """Reserve room in a file, past its end too; keep_size: without making the file longer; bytes."""
    _fallocate(fd, _FALLOC_FL_KEEP_SIZE if keep_size else 0, offset, length)


def create_subvolume(directory_fd: int, name: bytes) -> None:
    """Make an empty subvolume in a directory."""
    fcntl.ioctl(directory_fd, _BTRFS_IOC_SUBVOL_CREATE, bytearray(struct.pack("q4088s", 0, name)))


def delete_subvolume(directory_fd: int, name: bytes) -> None:
    """Delete the subvolume `name` of a directory, with all that is in it."""
    fcntl.ioctl(directory_fd, _BTRFS_IOC_SNAP_DESTROY, bytearray(struct.pack("q4088s", 0, name)))


def create_snapshot(source_fd: int, directory_fd: int, name: bytes, *, readonly: bool = True) -> None:
    """Make a snapshot of the subvolume whose root is `source_fd` in a directory of its filesystem."""
    flags = _BTRFS_SUBVOL_RDONLY if readonly else 0
    argument = bytearray(struct.pack("qQQ32x4040s", source_fd, 0, flags, name))
    fcntl.ioctl(directory_fd, _BTRFS_IOC_SNAP_CREATE_V2, argument)


def swap_on(path: bytes) -> None:
    """Let the kernel use a prepared file as swap."""
    _check(_libc.swapon(path, 0))


def swap_off(path: bytes) -> None:
    """Undo `swap_on`."""
    _check(_libc.swapoff(path))
