"""Which cut transfer goes on, and what is said of one that does not."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from btrsync.plan.parent import Transfer, common_snapshots
from btrsync.plan.resume import ResumptionPlan, plan_resumption
from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory
from tests.unit.inventories import backup, source, subvolume


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """A partial as a target tells of it."""

    name: str
    uuid: UUID
    ctransid: int
    send_parent: UUID | None = None
    clone_sources: tuple[UUID, ...] = ()
    stream_version: int = 2
    is_compressed: bool = True
    offset_bytes: int = 1000


def partial(number: int, **fields: object) -> Partial:
    """Return the partial of snapshot `number`."""
    return Partial(name=f"s{number}", uuid=UUID(int=number), ctransid=number, **fields)  # type: ignore[arg-type]


def decide(
    inventory: SourceInventory,
    *partials: Partial,
    backups: tuple[Backup, ...] = (),
    compressed: str = "auto",
    send_protocol: int = 3,
    is_full: bool = False,
) -> ResumptionPlan[Partial]:
    return plan_resumption(
        inventory, backups, partials,
        compressed=compressed, send_protocol=send_protocol, is_full=is_full,  # type: ignore[arg-type]
    )  # fmt: skip


def edited(
    inventory: SourceInventory, number: int, *, is_ctransid_of_partial: bool = False
) -> SourceInventory:
    """Return the inventory with one snapshot flipped writable and written."""
    return SourceInventory(
        inventory.subvolume,
        tuple(
            Snapshot(one.name, msgspec.structs.replace(one.subvolume, ctransid=99, otransid=99 if is_ctransid_of_partial else number))
            if one.name == f"s{number}"
            else one
            for one in inventory.snapshots
        ),
    )  # fmt: skip


def test_a_full_send_that_was_cut_goes_on_in_full() -> None:
    inventory, cut = source(10), partial(10)
    resumption, why_not = decide(inventory, cut)
    assert resumption is not None
    assert resumption.transfer == Transfer(inventory.snapshots[0], None)
    assert resumption.partial is cut
    assert why_not == ()


def test_an_incremental_one_goes_on_from_the_same_parent_and_clone_sources_in_their_order() -> None:
    inventory, backups = source(10, 20, 30, 40), (backup(10), backup(20), backup(30))
    cut = partial(40, send_parent=UUID(int=20), clone_sources=(UUID(int=30), UUID(int=10)))
    resumption, _ = decide(inventory, cut, backups=backups)
    assert resumption is not None
    commons = {common.snapshot.name: common for common in common_snapshots(inventory, backups)}
    assert resumption.transfer == Transfer(
        inventory.snapshots[3], commons["s20"], (commons["s30"], commons["s10"])
    )


def test_a_renamed_snapshot_is_told_by_its_uuid() -> None:
    renamed = SourceInventory(subvolume(1), (Snapshot("other", subvolume(10)),))
    resumption, _ = decide(renamed, partial(10))
    assert resumption is not None
    assert resumption.snapshot.name == "other"


def test_of_several_the_newest_snapshot_counts_and_then_how_far_it_is() -> None:
    found = (partial(20, offset_bytes=1), partial(20, offset_bytes=5), partial(10, offset_bytes=9))
    for partials in (found, found[::-1]):
        resumption, _ = decide(source(10, 20), *partials)
        assert resumption is not None
        assert resumption.partial is found[1]


def test_where_the_newest_is_of_no_use_an_older_one_goes_on() -> None:
    resumption, _ = decide(edited(source(10, 20), 20), partial(10), partial(20))
    assert resumption is not None
    assert resumption.snapshot.name == "s10"


@pytest.mark.parametrize("number", [10, 20])
def test_what_the_target_has_or_has_a_newer_one_of_is_passed_over_in_silence(number: int) -> None:
    assert decide(source(10, 20), partial(number), backups=(backup(20),)) == (None, ())


WHY_NOT = {
    "gone": (source(20), partial(10), "its snapshot s10 is gone"),
    "edited": (edited(source(10), 10), partial(10), "its snapshot s10 was edited"),
    "another ctransid": (
        edited(source(10), 10, is_ctransid_of_partial=True), partial(10), "its snapshot s10 was edited"
    ),
    "parent gone": (
        source(10, 20), partial(20, send_parent=UUID(int=5)), "from which s20 was being sent is not on both"
    ),
    "clone source gone": (
        source(10, 20),
        partial(20, send_parent=UUID(int=10), clone_sources=(UUID(int=5),)),
        "from which s20 was being sent is not on both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHY_NOT)
def test_one_that_cannot_go_on_is_told_with_the_reason(name: str) -> None:
    inventory, cut, why = WHY_NOT[name]
    backups = (backup(10),) if cut.send_parent else ()
    resumption, (said,) = decide(inventory, cut, backups=backups)
    assert resumption is None
    assert why in said


def test_a_parent_that_is_not_proven_is_none() -> None:
    for flawed in (backup(10, copies=2), backup(10, is_readonly=False)):
        cut = partial(20, send_parent=UUID(int=10))
        resumption, why_not = decide(source(10, 20), cut, backups=(flawed,))
        assert resumption is None
        assert len(why_not) == 1


def test_a_full_send_that_is_asked_for_goes_on_from_a_full_one_only() -> None:
    inventory, backups = source(10, 20), (backup(10),)
    incremental, full = partial(20, send_parent=UUID(int=10)), partial(20)
    assert decide(inventory, full, backups=backups, is_full=True).resumption is not None
    assert decide(inventory, incremental, backups=backups, is_full=True).why_not == (
        "all is to be sent in full",
    )


def test_a_name_that_the_server_does_not_take_does_not_go_on() -> None:
    odd = SourceInventory(subvolume(1), (Snapshot("-odd", subvolume(10)),))
    assert decide(odd, partial(10)).why_not == ("no server takes the name -odd",)
    taken = decide(source(10, 20), partial(20), backups=(backup(10, name="s20"),))
    assert taken.why_not == ("another backup is called s20 now",)


def test_another_kernel_or_another_wish_for_compressed_data_starts_over() -> None:
    plain = partial(10, stream_version=1, is_compressed=False)
    assert "does not make its stream" in decide(source(10), partial(10), send_protocol=1).why_not[0]
    assert "does not make its stream" in decide(source(10), partial(10, stream_version=3)).why_not[0]
    assert '"never" now' in decide(source(10), partial(10), compressed="never").why_not[0]
    assert '"always" now' in decide(source(10), plain, compressed="always").why_not[0]
    assert decide(source(10), plain, send_protocol=1).resumption is not None
    assert decide(source(10), plain, compressed="auto").resumption is not None
