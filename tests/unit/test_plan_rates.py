"""The windows of `rate_limits`: what they hold, and which of them meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.rates import DAY_MINUTES, RateWindow, overlaps, parse_window, rate_at

MINUTES = st.integers(0, DAY_MINUTES - 1)
WINDOWS = st.builds(RateWindow, MINUTES, st.integers(0, DAY_MINUTES), st.just(1000)).filter(
    lambda window: window.begin != window.end
)


def test_a_window_holds_its_begin_and_not_its_end() -> None:
    window = parse_window("08:00-18:00 2000000")
    assert window == RateWindow(480, 1080, 2_000_000)
    assert [window.holds(minute) for minute in (479, 480, 1079, 1080)] == [False, True, True, False]


def test_a_window_over_midnight_holds_both_its_ends_of_the_day() -> None:
    window = parse_window("22:30-06:00 1000")
    assert [window.holds(m) for m in (1349, 1350, 1439, 0, 359, 360)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    until_midnight = parse_window("22:30-24:00 1000")
    assert [until_midnight.holds(m) for m in (1349, 1350, 1439, 0)] == [False, True, True, False]


@pytest.mark.parametrize(
    "text",
    ["", "08:00-18:00", "8:00-18:00 1000", "08:00-18:00 1e6", "08:00-18:00 -1000", "08:00–18:00 1000",
     " 08:00-18:00 1000", "08:00-18:00 1000\n", "08:00-18:00 999", "08:00-18:00 1099511627777",
     "08:00-08:00 1000", "24:00-08:00 1000", "08:00-24:30 1000", "08:00-18:00 ٢٠٠٠"],
)  # fmt: skip
def test_what_is_no_window_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|it goes from"):
        parse_window(text)


@given(one=WINDOWS, other=WINDOWS)
def test_two_windows_overlap_if_and_only_if_a_minute_lies_in_both(one: RateWindow, other: RateWindow) -> None:
    shared = [m for m in range(DAY_MINUTES) if one.holds(m) and other.holds(m)]
    assert bool(list(overlaps([one, other]))) == bool(shared)


@given(minute=MINUTES, window=WINDOWS)
def test_outside_of_all_windows_the_other_rate_counts(minute: int, window: RateWindow) -> None:
    assert rate_at(minute, [window], 5000) == (1000 if window.holds(minute) else 5000)
    assert rate_at(minute, [window], None) == (1000 if window.holds(minute) else None)
    assert rate_at(minute, [], None) is None
