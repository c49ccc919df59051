"""What both sides of the jobs hold, for `list` and `status`; looks only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from btrsync.connections import Connections
from btrsync.errors import BtrsyncError
from btrsync.plan.names import printable_name
from btrsync.plan.parent import common_snapshots
from btrsync.report import JobSurvey, NullReporter, SnapshotRow
from btrsync.selection import choose_pairs
from btrsync.source import Source

if TYPE_CHECKING:
    from btrsync.config import ClientConfig
    from btrsync.plan.parent import Common
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory


def survey(
    config: ClientConfig, jobs: tuple[str, ...] = (), targets: tuple[str, ...] = ()
) -> tuple[JobSurvey, ...]:
    """Look at both sides of the chosen jobs and return what they hold; nothing is changed."""
    pairs = choose_pairs(config, jobs, targets)
    surveys = []
    with Connections(
        config,
        list(dict.fromkeys(pair.target for pair in pairs)),
        "",
        is_look_only=True,
        report=NullReporter(),
    ) as connections:
        for pair in pairs:
            job = config.jobs[pair.job]
            try:
                source = Source(job.subvolume, job.snapshots).inventory(is_synced=False)
                backups = connections.open(pair.target).backups.get(pair.job, ())
            except BtrsyncError as error:
                surveys.append(JobSurvey(job=pair.job, target=pair.target, error=str(error)))
            else:
                surveys.append(JobSurvey(job=pair.job, target=pair.target, snapshots=_rows(source, backups)))
    return tuple(surveys)


def _rows(source: SourceInventory, backups: tuple[Backup, ...]) -> tuple[SnapshotRow, ...]:
    commons = common_snapshots(source, backups)
    held: dict[object, Common] = {common.snapshot.subvolume.uuid: common for common in commons}
    held_backups = {common.backup.uuid for common in commons}
    latest = commons[-1].snapshot.subvolume.uuid if commons else None
    rows = [
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
        rows.append(
            SnapshotRow(
                name=printable_name(snapshot.name),
                uuid=snapshot.subvolume.uuid,
                created=snapshot.subvolume.created,
                where="both" if common else "source",
                is_latest_common=snapshot.subvolume.uuid == latest,
                is_readonly=common.backup.is_readonly if common else True,
                remark=_remark(common.backup, snapshot) if common else "",
            )
        )
    return tuple(sorted(rows, key=lambda row: row.created.timestamp() if row.created else 0.0))


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
