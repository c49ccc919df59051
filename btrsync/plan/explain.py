"""Why a job would be sent as it would: every candidate for the send parent, its evidence, what became of it.

The decision is `plan_transfer`'s own, and what is said of a candidate comes from what that asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from uuid import UUID

import msgspec
from msgspec.structs import replace

from btrsync.plan.lineage import Relation, places
from btrsync.plan.names import printable_name
from btrsync.plan.parent import (
    Common,
    Flaw,
    Transfer,
    UpToDate,
    choose_snapshot,
    common_snapshots,
    describe_flaw,
    find_flaws,
    plan_transfer,
)
from btrsync.plan.resume import plan_resumption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from btrsync.plan.parent import Conflict
    from btrsync.plan.resume import Partial
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory

Decision = Literal["nothing_changed", "incremental", "full", "conflict"]
Verdict = Literal[
    "send_parent", "clone_source", "latest_common", "not_needed", "unfit", "source_only", "target_only"
]


class HereEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot on the source. transids are its filesystem's; relation: to what the subvolume is now."""

    name: str
    uuid: UUID
    announced_uuid: UUID
    relation: Relation
    otransid: int
    ctransid: int
    was_edited: bool


class ThereEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A backup on the target; copies: how many on the whole filesystem carry its received UUID."""

    name: str
    uuid: UUID
    received_uuid: UUID | None
    copies: int
    generation: int
    is_readonly: bool
    was_edited: bool


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, a backup, or the two that are one by UUID, and what became of it."""

    verdict: Verdict
    why: str
    flaws: tuple[Flaw, ...] = ()
    here: HereEvidence | None = None
    there: ThereEvidence | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would be sent, how and why; candidates: the nearest to what the subvolume is now first.

    snapshot: None for a new one; goes_on_from_bytes: offset in the stream at which a cut transfer goes on;
    unused_partials: why what was kept of others is of no use; remedy: of a conflict.
    """

    job: str
    target: str
    decision: Decision
    why: str
    snapshot: str | None = None
    send_parent: str | None = None
    clone_sources: tuple[str, ...] = ()
    goes_on_from_bytes: int | None = None
    unused_partials: tuple[str, ...] = ()
    remedy: str | None = None
    candidates: tuple[Candidate, ...] = ()


def explain(
    source: SourceInventory,
    backups: Sequence[Backup],
    partials: Sequence[Partial] = (),
    *,
    job: str,
    target: str,
    clone_source_limit: int = 0,
    is_full: bool = False,
    is_forced: bool = False,
    compressed: Literal["auto", "always", "never"] = "auto",
    send_protocol: int = 1,
) -> Explanation:
    """Decide as `plan_resumption` and `plan_transfer` do, and give the reasons; the arguments are theirs."""
    resumption, why_not = plan_resumption(
        source, backups, partials, compressed=compressed, send_protocol=send_protocol, is_full=is_full
    )
    plan = resumption.transfer if resumption else plan_transfer(
        source, backups, job=job, target=target,
        clone_source_limit=clone_source_limit, is_full=is_full, is_forced=is_forced,
    )  # fmt: skip
    commons = common_snapshots(source, backups)
    told = Explanation(
        job=job, target=target, decision="conflict", why=str(plan),
        unused_partials=why_not,
        candidates=_candidates(source, backups, commons, plan, target, is_resumed=resumption is not None),
    )  # fmt: skip
    if isinstance(plan, UpToDate):
        name = printable_name(plan.latest_common.snapshot.name)
        why = f"nothing was written since {name} was made, and {target} holds it"
        return replace(told, decision="nothing_changed", why=why, snapshot=name)
    if not isinstance(plan, Transfer):
        return replace(told, remedy=plan.remedy)
    if resumption:
        why = f"{printable_name(resumption.snapshot.name)} goes on where its transfer was cut"
    else:
        choice = choose_snapshot(source, backups, commons, is_forced=is_forced)
        what = printable_name(choice.snapshot.name) if choice.snapshot else "a new snapshot"
        why = f"{what} is sent: {choice.why}"
        if plan.send_parent is None:
            why += "; in full, " + ("as was asked" if is_full else f"for {target} holds nothing of this job")
    return replace(
        told, decision=plan.kind, why=why,
        snapshot=printable_name(plan.snapshot.name) if plan.snapshot else None,
        send_parent=printable_name(plan.send_parent.snapshot.name) if plan.send_parent else None,
        clone_sources=tuple(printable_name(common.snapshot.name) for common in plan.clone_sources),
        goes_on_from_bytes=resumption.partial.offset_bytes if resumption else None,
    )  # fmt: skip


def _candidates(
    source: SourceInventory,
    backups: Sequence[Backup],
    commons: Sequence[Common],
    plan: Transfer | UpToDate | Conflict,
    target: str,
    *,
    is_resumed: bool,
) -> tuple[Candidate, ...]:
    held = {common.snapshot.subvolume.uuid: common for common in commons}
    where = places(source.subvolume, source.by_nearness)
    found = []
    for snapshot in reversed(source.by_nearness):
        here = _here(snapshot, where[snapshot.subvolume.uuid].relation)
        common = held.get(snapshot.subvolume.uuid)
        if common is None:
            why = f"no backup on {target} has its UUID for received UUID"
            found.append(Candidate(verdict="source_only", why=why, here=here))
        else:
            found.append(_judged(common, plan, target, here, is_resumed=is_resumed))
    held_backups = {common.backup.uuid for common in commons}
    for backup in reversed(backups):
        if backup.uuid not in held_backups:
            why = (
                "no snapshot here has its received UUID" if backup.received_uuid else "it was never received"
            )
            found.append(Candidate(verdict="target_only", why=why, there=_there(backup)))
    return tuple(found)


def _judged(
    common: Common, plan: Transfer | UpToDate | Conflict, target: str, here: HereEvidence, *, is_resumed: bool
) -> Candidate:
    flaws = find_flaws(common)
    verdict: Verdict = "unfit" if flaws else "not_needed"
    why = "; ".join(describe_flaw(flaw, common, target) for flaw in flaws) or "nothing is to be sent"
    if isinstance(plan, UpToDate) and common == plan.latest_common:
        verdict, why = "latest_common", "both sides hold it, and it is what the subvolume is now"
    elif isinstance(plan, Transfer) and common == plan.send_parent:
        verdict, why = "send_parent", "the nearest that both sides hold as it was sent"
        why = "the cut transfer started from it" if is_resumed else why
    elif isinstance(plan, Transfer) and common in plan.clone_sources:
        verdict, why = "clone_source", "next nearest, and `clone_sources` allows as many"
        why = "the cut transfer named it" if is_resumed else why
    elif isinstance(plan, Transfer) and not flaws:
        why = "farther than the send parent and the clone sources"
        why = "the cut transfer did not name it" if is_resumed else why
        why = why if plan.send_parent else "a full send has no parent"
    return Candidate(verdict=verdict, why=why, flaws=flaws, here=here, there=_there(common.backup))


def _here(snapshot: Snapshot, relation: Relation) -> HereEvidence:
    found = snapshot.subvolume
    return HereEvidence(
        name=printable_name(snapshot.name), uuid=found.uuid, announced_uuid=snapshot.announced_uuid,
        relation=relation, otransid=found.otransid, ctransid=found.ctransid, was_edited=found.was_edited,
    )  # fmt: skip


def _there(backup: Backup) -> ThereEvidence:
    return ThereEvidence(
        name=printable_name(backup.name), uuid=backup.uuid, received_uuid=backup.received_uuid,
        copies=backup.copies, generation=backup.generation, is_readonly=backup.is_readonly,
        was_edited=backup.was_edited,
    )  # fmt: skip
