"""btrfs as this project touches it: subvolumes, the filesystem around them, send's and receive's argv.

The only module that imports pybtrfs. Failures are a StorageError of one sentence that names the path.

Host commands used: `btrfs`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import pybtrfs
from pybtrfs import btrfsutils

from btrsync.errors import NoSpaceError, StorageError
from btrsync.plan.snapshots import Subvolume
from btrsync.plan.space import Space
from btrsync.system import btrfs_ioctl, process
from btrsync.system.files import directory_opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUBVOLUME_INODE: Final = 256
"""Inode number of every subvolume's root directory (BTRFS_FIRST_FREE_OBJECTID)."""

TOP_LEVEL_ID: Final = 5
ROOT_RDONLY_FLAG: Final = 1

SEND_PROTOCOL_FILE: Final = Path("/sys/fs/btrfs/features/send_stream_version")

_NO_UUID: Final = bytes(16)


def subvolume(path: Path) -> Subvolume:
    """Return what the kernel knows of the subvolume whose root directory is `path`.

    Raises StorageError if there is none: missing, not btrfs, a plain directory, not permitted.
    """
    try:
        with _spelled(path) as text:
            return _from_info(pybtrfs.subvolume_info(text))
    except OSError as error:
        raise _failure("cannot read the subvolume", path, error) from error


def subvolumes_in(directory: Path) -> dict[str, Subvolume]:
    """Return the subvolumes that lie directly in `directory`, by name; other entries are passed over.

    Looking changes nothing: the access time of the directory stays, and with it the generation of
    the subvolume that holds it. Raises StorageError.
    """
    found: dict[str, Subvolume] = {}
    try:
        with directory_opened(directory) as fd:
            parent = Path(f"/proc/self/fd/{fd}")
            with os.scandir(fd) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            for name in names:
                # Only a stat tells: readdir gives a subvolume's id for its inode number.
                try:
                    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino == SUBVOLUME_INODE:
                        with _spelled(parent / name) as text:
                            found[name] = _from_info(pybtrfs.subvolume_info(text))
                except OSError as error:
                    # One that is deleted meanwhile is not there any more, and that is all. What pybtrfs
                    # raises is no FileNotFoundError.
                    if error.errno != errno.ENOENT:
                        raise
    except OSError as error:
        raise _failure("cannot list the subvolumes in", directory, error) from error
    return found


class Received(NamedTuple):
    """A subvolume with a received UUID. path: from the top level of its filesystem; id: the subvolume's."""

    uuid: UUID
    path: str
    id: int


def received(path: Path) -> list[Received]:
    """Return the subvolumes of the whole filesystem that carry a received UUID.

    path: anything on the filesystem; needs root. Raises StorageError.
    """
    try:
        with _spelled(path) as text, pybtrfs.SubvolumeIterator(text, top=TOP_LEVEL_ID, info=True) as found:
            return [
                Received(UUID(bytes=i.received_uuid), name, i.id)
                for name, i in found
                if i.received_uuid != _NO_UUID
            ]
    except OSError as error:
        raise _failure("cannot list the subvolumes of the filesystem of", path, error) from error


def received_uuid_counts(path: Path) -> Counter[UUID]:
    """Return how many subvolumes of the whole filesystem carry each received_uuid.

    More than one for a UUID makes it useless as a parent: `btrfs receive` takes the oldest and
    says nothing. path, raises: as with `received`.
    """
    return Counter(one.uuid for one in received(path))


def create_snapshot(source: Path, path: Path, *, readonly: bool = True) -> None:
    """Make a snapshot of the subvolume `source` at `path`, whose directory must exist, on one filesystem.

    Raises StorageError, NoSpaceError; nothing is at `path` then that was not there before.
    """
    if os.path.lexists(path):
        raise StorageError(f"{path} exists already: no snapshot was made")
    try:
        with _spelled(source) as from_text, _spelled_new(path) as to_text:
            pybtrfs.create_snapshot(from_text, to_text, read_only=readonly)
    except OSError as error:
        if error.errno == errno.EXDEV or (error.errno == errno.ENOTTY and is_btrfs(source)):
            raise StorageError(
                f"cannot snapshot {source} to {path}: they are on different filesystems",
                hint="choose a snapshot directory on the filesystem that holds the subvolume",
            ) from error
        # EINVAL and ENOENT without a source concern what is copied, all else where it goes.
        if error.errno == errno.EINVAL or not os.path.lexists(source):
            raise _failure("cannot make a snapshot of", source, error) from error
        where = path if os.path.isdir(path.parent) else path.parent
        raise _failure("cannot make the snapshot", where, error) from error


