"""Which snapshot is nearest, over whatever was written, snapshotted, rolled back and deleted before."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.lineage import places
from btrsync.plan.snapshots import SourceInventory, Subvolume, source_inventory
from tests.unit.inventories import subvolume

Content = tuple[int, ...]
"""What was written, in order: of two states one has been the other if it is the other's beginning."""


class World:
    """A subvolume with a history: what each state of it holds is known here, and to the planner only the UUIDs."""

    def __init__(self) -> None:
        self.transaction = 0
        self.contents: dict[UUID, Content] = {}
        self.snapshots: list[Subvolume] = []
        self.live = self._make(None, (), is_readonly=False)

    def _make(self, parent: Subvolume | None, content: Content, *, is_readonly: bool) -> Subvolume:
        self.transaction += 1
        made = subvolume(
            self.transaction, parent_uuid=parent.uuid if parent else None, is_readonly=is_readonly
        )
        self.contents[made.uuid] = content
        return made

    def write(self, _number: int) -> None:
        self.transaction += 1
        self.contents[self.live.uuid] += (self.transaction,)

    def snapshot(self, _number: int) -> None:
        self.snapshots.append(self._make(self.live, self.contents[self.live.uuid], is_readonly=True))

    def copy(self, number: int) -> None:
        if self.snapshots:
            of = self.snapshots[number % len(self.snapshots)]
            self.snapshots.append(self._make(of, self.contents[of.uuid], is_readonly=True))

    def roll_back(self, number: int) -> None:
        if self.snapshots:
            to = self.snapshots[number % len(self.snapshots)]
            self.live = self._make(to, self.contents[to.uuid], is_readonly=False)

    def delete(self, number: int) -> None:
        if self.snapshots:
            del self.snapshots[number % len(self.snapshots)]

    def inventory(self) -> SourceInventory:
        return source_inventory(self.live, ((f"s{found.otransid}", found) for found in self.snapshots))

    def is_beginning(self, content: Content) -> bool:
        return self.contents[self.live.uuid][: len(content)] == content


class Happening(NamedTuple):
    """What is done, and to which snapshot."""

    what: str
    number: int


def happenings(*names: str) -> st.SearchStrategy[list[Happening]]:
    return st.lists(st.builds(Happening, st.sampled_from(names), st.integers(0, 20)), max_size=40)


def after(history: list[Happening]) -> World:
    world = World()
    for what, number in history:
        getattr(world, what)(number)
    return world


@given(happenings("write", "snapshot", "copy", "roll_back", "delete"))
def test_what_is_called_an_ancestor_is_one_and_nearer_ones_come_later(history: list[Happening]) -> None:
    world = after(history)
    inventory = world.inventory()
    found = inventory.by_nearness
    assert {one.name for one in found} == {f"s{one.otransid}" for one in world.snapshots}
    where = places(inventory.subvolume, found)
    on_line = [one for one in found if where[one.subvolume.uuid].relation != "relative"]
    contents = [world.contents[one.subvolume.uuid] for one in on_line]
    assert all(world.is_beginning(content) for content in contents)
    assert [len(content) for content in contents] == sorted(len(content) for content in contents)
    assert list(found[len(found) - len(on_line) :]) == on_line, "relatives are farther than all of these"


@given(happenings("write", "snapshot", "copy", "roll_back"))
def test_where_nothing_was_deleted_the_nearest_is_the_latest_state_that_the_subvolume_has_been(
    history: list[Happening],
) -> None:
    world = after(history)
    found = world.inventory().by_nearness
    if not found:
        return
    held = [world.contents[one.uuid] for one in world.snapshots]
    been = [content for content in held if world.is_beginning(content)]
    assert world.contents[found[-1].subvolume.uuid] == max(been, key=len)


def names(inventory: SourceInventory) -> list[str]:
    return [one.name for one in inventory.by_nearness]


def test_where_the_snapshot_rolled_back_to_is_gone_the_state_before_it_counts_and_not_what_was_given_up() -> (
    None
):
    live = subvolume(50, parent_uuid=UUID(int=10), is_readonly=False)
    named = {f"s{number}": subvolume(number) for number in (5, 8, 10, 20)}
    inventory = source_inventory(live, named.items())
    assert names(inventory) == ["s20", "s5", "s8", "s10"]
    # s10 is on this side only: s8 is taken, though s20 is younger.
    assert names(inventory)[:-1][-1] == "s8"


@pytest.mark.parametrize("parent_uuid", [None, UUID(int=99), UUID(int=5)])
def test_a_parent_that_is_unknown_or_names_its_own_child_ends_the_line(parent_uuid: UUID | None) -> None:
    live = subvolume(50, parent_uuid=parent_uuid, is_readonly=False)
    strange = {"s5": subvolume(5, parent_uuid=UUID(int=6)), "s6": subvolume(6, parent_uuid=UUID(int=5))}
    assert sorted(names(source_inventory(live, strange.items()))) == ["s5", "s6"]


def test_a_thousand_snapshots_of_one_another_are_ordered_at_once() -> None:
    chain = {f"s{number}": subvolume(number, parent_uuid=UUID(int=number - 1)) for number in range(2, 1002)}
    live = subvolume(1, is_readonly=False, parent_uuid=None)
    found = names(source_inventory(live, chain.items()))
    assert found[-1] == "s1001"
    assert found[0] == "s2"
