"""The top level of a btrfs, mounted nowhere: a descriptor that nobody else sees, and that a kill undoes."""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from btrsync.errors import StorageError
from btrsync.system import btrfs_ioctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# One number on every architecture since Linux 5.2. Source: <asm-generic/unistd.h>, <linux/mount.h>.
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_RDONLY: Final = 1
TOP_LEVEL: Final = "5"
"""BTRFS_FS_TREE_OBJECTID: the subvolume that holds all others."""
SUBVOLUME_INODE: Final = 256


@contextmanager
def top_level(device: Path, *, readonly: bool) -> Iterator[int]:
    """The descriptor of the top-level directory of the btrfs on `device`, whose members the kernel knows.

    readonly: nothing is written, no log replayed either. Raises StorageError with the kernel's word.
    """
    # The word for the log is passed over by a writable mount, so it is not given there.
    options = [("subvolid", TOP_LEVEL), *([("rescue", "nologreplay")] if readonly else [])]
    context = _call(SYS_FSOPEN, b"btrfs", CLOEXEC, what="make a btrfs mount")
    try:
        try:
            for key, value in [("source", os.fspath(device)), *options]:
                words = key.encode(), value.encode()
                _call(SYS_FSCONFIG, context, FSCONFIG_SET_STRING, *words, 0, what=f"set {key}={value}")
            if readonly:
                _call(SYS_FSCONFIG, context, FSCONFIG_SET_FLAG, b"ro", None, 0, what="set ro")
            _call(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0, what=f"mount {device}")
            flags = MOUNT_ATTR_RDONLY if readonly else 0
            root = _call(SYS_FSMOUNT, context, CLOEXEC, flags, what=f"mount {device}")
        except StorageError as error:
            raise StorageError(error.message + _said(context), hint="dmesg | grep BTRFS") from error
    finally:
        os.close(context)
    try:
        # What fsmount gives is O_PATH, on which no ioctl works.
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)
    try:
        yield directory
    finally:
        os.close(directory)


def has_subvolume(top: int, path: str) -> bool:
    """Return whether a subvolume is at a path below the top level. Raises StorageError if it is none."""
    try:
        found = os.stat(path, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"subvolume {path}: {os.strerror(error.errno or 0).lower()}") from error
    if found.st_ino != SUBVOLUME_INODE:
        raise StorageError(
            f"{path} is there on the filesystem, and is no subvolume", hint="rename it, or correct subvol="
        )
    return True


def make_subvolume(top: int, path: str) -> None:
    """Make a subvolume below the top level, and the directories above it, on disk when this returns."""
    directory, _, name = path.rpartition("/")
    try:
        with contextlib.ExitStack() as opened:
            fd = top
            for part in filter(None, directory.split("/")):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                opened.callback(os.close, fd)
            btrfs_ioctl.create_subvolume(fd, name)
            btrfs_ioctl.commit(fd)
    except OSError as error:
        raise StorageError(f"cannot make the subvolume {path}: {os.strerror(error.errno or 0)}") from error


def _call(number: int, *arguments: object, what: str) -> int:
    import ctypes  # late: a closed array needs it not

    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise StorageError(f"cannot {what}: {os.strerror(ctypes.get_errno()).lower()}")
    return result


def _said(context: int) -> str:
    """Return what the kernel has to say of a mount that failed, if anything: "e btrfs: ..."."""
    said = []
    with contextlib.suppress(OSError):
        while words := os.read(context, 4096).decode(errors="replace").strip():
            said.append(words[2:])
    return "".join(f"; {words}" for words in said)
