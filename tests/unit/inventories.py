"""Short-hand for inventories in tests: subvolumes, snapshots and backups by number."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory, Subvolume

SUBVOLUME_UUID = UUID(int=1)


def subvolume(
    number: int,
    *,
    otransid: int | None = None,
    generation: int | None = None,
    received_uuid: UUID | None = None,
    parent_uuid: UUID | None = SUBVOLUME_UUID,
    is_readonly: bool = True,
) -> Subvolume:
    """Return a subvolume whose UUID, id and transaction follow from `number`."""
    transid = number if otransid is None else otransid
    return Subvolume(
        id=256 + number,
        uuid=UUID(int=number),
        parent_uuid=parent_uuid,
        received_uuid=received_uuid,
        ctransid=transid,
        otransid=transid,
        stransid=0,
        generation=transid if generation is None else generation,
        is_readonly=is_readonly,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


def source(*numbers: int, generation: int | None = None) -> SourceInventory:
    """Return a source with these snapshots, oldest first; unchanged since the last unless told."""
    latest = max(numbers, default=10)
    live = subvolume(
        1, generation=latest if generation is None else generation, parent_uuid=None, is_readonly=False
    )
    return SourceInventory(live, tuple(Snapshot(f"s{number}", subvolume(number)) for number in numbers))


def backup(
    number: int,
    *,
    name: str = "",
    is_readonly: bool = True,
    copies: int = 1,
    received_uuid: UUID | None = None,
) -> Backup:
    """Return the backup of snapshot `number`."""
    return Backup(
        name or f"s{number}",
        UUID(int=1000 + number),
        UUID(int=number) if received_uuid is None else received_uuid,
        500 + number,
        is_readonly,
        datetime(2026, 1, 1, tzinfo=UTC),
        copies,
    )
