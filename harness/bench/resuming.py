"""The row of a transfer that is cut: what the rest costs against all of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from harness import faults, wait
from harness.bench import sources, stage
from harness.bench.figures import FIGURES
from harness.bench.row import paired, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.row import Row
    from harness.bench.stage import Stage

MIB = 1 << 20
SIZE_BYTES = 192 * MIB
FILES = 64
LINE_BITS = 100_000_000
MOST_OF_ALL = 0.75
"""More of the bytes than that after a cut at half: it began anew, and there is nothing to measure."""


def resume_half(on: Stage) -> Row:
    """The link resets at half of the bytes; measured is the run after it, from its start to its commit."""
    size_bytes = round(SIZE_BYTES * on.scale)
    fill = functools.partial(sources.noise, size_bytes=size_bytes, files=round(FILES * min(1, on.scale)) or 1)
    both = on.hosts("resume", fill, target=stage.UNTRIED)
    all_bytes = [0]

    def whole() -> float:
        stage.settle(both)
        before = both.bytes_on_link()
        seconds = timed(lambda: stage.sync(both, "sent"))
        all_bytes[0] = both.bytes_on_link() - before
        stage.forget(both)
        return seconds

    def rest() -> float:
        stage.settle(both)
        before = both.bytes_on_link()
        with both.syncing() as process:
            wait.until(
                lambda: both.bytes_on_link() - before >= all_bytes[0] / 2 or process.poll() is not None,
                timeout_s=stage.LONG_S,
                what="half of the transfer",
                interval_s=0.002,
            )
            with faults.ResettingLink(both.link):
                if process.wait(60) == 0:
                    raise AssertionError("the transfer was finished before the link was reset")
                wait.until(
                    lambda: not faults.find(both.daisy, "btrsync serve"),
                    timeout_s=60,
                    what="the end of serve",
                )
        stage.settle(both)
        before = both.bytes_on_link()
        seconds = timed(lambda: stage.sync(both, "sent"))
        part = (both.bytes_on_link() - before) / all_bytes[0]
        stage.forget(both)
        if part > MOST_OF_ALL:
            raise AssertionError(f"it did not go on: after a cut at half, {part:.0%} was sent again")
        return seconds

    both.link.slow(LINE_BITS)
    try:
        whole()
        return paired(
            "resume-half", rest, whole, pairs=on.pairs, target=FIGURES["resume-half"].target,
            baseline="all of it at once",
        )  # fmt: skip
    finally:
        both.link.normal()


ROWS: dict[str, Callable[[Stage], Row]] = {"resume-half": resume_half}
