"""How many bytes may go now: a rate by the hour, kept by a bucket of tokens. Clocks come in as arguments."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from btrsync.plan.rates import parse_window, rate_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

BURST_S = 0.25
"""A bucket holds what may go in so many seconds: what is sent by so much too late is made good."""
LEAST_BURST_BYTES = 4096
"""Below that, frames would be mostly headers."""
MINUTE_S = 60.0


class RateLimit:
    """The rate of one target, for all that is sent to it together.

    otherwise: bytes per second at hours without a window, None for no limit; windows: `rate_limits` of
    the configuration; local_time: tells the hour, asked once a minute, so that a clock that is set counts
    from then on. Several threads may share it: what they take beyond it together is owed by all.
    """

    def __init__(
        self, otherwise: int | None, windows: Sequence[str], local_time: Callable[[], datetime]
    ) -> None:
        self._otherwise = otherwise
        self._windows = [parse_window(text) for text in windows]
        self._local_time = local_time
        self._rate: int | None = None
        self._asked_s: float | None = None
        self._filled_s = 0.0
        self._tokens = 0.0
        self._lock = threading.Lock()

    @property
    def is_needed(self) -> bool:
        """Whether there is any limit at any hour: without, nothing needs to be asked."""
        return self._otherwise is not None or bool(self._windows)

    def allowance(self, monotonic_s: float) -> int | None:
        """Return how many bytes may go at this moment, 0 if none yet; None: as many as one likes.

        monotonic_s: time.monotonic(), or any clock of seconds that never goes back.
        """
        with self._lock:
            self._fill(monotonic_s)
            if self._rate is None:
                return None
            # Little at a time would be slower than the rate: every frame and every call has its price.
            return int(self._tokens) if self._tokens >= self._least(self._rate) else 0

    def wait_s(self, monotonic_s: float) -> float:
        """Return in how many seconds to ask again, 0.0 if something may go now."""
        with self._lock:
            self._fill(monotonic_s)
            if self._rate is None:
                return 0.0
            return max(0.0, (self._least(self._rate) - self._tokens) / self._rate)

    def take(self, size_bytes: int) -> None:
        """Say that so many bytes went; more than was allowed is owed from what comes next."""
        with self._lock:
            self._tokens -= size_bytes

    @staticmethod
    def _burst(rate: int) -> float:
        return max(LEAST_BURST_BYTES, rate * BURST_S)

    def _least(self, rate: int) -> float:
        return self._burst(rate) / 4

    def _fill(self, monotonic_s: float) -> None:
        if self._asked_s is None or not 0 <= monotonic_s - self._asked_s < MINUTE_S:
            is_first = self._asked_s is None
            self._asked_s = monotonic_s
            now = self._local_time()
            rate = rate_at(now.hour * 60 + now.minute, self._windows, self._otherwise)
            if rate != self._rate or is_first:
                # What was owed or saved under another rate is forgotten.
                self._rate, self._tokens = rate, 0.0 if rate is None else self._burst(rate)
                self._filled_s = monotonic_s
        if self._rate is not None:
            gained = self._rate * max(0.0, monotonic_s - self._filled_s)
            self._tokens = min(self._burst(self._rate), self._tokens + gained)
        self._filled_s = monotonic_s
