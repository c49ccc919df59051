"""A target: one client's directory on this machine, and what may happen in it.

Layout: CLIENT/JOB/<backup>; a receive in progress is CLIENT/JOB/.incoming-<id>, in the same
directory as its final name, for a read-only subvolume cannot be moved to another (EROFS; measured).
*Commit* is the only way to a visible name: checked, on disk, renamed, acknowledged, in this order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Self

from btrsync.errors import (
    BtrsyncError,
    CommandError,
    IntegrityError,
    NoSpaceError,
    RefusedError,
    StorageError,
    StreamError,
    UnreachableError,
)
from btrsync.plan.names import is_valid_name, printable_name
from btrsync.protocol import BackupEntry, Begin
from btrsync.stream.head import format_head
from btrsync.system import btrfs, files, pipes, process
from btrsync.system.mounts import missing_mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from uuid import UUID

    from btrsync.plan.snapshots import Subvolume
    from btrsync.stream.head import FirstCommand

INCOMING_PREFIX = ".incoming-"
LOCK_NAME = ".lock"
MORE_SPACE = "free space there, or add a disk to its array"


class Target:
    """One client's directory. `open_target` makes one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def inventory(self) -> dict[str, list[BackupEntry]]:
        """Return all subvolumes of each job, oldest first, whatever their names; staging ones are left out.

        `copies` counts the subvolumes with that received_uuid on the whole filesystem.
        """
        if not self.directory.is_dir():
            return {}
        counts = btrfs.received_uuid_counts(self.directory)
        return {job: self._entries(job, counts) for job in self._jobs()}

    def _entries(self, job: str, counts: Mapping[UUID, int]) -> list[BackupEntry]:
        return [
            _entry(printable_name(name), found, counts[found.received_uuid] if found.received_uuid else 1)
            for name, found in sorted(self._subvolumes(job).items(), key=lambda item: item[1].id)
            if not name.startswith(INCOMING_PREFIX)
        ]

    def sweep(self) -> list[str]:
        """Delete what an interrupted receive left behind; return the names. Needs the client's lock."""
        deleted = []
        for job in self._jobs():
            for name in self._subvolumes(job):
                if name.startswith(INCOMING_PREFIX):
                    btrfs.delete_subvolume(self.directory / job / name)
                    deleted.append(f"{job}/{name}")
        return deleted

    def incoming(self, begin: Begin, *, lock_fd: int) -> Incoming:
        """Check that `begin` is allowed and return the receive to enter.

        lock_fd: inherited by `btrfs receive`, so that the lock outlives a killed server for as long
        as its receive does. Raises RefusedError.
        """
        if not is_valid_name(begin.job) or not is_valid_name(begin.name):
            raise RefusedError(f"{begin.job!r}/{begin.name!r} is not a name for a backup here")
        directory = self.directory / begin.job
        if os.path.lexists(directory / begin.name):
            raise RefusedError(
                f"{begin.job}/{begin.name} is there already, and a backup is never replaced",
                hint="run `btrsync sync --always` to make a snapshot with a new name",
            )
        counts = btrfs.received_uuid_counts(self.directory)
        entries = self._entries(begin.job, counts) if directory.is_dir() else []
        held = {entry.received_uuid: entry for entry in entries if entry.received_uuid}
        if begin.uuid in held:
            raise RefusedError(
                f"{begin.job}/{held[begin.uuid].name} is a backup of that very snapshot:"
                " a second one would make both useless as parents",
                hint="run `btrsync sync` again: it looks anew at what is there",
            )
        self._check_ancestors(begin, held)
        return Incoming(directory, begin, lock_fd)

    def _check_ancestors(self, begin: Begin, held: Mapping[UUID, BackupEntry]) -> None:
        wanted = [("send parent", begin.send_parent)] if begin.send_parent else []
        wanted += [("clone source", uuid) for uuid in begin.clone_sources]
        for what, uuid in wanted:
            entry = held.get(uuid)
            if entry is None:
                raise RefusedError(f"the {what} {uuid} is not among the backups of job {begin.job} here")
            if not entry.is_readonly:
                raise RefusedError(f"the {what} {entry.name} is writable here: it may have changed")
            if entry.was_edited:
                raise RefusedError(f"the {what} {entry.name} was edited here after it was received")
            if entry.copies != 1:
                raise RefusedError(
                    f"{entry.copies} subvolumes here carry the received UUID of the {what} {entry.name}"
                )

    def _jobs(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as found:
            return sorted(
                item.name for item in found if is_valid_name(item.name) and item.is_dir(follow_symlinks=False)
            )
        return []

    def _subvolumes(self, job: str) -> dict[str, Subvolume]:
        return btrfs.subvolumes_in(self.directory / job)


@contextlib.contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Let an OSError inside become a StorageError, or a NoSpaceError, that names the path or `directory`."""
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"{where}: no space left on the server", hint=MORE_SPACE) from error
        raise StorageError(f"{where}: {os.strerror(error.errno or 0)}, on the server") from error


def open_target(directory: Path, *, root: Path, is_look_only: bool) -> Target:
    """Return the target at `directory` below `root`, made if need be, unless we only look.

    `root` itself is never made: where it is missing, the array is probably not mounted. Raises
    StorageError if `root` is not a directory on btrfs that only root can write.
    """
    if not root.is_dir():
        raise StorageError(
            f"{root} is not there", hint="is the array open and mounted? Otherwise make that directory"
        )
    if not btrfs.is_btrfs(root):
        raise StorageError(
            f"{root} is not on a btrfs filesystem, so nothing can be received there",
            hint="is the array mounted? Or name another `root` in the server's configuration",
        )
    for path in (root, directory):
        if not path.exists():
            continue
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise StorageError(
                f"{path} must be a directory that only root can write, and it is not",
                hint=f"chown root:root {path}; chmod go-w {path}",
            )
    if not is_look_only:
        if os.statvfs(root).f_flag & os.ST_RDONLY:
            raise StorageError(
                f"{root} is mounted read-only, so nothing can be received there",
                hint="see dmesg for why; if it was mounted so on purpose: mount -o remount,rw",
            )
        if not directory.exists() and (point := missing_mount(root)) is not None:
            raise StorageError(
                f"{point} is a mount point in /etc/fstab and nothing is mounted there,"
                f" so {directory} was not made",
                hint=f"mount {point}",
            )
        _make_private_directory(directory)
    return Target(directory)


class Incoming:
    """A receive in progress. Left without `commit`, nothing of it remains."""

    def __init__(self, directory: Path, begin: Begin, lock_fd: int) -> None:
        self.begin = begin
        self._directory = directory
        self._lock_fd = lock_fd
        self._staging = f"{INCOMING_PREFIX}{os.urandom(8).hex()}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with storage_errors(self._directory), contextlib.ExitStack() as stack:
            if _make_private_directory(self._directory):
                stack.callback(self._remove_directory)
            self._directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, self._directory_fd)
            # Opened before anything is written: syncfs reports only errors since then (man 2 syncfs).
            self._device_errors = btrfs.device_errors(self._directory)
            stack.callback(self._delete_staging)
            read_fd, self.write_fd = os.pipe()
            pipes.enlarge(self.write_fd)
            self._close_input = stack.enter_context(contextlib.ExitStack())
            self._close_input.callback(os.close, self.write_fd)
            try:
                self._receive = stack.enter_context(
                    process.spawn(
                        btrfs.receive_argv(self._directory), stdin=read_fd, pass_fds=(self._lock_fd,)
                    )
                )
            finally:
                os.close(read_fd)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin_stream(self, first: FirstCommand) -> None:
        """Check what the stream announces against what was agreed, and give receive its head.

        Raises StreamError before receive has seen a byte.
        """
        for what, announced, agreed in (
            ("the UUID", first.uuid, self.begin.uuid),
            ("the ctransid", first.ctransid, self.begin.ctransid),
            ("the parent", first.parent_uuid, self.begin.send_parent),
        ):
            if announced != agreed:
                raise StreamError(0, f"it announces {what} {announced}, and {agreed} was agreed")
        pipes.write_all(self.write_fd, format_head(first, path=self._staging.encode()))

    def failure(self) -> BtrsyncError:
        """Return why `btrfs receive` stopped reading; call it after a broken pipe."""
        self._close_input.close()
        exit = self._receive.wait()
        if "No space left on device" in exit.stderr or "Disk quota exceeded" in exit.stderr:
            return NoSpaceError(
                f"no space left at the server in {self._directory}",
                hint=MORE_SPACE,
            )
        if exit.has_failed:
            return CommandError(exit, hint="nothing of this transfer was kept on the server")
        return StreamError(0, "it goes on behind its end")

    def commit(self) -> BackupEntry:
        """Wait for receive, check its work, put it on disk, give it its name; return the backup.

        Raises CommandError, NoSpaceError, IntegrityError or StorageError; nothing is visible then.
        """
        self._close_input.close()
        if self._receive.wait().has_failed:
            raise self.failure()
        path = self._directory / self._staging
        found = btrfs.subvolume(path)
        self._check_received(found)
        btrfs.sync_filesystem(self._directory_fd)
        # `sync` returns 0 after an aborted transaction too: look at what the kernel thinks of it.
        if os.fstatvfs(self._directory_fd).f_flag & os.ST_RDONLY:
            raise StorageError(
                f"the filesystem of {self._directory} was forced read-only", hint="see dmesg there"
            )
        if (errors := btrfs.device_errors(self._directory)) != self._device_errors:
            raise StorageError(
                f"the error counters of the array's devices moved during the transfer, to {errors}",
                hint="see `btrfs device stats` there; the backup was not committed",
            )
        with storage_errors(self._directory):
            files.rename_noreplace(self._directory_fd, self._staging, self.begin.name)
        try:
            os.fsync(self._directory_fd)
        except OSError as error:
            # Visible, and perhaps not on disk. The client must hear neither yes nor no, or it would drop its
            # snapshot: so the connection ends here, and the next run finds out.
            raise UnreachableError(
                f"{path.parent / self.begin.name} has its name, but cannot be made durable: {error.strerror}"
            ) from error
        return _entry(self.begin.name, found, 1)

    def _check_received(self, found: Subvolume) -> None:
        # Complete is read-only *and* the received UUID: receive sets them last, in two steps.
        if (
            not found.is_readonly
            or found.received_uuid != self.begin.uuid
            or found.stransid != self.begin.ctransid
        ):
            raise IntegrityError(
                f"btrfs receive ended well, but {self._staging} is not what was sent: "
                f"read-only is {found.is_readonly}, received UUID {found.received_uuid} (sent:"
                f" {self.begin.uuid}), transaction {found.stransid} (sent: {self.begin.ctransid})"
            )

    def _delete_staging(self) -> None:
        path = self._directory / self._staging
        if os.path.lexists(path):
            btrfs.delete_subvolume(path)

    def _remove_directory(self) -> None:
        # Only while nothing was committed in it.
        with contextlib.suppress(OSError):
            self._directory.rmdir()


def _make_private_directory(directory: Path) -> bool:
    """Make `directory` for root alone if it is not there; tell whether it was made."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _entry(name: str, found: Subvolume, copies: int) -> BackupEntry:
    return BackupEntry(
        name, found.uuid, found.received_uuid, found.generation, found.is_readonly, found.created, copies,
        found.was_edited,
    )  # fmt: skip
