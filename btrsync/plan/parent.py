"""Which snapshot to send, from which send parent, or the conflict that forbids it.

*Common* is a snapshot that both sides hold, told by UUID. `btrfs receive` looks for the announced
UUID among received_uuids and, if several subvolumes carry it, takes the oldest silently, so a common
snapshot may be a send parent only while its received_uuid is carried once on the whole target
filesystem. Source: subvol_uuid_search(), btrfs-progs common/send-utils.c; measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import msgspec

from btrsync.plan.names import is_valid_name, printable_name
from btrsync.plan.snapshots import Backup, Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

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
        return FULL + ", or bring a common snapshot back"


Flaw = Literal["ambiguous", "writable", "edited_backup", "edited_snapshot"]
"""Why a common snapshot may be no send parent; the gravest first."""
FLAWS: tuple[Flaw, ...] = get_args(Flaw)
FULL = "send everything again with `btrsync sync --full`"
REMEDIES: dict[Flaw, str] = {
    "ambiguous": "find them with `btrfs subvolume list -R` on the server and delete all but one, or " + FULL,
    "writable": "delete that backup on the server, or " + FULL,
    "edited_backup": FULL,
    "edited_snapshot": FULL,
}


def find_flaws(common: Common) -> tuple[Flaw, ...]:
    """Return what forbids `common` as a send parent or clone source; nothing if it is *proven*.

    Its backup must be unique on the target's filesystem, and both must still be what was sent.
    """
    flaws: dict[Flaw, bool] = {
        "ambiguous": common.backup.copies != 1,
        "writable": not common.backup.is_readonly,
        "edited_backup": common.backup.was_edited,
        "edited_snapshot": common.snapshot.subvolume.was_edited,
    }
    return tuple(flaw for flaw in FLAWS if flaws[flaw])


def describe_flaw(flaw: Flaw, common: Common, target: str) -> str:
    """Return the flaw with its evidence, as a sentence without its end."""
    backup = common.backup
    if flaw == "ambiguous":
        return (
            f"{backup.copies} subvolumes on {target} carry the received UUID {backup.received_uuid} of"
            f" {backup.name}; btrfs receive would take the oldest silently and files could be missing"
        )
    if flaw == "writable":
        return f"the backup {backup.name} on {target} is writable, so it may have changed"
    if flaw == "edited_backup":
        return (
            f"the backup {backup.name} was edited on {target} after it was received,"
            " so it is no longer what was sent"
        )
    return (
        f"the snapshot {printable_name(common.snapshot.name)} was edited after it was sent to {target},"
        " so it is no longer what is there"
    )


class UnfitParent(msgspec.Struct, frozen=True):
    """No common snapshot may be a send parent: `common` is the nearest of those with the gravest flaw."""

    job: str
    target: str
    flaw: Flaw
    common: Common

    def __str__(self) -> str:
        return f"job {self.job}: {describe_flaw(self.flaw, self.common, self.target)}"

    @property
    def remedy(self) -> str:
        return REMEDIES[self.flaw]


Conflict = NoCommonSnapshot | UnfitParent


def common_snapshots(source: SourceInventory, backups: Sequence[Backup]) -> tuple[Common, ...]:
    """Return all snapshots that both sides hold, by UUID; the last one is nearest to what the subvolume is.

    received_uuid first: a source that was itself received announces that one
    (send_subvol_begin(), fs/btrfs/send.c).
    """
    by_uuid: dict[UUID, Backup] = {}
    for backup in backups:
        if backup.received_uuid is not None:
            by_uuid.setdefault(backup.received_uuid, backup)
    return tuple(
        Common(snapshot, by_uuid[snapshot.announced_uuid])
        for snapshot in source.by_nearness
        if snapshot.announced_uuid in by_uuid
    )


def _is_intact(common: Common) -> bool:
    return set(find_flaws(common)) <= {"ambiguous"}


def pinned_snapshots(commons_per_target: Sequence[Sequence[Common]]) -> frozenset[UUID]:
    """Return the UUIDs of the snapshots never to be deleted, of each target the one that a send starts from.

    Where none may be a send parent it is the nearest common one: what is wrong with it may be mended.
    """
    nearest = (
        next((common for common in reversed(commons) if not find_flaws(common)), commons[-1])
        for commons in commons_per_target
        if commons
    )
    return frozenset(common.snapshot.subvolume.uuid for common in nearest)


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
    held = {common.snapshot.subvolume.uuid: common for common in commons}
    present = held.get(latest.subvolume.uuid) if latest and not has_changed(source) else None
    if present is not None and _is_intact(present) and not is_full and not is_forced:
        return UpToDate(present)
    candidate = choose_snapshot(source, backups, commons, is_forced=is_forced).snapshot
    if is_full or not backups:
        return Transfer(candidate, None)
    proven = [common for common in commons if not find_flaws(common)]
    if not proven:
        return _conflict(source, backups, commons, job, target)
    others = tuple(proven[-2 : -2 - clone_source_limit : -1]) if clone_source_limit else ()
    return Transfer(candidate, proven[-1], others)


class Choice(NamedTuple):
    """The snapshot to send, None for a new one, and why."""

    snapshot: Snapshot | None
    why: str


def choose_snapshot(
    source: SourceInventory, backups: Sequence[Backup], commons: Sequence[Common], *, is_forced: bool = False
) -> Choice:
    """Return the latest snapshot, if it is what the subvolume is now and may be sent; else a new one is made.

    A second backup of one snapshot would be ambiguous, a name is given once, and not every name is allowed
    on a server.
    """
    latest = source.latest
    if latest is None:
        return Choice(None, "there is none of this subvolume yet")
    name = printable_name(latest.name)
    written, made = source.subvolume.generation, latest.subvolume.otransid
    held = {common.snapshot.subvolume.uuid: common.backup for common in commons}
    obstacles = (
        (is_forced, "a new one was asked for"),
        (has_changed(source), f"it was written in transaction {written}, after {name} was made in {made}"),
        (latest.subvolume.uuid in held, f"{name} is on the target already"),
        (latest.subvolume.was_edited, f"{name} was edited after it was made"),
        (not is_valid_name(latest.name), f"no server takes the name {name}"),
        (any(backup.name == latest.name for backup in backups), f"another backup is called {name}"),
    )
    for is_met, why in obstacles:
        if is_met:
            return Choice(None, why)
    return Choice(latest, "nothing was written after it was made, and the target does not have it")


def _conflict(
    source: SourceInventory,
    backups: Sequence[Backup],
    commons: Sequence[Common],
    job: str,
    target: str,
) -> Conflict:
    for flaw in FLAWS:
        for common in reversed(commons):
            if flaw in find_flaws(common):
                return UnfitParent(job, target, flaw, common)
    return NoCommonSnapshot(
        job, target,
        tuple(snapshot.name for snapshot in source.by_nearness),
        tuple(backup.name for backup in backups),
    )  # fmt: skip


def _names(names: Sequence[str]) -> str:
    if not names:
        return "no snapshot"
    shown = ", ".join(map(printable_name, names[-3:]))
    return f"{len(names)} ({'…, ' if len(names) > 3 else ''}{shown})"
