"""The steps "cut link" and "resume after a cut": a transfer is cut, and the next run goes on from there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import wait
from harness.rehearsal.problems import NotExercised, StepFailed
from harness.rehearsal.session import write_noise
from harness.rehearsal.show import Result, format_bytes
from harness.scenario import INCOMING_PREFIX, Synced

if TYPE_CHECKING:
    from harness.command import Process
    from harness.rehearsal.session import Pair, Session

NOISE_BYTES = 24 << 20
RATE_BITS = 32_000_000
MOVED_BYTES = 12_000_000
"""So much has crossed the link when it is cut: about half."""
SLACK_BYTES = 4_000_000
"""What a run sends besides: small changes, ssh's handshake."""
CLIENT_FILE = Path("/etc/btrsync/rehearsal-cut-link.toml")
START_S = 60.0
NOTICE_S = 60.0
"""Silence of 30 s ends a connection; the rest is for a busy machine."""
KEPT_S = 45.0
"""The server hears of the cut when the link is back, and else after 30 s of silence."""
UNREACHABLE = 5
POLL_S = 0.01


def cut_link(session: Session) -> Result:
    """A transfer is cut half-way: btrsync gives up, nothing half-done is visible, what came is kept."""
    pair = session.remote_pair
    assert pair is not None, "left out where no target is behind ssh"
    both, began = session.both, time.monotonic()
    for job in both.jobs:
        write_noise(session.tree(job) / "written-before-the-cut", NOISE_BYTES)
    before, bytes_before = both.backups(*pair), both.bytes_on_link()
    noticed_s, cut = _cut_a_transfer(session, pair)
    _check_failure(cut, pair)
    session.show.line(f"  btrsync gave up {noticed_s:.1f} s later, with status {cut.returncode}")
    try:
        kept = wait.until(lambda: find_partial(session, pair), timeout_s=KEPT_S, what="a partial")
    except wait.NeverCame:
        raise StepFailed("the server kept nothing of what it had received", session.logs()) from None
    visible = [name for name in both.backups(*pair) if not name.startswith(".")]
    if visible != before:
        raise StepFailed(f"after the cut the server shows {', '.join(visible)}, not what it showed before")
    return Result(
        "cut link",
        ok=True,
        seconds=time.monotonic() - began,
        bytes_sent=both.bytes_on_link() - bytes_before,
        detail=f"the server shows what it showed before; btrsync status: {format_partial(kept)}",
    )


def resume_after_a_cut(session: Session) -> Result:
    """The next run goes on where the cut one ended; the result is whole and equal."""
    pair = session.remote_pair
    assert pair is not None, "left out where no target is behind ssh"
    if not find_partial(session, pair):
        cut_link(session)
    both, kept = session.both, find_partial(session, pair)
    bytes_before = both.bytes_on_link()
    synced, seconds = session.sync_all("sent", "incremental")
    crossed_bytes = both.bytes_on_link() - bytes_before
    resumed_bytes = int(synced.outcome(*pair)["resumed_from_bytes"])
    if resumed_bytes != kept["data_bytes"] or crossed_bytes > _whole_bytes(session) - resumed_bytes // 2:
        raise StepFailed(
            f"it began anew: {format_bytes(crossed_bytes)} crossed the link, resumed from {resumed_bytes} of"
            f" {kept['data_bytes']} bytes",
            synced.stderr.splitlines() + session.logs(),
        )
    paths = session.take_in(synced)
    return Result(
        "resume after a cut",
        ok=True,
        seconds=seconds,
        bytes_sent=synced.bytes_sent,
        rate=synced.bytes_sent / 1e6 / seconds if seconds else None,
        detail=f"went on from {format_bytes(resumed_bytes)}, {format_bytes(synced.bytes_sent)} more sent,"
        f" nothing left over; both sides are equal in all {paths:,} paths",
    )


def find_partial(session: Session, pair: Pair) -> dict[str, Any]:
    """Return what `btrsync status` tells of a cut transfer; nothing if there is none."""
    job, target = pair
    told = session.both.btrsync("status", "--json", job, "--target", target, ok=None).stdout
    (status,) = json.loads(told)["statuses"]
    return dict(status["partials"][-1]) if status["partials"] else {}


def format_partial(partial: dict[str, Any]) -> str:
    """Return what the server holds in words: "11.5 MB, 45 %, of snapshot-…"."""
    share = "" if partial["percent"] is None else f", {partial['percent']} %,"
    return f"{format_bytes(partial['data_bytes'])}{share} of {partial['snapshot']} are kept"


def _whole_bytes(session: Session) -> int:
    return NOISE_BYTES * len(session.pairs) + SLACK_BYTES


def _cut_a_transfer(session: Session, pair: Pair) -> tuple[float, Synced]:
    """Cut the link when bytes are seen to move; return after how long that was noticed, and the run.

    Raises NotExercised if the transfer was over before.
    """
    both, (job, target) = session.both, pair
    # Within the run it would try again for minutes, and here the link stays cut.
    both.write_client_file(CLIENT_FILE, retries=0)
    both.link.slow(RATE_BITS)
    try:
        with both.syncing(job, "--target", target, "--config", CLIENT_FILE) as process:
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
