"""Signals that end a rehearsal, turned into one exception, so that everything is taken down."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody wants us to stop; raised once, for a second one would interrupt the taking down."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the main thread at the first signal, and pass over the next ones.

    From a terminal, Ctrl-C comes twice: from the terminal itself and from what contains us.
    """
    seen: list[int] = []
    owner = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A fork, as pyroute2 makes and ends them: unwinding its copy of our stack would kill the hosts.
            os._exit(128 + number)
        seen.append(number)
        if len(seen) == 1:
            raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
