"""The rate limit, with clocks that are set by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btrsync.rate import BURST_S, LEAST_BURST_BYTES, MINUTE_S, RateLimit

MORNING = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)


class Clock:
    """Seconds and the hour, which go together unless one of them is set."""

    def __init__(self, hour: datetime = MORNING) -> None:
        self.s = 1000.0
        self.hour = hour

    def go(self, seconds: float) -> None:
        self.s += seconds
        self.hour += timedelta(seconds=seconds)


def sent_in(limit: RateLimit, clock: Clock, seconds: float, *, block_bytes: int = 1 << 20) -> int:
    """What goes in that time if as much is sent as may be, and nobody asks earlier than told."""
    end, sent = clock.s + seconds, 0
    while clock.s < end:
        allowed = limit.allowance(clock.s)
        assert allowed is not None
        if allowed:
            assert limit.wait_s(clock.s) == 0.0
            limit.take(min(allowed, block_bytes))
            sent += min(allowed, block_bytes)
        else:
            wait = limit.wait_s(clock.s)
            assert wait > 0
            clock.go(wait + 1e-6)
    return sent


def test_without_a_limit_everything_may_go() -> None:
    clock = Clock()
    limit = RateLimit(None, [], lambda: clock.hour)
    assert not limit.is_needed
    limit.take(1 << 40)
    assert limit.allowance(clock.s) is None
    assert limit.wait_s(clock.s) == 0.0


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(1000, 1 << 34), block=st.sampled_from([1000, 65536, 1 << 20]))
def test_in_the_long_run_as_much_goes_as_the_rate_says(rate: int, block: int) -> None:
    block = max(block, rate // 1000)
    clock = Clock()
    limit = RateLimit(rate, [], lambda: clock.hour)
    seconds = max(1.0, min(300.0, 2000 * block / rate))
    sent = sent_in(limit, clock, seconds, block_bytes=block)
    burst = max(LEAST_BURST_BYTES, rate * BURST_S)
    assert rate * seconds - burst - block <= sent <= rate * seconds + 2 * burst


def test_what_was_not_sent_is_not_saved_for_long() -> None:
    clock = Clock()
    limit = RateLimit(1_000_000, [], lambda: clock.hour)
    clock.go(3600)
    assert limit.allowance(clock.s) == 250_000
    clock.go(3600)
    assert limit.allowance(clock.s) == 250_000


def test_what_was_sent_too_much_is_owed() -> None:
    clock = Clock()
    limit = RateLimit(1_000_000, [], lambda: clock.hour)
    assert limit.allowance(clock.s) == 250_000
    limit.take(1_250_000)
    assert limit.allowance(clock.s) == 0
    assert limit.wait_s(clock.s) == pytest.approx(1.0625)
    clock.go(1.07)
    assert limit.allowance(clock.s)


def test_the_rate_changes_with_the_hour_within_a_minute() -> None:
    clock = Clock()
    limit = RateLimit(
        None, ["08:00-18:00 100000", "18:00-22:00 400000", "23:00-01:00 50000"], lambda: clock.hour
    )
    assert limit.is_needed
    assert limit.allowance(clock.s) is None
    clock.go(3600 + MINUTE_S)
    assert sent_in(limit, clock, 20) == pytest.approx(20 * 100_000, rel=0.05)
    clock.go(10 * 3600)
    assert sent_in(limit, clock, 20) == pytest.approx(20 * 400_000, rel=0.05)
    clock.go(4 * 3600)
    assert limit.allowance(clock.s) is None
    clock.go(2 * 3600)
    assert sent_in(limit, clock, 20) == pytest.approx(20 * 50_000, rel=0.05)
    clock.go(3600)
    assert limit.allowance(clock.s) is None


def test_a_clock_that_is_set_counts_from_then_on() -> None:
    clock = Clock()
    limit = RateLimit(None, ["08:00-18:00 100000"], lambda: clock.hour)
    assert limit.allowance(clock.s) is None
    clock.hour += timedelta(hours=3)
    clock.go(MINUTE_S)
    assert limit.allowance(clock.s) == 25_000
    clock.hour -= timedelta(hours=5)
    clock.go(MINUTE_S)
    assert limit.allowance(clock.s) is None


def test_the_hour_is_asked_once_a_minute() -> None:
    asked = []
    clock = Clock()

    def hour() -> datetime:
        asked.append(clock.s)
        return clock.hour

    limit = RateLimit(1_000_000, [], hour)
    for _ in range(1000):
        limit.allowance(clock.s)
        clock.go(0.1)
    assert len(asked) == 2