def delete_subvolume(path: Path) -> None:
    """Delete the subvolume `path`, read-only or not, without waiting for its space to come back.

    Raises StorageError if it is in use, is the default, holds another, or is none; it is whole then.
    """
    try:
        with _spelled_new(path) as text:
            pybtrfs.delete_subvolume(text)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise StorageError(
                f"cannot delete {path}: another subvolume lies inside it",
                hint=f"btrfs subvolume list -o {path} shows which; delete or move that one first",
            ) from error
        if error.errno == errno.EPERM and os.geteuid() == 0:
            raise StorageError(
                f"cannot delete {path}: it is being sent just now, or is the filesystem's default subvolume",
                hint=f"wait for the send to end; btrfs subvolume get-default {path} shows the default",
            ) from error
        if error.errno in {errno.ENOTTY, errno.EBUSY} and os.path.ismount(path):
            raise StorageError(f"cannot delete {path}: it is mounted there", hint=f"umount {path}") from error
        raise _failure("cannot delete", path, error) from error


def set_readonly(path: Path, readonly: bool) -> None:
    """Make the subvolume `path` read-only, or writable again. Raises StorageError."""
    try:
        with _spelled(path) as text:
            pybtrfs.set_subvolume_read_only(text, readonly)
    except OSError as error:
        raise _failure(f"cannot set read-only to {str(readonly).lower()} on", path, error) from error


def sync_filesystem(where: Path | int) -> None:
    """Make everything written to the filesystem durable, and know that it is.

    where: a path, or a descriptor opened before the writing began: syncfs reports through it also
    what failed to be written since then. BTRFS_IOC_SYNC then commits, and fails where the kernel
    has turned the filesystem read-only after an error, of which `sync` says nothing.
    Raises StorageError.
    """
    try:
        with _opened(where) as fd:
            btrfs_ioctl.syncfs(fd)
            btrfs_ioctl.commit(fd)
    except OSError as error:
        raise _failure("cannot make durable what was written to", where, error) from error


def device_errors(path: Path) -> dict[int, tuple[int, ...]]:
    """Return the error counters of each device by its devid: write, read, flush, corruption, generation.

    The same before and after means that no device failed in between. A missing device has
    counters too. path: anything on the filesystem; needs root. Raises StorageError.
    """
    try:
        with _opened(path) as fd:
            return {
                device.devid: btrfs_ioctl.error_counters(fd, device.devid)
                for device in btrfs_ioctl.devices(fd)
            }
    except OSError as error:
        raise _failure("cannot read the device errors of", path, error) from error


def fsid(path: Path) -> UUID:
    """Return the UUID of the filesystem that holds `path`. Raises StorageError if it is not btrfs."""
    try:
        with _opened(path) as fd:
            return UUID(bytes=btrfs_ioctl.filesystem_info(fd).fsid)
    except OSError as error:
        raise _failure("cannot read the filesystem of", path, error) from error


def is_btrfs(path: Path) -> bool:
    """Return whether `path` lies on btrfs. Raises StorageError if it cannot be opened."""
    try:
        fsid(path)
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOTTY:
            return False
        raise
    return True


def space(path: Path) -> Space:
    """Return the room on the filesystem that holds `path`. Raises StorageError."""
    try:
        with _opened(path) as fd:
            whole = os.fstatvfs(fd)
            chunks = btrfs_ioctl.chunks(fd)
            devices = btrfs_ioctl.devices(fd)
    except OSError as error:
        raise _failure("cannot read the free space of", path, error) from error
    return Space(
        total_bytes=whole.f_blocks * whole.f_frsize,
        available_bytes=whole.f_bavail * whole.f_frsize,
        data_free_bytes=sum(chunk.free_bytes for chunk in chunks if chunk.holds_data),
        metadata_free_bytes=sum(chunk.free_bytes for chunk in chunks if chunk.holds_metadata),
        unallocated_bytes=sum(device.unallocated_bytes for device in devices),
    )


def send_argv(
    snapshot: Path,
    *,
    send_parent: Path | None = None,
    clone_sources: Sequence[Path] = (),
    stream_version: int = 1,
    is_compressed: bool = False,
    is_without_data: bool = False,
) -> list[str]:
    """Return the argv that writes the send stream of `snapshot` to stdout; errors alone go to stderr.

    send_parent, clone_sources: read-only snapshots of the same filesystem that the target holds
    too. stream_version: 1 or 2; 3 is for those who work on the kernel. is_compressed: data as it lies on
    disk, of version 2. is_without_data: sizes for data. Raises ValueError.
    """
    if stream_version not in (1, 2) or (is_compressed and stream_version == 1):
        raise ValueError(f"no stream of version {stream_version}, compressed {is_compressed}")
    return [
        "btrfs", "send", "--quiet",
        # 1 is what btrfs-progs before 6.0 send, which do not know the word.
        *(["--proto", str(stream_version)] if stream_version != 1 else []),
        *(["--compressed-data"] if is_compressed else []),
        *(["--no-data"] if is_without_data else []),
        *(["-p", os.fspath(send_parent)] if send_parent else []),
        *(word for path in clone_sources for word in ("-c", os.fspath(path))),
        "--", os.fspath(snapshot),
    ]  # fmt: skip


