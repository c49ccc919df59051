"""The steps of the encrypted array: it is made and opened by `btrsync array`, and no other key opens it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import dmcrypt
from harness.command import CommandFailed
from harness.rehearsal.problems import NotExercised, StepFailed
from harness.rehearsal.show import Result
from harness.scenario import MIRROR_ROOT

if TYPE_CHECKING:
    from harness.command import Completed
    from harness.rehearsal.session import Session

STORAGE = 8
"""The exit status of btrsync where a filesystem or device is not what it must be."""
MAGIC_OFFSET, MAGIC = 65536 + 64, b"_BHRfS_M"
"""Of the first superblock. Source: btrfs on-disk format, struct btrfs_super_block."""
STRANGE_KEY = Path("/etc/btrsync/rehearsal-wrong-array-key")


def array_created_and_opened(session: Session) -> Result:
    """The encrypted array is made of blank disks, opened, and mounted."""
    array, began = session.both.encrypted, time.monotonic()
    try:
        created = array.create()
        session.show.line(f"  {created.stdout.strip()}")
        opened = array.open()
    except CommandFailed as failed:
        raise StepFailed(*_told(failed.completed)) from None
    session.show.line(f"  {opened.stdout.strip()}")
    seconds = time.monotonic() - began
    _check_open(session)
    for disk, mapping in zip(array.disks, array.mappings, strict=True):
        if _shows_btrfs(disk.device):
            raise StepFailed(f"{disk.device} shows a btrfs in the clear: it is not encrypted")
        if not _shows_btrfs(session.both.daisy.path(dmcrypt.MAPPER / mapping)):
            raise StepFailed(f"the mapping {mapping} shows no btrfs")
    words = f"{len(array.disks)} disks of {dmcrypt.CIPHER}; in the clear none shows a btrfs"
    return Result("array created and opened", ok=True, seconds=seconds, bytes_sent=0, detail=words)


def wrong_key_refused_by_the_array(session: Session) -> Result:
    """With another key cryptsetup opens without a word; btrsync refuses, and writes nothing."""
    array, daisy, began = session.both.encrypted, session.both.daisy, time.monotonic()
    dmcrypt.write_key(daisy.path(STRANGE_KEY))
    try:
        array.close()
        _show_that_cryptsetup_takes_it(session)
        key = array.swap_key(daisy.path(STRANGE_KEY).read_bytes())
        try:
            before = array.sectors_written()
            refused = array.btrsync("open", "mirror", ok=None)
        finally:
            array.swap_key(key)
        _check_refusal(session, refused, before)
        array.open()
    except CommandFailed as failed:
        raise StepFailed(*_told(failed.completed)) from None
    told = [line for line in refused.stderr.splitlines() if line.startswith("btrsync: ")]
    session.show.line(f"  {told[0] if told else refused.stderr.strip()}")
    _check_open(session)
    session.sync_all("nothing_changed", None)
    paths = sum(
        session.compare(session.latest[job], job, target)
        for job, target in session.pairs
        if session.latest.get(job)
    )
    return Result(
        "wrong key refused by the array",
        ok=True,
        seconds=time.monotonic() - began,
        bytes_sent=0,
        detail="cryptsetup took the key, btrsync did not; no disk was written to; with the right key"
        f" both sides are equal in all {paths:,} paths",
    )


def _show_that_cryptsetup_takes_it(session: Session) -> None:
    """The fault: a plain mapping opens with any key, and shows noise. Leaves it closed."""
    array, daisy = session.both.encrypted, session.both.daisy
    name = array.mappings[0]
    argv = dmcrypt.open_argv(array.members[0], name, STRANGE_KEY)
    daisy.run(argv, env=dmcrypt.ENVIRONMENT)
    try:
        shown = _shows_btrfs(daisy.path(dmcrypt.MAPPER / name))
    finally:
        daisy.run(dmcrypt.close_argv(name, deferred=False), env=dmcrypt.ENVIRONMENT)
    if shown:
        raise NotExercised("the mapping shows the btrfs with the wrong key too")


def _check_refusal(session: Session, refused: Completed, before: list[int]) -> None:
    array, daisy = session.both.encrypted, session.both.daisy
    problem, evidence = _told(refused)
    if refused.returncode != STORAGE:
        raise StepFailed(
            f"with a wrong key it ended with status {refused.returncode}, not {STORAGE}", evidence
        )
    if "key" not in refused.stderr:
        raise StepFailed(f"it was refused for another reason than the key: {problem}", evidence)
    status = array.status()
    if status["state"] != "closed" or status["is_mounted"]:
        raise StepFailed(f"after the refusal the array is {status['state']}, not closed", evidence)
    if array.sectors_written() != before:
        raise StepFailed("a disk was written to with the wrong key", evidence)
    if any(daisy.path(MIRROR_ROOT).iterdir()):
        raise StepFailed(f"something is at {MIRROR_ROOT} after the refusal", evidence)


def _check_open(session: Session) -> None:
    status = session.both.encrypted.status()
    if status["state"] != "open" or not status["is_mounted"] or status["is_degraded"]:
        problems = [str(problem) for problem in status["problems"]]
        raise StepFailed(f"`btrsync array status` finds it {status['state']}", problems)


def _shows_btrfs(device: Path) -> bool:
    with device.open("rb") as file:
        file.seek(MAGIC_OFFSET)
        return file.read(len(MAGIC)) == MAGIC


def _told(completed: Completed) -> tuple[str, list[str]]:
    """Return what a command that daisy ran came to, without how she was entered, and what it said."""
    own = completed.argv[completed.argv.index("--") + 1 :]
    words = " ".join([Path(own[0]).name, *own[1:3]])
    return f"{words}: status {completed.returncode}", completed.stderr.splitlines()
