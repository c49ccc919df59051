"""Regular files below one directory, read by paths of somebody else's choice that lead nowhere else."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Self

from btrsync.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


class FilesBeneath:
    """The files of the subvolume at `root`; a context manager. The last one stays open for the next read.

    Each component of a path is opened by itself, and none may be a link; a file must be regular and of
    that very subvolume, which on btrfs its device number tells: so nothing that is mounted there, no
    device and no pipe is ever read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        self._root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._device = os.fstat(self._root_fd).st_dev
        self._path, self._fd = b"", -1
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        os.close(self._root_fd)

    def read(self, path: bytes, offset_bytes: int, size_bytes: int) -> bytes:
        """Return exactly that range of the file at `path`. Raises StorageError if it is not there."""
        try:
            if path != self._path:
                self._open(path)
            block = os.pread(self._fd, size_bytes, offset_bytes)
            while block and len(block) < size_bytes:
                more = os.pread(self._fd, size_bytes - len(block), offset_bytes + len(block))
                if not more:
                    break
                block += more
        except (OSError, OverflowError) as error:
            raise self._error(path, str(error)) from error
        if len(block) != size_bytes:
            raise self._error(path, f"it ends before byte {offset_bytes + size_bytes}")
        return block

    def _open(self, path: bytes) -> None:
        self._close()
        parts = path.split(b"/")
        if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
            raise self._error(path, "it may lead elsewhere")
        directory_fd = os.dup(self._root_fd)
        try:
            for part in parts[:-1]:
                below_fd = os.open(
                    part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd
                )
                os.close(directory_fd)
                directory_fd = below_fd
            named_fd = os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        try:
            # Looked at before it is opened: a device may do something then.
            found = os.fstat(named_fd)
            if not stat.S_ISREG(found.st_mode) or found.st_dev != self._device:
                raise self._error(path, "it is no file of that subvolume")
            self._fd = os.open(f"/proc/self/fd/{named_fd}", os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
        finally:
            os.close(named_fd)
        self._path = path

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = b"", -1

    def _error(self, path: bytes, reason: str) -> StorageError:
        return StorageError(f"{self._root}: cannot read {path[:200]!r}, from which it is cloned: {reason}")
