"""How near each snapshot is to what the subvolume is now: the nearest makes the smallest incremental send.

A subvolume's *line* is what it has been: itself, what it was made from, and so on. The kernel writes down
parent_uuid and the transaction (otransid) in which a subvolume was made; a snapshot is a state on the
line if its parent is, and it was made before the line left that parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from btrsync.plan.snapshots import Snapshot, Subvolume

Relation = Literal["own", "ancestor", "relative"]
FOREVER = 1 << 64
"""After every transaction."""
OFF_THE_LINE = 1 << 64
"""Farther than every step back."""


class Place(NamedTuple):
    """Where a snapshot stands; the greatest is the nearest.

    steps: 0 for the subvolume's own snapshots, -1 for what it was made from, and so on; transid: up to
    which its content has come in there.
    """

    steps: int
    transid: int

    @property
    def relation(self) -> Relation:
        """An ancestor is a state that the subvolume has been through; a relative is not known to be one."""
        if self.steps == -OFF_THE_LINE:
            return "relative"
        return "ancestor" if self.steps else "own"


def places(subvolume: Subvolume, snapshots: Iterable[Snapshot]) -> dict[UUID, Place]:
    """Return the place of each of the (read-only) snapshots by its UUID."""
    known = {snapshot.subvolume.uuid: snapshot.subvolume for snapshot in snapshots}
    line = _line(subvolume, known)
    return {uuid: _place(found, line, known) for uuid, found in known.items()}


def _line(subvolume: Subvolume, known: dict[UUID, Subvolume]) -> dict[UUID, Place]:
    """Return what the subvolume has been, as far as it is known, and up to which transaction it was that."""
    line = {subvolume.uuid: Place(0, FOREVER)}
    at: Subvolume | None = subvolume
    while at is not None and at.parent_uuid is not None and at.parent_uuid not in line:
        line[at.parent_uuid] = Place(-len(line), at.otransid)
        at = known.get(at.parent_uuid)
    return line


def _place(found: Subvolume, line: dict[UUID, Place], known: dict[UUID, Subvolume]) -> Place:
    at = found
    for _ in known:
        if at.uuid in line:
            return Place(line[at.uuid].steps, FOREVER)
        # A snapshot of a read-only one holds what that one holds.
        above = known.get(at.parent_uuid) if at.parent_uuid else None
        if above is None:
            break
        at = above
    on_line = line.get(at.parent_uuid) if at.parent_uuid else None
    if on_line is not None and at.otransid <= on_line.transid:
        return Place(on_line.steps, at.otransid)
    return Place(-OFF_THE_LINE, at.otransid)
