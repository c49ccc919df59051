"""Room at the server, decided before the first byte."""

from __future__ import annotations

import pytest

from btrsync.plan.space import HEADROOM_BYTES, Space, must_count_first, space_problem

GIB = 1 << 30
TIB = 1 << 40


def space(*, available: int, metadata: int = 10 * GIB, unallocated: int = 0, total: int = TIB) -> Space:
    return Space(total, available, available, metadata, unallocated)


def test_what_fits_is_no_problem() -> None:
    assert space_problem(100 * GIB, False, space(available=101 * GIB), None) is None
    assert space_problem(0, False, space(available=GIB), 0) is None


def test_free_space_is_kept_for_the_filesystem_itself() -> None:
    exact = space(available=GIB + HEADROOM_BYTES)
    assert space_problem(GIB, False, exact, None) is None
    problem = space_problem(GIB + 1, False, exact, None)
    assert problem is not None and not problem.is_warning
    assert problem.message == "1.0 GiB are to be written, and 1.1 GiB are free"


def test_a_small_filesystem_keeps_one_percent() -> None:
    small = space(available=200 << 20, metadata=20 << 20, total=250 << 20)
    assert space_problem(197 << 20, False, small, None) is None
    assert space_problem(198 << 20, False, small, None) is not None


def test_too_little_free_space_is_a_warning_where_data_is_compressed() -> None:
    problem = space_problem(100 * GIB, True, space(available=60 * GIB), None)
    assert problem is not None and problem.is_warning
    assert problem.message == "100.0 GiB are to be written, before compression, and 60.0 GiB are free"
    refused = space_problem(100 * GIB, False, space(available=60 * GIB), None)
    assert refused is not None and not refused.is_warning


@pytest.mark.parametrize("is_compressing", [False, True])
def test_what_exceeds_the_quota_is_refused_whatever_the_target_does(is_compressing: bool) -> None:
    room = space(available=TIB)
    assert space_problem(10 * GIB, is_compressing, room, 10 * GIB) is None
    for left, words in ((10 * GIB - 1, "10.0 GiB"), (-5, "0 B")):
        problem = space_problem(10 * GIB, is_compressing, room, left)
        assert problem is not None and not problem.is_warning
        assert problem.message == f"10.0 GiB are to be written, and the client's quota leaves {words}"


def test_metadata_without_room_is_refused_and_with_little_room_told() -> None:
    full = space_problem(100 * GIB, False, space(available=TIB, metadata=100 << 20), None)
    assert full is not None and not full.is_warning and "metadata" in full.message
    little = space_problem(100 * GIB, False, space(available=TIB, metadata=GIB), None)
    assert little is not None and little.is_warning
    unallocated = space(available=TIB, metadata=100 << 20, unallocated=10 * GIB)
    assert space_problem(100 * GIB, False, unallocated, None) is None


def test_metadata_of_compressed_data_is_refused_only_where_there_is_none() -> None:
    told = space_problem(100 * GIB, True, space(available=TIB, metadata=100 << 20), None)
    assert told is not None and told.is_warning
    refused = space_problem(100 * GIB, True, space(available=TIB, metadata=1 << 20), None)
    assert refused is not None and not refused.is_warning


@pytest.mark.parametrize(
    ("used", "available", "is_first"),
    [(GIB, 2 * GIB, False), (GIB, GIB + 1, False), (GIB, GIB, True), (2 * GIB, GIB, True), (0, None, True)],
)
def test_a_send_is_counted_beside_only_where_all_of_the_source_would_fit(
    used: int, available: int | None, is_first: bool
) -> None:
    assert must_count_first(used, available) is is_first
