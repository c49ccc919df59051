"""The rows that `list` and `status` are made of: what is pinned, and what there is of a cut transfer."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from btrsync.protocol import PartialEntry, Proof
from btrsync.survey import Look, partial_rows, rows
from tests.unit.inventories import backup, source

MADE = datetime(2026, 11, 22, 21, 30, tzinfo=UTC)


def partial(*, uuid: UUID, data_bytes: int, total_bytes: int | None) -> PartialEntry:
    return PartialEntry(
        "sent-as", uuid, 20, None, [], 2, True, [Proof(4096, b"digest")], data_bytes, total_bytes, MADE
    )


@pytest.mark.parametrize(
    ("data_bytes", "total_bytes", "percent"),
    [(0, 1000, 0), (999, 1000, 99), (1000, 1000, 100), (2000, 1000, 100), (5, 0, 100), (5, None, None)],
)
def test_a_partial_has_its_share_of_the_data_where_that_was_counted(
    data_bytes: int, total_bytes: int | None, percent: int | None
) -> None:
    entry = partial(uuid=UUID(int=20), data_bytes=data_bytes, total_bytes=total_bytes)
    (row,) = partial_rows(Look("share", "daisy", source(10, 20), (), (entry,)))
    assert (row.percent, row.data_bytes, row.total_bytes) == (percent, data_bytes, total_bytes)
    assert (row.snapshot, row.uuid, row.made) == ("s20", UUID(int=20), MADE)


def test_a_partial_of_a_snapshot_that_is_gone_has_the_name_it_was_sent_under() -> None:
    entry = partial(uuid=UUID(int=99), data_bytes=1, total_bytes=2)
    (row,) = partial_rows(Look("share", "daisy", source(10), (), (entry,)))
    assert row.snapshot == "sent-as"


def test_the_row_that_is_pinned_is_what_the_next_send_starts_from() -> None:
    found = rows(source(10, 20, 30), (backup(10), backup(20, is_readonly=False)))
    assert {row.name: row.is_latest_common for row in found} == {"s10": True, "s20": False, "s30": False}
    assert {row.name: row.remark for row in found}["s20"] == "writable on the target"