def receive_argv(directory: Path) -> list[str]:
    """Return the argv that reads one send stream from stdin into `directory`, confined to it by chroot.

    With -e it stops at the stream's END command; without, it would take a second subvolume from what
    follows. A stream cut before END is an error all the same (measured, btrfs-progs 6.2).
    """
    return ["btrfs", "receive", "-e", "-C", os.fspath(directory)]


def progs_version() -> str:
    """Return the version of btrfs-progs, like "6.2". Raises CommandNotFoundError, CommandError."""
    words = process.run(["btrfs", "version"]).stdout.decode(errors="replace").split()
    return words[1].removeprefix("v") if len(words) > 1 else "unknown"


def send_protocol() -> int:
    """Return the highest send stream version of the running kernel: 1 where it names none."""
    try:
        return int(SEND_PROTOCOL_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1


def _from_info(info: pybtrfs.SubvolumeInfo) -> Subvolume:
    return Subvolume(
        id=info.id,
        uuid=UUID(bytes=info.uuid),
        parent_uuid=_uuid(info.parent_uuid),
        received_uuid=_uuid(info.received_uuid),
        ctransid=info.ctransid,
        otransid=info.otransid,
        stransid=info.stransid,
        generation=info.generation,
        is_readonly=bool(info.flags & ROOT_RDONLY_FLAG),
        created=datetime.fromtimestamp(info.otime, UTC),
        rtransid=info.rtransid,
        ctime=datetime.fromtimestamp(info.ctime, UTC),
        rtime=datetime.fromtimestamp(info.rtime, UTC),
    )


def _uuid(raw: bytes) -> UUID | None:
    return None if raw == _NO_UUID else UUID(bytes=raw)


@contextmanager
def _opened(where: Path | int) -> Iterator[int]:
    if isinstance(where, int):
        yield where
        return
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _spelled(path: Path) -> Iterator[str]:
    """A name that pybtrfs accepts for `path`: it encodes strictly, and names may be any bytes."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        yield text


@contextmanager
def _spelled_new(path: Path) -> Iterator[str]:
    """Like `_spelled`, for a path whose last name is to be made or removed."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise StorageError(f"{path}: the name is not valid UTF-8", hint="use the btrfs command") from None
    with _spelled(path.parent) as parent:
        yield os.path.join(parent, path.name)


def _failure(doing: str, where: Path | int, error: OSError) -> StorageError:
    """Return the one sentence for what the kernel refused, with the remedy that is nearest."""
    path = f"descriptor {where}" if isinstance(where, int) else str(where)
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else path
    if error.errno == errno.ENOTTY or _is_kind(error, btrfsutils.ERROR_NOT_BTRFS):
        return StorageError(f"{path} is not on btrfs")
    if isinstance(error, pybtrfs.BtrfsUtilError) and error.errno == errno.EINVAL:
        return _not_a_subvolume(path, f"{doing} {path}")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError(
            f"{doing} {path}: no space left",
            hint=f"btrfs filesystem usage {path} shows whether data or metadata is full",
        )
    message, hint = {
        errno.ENOENT: ("{path} does not exist", None),
        errno.ENOTDIR: ("{path} is not a directory", None),
        errno.EPERM: ("{attempt}: not permitted", "run as root"),
        errno.EACCES: ("{attempt}: not permitted", "run as root"),
        errno.EROFS: ("{attempt}: it is on a read-only mount, or in a read-only subvolume", None),
    }.get(error.errno or 0, ("{attempt}: {reason}", None))
    reason = os.strerror(error.errno or 0)
    return StorageError(message.format(path=path, attempt=f"{doing} {path}", reason=reason), hint=hint)


def _is_kind(error: OSError, kind: int) -> bool:
    return isinstance(error, pybtrfs.BtrfsUtilError) and error.btrfsutil_errno == kind


def _not_a_subvolume(path: str, attempt: str) -> StorageError:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return StorageError(f"{attempt}: it is not a subvolume")
    if not stat.S_ISDIR(mode):
        return StorageError(f"{path} is not a directory, so it is not a subvolume")
    return StorageError(
        f"{path} is a directory, not a subvolume",
        hint=f"make one with: btrfs subvolume create {path}",
    )
