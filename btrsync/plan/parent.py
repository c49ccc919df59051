"""Which snapshot to send, from which send parent, or the conflict that forbids it.

*Common* is a snapshot that both sides hold, told by UUID. `btrfs receive` looks for the announced
UUID among received_uuids and, if several subvolumes carry it, takes the oldest silently, so a common
snapshot may be a send parent only while its received_uuid is carried once on the whole target
filesystem. Source: subvol_uuid_search(), btrfs-progs common/send-utils.c; measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from uuid import UUID

import msgspec

from btrsync.plan.names import is_valid_name, printable_name
from btrsync.plan.snapshots import Backup, Snapshot

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from btrsync.plan.snapshots import SourceInventory


class Common(msgspec.Struct, frozen=True):
    """A snapshot and the backup that holds it."""

    snapshot: Snapshot
    backup: Backup


class Transfer(msgspec.Struct, frozen=True):
    """A snapshot to be sent; full without a send parent. `snapshot` is None: one is made first."""

    snapshot: Snapshot | None
    send_parent: Common | None
    clone_sources: tuple[Common, ...] = ()

    @property
    def kind(self) -> Literal["full", "incremental"]:
        return "incremental" if self.send_parent else "full"


class UpToDate(msgspec.Struct, frozen=True):
    """The target holds the latest snapshot, and the source has not changed since."""

    latest_common: Common


class NoCommonSnapshot(msgspec.Struct, frozen=True):
    """Both sides hold something, and nothing in common."""

    job: str
    target: str
    snapshots: tuple[str, ...]
    backups: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"job {self.job}: {self.target} holds {_names(self.backups)}, the source holds"
            f" {_names(self.snapshots)}, and no snapshot is common to both by UUID"
        )

    @property
    def remedy(self) -> str:
        return "send everything again with `btrsync sync --full`, or bring a common snapshot back"


class AmbiguousParent(msgspec.Struct, frozen=True):
    """Several subvolumes of the target filesystem carry the received_uuid of every common snapshot."""

    job: str
    target: str
    backup: str
    received_uuid: UUID
    copies: int

    def __str__(self) -> str:
        return (
            f"job {self.job}: {self.copies} subvolumes on {self.target} carry the received UUID"
            f" {self.received_uuid} of {self.backup}; btrfs receive would take the oldest silently"
            " and files could be missing"
        )

    @property
    def remedy(self) -> str:
        return (
            "find them with `btrfs subvolume list -R` on the server and delete all but one,"
            " or send everything again with `btrsync sync --full`"
        )


class WritableParent(msgspec.Struct, frozen=True):
    """The only common backups were flipped writable: what they hold is no longer what was sent."""

    job: str
    target: str
    backup: str

    def __str__(self) -> str:
        return (
            f"job {self.job}: the backup {self.backup} on {self.target} is writable, so it may have changed"
        )

    @property
    def remedy(self) -> str:
        return "delete that backup on the server, or send everything again with `btrsync sync --full`"


class EditedParent(msgspec.Struct, frozen=True):
    """The only common snapshots were flipped writable and edited on the source after they were sent."""

    job: str
    target: str
    snapshot: str

    def __str__(self) -> str:
        return (
            f"job {self.job}: the snapshot {printable_name(self.snapshot)} was edited after it was sent to"
            f" {self.target}, so it is no longer what is there"
        )

    @property
    def remedy(self) -> str:
        return "send everything again with `btrsync sync --full`"


class EditedBackup(msgspec.Struct, frozen=True):
    """The backups of the common snapshots were made writable, written and made read-only again."""

    job: str
    target: str
    backup: str

    def __str__(self) -> str:
        return (
            f"job {self.job}: the backup {self.backup} was edited on {self.target} after it was received,"
            " so it is no longer what was sent"
        )

    @property
    def remedy(self) -> str:
        return "send everything again with `btrsync sync --full`"


Conflict = NoCommonSnapshot | AmbiguousParent | WritableParent | EditedParent | EditedBackup


def common_snapshots(source: SourceInventory, backups: Sequence[Backup]) -> tuple[Common, ...]:
    """Return all snapshots that both sides hold, by UUID, relatives first, then oldest first.

    received_uuid first: a source that was itself received announces that one
    (send_subvol_begin(), fs/btrfs/send.c).
    """
    by_uuid: dict[UUID, Backup] = {}
    for backup in backups:
        if backup.received_uuid is not None:
            by_uuid.setdefault(backup.received_uuid, backup)
    return tuple(
        Common(snapshot, by_uuid[snapshot.announced_uuid])
        for snapshot in (*source.relatives, *source.snapshots)
        if snapshot.announced_uuid in by_uuid
    )


def is_proven(common: Common) -> bool:
    """Tell whether `common` may be a send parent or clone source.

    Its backup must be unique there, and both must still be what was sent.
    """
    return common.backup.copies == 1 and _is_intact(common)


def _is_intact(common: Common) -> bool:
    return (
        common.backup.is_readonly
        and not common.backup.was_edited
        and not common.snapshot.subvolume.was_edited
    )


def pinned_snapshots(commons_per_target: Sequence[Sequence[Common]]) -> frozenset[UUID]:
    """Return the UUIDs of the snapshots never to be deleted: each target's latest common one."""
    return frozenset(commons[-1].snapshot.subvolume.uuid for commons in commons_per_target if commons)


