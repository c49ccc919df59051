"""The steps of a rehearsal that should simply work: what each shows is its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.rehearsal.cut_link import cut_link, resume_after_a_cut
from harness.rehearsal.encrypted_array import array_created_and_opened, wrong_key_refused_by_the_array
from harness.rehearsal.hostile import hostile_stream_refused
from harness.rehearsal.problems import StepFailed
from harness.rehearsal.show import Result, format_bytes
from harness.rehearsal.wrong_key import wrong_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.rehearsal.session import Session

RENAMED = "renamed-by-hand"
HANDSHAKE_BYTES = 256_000
"""What a run without anything to send may cost on the link; measured: 7 kB."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step; the later ones stand on those that are needed, which are always done.

    needs_remote: left out where every target is a local disk. needs_encryption: where the kernel has
    no dm-crypt.
    """

    name: str
    run: Callable[[Session], Result]
    needs_remote: bool = False
    needs_encryption: bool = False
    is_needed: bool = False


def _sent(name: str, seconds: float, bytes_sent: int, detail: str) -> Result:
    rate = bytes_sent / 1e6 / seconds if seconds else None
    return Result(name, ok=True, seconds=seconds, bytes_sent=bytes_sent, detail=detail, rate=rate)


def _equal(paths: int) -> str:
    return f"both sides are equal in all {paths:,} paths"


def first_full_sync(session: Session) -> Result:
    """Everything is sent once."""
    synced, seconds = session.sync_all("sent", "full")
    paths = session.take_in(synced)
    words = f"{format_bytes(synced.bytes_sent)} sent; {_equal(paths)}"
    return _sent("first full sync", seconds, synced.bytes_sent, words)


def incremental_sync(session: Session) -> Result:
    """After a change of every kind, only the change is sent."""
    applied = session.change()
    parents = dict(session.latest)
    synced, seconds = session.sync_all("sent", "incremental")
    _check_parents(session, synced.outcomes, parents)
    paths = session.take_in(synced)
    words = f"after {len(applied)} kinds of changes {format_bytes(synced.bytes_sent)} sent; {_equal(paths)}"
    return _sent("incremental sync", seconds, synced.bytes_sent, words)


def renamed_parents(session: Session) -> Result:
    """The parents are renamed by hand on both sides, differently: still incremental."""
    both = session.both
    parents = dict(session.latest)
    for job, name in session.latest.items():
        renamed = f"{RENAMED}-on-workstation-{job}"
        os.rename(both.snapshot_path(name, job), both.snapshot_path(renamed, job))
        session.latest[job] = renamed
    for job, target in session.pairs:
        directory = both.backup_directory(job, target)
        os.rename(directory / parents[job], directory / f"{RENAMED}-at-{target}")
    session.change(["churn"])
    parents = dict(session.latest)
    synced, seconds = session.sync_all("sent", "incremental")
    _check_parents(session, synced.outcomes, parents)
    paths = session.take_in(synced)
    words = f"renamed on both sides, found by UUID: {format_bytes(synced.bytes_sent)} sent; {_equal(paths)}"
    return _sent("renamed parents", seconds, synced.bytes_sent, words)


def _check_parents(session: Session, outcomes: list[dict[str, object]], parents: dict[str, str]) -> None:
    for outcome in outcomes:
        wanted = parents[str(outcome["job"])]
        if outcome["send_parent"] != wanted:
            raise StepFailed(
                f"{outcome['job']} → {outcome['target']}: sent from {outcome['send_parent']}, not {wanted}",
                session.logs(),
            )


def nothing_changed(session: Session) -> Result:
    """Without a change no snapshot is made on either side and nothing is sent."""
    before = session.names()
    bytes_before = session.both.bytes_on_link()
    synced, seconds = session.sync_all("nothing_changed", None)
    handshake_bytes = session.both.bytes_on_link() - bytes_before
    after = session.names()
    for place, names in after.items():
        if names != before[place]:
            raise StepFailed(f"{place}: {', '.join(before[place])} became {', '.join(names)}", session.logs())
    if synced.bytes_sent or handshake_bytes > HANDSHAKE_BYTES:
        raise StepFailed(
            f"{synced.bytes_sent} bytes were sent, {handshake_bytes} went over the link", session.logs()
        )
    words = f"no new snapshot on either side, nothing sent ({format_bytes(handshake_bytes)} of ssh alone)"
    if session.remote_pair is None:
        words = "no new snapshot on either side, nothing sent"
    return Result("nothing changed", ok=True, seconds=seconds, bytes_sent=0, detail=words)


STEPS = (
    Step("array created and opened", array_created_and_opened, needs_encryption=True, is_needed=True),
    Step("first full sync", first_full_sync, is_needed=True),
    Step("incremental sync", incremental_sync),
    Step("renamed parents", renamed_parents),
    Step("nothing changed", nothing_changed),
    Step("cut link", cut_link, needs_remote=True),
    Step("resume after a cut", resume_after_a_cut, needs_remote=True),
    Step("wrong key", wrong_key, needs_remote=True),
    Step("hostile stream refused", hostile_stream_refused, needs_remote=True),
    Step("wrong key refused by the array", wrong_key_refused_by_the_array, needs_encryption=True),
)
