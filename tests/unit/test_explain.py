"""What `btrsync sync --explain` says is what a run does, with the evidence of every candidate."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.commands.explain import format_explanation
from btrsync.plan.explain import Candidate, Explanation, explain
from btrsync.plan.parent import Transfer, UpToDate, plan_transfer
from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory, source_inventory
from tests.unit.inventories import backup, source, subvolume


def told(inventory: SourceInventory, *backups: Backup, **options: Any) -> Explanation:
    return explain(inventory, backups, job="share", target="daisy", **options)


def candidate(found: Explanation, name: str) -> Candidate:
    (one,) = [
        one for one in found.candidates if name in (one.here and one.here.name, one.there and one.there.name)
    ]
    return one


def test_each_candidate_is_told_nearest_first_with_what_became_of_it() -> None:
    backups = [backup(10), backup(20), backup(30, copies=2), backup(40), backup(50), backup(7, name="other")]
    found = told(source(10, 20, 30, 40, 50, 60, generation=70), *backups, clone_source_limit=1)
    assert (found.decision, found.send_parent, found.clone_sources) == ("incremental", "s50", ("s40",))
    assert found.snapshot is None
    assert found.why == "a new snapshot is sent: it was written in transaction 70, after s60 was made in 60"
    assert [(one.here.name if one.here else None, one.verdict) for one in found.candidates] == [
        ("s60", "source_only"),
        ("s50", "send_parent"),
        ("s40", "clone_source"),
        ("s30", "unfit"),
        ("s20", "not_needed"),
        ("s10", "not_needed"),
        (None, "target_only"),
    ]
    assert candidate(found, "s30").flaws == ("ambiguous",)
    assert "2 subvolumes on daisy carry the received UUID" in candidate(found, "s30").why


def test_the_evidence_is_that_of_both_sides() -> None:
    renamed = backup(10, name="by-hand")
    one = candidate(told(source(10, generation=11), renamed), "s10")
    assert one.here is not None
    assert one.there is not None
    assert (one.here.uuid, one.here.announced_uuid, one.here.relation) == (UUID(int=10), UUID(int=10), "own")
    assert (one.here.otransid, one.here.ctransid, one.here.was_edited) == (10, 10, False)
    assert (one.there.name, one.there.uuid, one.there.received_uuid) == (
        "by-hand",
        UUID(int=1010),
        UUID(int=10),
    )
    assert (one.there.copies, one.there.generation, one.there.is_readonly) == (1, 510, True)


def test_all_that_is_wrong_with_a_candidate_is_said() -> None:
    spoilt = msgspec.structs.replace(backup(20, is_readonly=False, copies=3), was_edited=True)
    here = Snapshot("s20", msgspec.structs.replace(subvolume(20), ctransid=25))
    inventory = SourceInventory(source(20, generation=30).subvolume, (*source(10).snapshots, here))
    one = candidate(told(inventory, backup(10), spoilt), "s20")
    assert one.flaws == ("ambiguous", "writable", "edited_backup", "edited_snapshot")
    for words in ("3 subvolumes", "is writable", "was edited on daisy", "was edited after it was sent"):
        assert words in one.why


def test_a_conflict_keeps_its_sentence_and_its_remedy() -> None:
    found = told(source(10, generation=11), backup(10, is_readonly=False))
    assert found.decision == "conflict"
    assert "the backup s10 on daisy is writable" in found.why
    assert "--full" in (found.remedy or "")
    assert candidate(found, "s10").verdict == "unfit"


@pytest.mark.parametrize(
    ("options", "generation", "why"),
    [
        ({}, 20, "nothing was written since s20 was made, and daisy holds it"),
        ({"is_forced": True}, 20, "a new snapshot is sent: a new one was asked for"),
        (
            {"is_full": True},
            20,
            "a new snapshot is sent: s20 is on the target already; in full, as was asked",
        ),
        ({}, 21, "a new snapshot is sent: it was written in transaction 21, after s20 was made in 20"),
    ],
)
def test_what_is_sent_and_why(options: dict[str, Any], generation: int, why: str) -> None:
    assert told(source(10, 20, generation=generation), backup(10), backup(20), **options).why == why


def test_a_first_run_is_full_for_there_is_nothing_at_the_target() -> None:
    assert told(source(10)).why == (
        "s10 is sent: nothing was written after it was made, and the target does not have it;"
        " in full, for daisy holds nothing of this job"
    )


def test_after_a_rollback_ancestors_are_told_from_what_was_given_up() -> None:
    live = subvolume(50, parent_uuid=UUID(int=10), is_readonly=False)
    inventory = source_inventory(live, {f"s{number}": subvolume(number) for number in (5, 10, 20)}.items())
    found = told(inventory, backup(5), backup(20))
    assert [one.here and one.here.relation for one in found.candidates] == [
        "ancestor",
        "ancestor",
        "relative",
    ]
    assert found.send_parent == "s5"


class Cut(NamedTuple):
    """What a target says of a cut transfer."""

    uuid: UUID
    ctransid: int
    send_parent: UUID | None
    name: str = "sent-as"
    clone_sources: tuple[UUID, ...] = ()
    stream_version: int = 1
    is_compressed: bool = False
    offset_bytes: int = 4096


def test_a_cut_transfer_goes_on_though_the_subvolume_was_written_since() -> None:
    cut = Cut(UUID(int=20), 20, UUID(int=10))
    found = explain(
        source(10, 20, generation=30), [backup(10)], [cut], job="share", target="daisy", clone_source_limit=2
    )
    assert (found.decision, found.snapshot, found.send_parent) == ("incremental", "s20", "s10")
    assert (found.goes_on_from_bytes, found.unused_partials) == (4096, ())
    assert candidate(found, "s10").why == "the cut transfer started from it"
    assert "  from byte 4096 of its stream, if that is made the same as before" in format_explanation(found)


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (Cut(UUID(int=99), 20, None), "its snapshot sent-as is gone"),
        (Cut(UUID(int=20), 19, UUID(int=10)), "its snapshot s20 was edited"),
        (Cut(UUID(int=20), 20, UUID(int=5)), "a snapshot from which s20 was being sent is not on both sides"),
        (Cut(UUID(int=20), 20, UUID(int=10), stream_version=3), "this kernel does not make its stream"),
    ],
)
def test_a_cut_transfer_that_does_not_go_on_is_told_why(cut: Cut, why: str) -> None:
    found = explain(source(10, 20, generation=30), [backup(10)], [cut], job="share", target="daisy")
    assert found.goes_on_from_bytes is None
    (said,) = found.unused_partials
    assert why in said
    assert f"  a cut transfer does not go on: {said}" in format_explanation(found)


def backup_words(number: int) -> str:
    return f"UUID {UUID(int=1000 + number)}, received UUID {UUID(int=number)}, carried by 1"


def test_people_read_the_decision_then_the_candidates() -> None:
    found = told(source(10, 20, generation=21), backup(10), backup(20, is_readonly=False))
    assert list(format_explanation(found)) == [
        "share → daisy: incremental from s10",
        "  a new snapshot is sent: it was written in transaction 21, after s20 was made in 20",
        "",
        "  s20: UNFIT: the backup s20 on daisy is writable, so it may have changed",
        f"    here:  UUID {UUID(int=20)}; a snapshot of the subvolume, made in transaction 20",
        f"    daisy: s20; {backup_words(20)}, WRITABLE, generation 520",
        "",
        "  s10: SEND PARENT: the nearest that both sides hold as it was sent",
        f"    here:  UUID {UUID(int=10)}; a snapshot of the subvolume, made in transaction 10",
        f"    daisy: s10; {backup_words(10)}, read-only, generation 510",
    ]


@given(
    held=st.lists(st.integers(10, 30), unique=True),
    stored=st.lists(
        st.tuples(st.integers(10, 30), st.booleans(), st.integers(1, 2)), unique_by=lambda item: item[0]
    ),
    is_changed=st.booleans(),
    is_full=st.booleans(),
    is_forced=st.booleans(),
    limit=st.integers(0, 3),
)
def test_the_explanation_is_the_decision(
    held: list[int],
    stored: list[tuple[int, bool, int]],
    is_changed: bool,
    is_full: bool,
    is_forced: bool,
    limit: int,
) -> None:
    inventory = source(*sorted(held), generation=1000 if is_changed else None)
    backups = [backup(number, is_readonly=readonly, copies=copies) for number, readonly, copies in stored]
    options: dict[str, Any] = {
        "clone_source_limit": limit,
        "is_full": is_full,
        "is_forced": is_forced,
    }
    found = told(inventory, *backups, **options)
    plan = plan_transfer(inventory, backups, job="share", target="daisy", **options)
    by_verdict: dict[str, list[str]] = {}
    for one in found.candidates:
        by_verdict.setdefault(one.verdict, []).append(one.here.name if one.here else "")
    assert sum(map(len, by_verdict.values())) == len({*held, *(number for number, _, _ in stored)})
    if isinstance(plan, UpToDate):
        assert found.decision == "nothing_changed"
        assert by_verdict["latest_common"] == [found.snapshot]
    elif isinstance(plan, Transfer):
        assert found.decision == plan.kind
        assert found.snapshot == (plan.snapshot.name if plan.snapshot else None)
        assert found.send_parent == (plan.send_parent.snapshot.name if plan.send_parent else None)
        assert by_verdict.get("send_parent", []) == ([found.send_parent] if found.send_parent else [])
        assert by_verdict.get("clone_source", []) == [one.snapshot.name for one in plan.clone_sources]
    else:
        assert (found.decision, found.why, found.remedy) == ("conflict", str(plan), plan.remedy)
