"""A target: one client's directory on this machine, and what may happen in it.

Layout: CLIENT/JOB/<backup>, and beside the backups of a job what is on its way in: `incoming`, `partials`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from btrsync import partials
from btrsync.errors import RefusedError, StorageError
from btrsync.incoming import INCOMING_PREFIX, Incoming, make_private_directory
from btrsync.plan.names import is_valid_name, printable_name
from btrsync.protocol import BackupEntry, Begin, PartialEntry
from btrsync.system import btrfs
from btrsync.system.mounts import missing_mount, mount_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from pathlib import Path
    from uuid import UUID

    from btrsync.partials import Partial
    from btrsync.piece import Care
    from btrsync.plan.snapshots import Subvolume

STAGING_PREFIXES = (INCOMING_PREFIX, partials.PREFIX)


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
            backup_entry(
                printable_name(name), found, counts[found.received_uuid] if found.received_uuid else 1
            )
            for name, found in sorted(self._subvolumes(job).items(), key=lambda item: item[1].id)
            if not name.startswith(STAGING_PREFIXES)
        ]

    def partials(self) -> dict[str, list[PartialEntry]]:
        """Return what cut transfers have left on disk, of each job that has such, the newest last."""
        found = {
            job: [partial.entry for partial in partials.found_in(self.directory / job, self._subvolumes(job))]
            for job in self._jobs()
        }
        return {job: entries for job, entries in found.items() if entries}

    def sweep(self, *, now: datetime, partial_ttl: timedelta) -> list[str]:
        """Delete what dead receives left behind, and partials that are of no use any more.

        Returns the names. Needs the client's lock.
        """
        deleted = []
        for job in self._jobs():
            directory, found = self.directory / job, self._subvolumes(job)
            for name in found:
                if name.startswith(INCOMING_PREFIX):
                    btrfs.delete_subvolume(directory / name)
                    deleted.append(f"{job}/{name}")
            swept = partials.sweep(directory, found, now=now, ttl=partial_ttl)
            deleted += [f"{job}/{name}" for name in swept]
        return deleted

    def incoming(self, begin: Begin, *, lock_fd: int, care: Care) -> Incoming:
        """Check that `begin` is allowed and return the transfer to enter.

        lock_fd: inherited by `btrfs receive`, so that the lock outlives a killed server for as long
        as its receive does; care: how that is run. Raises RefusedError.
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
        found = self._partials_in(directory)
        before = [partial for partial in found if partial.entry.uuid == begin.uuid]
        others = [partial for partial in found if partial.entry.uuid != begin.uuid]
        return Incoming(
            directory, begin, lock_fd,
            before=before, goes_on=_continued(begin, before), others=others, care=care,
        )  # fmt: skip

    @staticmethod
    def _partials_in(directory: Path) -> list[Partial]:
        subvolumes = btrfs.subvolumes_in(directory) if directory.is_dir() else {}
        return partials.found_in(directory, subvolumes)

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
        if not directory.exists() and (point := missing_mount(root)) is not None:
            raise StorageError(
                f"{point} is a mount point in /etc/fstab and nothing is mounted there,"
                f" so {directory} was not made",
                hint=f"mount {point}",
            )
        check_receivable(directory if directory.exists() else root)
        make_private_directory(directory)
    return Target(directory)


def check_receivable(directory: Path) -> None:
    """See that the mount of `directory`, which is on btrfs, lets one receive. Raises StorageError."""
    point = mount_of(directory).mount_point
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise StorageError(
            f"{point} is mounted read-only, so nothing can be received there",
            hint=f"see dmesg for why; if it was mounted so on purpose: mount -o remount,rw {point}",
        )
    if point.stat().st_ino != btrfs.SUBVOLUME_INODE:
        # A full backup would come through, but nothing that goes on from one (do_receive(), receive.c).
        raise StorageError(
            f"{point} is a directory within a subvolume, mounted by itself (mount --bind), and from there"
            " btrfs receive finds no send parent",
            hint="mount the subvolume that it lies in, or the whole filesystem",
        )


def _continued(begin: Begin, before: list[Partial]) -> Partial | None:
    """Return the partial that `begin` goes on from. Raises RefusedError if it is not there."""
    if not begin.offset_bytes:
        return None
    for partial in before:
        entry = partial.entry
        if (
            (entry.offset_bytes, entry.proofs[-1].digest) == (begin.offset_bytes, begin.digest)
            and entry.ctransid == begin.ctransid
            and entry.send_parent == begin.send_parent
            and set(entry.clone_sources) == set(begin.clone_sources)
        ):
            return partial
    raise RefusedError(
        f"there is no partial of {begin.job}/{begin.name} here that ends at byte {begin.offset_bytes}",
        hint="run `btrsync sync` again: it looks anew at what is there",
    )


def backup_entry(name: str, found: Subvolume, copies: int) -> BackupEntry:
    """Return what the client is told of a backup."""
    return BackupEntry(
        name, found.uuid, found.received_uuid, found.generation, found.is_readonly, found.created, copies,
        found.was_edited,
    )  # fmt: skip