def has_changed(source: SourceInventory) -> bool:
    """Tell whether the subvolume was written after its latest snapshot.

    The filesystem must have been synced just before the inventory was read: writes still in memory
    do not move the generation. A snapshot records the transaction that made it (otransid), and its
    subvolume takes that generation too. Source: measured; create_pending_snapshot(),
    fs/btrfs/transaction.c.
    """
    return source.latest is None or source.subvolume.generation > source.latest.subvolume.otransid


def plan_transfer(
    source: SourceInventory,
    backups: Sequence[Backup],
    *,
    job: str,
    target: str,
    clone_source_limit: int = 0,
    is_full: bool = False,
    is_forced: bool = False,
) -> Transfer | UpToDate | Conflict:
    """Decide what one job sends to one target.

    clone_source_limit: how many common snapshots besides the send parent may be named as clone
    sources; is_full: send without a parent whatever is common; is_forced: send a new snapshot
    though nothing changed. A Transfer without a snapshot asks for a new one.
    """
    commons = common_snapshots(source, backups)
    latest = source.latest
    candidate = None if is_forced or has_changed(source) else latest
    held = {common.snapshot.subvolume.uuid: common for common in commons}
    if candidate is not None and not is_full:
        present = held.get(candidate.subvolume.uuid)
        if present is not None and _is_intact(present):
            return UpToDate(present)
    if candidate is not None and not _is_sendable(candidate, held, backups):
        candidate = None
    if is_full or not backups:
        return Transfer(candidate, None)
    proven = [common for common in commons if is_proven(common)]
    if not proven:
        return _conflict(source, backups, commons, job, target)
    send_parent = proven[-1]
    others = tuple(proven[-2 : -2 - clone_source_limit : -1]) if clone_source_limit else ()
    return Transfer(candidate, send_parent, others)


def _is_sendable(candidate: Snapshot, held: Container[UUID], backups: Sequence[Backup]) -> bool:
    # A second backup of one snapshot would be ambiguous, a name is given once, not every name is allowed on
    # a server, and an edited snapshot is not what the subvolume is: make a new one.
    return (
        candidate.subvolume.uuid not in held
        and not candidate.subvolume.was_edited
        and is_valid_name(candidate.name)
        and all(backup.name != candidate.name for backup in backups)
    )


def _conflict(
    source: SourceInventory,
    backups: Sequence[Backup],
    commons: Sequence[Common],
    job: str,
    target: str,
) -> Conflict:
    for common in reversed(commons):
        if common.backup.copies > 1 and common.backup.received_uuid is not None:
            return AmbiguousParent(
                job, target, common.backup.name, common.backup.received_uuid, common.backup.copies
            )
    for common in reversed(commons):
        if not common.backup.is_readonly:
            return WritableParent(job, target, common.backup.name)
    for common in reversed(commons):
        if common.backup.was_edited:
            return EditedBackup(job, target, common.backup.name)
    if commons:
        return EditedParent(job, target, commons[-1].snapshot.name)
    return NoCommonSnapshot(
        job, target,
        tuple(snapshot.name for snapshot in (*source.relatives, *source.snapshots)),
        tuple(backup.name for backup in backups),
    )  # fmt: skip


def _names(names: Sequence[str]) -> str:
    if not names:
        return "no snapshot"
    shown = ", ".join(map(printable_name, names[-3:]))
    return f"{len(names)} ({'…, ' if len(names) > 3 else ''}{shown})"
