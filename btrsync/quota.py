"""What a client's backups have written, in a ledger beside them: the measure of its quota.

btrfs can count what a subvolume holds for itself alone, but its quota groups cost every commit, so the
ledger adds up what each transfer wrote, before compression. That is an estimate (docs/decisions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from btrsync.errors import StorageError, storage_error
from btrsync.system import files
from btrsync.system.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

NAME = ".usage.json"
LOCK_NAME = ".usage.lock"
LOCK_WAIT_S = 600.0
"""For as many commits as there may be sessions, each with a sync of the filesystem."""


class _Line(msgspec.Struct, frozen=True):
    """One backup: what it wrote, and what the full one wrote that it descends from and that is deleted."""

    uuid: UUID
    data_bytes: int
    is_full: bool
    inherited_bytes: int = 0

    def __post_init__(self) -> None:
        if self.data_bytes < 0 or self.inherited_bytes < 0:
            raise ValueError("a backup that wrote less than nothing")


class _Content(msgspec.Struct, frozen=True):
    version: int
    jobs: dict[str, list[_Line]]


class Ledger:
    """The ledger in a client's directory, read; who adds to it holds `lock` from before it was read.

    Raises StorageError if it cannot be read: then nobody knows what may still come.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            content = _Content(1, {})
        except OSError as error:
            raise storage_error(error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _broken(self._path, str(error)) from error
        if content.version != 1:
            raise _broken(self._path, f"version {content.version}, and 1 is known")
        self._jobs = content.jobs

    def used_bytes(self, present_uuids_by_job: Mapping[str, Collection[UUID]]) -> int:
        """Return what counts of the quota while these backups are there: by job, the UUIDs of their own.

        A backup that the ledger does not know counts nothing. What is deleted goes from the ledger at
        the next `add`.
        """
        jobs = {
            job: list(_remaining(lines, present_uuids_by_job.get(job, ())))
            for job, lines in self._jobs.items()
        }
        self._jobs = {job: lines for job, lines in jobs.items() if lines}
        return sum(line.data_bytes + line.inherited_bytes for lines in self._jobs.values() for line in lines)

    def add(self, job: str, uuid: UUID, data_bytes: int, is_full: bool) -> None:
        """Write down a backup that was just committed, durably. Raises StorageError."""
        lines = [line for line in self._jobs.get(job, ()) if line.uuid != uuid]
        jobs = {**self._jobs, job: [*lines, _Line(uuid, data_bytes, is_full)]}
        for aside in self._path.parent.glob(f".{NAME}.*"):
            # One that was being written when something died.
            aside.unlink(missing_ok=True)
        try:
            files.write_atomically(self._path, msgspec.json.encode(_Content(1, jobs)) + b"\n")
        except OSError as error:
            raise storage_error(error) from error
        self._jobs = jobs


def lock(directory: Path) -> Lock:
    """The time in which no other session of the client's run commits anything or adds to the ledger."""
    return Lock(directory / LOCK_NAME, f"the ledger in {directory}", wait_s=LOCK_WAIT_S)


def _remaining(lines: Iterable[_Line], present: Collection[UUID]) -> Iterable[_Line]:
    """Yield the lines of what is present, the oldest of a chain with what its deleted full one wrote."""
    orphaned_bytes = 0
    for line in lines:
        if line.is_full:
            # A new chain: nothing of the one before lives on in it.
            orphaned_bytes = 0
        inherited_bytes = orphaned_bytes + line.inherited_bytes
        if line.uuid in present:
            yield _Line(line.uuid, line.data_bytes, line.is_full, inherited_bytes)
            orphaned_bytes = 0
        else:
            orphaned_bytes = line.data_bytes if line.is_full else inherited_bytes


def _broken(path: Path, problem: str) -> StorageError:
    return StorageError(
        f"{path} is no ledger of backups: {problem}",
        hint="move it away: what is there already then counts nothing against the quota",
    )
