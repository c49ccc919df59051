"""Which backup is fetched, and from which snapshot here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from btrsync.errors import RefusedError
from btrsync.plan.fetching import FetchPlan, Parent, Present, can_clone_from_original, plan_fetch
from btrsync.plan.snapshots import Backup, Subvolume, source_inventory

MADE = datetime(2026, 11, 22, tzinfo=UTC)


def backup(number: int, **changes: Any) -> Backup:
    made = Backup(f"s{number}", UUID(int=100 + number), UUID(int=number), 9, is_readonly=True, created=MADE)
    return replace(made, **changes)


def own(number: int, *, received: bool = False, **changes: Any) -> Subvolume:
    made = Subvolume(
        number, UUID(int=1000 + number if received else number), None, UUID(int=number) if received else None,
        5, 5, 0, 5, is_readonly=True, created=MADE, rtransid=5,
    )  # fmt: skip
    return replace(made, **changes)


def plan(
    backups: list[Backup],
    here: dict[str, Subvolume],
    name: str | None = None,
    received: dict[UUID, list[str]] | None = None,
) -> FetchPlan | Present:
    own = {found.received_uuid: [f"here/{name}"] for name, found in here.items() if found.received_uuid}
    return plan_fetch(backups, here, received or own, job="job", target="daisy", name=name)


def parent_of(found: FetchPlan | Present) -> str | None:
    assert isinstance(found, FetchPlan)
    return found.send_parent.name if found.send_parent else None


THREE = [backup(1), backup(2), backup(3)]


def test_the_latest_intact_backup_is_meant_where_none_is_named() -> None:
    found = plan(
        [*THREE, backup(4, is_readonly=False), backup(5, was_edited=True), backup(6, received_uuid=None)], {}
    )
    assert isinstance(found, FetchPlan)
    assert (found.backup.name, found.send_parent) == ("s3", None)


@pytest.mark.parametrize(
    ("name", "here", "expected"),
    [("s3", [1, 2], "mine-2"), ("s2", [1, 3], "mine-1"), ("s1", [2, 3], "mine-2"), ("s2", [3], "mine-3"), ("s2", [9], None)],
)  # fmt: skip
def test_the_parent_is_the_nearest_that_both_sides_hold(
    name: str, here: list[int], expected: str | None
) -> None:
    assert parent_of(plan(THREE, {f"mine-{number}": own(number) for number in here}, name)) == expected


@pytest.mark.parametrize("changes", [{"is_readonly": False}, {"ctransid": 6}], ids=["writable", "edited"])
def test_what_may_have_changed_here_is_no_parent(changes: dict[str, Any]) -> None:
    assert parent_of(plan(THREE, {"mine-1": own(1), "mine-2": own(2, **changes)})) == "mine-1"


def test_what_receive_would_confuse_with_another_is_no_parent() -> None:
    here = {"mine-1": own(1), "mine-2": own(2)}
    assert parent_of(plan(THREE, here, received={UUID(int=2): ["back-2"]})) == "mine-1"
    here = {"mine-1": own(1), "back-2": own(2, received=True)}
    assert parent_of(plan(THREE, here, received={UUID(int=2): ["here/back-2", "other"]})) == "mine-1"


def test_what_the_target_holds_no_more_is_no_parent_of_a_fetch_that_goes_on_either() -> None:
    found = plan([backup(2, was_edited=True), backup(3)], {"mine-1": own(1), "mine-2": own(2)})
    assert isinstance(found, FetchPlan)
    assert (found.send_parent, found.proven) == (None, {})


def test_what_came_back_is_a_parent_and_known_to_be_no_original() -> None:
    found = plan(THREE, {"mine-2": own(2), "back-2": own(2, received=True)})
    assert isinstance(found, FetchPlan)
    assert found.send_parent == Parent("back-2", UUID(int=2), is_original=False)


@pytest.mark.parametrize("received", [False, True], ids=["the original", "one that came back"])
def test_what_is_here_is_not_fetched(received: bool) -> None:
    found = plan(THREE, {"here": own(3, received=received)})
    assert isinstance(found, Present)
    assert found.name == "here"


@pytest.mark.parametrize(
    ("backups", "name", "words"),
    [([], None, "holds no backup of job job"), (THREE, "s9", "holds no backup s9"),
     ([backup(1, was_edited=True)], "s1", "it is no backup"), ([backup(1, received_uuid=None)], "s1", "it is no backup")],
)  # fmt: skip
def test_what_is_no_backup_is_refused(backups: list[Backup], name: str | None, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        plan(backups, {}, name)


def test_a_second_one_that_would_be_ambiguous_is_refused() -> None:
    with pytest.raises(RefusedError, match="received elsewhere on this filesystem already, as other/s3:"):
        plan(THREE, {}, received={UUID(int=3): ["other/s3"]})
    both = ["other/s3", "other/.partial-0123456789abcdef"]
    with pytest.raises(RefusedError, match="received elsewhere on this filesystem already"):
        plan(THREE, {}, received={UUID(int=3): both})


def test_what_is_only_a_part_of_it_elsewhere_is_named_as_one() -> None:
    with pytest.raises(
        RefusedError, match=r"has left a part of it elsewhere .*, as other/\.partial-01"
    ) as caught:
        plan(THREE, {}, received={UUID(int=3): ["other/.partial-0123456789abcdef"]})
    assert "--to" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("5.10.1", False), ("6.2", False), ("6.10", False), ("6.10.0", False), ("6.10.1", True), ("6.14", True),
     ("v7.0-rc1", True), ("unknown", False)],
)  # fmt: skip
def test_the_version_tells_who_clones_from_an_original(version: str, expected: bool) -> None:
    assert can_clone_from_original(version) is expected


def test_what_a_fetch_has_begun_is_no_snapshot_of_the_source() -> None:
    names = [".partial-0123456789abcdef", ".incoming-0123456789abcdef", ".partial-mine", "s1"]
    found = source_inventory(own(50), [(name, own(1, parent_uuid=UUID(int=50))) for name in names])
    assert [snapshot.name for snapshot in found.snapshots] == [".partial-mine", "s1"]
