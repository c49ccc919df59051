"""A job's source: its subvolume and the snapshots of it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING
from uuid import UUID

from btrsync.errors import LockedError, RefusedError, StorageError
from btrsync.plan.names import is_passing_name
from btrsync.plan.snapshots import Snapshot, SourceInventory, source_inventory
from btrsync.system import btrfs
from btrsync.system.lock import directory_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from btrsync.plan.parent import Transfer
    from btrsync.plan.snapshots import Subvolume
    from btrsync.plan.stream_choice import StreamChoice


NO_UUID = UUID(int=0)
"""That of the top level of an old filesystem; what is made from it names none."""


class Source:
    """The subvolume at `subvolume`, with its snapshots in the directory `snapshots`."""

    def __init__(self, subvolume: Path, snapshots: Path) -> None:
        self._subvolume = subvolume
        self._directory = snapshots
        self._passing: dict[str, Subvolume] = {}

    def inventory(self, *, is_synced: bool = True) -> SourceInventory:
        """Sync the filesystem, then return what is there; only then is a write in memory seen.

        is_synced: False leaves the sync out. Raises StorageError or RefusedError, which name what is wrong.
        """
        subvolume = btrfs.subvolume(self._subvolume)
        if subvolume.received_uuid is not None and (not subvolume.is_readonly or subvolume.was_edited):
            raise RefusedError(
                f"{self._subvolume} is or was writable and carries a received UUID: its snapshots would"
                " pretend to be what was once received",
                hint="mirror a writable snapshot of it instead: that drops the received UUID",
            )
        if not self._directory.is_dir():
            raise StorageError(
                f"{self._directory}, the directory for the snapshots, is not there",
                hint=f"mkdir {self._directory}",
            )
        if not btrfs.is_btrfs(self._directory) or btrfs.fsid(self._directory) != btrfs.fsid(self._subvolume):
            raise StorageError(
                f"{self._directory} is not on the filesystem of {self._subvolume},"
                " and a snapshot cannot leave that",
                hint="set `snapshots` to a directory on the same filesystem",
            )
        if is_synced:
            btrfs.sync_filesystem(self._subvolume)
            subvolume = btrfs.subvolume(self._subvolume)
        found = btrfs.subvolumes_in(self._directory)
        self._passing = {name: one for name, one in found.items() if is_passing_name(name)}
        return source_inventory(subvolume, found.items())

    def make_snapshot(self, name: str, *, origin: Subvolume) -> Snapshot:
        """Make a read-only snapshot `name` of the subvolume and put it on disk.

        origin: the subvolume as the inventory found it; where another one has taken its place since, which
        might carry a received UUID, no snapshot is kept. Raises StorageError, NoSpaceError.
        """
        path = self._directory / name
        btrfs.create_snapshot(self._subvolume, path)
        made = Snapshot(name, btrfs.subvolume(path))
        if (made.subvolume.parent_uuid or NO_UUID) != origin.uuid:
            self.delete_snapshot(made)
            raise StorageError(
                f"{self._subvolume} was replaced by another subvolume during the run",
                hint="run `btrsync sync` again",
            )
        return made

    @contextlib.contextmanager
    def passing_snapshot(self, origin: Subvolume) -> Iterator[Snapshot]:
        """A snapshot for as long as one looks at it; its name is one that no server takes.

        origin, and what is raised: as with `make_snapshot`.
        """
        made = self.make_snapshot(f".dry-run-{os.urandom(8).hex()}", origin=origin)
        try:
            # Whoever finds it unlocked knows that we are dead.
            with directory_lock(self._directory / made.name, f"{made.name} is in use", is_shared=False):
                yield made
        finally:
            self.delete_snapshot(made)

    def sweep(self, origin: Subvolume) -> list[str]:
        """Delete what the inventory found and a killed dry run has left, and return the names.

        origin: the subvolume as the inventory found it: only read-only snapshots of that, never received, can
        be ours, and none that is locked. Raises StorageError.
        """
        deleted = []
        for name, found in self._passing.items():
            if not found.is_readonly or found.received_uuid or (found.parent_uuid or NO_UUID) != origin.uuid:
                continue
            with (
                contextlib.suppress(LockedError, FileNotFoundError),
                directory_lock(self._directory / name, f"{name} is in use", is_shared=False),
            ):
                self.delete_snapshot(Snapshot(name, found))
                deleted.append(name)
        return deleted

    def names(self) -> set[str]:
        """Return every name in the snapshot directory, whatever it belongs to."""
        return {path.name for path in self._directory.iterdir()}

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Delete `snapshot`, if its path still names the same subvolume."""
        path = self._directory / snapshot.name
        if btrfs.subvolume(path).uuid != snapshot.subvolume.uuid:
            raise StorageError(f"{path} is no longer the snapshot that this run made; it was left alone")
        btrfs.delete_subvolume(path)

    def send_argv(self, snapshot: Snapshot, plan: Transfer, choice: StreamChoice) -> list[str]:
        """Return the `btrfs send` of `snapshot`, from the send parent and clone sources of `plan`."""
        return self._argv(snapshot, plan, choice.stream_version, is_compressed=choice.is_compressed)

    def counting_argv(self, snapshot: Snapshot, plan: Transfer) -> list[str]:
        """Return the `btrfs send` with sizes in place of data, of which `TotalsCounter` makes the totals."""
        version = min(2, btrfs.send_protocol())
        return self._argv(snapshot, plan, version, is_without_data=True)

    def used_bytes(self) -> int:
        """Return what the filesystem of the subvolume holds: no snapshot has more, but for compression."""
        found = os.statvfs(self._subvolume)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _argv(
        self,
        snapshot: Snapshot,
        plan: Transfer,
        stream_version: int,
        *,
        is_compressed: bool = False,
        is_without_data: bool = False,
    ) -> list[str]:
        return btrfs.send_argv(
            self._directory / snapshot.name,
            send_parent=self._directory / plan.send_parent.snapshot.name if plan.send_parent else None,
            clone_sources=[self._directory / common.snapshot.name for common in plan.clone_sources],
            stream_version=stream_version,
            is_compressed=is_compressed,
            is_without_data=is_without_data,
        )
