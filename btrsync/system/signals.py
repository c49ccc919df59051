"""Signals that ask to stop, and the time in which they wait for a good moment."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """The time in which such a signal waits, and for good in a process that is started in it.

    For who asks a whole session or service to stop, as systemd does, asks each of its processes: one that is
    to be ended in order by another of them must not go first. Source: signal(7): the mask outlives execve(2).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def stop_signals_deferred() -> Iterator[int]:
    """The time in which a signal that asks to stop interrupts nothing; it does so at the end.

    Gives a descriptor that becomes readable when one has come: whoever waits for anything polls it too.
    Outside the main thread, which no signal interrupts, that never happens. Source: signal(7),
    `signal.set_wakeup_fd`.
    """
    with ExitStack() as stack:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, read_fd)
        stack.callback(os.close, write_fd)
        if threading.current_thread() is not threading.main_thread():
            yield read_fd
            return
        came: list[int] = []

        def note(number: int, _frame: FrameType | None) -> None:
            came.append(number)

        def raise_first() -> None:
            if came:
                signal.raise_signal(signal.Signals(came[0]))

        # Last to be undone: with the handlers from before in place, the first signal takes effect.
        stack.callback(raise_first)
        wakeup_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, wakeup_fd)
        for number in STOP_SIGNALS:
            if callable(handler := signal.getsignal(number)):
                signal.signal(number, note)
                stack.callback(signal.signal, number, handler)
        yield read_fd
