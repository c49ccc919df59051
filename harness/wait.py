"""Waiting for a condition with a deadline, never for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


class NeverCame(AssertionError):
    """What was waited for did not come in time."""


def until(
    condition: Callable[[], Value | None],
    *,
    timeout_s: float,
    what: str,
    interval_s: float = 0.01,
) -> Value:
    """Call `condition` until it returns something true, and return that.

    timeout_s: the deadline; the condition is tried at least once, and once more at the end.
    what: names the thing waited for, in the error. An exception of the condition's own passes
    through: raise one where the thing waited for can no longer come.
    Raises NeverCame, which says what the condition returned last.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if is_last:
            raise NeverCame(f"{what}: not within {timeout_s:g} s; last seen: {value!r}")
        time.sleep(interval_s)
