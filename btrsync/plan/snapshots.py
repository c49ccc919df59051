"""The values that a side's inventory is made of.

A *subvolume* is what the kernel knows under a UUID. A *snapshot* is a read-only one on the source, a
*backup* a committed read-only one on a target. Which backup holds which snapshot is told by UUID
alone, never by a name.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from btrsync.plan.lineage import places
from btrsync.plan.names import is_passing_name, is_staging_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from btrsync.plan.lineage import Place


EPOCH = datetime.fromtimestamp(0, UTC)
RECEIVE_SETTLES = timedelta(hours=1)
"""How long after a receive its last data may reach the disk; far more than the kernel keeps any in memory."""


class Subvolume(msgspec.Struct, frozen=True):
    """One root item of a btrfs filesystem; field names are the kernel's (struct btrfs_root_item)."""

    id: int
    uuid: UUID
    parent_uuid: UUID | None
    received_uuid: UUID | None
    ctransid: int
    otransid: int
    stransid: int
    generation: int
    is_readonly: bool
    created: datetime
    rtransid: int = 0
    ctime: datetime = EPOCH
    rtime: datetime = EPOCH

    @property
    def was_edited(self) -> bool:
        """Whether a snapshot was flipped writable and written since it was made, flipped back or not.

        A snapshot's ctransid is its otransid until something in it changes. One that was received may
        get its last data after its rtransid, without a change: there only the time tells. btrfs-progs
        takes the received UUID of what it flips away, but others do not. Source: measured.
        """
        if self.received_uuid is None:
            return self.ctransid > self.otransid
        return self.ctransid > self.rtransid and self.ctime - self.rtime > RECEIVE_SETTLES

    @property
    def announced_uuid(self) -> UUID:
        """The UUID that `btrfs send` announces: received_uuid where there is one.

        Source: send_subvol_begin(), fs/btrfs/send.c.
        """
        return self.received_uuid or self.uuid


class Snapshot(msgspec.Struct, frozen=True):
    """A read-only subvolume of the source under its name in the snapshot directory."""

    name: str
    subvolume: Subvolume

    @property
    def announced_uuid(self) -> UUID:
        return self.subvolume.announced_uuid


class Backup(msgspec.Struct, frozen=True):
    """A committed subvolume on a target; `copies` counts who carries its received_uuid there."""

    name: str
    uuid: UUID
    received_uuid: UUID | None
    generation: int
    is_readonly: bool
    created: datetime
    copies: int = 1
    was_edited: bool = False


class SourceInventory(msgspec.Struct, frozen=True):
    """A job's subvolume and all its snapshots, oldest first by the transaction that made them.

    `relatives` are the other read-only subvolumes of the snapshot directory: after a rollback the
    earlier snapshots are those of the subvolume that was replaced.
    """

    subvolume: Subvolume
    snapshots: tuple[Snapshot, ...]
    relatives: tuple[Snapshot, ...] = ()

    @property
    def latest(self) -> Snapshot | None:
        return self.snapshots[-1] if self.snapshots else None

    @property
    def by_nearness(self) -> tuple[Snapshot, ...]:
        """All snapshots; the last one is nearest to what the subvolume is now."""
        found = (*self.relatives, *self.snapshots)
        where = places(self.subvolume, found)

        def nearness(one: Snapshot) -> tuple[Place, int, int]:
            return where[one.subvolume.uuid], one.subvolume.otransid, one.subvolume.id

        return tuple(sorted(found, key=nearness))


def source_inventory(subvolume: Subvolume, named: Iterable[tuple[str, Subvolume]]) -> SourceInventory:
    """Return the inventory of `subvolume` from all subvolumes found in its snapshot directory.

    Order is that of creation: otransid, a transaction number, does not depend on the clock.
    """
    # What a fetch has begun carries the received UUID of a whole snapshot, and is none; what a dry run has
    # made may be gone at any moment.
    found = [
        Snapshot(name, item)
        for name, item in named
        if item.is_readonly and not is_staging_name(name) and not is_passing_name(name)
    ]
    found.sort(key=lambda snapshot: (snapshot.subvolume.otransid, snapshot.subvolume.id))
    own = tuple(item for item in found if item.subvolume.parent_uuid == subvolume.uuid)
    others = tuple(item for item in found if item.subvolume.parent_uuid != subvolume.uuid)
    return SourceInventory(subvolume, own, others)
