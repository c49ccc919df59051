"""Which cut transfer goes on, and why another starts over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from btrsync.plan.names import is_valid_name, printable_name
from btrsync.plan.parent import Transfer, common_snapshots, find_flaws
from btrsync.plan.stream_choice import StreamChoice, why_not_again

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from btrsync.plan.parent import Common
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory


class Partial(Protocol):
    """What a target says of a cut transfer: `btrsync.protocol.PartialEntry`."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> UUID: ...
    @property
    def ctransid(self) -> int: ...
    @property
    def send_parent(self) -> UUID | None: ...
    @property
    def clone_sources(self) -> Sequence[UUID]: ...
    @property
    def stream_version(self) -> int: ...
    @property
    def is_compressed(self) -> bool: ...
    @property
    def offset_bytes(self) -> int: ...


AnyPartial = TypeVar("AnyPartial", bound=Partial)


class Resumption(NamedTuple, Generic[AnyPartial]):
    """A transfer, with its snapshot, that goes on from `partial`."""

    transfer: Transfer
    snapshot: Snapshot
    partial: AnyPartial


class ResumptionPlan(NamedTuple, Generic[AnyPartial]):
    """What goes on, if anything does; else a clause for each partial that is of no use, and why."""

    resumption: Resumption[AnyPartial] | None
    why_not: tuple[str, ...]


def plan_resumption(
    source: SourceInventory,
    backups: Sequence[Backup],
    partials: Sequence[AnyPartial],
    *,
    compressed: Literal["auto", "always", "never"],
    send_protocol: int,
    is_full: bool = False,
) -> ResumptionPlan[AnyPartial]:
    """Choose the partial to go on from: of the newest snapshot, the one that is farthest along.

    Its snapshot must be newer than all that the target holds, told by UUID and still what was being sent, its
    send parent and clone sources proven, and its stream one that is made again. What is older than the
    latest common snapshot is passed over without a word.
    """
    commons = common_snapshots(source, backups)
    proven = {common.snapshot.announced_uuid: common for common in commons if not find_flaws(common)}
    order = {snapshot.announced_uuid: place for place, snapshot in enumerate(source.by_nearness)}
    snapshots = {snapshot.announced_uuid: snapshot for snapshot in source.by_nearness}
    latest = max((order[common.snapshot.announced_uuid] for common in commons), default=-1)
    why_not = []
    for partial in sorted(
        partials, key=lambda one: (order.get(one.uuid, -1), one.offset_bytes), reverse=True
    ):
        snapshot = snapshots.get(partial.uuid)
        if snapshot is None:
            why_not.append(f"its snapshot {partial.name} is gone")
            continue
        if order[partial.uuid] <= latest:
            continue
        ancestors = [proven.get(uuid) for uuid in _ancestors(partial)]
        problem = _problem(snapshot, partial, backups, ancestors, is_full=is_full) or why_not_again(
            StreamChoice(partial.stream_version, partial.is_compressed), compressed, send_protocol
        )
        if problem is None:
            found = [ancestor for ancestor in ancestors if ancestor is not None]
            send_parent = found.pop(0) if partial.send_parent else None
            return ResumptionPlan(
                Resumption(Transfer(snapshot, send_parent, tuple(found)), snapshot, partial), ()
            )
        why_not.append(problem)
    return ResumptionPlan(None, tuple(why_not))


def _ancestors(partial: Partial) -> list[UUID]:
    return [*([partial.send_parent] if partial.send_parent else []), *partial.clone_sources]


def _problem(
    snapshot: Snapshot,
    partial: Partial,
    backups: Sequence[Backup],
    ancestors: Sequence[Common | None],
    *,
    is_full: bool,
) -> str | None:
    name = printable_name(snapshot.name)
    obstacles = (
        (
            snapshot.subvolume.was_edited or snapshot.subvolume.ctransid != partial.ctransid,
            f"its snapshot {name} was edited",
        ),
        (is_full and partial.send_parent is not None, "all is to be sent in full"),
        (None in ancestors, f"a snapshot from which {name} was being sent is not on both sides any more"),
        (not is_valid_name(snapshot.name), f"no server takes the name {name}"),
        (any(backup.name == snapshot.name for backup in backups), f"another backup is called {name} now"),
    )
    return next((why for is_met, why in obstacles if is_met), None)
