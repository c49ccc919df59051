"""Which backup is fetched, and from which snapshot here it can start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from btrsync.errors import RefusedError
from btrsync.plan.names import is_staging_name, is_valid_name, printable_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from btrsync.plan.snapshots import Backup, Subvolume

CLONES_FROM_ORIGINAL = (6, 10, 1)
"""Of btrfs-progs: older ones find the source of a clone by its received UUID only (28eb473c)."""
VERSION = re.compile(r"v?(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?")


class Parent(NamedTuple):
    """A snapshot here that holds what a backup holds; `is_original`: it was never received, but sent."""

    name: str
    uuid: UUID
    is_original: bool


class FetchPlan(NamedTuple):
    """A backup to fetch, full without a send parent; proven: what could be one, by announced UUID."""

    backup: Backup
    send_parent: Parent | None
    proven: Mapping[UUID, Parent]


class Present(NamedTuple):
    """The backup is here already, as the snapshot `name`."""

    backup: Backup
    name: str


def plan_fetch(
    backups: Sequence[Backup],
    own: Mapping[str, Subvolume],
    received: Mapping[UUID, Sequence[str]],
    *,
    job: str,
    target: str,
    name: str | None,
) -> FetchPlan | Present:
    """Decide what is fetched.

    backups: of the job at the target, oldest first; own: the subvolumes of the directory that it goes to, by
    name, none of them staging; received: the paths of all subvolumes of that whole filesystem that carry a
    received UUID, but for the staging ones of the directory; name: of the backup, None for the latest. Raises
    RefusedError.
    """
    intact = [backup for backup in backups if _is_intact(backup)]
    backup = _chosen(backups, intact, job, target, name)
    held = _held(own)
    uuid = backup.received_uuid
    assert uuid is not None, "it is intact"
    if uuid in held:
        return Present(backup, held[uuid].name)
    if paths := received.get(uuid):
        raise _received_elsewhere(backup.name, paths)
    there = {one.received_uuid for one in intact}
    proven = {
        parent: held[parent]
        for parent in held
        if parent in there and len(received.get(parent, ())) == (0 if held[parent].is_original else 1)
    }
    at = intact.index(backup)
    by_nearness = [*reversed(intact[:at]), *intact[at + 1 :]]
    parents = (proven.get(one.received_uuid) for one in by_nearness if one.received_uuid)
    return FetchPlan(backup, next(filter(None, parents), None), proven)


def can_clone_from_original(progs_version: str) -> bool:
    """Tell whether `btrfs receive` of that version clones from a send parent that was never received."""
    found = VERSION.match(progs_version.strip())
    if found is None:
        return False
    return (int(found[1]), int(found[2]), int(found[3] or 0)) >= CLONES_FROM_ORIGINAL


def _chosen(
    backups: Sequence[Backup], intact: Sequence[Backup], job: str, target: str, name: str | None
) -> Backup:
    if name is None:
        if not intact:
            raise RefusedError(f"{target} holds no backup of job {job}")
        return intact[-1]
    found = next((backup for backup in backups if backup.name == name), None)
    if found is None:
        raise RefusedError(
            f"{target} holds no backup {name} of job {job}",
            hint=f"`btrsync list {job}` shows which there are",
        )
    if found not in intact:
        raise RefusedError(
            f"{name} on {target} is writable, was edited or was never received: it is no backup"
        )
    return found


def _received_elsewhere(name: str, paths: Sequence[str]) -> RefusedError:
    shown = ", ".join(printable_name(path) for path in paths)
    if all(is_staging_name(path.rpartition("/")[2]) for path in paths):
        return RefusedError(
            f"a transfer of {name} that was cut has left a part of it elsewhere on this filesystem,"
            f" as {shown}: a second one would be taken for it",
            hint="let that one go on (for a fetch, name its directory with --to), or delete the part with"
            " `btrfs subvolume delete`",
        )
    return RefusedError(
        f"{name} was received elsewhere on this filesystem already, as {shown}:"
        " a second one would make both useless as parents",
        hint="use that one (its path is from the top level of the filesystem), or delete it",
    )


def _is_intact(backup: Backup) -> bool:
    is_whole = backup.received_uuid is not None and backup.is_readonly and not backup.was_edited
    return is_whole and is_valid_name(backup.name)


def _held(own: Mapping[str, Subvolume]) -> dict[UUID, Parent]:
    """Return the intact snapshots here by announced UUID; of two, that which `btrfs receive` takes."""
    held: dict[UUID, Parent] = {}
    for name, found in own.items():
        if found.is_readonly and not found.was_edited:
            is_original = found.received_uuid is None
            if not is_original or found.uuid not in held:
                held[found.announced_uuid] = Parent(name, found.announced_uuid, is_original)
    return held
