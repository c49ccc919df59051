"""What is sent, from which send parent, and what forbids it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.parent import (
    Common,
    Flaw,
    NoCommonSnapshot,
    Transfer,
    UnfitParent,
    UpToDate,
    common_snapshots,
    pinned_snapshots,
    plan_transfer,
)
from btrsync.plan.snapshots import Snapshot, SourceInventory, source_inventory
from tests.unit.inventories import backup, source, subvolume


def decide(inventory: SourceInventory, *backups: object, **options: object) -> object:
    return plan_transfer(inventory, backups, job="share", target="daisy", **options)  # type: ignore[arg-type]


def unfit(plan: object, flaw: Flaw) -> UnfitParent:
    """See that the plan is a conflict for this reason."""
    assert isinstance(plan, UnfitParent)
    assert plan.flaw == flaw
    return plan


def names(commons: tuple[Common, ...]) -> list[str]:
    return [common.snapshot.name for common in commons]


def test_a_first_run_is_a_full_send_of_a_new_snapshot() -> None:
    assert decide(source()) == Transfer(None, None)


def test_a_first_run_takes_the_latest_snapshot_if_nothing_changed_since() -> None:
    inventory = source(10, 20)
    assert decide(inventory) == Transfer(inventory.snapshots[1], None)


def test_nothing_is_sent_when_the_target_has_the_latest_snapshot() -> None:
    plan = decide(source(10, 20), backup(10), backup(20))
    assert isinstance(plan, UpToDate)
    assert plan.latest_common.snapshot.name == "s20"


def test_a_changed_subvolume_asks_for_a_new_snapshot_from_the_latest_common_one() -> None:
    plan = decide(source(10, 20, generation=21), backup(10), backup(20))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s20"


def test_an_unsent_snapshot_is_sent_rather_than_a_new_one_made() -> None:
    plan = decide(source(10, 20), backup(10))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is not None
    assert plan.snapshot.name == "s20"
    assert plan.kind == "incremental"


def test_renamed_backups_are_found_by_uuid() -> None:
    plan = decide(source(10, 20, generation=21), backup(10, name="first"), backup(20, name="second"))
    assert isinstance(plan, Transfer)
    assert plan.send_parent is not None
    assert plan.send_parent.backup.name == "second"


def test_an_equal_name_does_not_make_a_common_snapshot() -> None:
    foreign = backup(10, received_uuid=UUID(int=999))
    plan = decide(source(10, generation=11), foreign)
    assert isinstance(plan, NoCommonSnapshot)
    assert "s10" in str(plan)
    assert "--full" in plan.remedy


def test_a_source_that_was_received_is_common_by_its_received_uuid() -> None:
    received = subvolume(10, received_uuid=UUID(int=77))
    inventory = SourceInventory(source(10).subvolume, (Snapshot("s10", received),))
    commons = common_snapshots(inventory, [backup(1, received_uuid=UUID(int=77))])
    assert names(commons) == ["s10"]


def test_two_backups_with_one_received_uuid_are_a_conflict_with_its_evidence() -> None:
    plan = decide(source(10, generation=11), backup(10, copies=2), backup(10, name="other", copies=2))
    assert unfit(plan, "ambiguous").common.backup.copies == 2
    assert f"2 subvolumes on daisy carry the received UUID {UUID(int=10)} of" in str(plan)


def test_an_unambiguous_older_parent_is_taken_before_an_ambiguous_newer_one() -> None:
    plan = decide(source(10, 20, generation=21), backup(10), backup(20, copies=2))
    assert isinstance(plan, Transfer)
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s10"


def test_a_backup_flipped_writable_is_never_a_parent() -> None:
    unfit(decide(source(10, generation=11), backup(10, is_readonly=False)), "writable")


def test_a_snapshot_whose_backup_was_flipped_writable_is_not_up_to_date() -> None:
    plan = decide(source(10, 20), backup(10), backup(20, is_readonly=False))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None, "its name is taken on the target: a new one must be made"
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s10"


def test_a_snapshot_whose_name_is_taken_on_the_target_is_not_sent() -> None:
    plan = decide(source(10, 20), backup(10), backup(5, name="s20"))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None


def test_full_sends_without_a_parent_even_when_one_is_common() -> None:
    plan = decide(source(10, generation=11), backup(10), is_full=True)
    assert plan == Transfer(None, None)


def test_full_does_not_make_a_second_backup_of_one_snapshot() -> None:
    plan = decide(source(10), backup(10), is_full=True)
    assert plan == Transfer(None, None)


def test_a_forced_run_makes_a_new_snapshot_though_nothing_changed() -> None:
    plan = decide(source(10), backup(10), is_forced=True)
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None
    assert plan.send_parent is not None


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, []), (1, ["s30"]), (2, ["s30", "s20"]), (9, ["s30", "s20", "s10"])]
)
def test_clone_sources_are_the_newest_other_common_snapshots(limit: int, expected: list[str]) -> None:
    backups = [backup(number) for number in (10, 20, 30, 40)]
    plan = decide(source(10, 20, 30, 40, generation=41), *backups, clone_source_limit=limit)
    assert isinstance(plan, Transfer)
    assert names(plan.clone_sources) == expected


def test_each_targets_latest_common_snapshot_is_pinned() -> None:
    inventory = source(10, 20, 30)
    near = common_snapshots(inventory, [backup(10), backup(20), backup(30)])
    far = common_snapshots(inventory, [backup(10)])
    assert pinned_snapshots([near, far, ()]) == {UUID(int=30), UUID(int=10)}


def test_what_a_send_would_start_from_is_pinned_rather_than_a_later_one_that_is_unfit() -> None:
    inventory = source(10, 20)
    writable = backup(20, is_readonly=False)
    assert pinned_snapshots([common_snapshots(inventory, [backup(10), writable])]) == {UUID(int=10)}
    assert pinned_snapshots([common_snapshots(inventory, [writable])]) == {UUID(int=20)}


def test_only_readonly_snapshots_of_this_very_subvolume_are_its_own() -> None:
    live = subvolume(1, parent_uuid=UUID(int=15), is_readonly=False)
    found = {
        "good": subvolume(12),
        "earlier": subvolume(11),
        "writable": subvolume(13, is_readonly=False),
        "foreign": subvolume(16, parent_uuid=UUID(int=99)),
        "origin": subvolume(15, parent_uuid=UUID(int=99)),
    }
    inventory = source_inventory(live, found.items())
    assert [snapshot.name for snapshot in inventory.snapshots] == ["earlier", "good"]
    assert [snapshot.name for snapshot in inventory.relatives] == ["origin", "foreign"]
    assert [snapshot.name for snapshot in inventory.by_nearness] == ["foreign", "origin", "earlier", "good"]


def test_after_a_rollback_the_send_parent_is_what_was_rolled_back_to() -> None:
    live = subvolume(50, parent_uuid=UUID(int=10), is_readonly=False)
    inventory = source_inventory(live, {"s10": subvolume(10), "s20": subvolume(20)}.items())
    plan = decide(inventory, backup(10), backup(20))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s10"


def edited(number: int) -> Snapshot:
    return Snapshot(f"s{number}", msgspec.structs.replace(subvolume(number), ctransid=number + 5))


def test_a_snapshot_edited_after_it_was_sent_is_no_parent() -> None:
    inventory = SourceInventory(source(20, generation=30).subvolume, (source(10).snapshots[0], edited(20)))
    plan = decide(inventory, backup(10), backup(20))
    assert isinstance(plan, Transfer)
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s10"


def test_an_edited_snapshot_that_the_target_has_not_is_not_sent() -> None:
    plan = decide(SourceInventory(source(20).subvolume, (source(10).snapshots[0], edited(20))), backup(10))
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None


def test_a_snapshot_whose_name_no_server_takes_is_not_sent() -> None:
    odd = Snapshot("two words", subvolume(20))
    plan = decide(SourceInventory(source(20).subvolume, (odd,)), backup(10))
    assert not isinstance(plan, Transfer)
    assert decide(SourceInventory(source(20).subvolume, (odd,))) == Transfer(None, None)


def test_a_backup_edited_on_the_target_is_neither_parent_nor_up_to_date() -> None:
    spoilt = msgspec.structs.replace(backup(20), was_edited=True)
    plan = decide(source(10, 20), backup(10), spoilt)
    assert isinstance(plan, Transfer)
    assert plan.snapshot is None
    assert plan.send_parent is not None
    assert plan.send_parent.snapshot.name == "s10"
    plan = decide(source(20, generation=30), spoilt)
    assert "s20" in str(plan)
    assert "--full" in unfit(plan, "edited_backup").remedy


@pytest.mark.parametrize(
    ("ctransid", "hours_later", "was_edited"), [(13, 0, False), (13, 24, True), (9, 24, False)]
)
def test_data_that_reaches_the_disk_after_a_receive_is_no_edit_unless_much_later(
    ctransid: int, hours_later: int, was_edited: bool
) -> None:
    received = msgspec.structs.replace(
        subvolume(10, received_uuid=UUID(int=77)),
        ctransid=ctransid,
        rtransid=10,
        rtime=datetime(2026, 1, 1, tzinfo=UTC),
        ctime=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours_later),
    )
    assert received.was_edited is was_edited


def test_when_only_edited_snapshots_are_common_a_person_has_to_choose() -> None:
    inventory = SourceInventory(source(20).subvolume, (edited(20),))
    plan = decide(inventory, backup(20))
    assert "s20" in str(plan)
    assert "--full" in unfit(plan, "edited_snapshot").remedy


@given(
    held=st.lists(st.integers(10, 30), unique=True),
    stored=st.lists(
        st.tuples(st.integers(10, 30), st.booleans(), st.integers(1, 2)), unique_by=lambda item: item[0]
    ),
    is_changed=st.booleans(),
    limit=st.integers(0, 5),
)
def test_whatever_both_sides_hold_a_parent_is_proven_and_no_name_given_twice(
    held: list[int], stored: list[tuple[int, bool, int]], is_changed: bool, limit: int
) -> None:
    inventory = source(*sorted(held), generation=1000 if is_changed else None)
    backups = [backup(number, is_readonly=readonly, copies=copies) for number, readonly, copies in stored]
    plan = decide(inventory, *backups, clone_source_limit=limit)
    if not isinstance(plan, Transfer):
        return
    used = [common for common in (plan.send_parent, *plan.clone_sources) if common]
    assert all(common.backup.copies == 1 and common.backup.is_readonly for common in used)
    assert len({common.snapshot.name for common in used}) == len(used)
    assert len(plan.clone_sources) <= limit
    assert plan.send_parent is not None or not backups
    if plan.snapshot is not None:
        assert plan.snapshot.name not in {item.name for item in backups}
        assert not is_changed
