"""Names in directories, changed so that a crash leaves the old state or the new one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


def rename_noreplace(directory_fd: int, old: str, new: str) -> None:
    """Rename `old` to `new` in one directory; FileExistsError if `new` is there, with nothing done.

    One step for the kernel: no other process can make `new` between the look and the rename.
    Works on read-only subvolumes. Raises OSError. Source: rename(2).
    """
    _renameat2(directory_fd, old, new, RENAME_NOREPLACE)


def rename_exchange(directory_fd: int, one: str, other: str) -> None:
    """Let two names of one directory change places in one step; works on read-only subvolumes too.

    Raises OSError, FileNotFoundError if either is missing. Source: rename(2).
    """
    _renameat2(directory_fd, one, other, RENAME_EXCHANGE)


def fsync_directory(directory: Path | int) -> None:
    """Make the names in `directory` (a path, or its open descriptor) durable. Raises OSError."""
    if isinstance(directory, int):
        os.fsync(directory)
        return
    with directory_opened(directory) as fd:
        os.fsync(fd)


def write_atomically(
    path: Path, content: bytes, mode: int = 0o600, *, owner: tuple[int, int] | None = None
) -> None:
    """Give `path` this content and mode, durably; a reader or a crash meets the old or the new file.

    owner: user and group, ours by default. Raises OSError; the file it was written to first is then gone
    again.
    """
    with directory_opened(path.parent) as directory_fd:
        aside = f".{path.name}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(aside, flags, 0o600, dir_fd=directory_fd)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)  # not at open: umask would have its say there
                os.fsync(fd)
            os.rename(aside, path.name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=directory_fd)
            raise
        os.fsync(directory_fd)


@contextlib.contextmanager
def directory_opened(path: Path) -> Iterator[int]:
    """The descriptor of a directory, opened so that listing it does not touch its access time.

    A new access time is a write: it would move the generation of the subvolume that holds the
    directory, which then looks changed. O_NOATIME is refused to who is neither owner nor root; the
    directory is then opened without. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _renameat2(directory_fd: int, old: str, new: str, flags: int) -> None:
    import ctypes  # late: a run that finds nothing to do renames nothing

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(directory_fd, os.fsencode(old), directory_fd, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)
