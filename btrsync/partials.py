"""Partials: what a cut transfer has left on disk, and the records that say what it is.

`.partial-<id>` is a read-only subvolume in the job's directory that a `btrfs receive` of its own has
finished; `.partial-<id>.json` beside it tells which stream it is the beginning of. Without a record a
partial is nothing: the record is written last, after all else is on disk.

A partial carries the received UUID of the backup that it is to become, and of two that carry one `btrfs
receive` takes the oldest silently. So a partial is never a parent, and none outlives its backup.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from btrsync.errors import StorageError
from btrsync.protocol import PartialEntry
from btrsync.system import btrfs, files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime, timedelta
    from pathlib import Path

    from btrsync.plan.snapshots import Subvolume

PREFIX = ".partial-"
SUFFIX = ".json"
RECORD = re.compile(r"\.?\.partial-[0-9a-f]{16}\.json(\.[0-9a-f]+)?\Z")
"""The name of a record, or of one that is being written."""
MAX_FAILURES = 2
"""After so many transfers that went on from a partial and that receive did not survive, it is given up, and
after as many for which there was no room and that did not go on from it."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `.partial-<id>.json` holds. partial_uuid: of the subvolume itself; failures: see MAX_FAILURES."""

    partial_uuid: UUID
    entry: PartialEntry
    failures: int = 0


class Partial(msgspec.Struct, frozen=True):
    """A partial in the job's directory under `name`, with its record."""

    name: str
    record: Record
    generation: int

    @property
    def entry(self) -> PartialEntry:
        return self.record.entry


def new_name() -> str:
    """Return a name for a partial that no other has."""
    return f"{PREFIX}{os.urandom(8).hex()}"


def found_in(directory: Path, subvolumes: Mapping[str, Subvolume]) -> list[Partial]:
    """Return the valid partials among a job's subvolumes, the newest last."""
    partials = []
    for name, found in sorted(subvolumes.items(), key=lambda item: item[1].id):
        record = _load(directory, name) if name.startswith(PREFIX) else None
        if record is not None and _is_described(found, record):
            partials.append(Partial(name, record, found.generation))
    return partials


def sweep(
    directory: Path, subvolumes: Mapping[str, Subvolume], *, now: datetime, ttl: timedelta
) -> list[str]:
    """Delete what is no partial worth keeping, and return the names.

    That is what no record describes, a record without its subvolume, a partial whose backup is there,
    all but the newest of one snapshot, and what is older than `ttl`. Raises StorageError.
    """
    backups = {found.received_uuid for name, found in subvolumes.items() if not name.startswith(".")}
    kept: dict[UUID, str] = {}
    for partial in found_in(directory, subvolumes):
        entry = partial.entry
        if entry.uuid not in backups and now - entry.made <= ttl and partial.record.failures < MAX_FAILURES:
            kept[entry.uuid] = partial.name
    deleted = []
    for name in subvolumes:
        if name.startswith(PREFIX) and name not in kept.values():
            delete(directory, name)
            deleted.append(name)
    for name in _records(directory):
        if name.removesuffix(SUFFIX) not in kept.values():
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()
    return deleted


def write(directory: Path, name: str, record: Record) -> None:
    """Write the record of the partial `name`, durably. Raises OSError."""
    files.write_atomically(directory / (name + SUFFIX), msgspec.json.encode(record) + b"\n")


def count_failure(directory: Path, partial: Partial) -> None:
    """Note that a transfer failed for `partial`: see MAX_FAILURES. Raises OSError."""
    record = partial.record
    write(directory, partial.name, msgspec.structs.replace(record, failures=record.failures + 1))


def delete(directory: Path, name: str) -> None:
    """Delete the partial `name` and its record. Raises StorageError."""
    try:
        (directory / (name + SUFFIX)).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{directory / (name + SUFFIX)} cannot be deleted: {error.strerror}") from error
    btrfs.delete_subvolume(directory / name)


def delete_all(directory: Path, partials: Iterable[Partial]) -> None:
    """Delete what can be deleted of `partials`; the sweep of the next connection sees to the rest."""
    for partial in partials:
        with contextlib.suppress(StorageError):
            delete(directory, partial.name)


def _load(directory: Path, name: str) -> Record | None:
    try:
        return msgspec.json.decode((directory / (name + SUFFIX)).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_described(found: Subvolume, record: Record) -> bool:
    entry = record.entry
    return (
        found.is_readonly
        and found.uuid == record.partial_uuid
        and found.received_uuid == entry.uuid
        and bool(entry.proofs)
        and not found.was_edited
    )


def _records(directory: Path) -> Collection[str]:
    """Return the names of records, those included that were being written when something died."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        return [
            item.name for item in found
            if RECORD.match(item.name) and item.is_file(follow_symlinks=False)
        ]  # fmt: skip
    return []
