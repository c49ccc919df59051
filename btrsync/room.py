"""The room that a client has at its target: what the disks have free, and what its quota leaves it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from btrsync.errors import NoSpaceError
from btrsync.incoming import MORE_SPACE
from btrsync.system import btrfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from btrsync.protocol import BackupEntry, Begin
    from btrsync.target import Target


class Room:
    """The room at `target`. quota_bytes: what its backups may have written, None for no limit.

    Needs the client's lock, but for `available_bytes`. The ledger is read only where there is a quota.
    """

    def __init__(self, target: Target, quota_bytes: int | None) -> None:
        self._target = target
        self._quota_bytes = quota_bytes

    def available_bytes(self, jobs: Mapping[str, Sequence[BackupEntry]]) -> int:
        """Return what is free, or left of the quota if that is less; jobs: the target's inventory."""
        where = self._target.directory
        found = os.statvfs(where if where.is_dir() else where.parent)
        free_bytes = found.f_bavail * found.f_frsize
        left_bytes = self._left_bytes(jobs)
        return free_bytes if left_bytes is None else max(0, min(free_bytes, left_bytes))

    def check(self, begin: Begin, *, done_bytes: int) -> str | None:
        """Raise NoSpaceError if what `begin` announces will not fit; return a warning if it may not.

        done_bytes: what of it is written already, by the partial that it goes on from.
        """
        if begin.total_bytes is None:
            return None
        # Late: most connections find nothing to do.
        from btrsync.plan.space import space_problem
        from btrsync.system.mounts import mount_of

        where = self._target.directory
        options = mount_of(where).super_options
        problem = space_problem(
            max(0, begin.total_bytes - done_bytes),
            any(option.startswith("compress") for option in options),
            btrfs.space(where),
            self._left_bytes(self._inventory()),
        )
        if problem is None:
            return None
        if not problem.is_warning:
            raise NoSpaceError(f"{begin.job}/{begin.name}: {problem.message} on the server", hint=MORE_SPACE)
        return problem.message

    def limit_bytes(self, begin: Begin, *, done_bytes: int) -> int | None:
        """Return how much data the whole stream may write, None for no limit."""
        limits = []
        if begin.total_bytes is not None:
            # A lie, not a rounding, is refused.
            limits.append(begin.total_bytes + begin.total_bytes // 64 + (1 << 20))
        left_bytes = self._left_bytes(self._inventory())
        if left_bytes is not None:
            limits.append(done_bytes + max(0, left_bytes))
        return min(limits, default=None)

    @contextlib.contextmanager
    def turn(self, begin: Begin, data_bytes: int, *, done_bytes: int) -> Iterator[None]:
        """The time to commit a backup that wrote so much, and to `note` it: one session at a time.

        done_bytes: as for `limit_bytes`. Raises NoSpaceError if other sessions of the run have used meanwhile
        what was left of the quota, LockedError, StorageError.
        """
        if self._quota_bytes is None:
            yield
            return
        from btrsync.quota import lock

        with lock(self._target.directory):
            left_bytes = self._left_bytes(self._inventory())
            if left_bytes is not None and data_bytes > done_bytes + max(0, left_bytes):
                raise NoSpaceError(
                    f"{begin.job}/{begin.name}: other transfers of this run have used up the quota",
                    hint=MORE_SPACE,
                )
            yield

    def note(self, begin: Begin, uuid: UUID, data_bytes: int) -> None:
        """Write down what a committed backup wrote, in our `turn`. Raises StorageError."""
        if self._quota_bytes is not None:
            from btrsync.quota import Ledger

            ledger = Ledger(self._target.directory)
            ledger.used_bytes(_uuids(self._target.inventory()))
            ledger.add(begin.job, uuid, data_bytes, begin.send_parent is None)

    def _inventory(self) -> Mapping[str, Sequence[BackupEntry]]:
        return {} if self._quota_bytes is None else self._target.inventory()

    def _left_bytes(self, jobs: Mapping[str, Sequence[BackupEntry]]) -> int | None:
        if self._quota_bytes is None:
            return None
        from btrsync.quota import Ledger

        return self._quota_bytes - Ledger(self._target.directory).used_bytes(_uuids(jobs))


def _uuids(jobs: Mapping[str, Sequence[BackupEntry]]) -> dict[str, set[UUID]]:
    return {job: {entry.uuid for entry in entries} for job, entries in jobs.items()}
