"""What btrfs-scrub writes down of the last scrub."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from btrsync.plan.scrub_record import parse_scrub_record

LINE = (
    "de66435c-e994-4fc0-b9a8-e50d71c5e02d:{devid}|data_extents_scrubbed:320|tree_extents_scrubbed:11"
    "|data_bytes_scrubbed:20971520|tree_bytes_scrubbed:180224|read_errors:0|csum_errors:5|verify_errors:0"
    "|no_csum:0|csum_discards:0|super_errors:{super}|malloc_errors:0|uncorrectable_errors:{lost}"
    "|corrected_errors:{corrected}|last_physical:109117440|t_start:1795411640|t_resumed:0|duration:{seconds}"
    "|canceled:{canceled}|finished:{finished}"
)


def line(**words: int) -> str:
    usual = {"devid": 1, "super": 0, "lost": 0, "corrected": 0, "seconds": 7, "canceled": 0, "finished": 1}
    return LINE.format(**(usual | words))


def test_devices_are_added_up() -> None:
    found = parse_scrub_record(
        "\n".join(["scrub status:1", line(corrected=3), line(devid=2, lost=2, seconds=9, super=1)])
    )
    assert found is not None
    assert found.started == datetime.fromtimestamp(1795411640, UTC)
    assert (found.seconds, found.bytes_scrubbed) == (9, 2 * (20971520 + 180224))
    assert (found.corrected_errors, found.uncorrectable_errors, found.other_errors, found.errors) == (
        3,
        2,
        1,
        6,
    )
    assert (found.is_finished, found.is_canceled) == (True, False)


def test_one_device_that_has_not_finished_is_no_finished_scrub() -> None:
    # btrfs-progs marks what was canceled finished, too; where it was killed it does neither.
    found = parse_scrub_record("\n".join(["scrub status:1", line(), line(canceled=1)]))
    assert found is not None
    assert (found.is_finished, found.is_canceled) == (False, True)


@pytest.mark.parametrize("text", ["", "scrub status:2\n" + line(), "scrub status:1\n", "\0\1", line()])
def test_anything_else_is_no_record(text: str) -> None:
    assert parse_scrub_record(text) is None
