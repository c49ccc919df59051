"""What both sides of the jobs hold, for `list`, `status` and `sync --explain`; looks only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from btrsync.connections import Connections
from btrsync.errors import BtrsyncError
from btrsync.plan.names import printable_name
from btrsync.plan.parent import common_snapshots, pinned_snapshots
from btrsync.report import JobSurvey, NullReporter, PartialRow, SnapshotRow
from btrsync.selection import choose_pairs
from btrsync.source import Source
from btrsync.system import btrfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from btrsync.config import ClientConfig
    from btrsync.plan.explain import Explanation
    from btrsync.plan.parent import Common
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory
    from btrsync.protocol import PartialEntry


class Look(NamedTuple):
    """What both sides of a job at a target hold."""

    job: str
    target: str
    source: SourceInventory
    backups: tuple[Backup, ...]
    partials: tuple[PartialEntry, ...]


class Unseen(NamedTuple):
    """A job at a target that could not be looked at."""

    job: str
    target: str
    error: BtrsyncError


def survey(
    config: ClientConfig, jobs: tuple[str, ...] = (), targets: tuple[str, ...] = ()
) -> tuple[JobSurvey, ...]:
    """Look at both sides of the chosen jobs and return what they hold; nothing is changed."""
    return tuple(
        JobSurvey(job=look.job, target=look.target, error=str(look.error))
        if isinstance(look, Unseen)
        else JobSurvey(
            job=look.job,
            target=look.target,
            snapshots=rows(look.source, look.backups),
            partials=partial_rows(look),
        )
        for look in _looks(config, jobs, targets, is_synced=False)
    )


def explanations(
    config: ClientConfig, jobs: tuple[str, ...], targets: tuple[str, ...], *, is_full: bool, is_forced: bool
) -> tuple[Explanation | Unseen, ...]:
    """Tell of the chosen jobs what a run would do and why. Nothing is changed; the source is synced.

    is_full, is_forced: as a run would be asked.
    """
    from btrsync.plan.explain import explain

    return tuple(
        look
        if isinstance(look, Unseen)
        else explain(
            look.source, look.backups, look.partials,
            job=look.job, target=look.target,
            clone_source_limit=config.jobs[look.job].clone_sources, is_full=is_full, is_forced=is_forced,
            compressed=config.targets[look.target].compressed, send_protocol=btrfs.send_protocol(),
        )
        for look in _looks(config, jobs, targets, is_synced=True)
    )  # fmt: skip


def _looks(
    config: ClientConfig, jobs: tuple[str, ...], targets: tuple[str, ...], *, is_synced: bool
) -> Iterator[Look | Unseen]:
    pairs = choose_pairs(config, jobs, targets)
    chosen = list(dict.fromkeys(pair.target for pair in pairs))
    with Connections(config, chosen, "", is_look_only=True, report=NullReporter()) as connections:
        for job, target in pairs:
            try:
                source = Source(config.jobs[job].subvolume, config.jobs[job].snapshots)
                found = source.inventory(is_synced=is_synced)
                remote = connections.open(target)
            except BtrsyncError as error:
                yield Unseen(job, target, error)
            else:
                yield Look(job, target, found, remote.backups.get(job, ()), remote.partials.get(job, ()))


def rows(source: SourceInventory, backups: tuple[Backup, ...]) -> tuple[SnapshotRow, ...]:
    """Return the snapshots and backups of a job, oldest first; one that both sides hold is one row."""
    commons = common_snapshots(source, backups)
    held: dict[object, Common] = {common.snapshot.subvolume.uuid: common for common in commons}
    held_backups = {common.backup.uuid for common in commons}
    pinned = pinned_snapshots([commons])
    found = [
        SnapshotRow(
            name=backup.name,
            uuid=backup.uuid,
            created=backup.created,
            where="target",
            is_readonly=backup.is_readonly,
            remark=_remark(backup),
        )
        for backup in backups
        if backup.uuid not in held_backups
    ]
    sent_relatives = [relative for relative in source.relatives if relative.subvolume.uuid in held]
    for snapshot in (*sent_relatives, *source.snapshots):
        common = held.get(snapshot.subvolume.uuid)
        found.append(
            SnapshotRow(
                name=printable_name(snapshot.name),
                uuid=snapshot.subvolume.uuid,
                created=snapshot.subvolume.created,
                where="both" if common else "source",
                is_latest_common=snapshot.subvolume.uuid in pinned,
                is_readonly=common.backup.is_readonly if common else True,
                remark=_remark(common.backup, snapshot) if common else "",
            )
        )
    return tuple(sorted(found, key=lambda row: row.created.timestamp() if row.created else 0.0))


def partial_rows(look: Look) -> tuple[PartialRow, ...]:
    """Return what the target holds of cut transfers, by the names that their snapshots have here now."""
    names = {snapshot.announced_uuid: snapshot.name for snapshot in look.source.by_nearness}
    return tuple(
        PartialRow(
            snapshot=printable_name(names.get(partial.uuid, partial.name)),
            uuid=partial.uuid,
            data_bytes=partial.data_bytes,
            total_bytes=partial.total_bytes,
            percent=_percent(partial),
            made=partial.made,
        )
        for partial in look.partials
    )


def _percent(partial: PartialEntry) -> int | None:
    if partial.total_bytes is None:
        return None
    return min(100, 100 * partial.data_bytes // partial.total_bytes) if partial.total_bytes else 100


def _remark(backup: Backup, snapshot: Snapshot | None = None) -> str:
    remarks = []
    if snapshot is not None and backup.name != printable_name(snapshot.name):
        remarks.append(f"named {backup.name} on the target")
    if not backup.is_readonly:
        remarks.append("writable on the target")
    if backup.was_edited:
        remarks.append("edited on the target")
    if snapshot is not None and snapshot.subvolume.was_edited:
        remarks.append("edited here")
    if backup.copies > 1:
        remarks.append(f"{backup.copies} with its received UUID on the target")
    return ", ".join(remarks)
