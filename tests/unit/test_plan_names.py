"""Names of snapshots and what may name a thing on a server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from btrsync.plan.names import is_valid_name, new_snapshot_name

NOW = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
PATTERN = "snapshot-%Y%m%d%H%M%S"


def test_a_snapshot_is_named_by_its_second() -> None:
    assert new_snapshot_name(PATTERN, NOW, set()) == "snapshot-20261122235959"


def test_a_second_snapshot_in_one_second_takes_the_next_free_one() -> None:
    taken = {"snapshot-20261122235959", "snapshot-20261123000000"}
    assert new_snapshot_name(PATTERN, NOW, taken) == "snapshot-20261123000001"


@pytest.mark.parametrize("name", ["a", "snapshot-2026", "home.2026+1@x", "A" * 128])
def test_plain_names_are_valid(name: str) -> None:
    assert is_valid_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\n", "a b", "-x", "é", "a\0", "A" * 129, "../x", "/abs"]
)
def test_names_that_could_mean_something_else_are_not(name: str) -> None:
    assert not is_valid_name(name)
