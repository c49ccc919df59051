"""Progress on a terminal, by rich: imported only where there is one."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from btrsync.report import PlainReporter, format_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self, TextIO

    from rich.progress import TaskID

    from btrsync.report import JobOutcome


class TerminalReporter:
    """A bar with bytes, rate and time left for each send, on a terminal; a context manager.

    Draws when told something, from any thread, never from one of its own.
    """

    REDRAW_INTERVAL_S = 0.2
    totals_after_s = 2.0
    """By then a small change is sent, and to have counted it would have cost more than it told."""

    def __init__(self, summary: TextIO | None = None, *, has_steps: bool = True) -> None:
        self._plain = PlainReporter(sys.stderr, summary, has_steps=has_steps)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._drawn = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def step(self, job: str, target: str, text: str) -> None:
        """Write one line on what is being done now, above the bars."""
        with self._beside_the_bars():
            self._plain.step(job, target, text)

    def progress(self, job: str, target: str, bytes_written: int, total_bytes: int | None) -> None:
        """Move the bar of a send; all are drawn at most five times a second."""
        with self._lock:
            task = self._tasks.get((job, target))
            if task is None:
                # What was there when it began is no speed.
                task = self._bars.add_task(
                    format_pair(job, target), completed=bytes_written, total=total_bytes
                )
                self._tasks[job, target] = task
                self._bars.start()
            self._bars.update(task, completed=bytes_written, total=total_bytes)
            now = time.monotonic()
            if now - self._drawn >= self.REDRAW_INTERVAL_S:
                self._drawn = now
                self._bars.refresh()

    def warning(self, text: str) -> None:
        """Write one line that wants attention, above the bars."""
        with self._beside_the_bars():
            self._plain.warning(text)

    def outcome(self, outcome: JobOutcome) -> None:
        """Take the bar away and write what came of the job at this target."""
        with self._beside_the_bars():
            task = self._tasks.pop((outcome.job, outcome.target), None)
            if task is not None:
                self._bars.remove_task(task)
            self._plain.outcome(outcome)

    @contextmanager
    def _beside_the_bars(self) -> Iterator[None]:
        # stdout may be the same terminal, and rich only minds what passes through its own console.
        with self._lock:
            self._bars.stop()
            yield
            if self._tasks:
                self._bars.start()
