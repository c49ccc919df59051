"""How fast a target may be sent to at which time of day: the windows that the configuration writes."""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOWEST_RATE = 1000
HIGHEST_RATE = 1 << 40
"""Bytes per second. Slower, not even the heartbeats would go through in time beside the data."""

DAY_MINUTES = 24 * 60
WINDOW = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9]) +([0-9]{1,15})")


class RateWindow(msgspec.Struct, frozen=True):
    """A part of each day with a rate of its own.

    begin, end: minutes since midnight, 0 to 1440; the end is not part of it, and one before the begin
    is on the next day. bytes_per_s: LOWEST_RATE to HIGHEST_RATE.
    """

    begin: int
    end: int
    bytes_per_s: int

    def holds(self, minute: int) -> bool:
        """Tell whether a minute of the day, 0 to 1439, is in it."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


def parse_window(text: str) -> RateWindow:
    """Return the window that "08:00-18:00 2000000" writes; times are local, the rate in bytes per second.

    Raises ValueError with the sentence that says what is wrong.
    """
    match = WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not "HH:MM-HH:MM BYTES"; write "08:00-18:00 2000000", for example')
    hours_and_minutes = [int(word) for word in match.groups()]
    begin = 60 * hours_and_minutes[0] + hours_and_minutes[1]
    end = 60 * hours_and_minutes[2] + hours_and_minutes[3]
    if begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise ValueError(f"{text!r} has a time that no day has; it goes from 00:00 to 24:00")
    if begin == end:
        raise ValueError(f"{text!r} begins when it ends; for the whole day, write rate_limit_bytes")
    rate = hours_and_minutes[4]
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"{text!r}: {rate} bytes a second; write from {LOWEST_RATE} to {HIGHEST_RATE}")
    return RateWindow(begin, end, rate)


def overlaps(windows: Sequence[RateWindow]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each two windows that share a minute of the day, the earlier one first."""
    for (one, first), (other, second) in combinations(enumerate(windows), 2):
        # Two parts of a circle meet if and only if one of them holds the other's begin.
        if first.holds(second.begin) or second.holds(first.begin):
            yield one, other


def rate_at(minute: int, windows: Sequence[RateWindow], otherwise: int | None) -> int | None:
    """Return the bytes per second for a minute of the day, 0 to 1439; None: as fast as it goes."""
    return next((window.bytes_per_s for window in windows if window.holds(minute)), otherwise)
