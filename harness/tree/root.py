"""The tree that is being made or changed: every operation by a path, as bytes, below one directory.

All of them go through one descriptor of the root, so that a path may be as long as PATH_MAX whatever
lies above it, and nothing is ever done outside.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from harness import ioctls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

_TIME_FIRST_S = 631_152_000
_TIME_LAST_S = 1_577_836_800
"""Settled times lie between 1990 and 2020: seen at once in a listing, and never now."""

_CLOCK_REALTIME_COARSE = 5
"""linux/time.h; Python's time module does not name it."""


class NotBtrfsError(Exception):
    """The tree lies on another filesystem: it has no reflinks, subvolumes or properties there."""


class Root:
    """The root of a tree, open: a context manager.

    path: the directory. remount: called by mutations that need it, with this object's descriptor
    closed; it has to unmount and mount the filesystem at the same place. Raises PermissionError
    without root's rights, NotBtrfsError on another filesystem.
    """

    def __init__(self, path: Path, *, remount: Callable[[], None] | None = None) -> None:
        if os.geteuid() != 0:
            raise PermissionError(f"{path}: the tree has device nodes and foreign owners: only root makes it")
        self.path = path
        self._remount = remount
        self.fd = self._open()
        if not ioctls.is_btrfs(self.fd):
            self.close()
            raise NotBtrfsError(f"{path}: the tree has reflinks and subvolumes: it is made on btrfs only")

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def can_remount(self) -> bool:
        return self._remount is not None

    def remount(self) -> None:
        """Unmount and mount the filesystem, as a reboot would: the kernel forgets its counters."""
        if self._remount is None:
            raise ValueError(f"{self.path}: this mutation needs a way to remount, and none was given")
        self.close()
        try:
            self._remount()
        finally:
            self.fd = self._open()

    # ------------------------------------------------------------------------------ looking

    def stat(self, path: bytes) -> os.stat_result:
        return os.stat(_below(path), dir_fd=self.fd, follow_symlinks=False)

    def exists(self, path: bytes) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def is_directory(self, path: bytes) -> bool:
        return stat.S_ISDIR(self.stat(path).st_mode)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in a directory, sorted, so that chance alone never depends on the disk."""
        with self.open(_below(path), os.O_RDONLY | os.O_DIRECTORY) as fd:
            return sorted(os.fsencode(name) for name in os.listdir(fd))

    def read(self, path: bytes) -> bytes:
        with self.open(path, os.O_RDONLY | os.O_NOATIME) as fd, open(fd, "rb", closefd=False) as file:
            return file.read()

    def free_name(self, wish: bytes) -> bytes:
        """Return `wish`, or the first of `wish.1`, `wish.2`, … that is not taken; never over 255 bytes."""
        directory, _, name = wish.rpartition(b"/")
        prefix = directory + b"/" if directory else b""
        candidate, number = name, 0
        while self.exists(prefix + candidate):
            number += 1
            suffix = b".%d" % number
            candidate = name[: 255 - len(suffix)] + suffix
        return prefix + candidate

    # ----------------------------------------------------------------------------- changing

    @contextmanager
    def open(self, path: bytes, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
        """A descriptor of a file or directory, closed on leaving."""
        fd = os.open(_below(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def make_directory(self, path: bytes, mode: int = 0o755) -> bytes:
        os.mkdir(_below(path), mode, dir_fd=self.fd)
        return path

    def write(self, path: bytes, data: bytes | memoryview, *, offset: int = 0) -> bytes:
        """Write into a file, made if it is not there; what is beyond stays."""
        with self.open(path, os.O_WRONLY | os.O_CREAT) as fd:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        return path

    def truncate(self, path: bytes, size_bytes: int) -> None:
        with self.open(path) as fd:
            os.ftruncate(fd, size_bytes)

    def flush(self, path: bytes) -> None:
        """Write a file's data to disk, so that its extents exist: fsync."""
        with self.open(path) as fd:
            os.fsync(fd)

    def rename(self, old: bytes, new: bytes) -> None:
        os.rename(_below(old), _below(new), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def link(self, old: bytes, new: bytes) -> bytes:
        os.link(_below(old), _below(new), src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        return new

    def symlink(self, target: bytes, path: bytes) -> bytes:
        os.symlink(target, _below(path), dir_fd=self.fd)
        return path

    def make_node(self, path: bytes, mode: int, device: int = 0) -> bytes:
        os.mknod(_below(path), mode, device, dir_fd=self.fd)
        return path

    def unlink(self, path: bytes) -> None:
        os.unlink(_below(path), dir_fd=self.fd)

    def remove(self, path: bytes) -> None:
        """Remove whatever is there: a file, a directory with all that is in it, a nested subvolume."""
        status = self.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            self.unlink(path)
        elif status.st_ino == ioctls.SUBVOLUME_ROOT_INODE:
            self.delete_subvolume(path)
        else:
            for name in self.names(path):
                self.remove(path + b"/" + name)
            os.rmdir(_below(path), dir_fd=self.fd)

    def remove_directory(self, path: bytes) -> None:
        os.rmdir(_below(path), dir_fd=self.fd)

    def change_owner(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(_below(path), uid, gid, dir_fd=self.fd, follow_symlinks=False)

    def change_mode(self, path: bytes, mode: int) -> None:
        if stat.S_ISLNK(self.stat(path).st_mode):
            raise ValueError(f"{os.fsdecode(path)!r} is a symlink: chmod would follow it out of the tree")
        os.chmod(_below(path), mode, dir_fd=self.fd)

    def change_time(self, path: bytes, mtime_ns: int) -> None:
        os.utime(_below(path), ns=(mtime_ns, mtime_ns), dir_fd=self.fd, follow_symlinks=False)

    def _proc_path(self, path: bytes) -> bytes:
        # The os module has xattr calls by path or descriptor only, and a symlink has no descriptor.
        return b"/proc/self/fd/%d/%s" % (self.fd, _below(path))

    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        os.setxattr(self._proc_path(path), name, value, follow_symlinks=False)

    def remove_xattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._proc_path(path), name, follow_symlinks=False)

    def xattr_names(self, path: bytes) -> list[bytes]:
        names = os.listxattr(self._proc_path(path), follow_symlinks=False)
        return sorted(os.fsencode(name) for name in names)

    def clone(self, old: bytes, new: bytes) -> bytes:
        """Make `new` a reflink copy of the file `old`."""
        with self.open(old, os.O_RDONLY) as source, self.open(new, os.O_RDWR | os.O_CREAT) as target:
            ioctls.clone_range(source, target)
        return new

    def set_flags(self, path: bytes, *, add: int = 0, remove: int = 0) -> None:
        with self.open(path, os.O_RDONLY) as fd:
            ioctls.set_inode_flags(fd, add=add, remove=remove)

    def create_subvolume(self, path: bytes) -> bytes:
        directory, _, name = _below(path).rpartition(b"/")
        with self.open(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            ioctls.create_subvolume(fd, name)
        return path

    def delete_subvolume(self, path: bytes) -> None:
        directory, _, name = _below(path).rpartition(b"/")
        with self.open(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            ioctls.delete_subvolume(fd, name)


def _below(path: bytes) -> bytes:
    """Return a path that stays below the root: the kernel lets a leading slash beat any descriptor."""
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise ValueError(f"{os.fsdecode(path)!r} leads out of the tree")
    return path or b"."


@contextmanager
def settled_times(root: Root, salt: str) -> Iterator[None]:
    """Everything changed inside gets a modification time that follows from `salt` and its path.

    Without it no two runs would give the same tree. What was not touched keeps its time, so that a
    mutation changes what it says it changes.
    """
    # The coarse clock is the one that times of files are taken from, and it lags behind.
    begin_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    yield
    end_ns = time.time_ns()
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        status = root.stat(path)
        if stat.S_ISDIR(status.st_mode) and not (path and status.st_ino == ioctls.SUBVOLUME_ROOT_INODE):
            waiting += [path + b"/" + name if path else name for name in root.names(path)]
        if begin_ns <= status.st_mtime_ns <= end_ns:
            root.change_time(path, _time_of(salt, path))


def _time_of(salt: str, path: bytes) -> int:
    digest = hashlib.blake2b(path, key=salt.encode()[:64], digest_size=12).digest()
    seconds = int.from_bytes(digest[:8]) % (_TIME_LAST_S - _TIME_FIRST_S) + _TIME_FIRST_S
    return seconds * 10**9 + int.from_bytes(digest[8:]) % 10**9
