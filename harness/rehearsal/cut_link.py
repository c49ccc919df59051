"""The step "cut link": the link is cut in the middle of a transfer, and the next run puts it right."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from harness.rehearsal.problems import NotExercised, StepFailed
from harness.rehearsal.session import write_noise
from harness.rehearsal.show import Result, format_bytes
from harness.scenario import INCOMING_PREFIX, Synced

if TYPE_CHECKING:
    from harness.command import Process
    from harness.rehearsal.session import Pair, Session

NOISE_BYTES = 24 << 20
RATE_BITS = 32_000_000
MOVED_BYTES = 4_000_000
"""So much has crossed the link when it is cut: far more than a handshake, far less than the whole."""
START_S = 60.0
NOTICE_S = 60.0
"""Silence of 30 s ends a connection; the rest is for a busy machine."""
UNREACHABLE = 5
POLL_S = 0.01


def cut_link(session: Session) -> Result:
    """A transfer is cut half-way: nothing is left visible, and the next run goes on by itself."""
    pair = session.remote_pair
    assert pair is not None, "left out where no target is behind ssh"
    both, began = session.both, time.monotonic()
    for job in both.jobs:
        write_noise(session.tree(job) / "written-before-the-cut", NOISE_BYTES)
    before = both.backups(*pair)
    noticed_s, cut = _cut_a_transfer(session, pair)
    visible = [name for name in both.backups(*pair) if not name.startswith(INCOMING_PREFIX)]
    if visible != before:
        raise StepFailed(f"after the cut the server shows {', '.join(visible)}, not what it showed before")
    _check_failure(cut, pair)
    session.show.line(f"  btrsync gave up {noticed_s:.1f} s later, with status {cut.returncode}")
    synced, _ = session.sync_all("sent", "incremental")
    paths = session.take_in(synced)
    return Result(
        "cut link",
        ok=True,
        seconds=time.monotonic() - began,
        bytes_sent=synced.bytes_sent,
        detail=f"the next run put it right by itself: {format_bytes(synced.bytes_sent)} sent,"
        f" nothing left over; both sides are equal in all {paths:,} paths",
    )


def _cut_a_transfer(session: Session, pair: Pair) -> tuple[float, Synced]:
    """Cut the link when bytes are seen to move; return after how long that was noticed, and the run.

    Raises NotExercised if the transfer was over before.
    """
    both, (job, target) = session.both, pair
    both.link.slow(RATE_BITS)
    try:
        with both.syncing(job, "--target", target) as process:
            moved_bytes = _wait_until_half_way(session, pair, process)
            both.link.cut()
            cut_at = time.monotonic()
            session.show.line(
                f"  the link was cut when {format_bytes(moved_bytes)} of the transfer had crossed it"
            )
            try:
                process.wait(NOTICE_S)
            except TimeoutError:
                raise StepFailed(
                    f"btrsync still waits {NOTICE_S:g} s after the cut", session.logs()
                ) from None
            finally:
                noticed_s = time.monotonic() - cut_at
                both.link.normal()
                both.restore_link()
            cut = Synced.of(process.completed())
    finally:
        both.link.normal()
    if cut.returncode == 0:
        raise NotExercised("the transfer was finished before the link was cut", cut.stderr.splitlines())
    return noticed_s, cut


def _wait_until_half_way(session: Session, pair: Pair, process: Process) -> int:
    """Return the bytes that have crossed, once they are enough and the server is receiving."""
    both = session.both
    start_bytes = both.bytes_on_link()
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotExercised("the run ended before the link was cut", process.stderr.splitlines())
        moved_bytes = both.bytes_on_link() - start_bytes
        is_receiving = any(name.startswith(INCOMING_PREFIX) for name in both.backups(*pair))
        if moved_bytes >= MOVED_BYTES and is_receiving:
            if moved_bytes >= NOISE_BYTES:
                raise NotExercised(f"{moved_bytes} bytes, all of it, had crossed before the link was cut")
            return moved_bytes
        time.sleep(POLL_S)
    raise NotExercised(
        f"after {START_S:g} s only {both.bytes_on_link() - start_bytes} bytes had crossed the link",
        process.stderr.splitlines() + session.logs(),
    )


def _check_failure(cut: Synced, pair: Pair) -> None:
    if cut.returncode != UNREACHABLE:
        raise StepFailed(
            f"btrsync ended with status {cut.returncode} after the cut, not {UNREACHABLE}",
            cut.stderr.splitlines(),
        )
    if cut.outcome(*pair)["result"] != "failed":
        raise StepFailed("btrsync did not report the cut transfer as failed", cut.stderr.splitlines())
