"""Space: what many snapshots cost, and when it comes back."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from harness import command
from tests.kernel.trial import PHOTO_BYTES, Trial, behaviour, sync

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

NODE_BYTES = 16_384


def used_bytes(path: Path, kind: str) -> int:
    """Return how much of the filesystem's Data or Metadata is in use, one copy counted."""
    sync(path)
    said = command.run(["btrfs", "filesystem", "df", "--raw", path]).stdout
    return int(re.findall(rf"^{kind}, \w+: total=\d+, used=(\d+)$", said, flags=re.MULTILINE)[0])


def deleted_for_good(trial: Trial, path: Path) -> None:
    """Delete a snapshot and wait until the kernel has given its space back."""
    trial.run("btrfs", "subvolume", "delete", "--commit-after", path)
    trial.run("btrfs", "subvolume", "sync", trial.pair.source)


@behaviour
def test_many_snapshots_of_the_same(trial: Trial) -> None:
    """A hundred snapshots of an unchanged subvolume cost no data and one metadata block each.

    Expected: a snapshot is a new root block (16 KiB) with an entry in two trees; all below it is shared
    until something changes. This is the part of the notes' question about space that does not depend on
    what changes.

    btrsync: keeps every snapshot it has made unless somebody deletes it.

    Source: the original notes, 挙動 ("how many snapshots affect space and I/O is not known"); measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-000")
    data, metadata = used_bytes(first, "Data"), used_bytes(first, "Metadata")
    snapshots = [trial.source / f"snapshot-{number:03}" for number in range(1, 101)]
    trial.shell(
        f"for i in $(seq -w 100); do btrfs -q subvolume snapshot -r {share} {trial.source}/snapshot-$i; done"
    )
    trial.holds("a hundred more snapshots are there", all(each.is_dir() for each in snapshots))
    trial.holds("they use no data", used_bytes(first, "Data") == data)
    per_snapshot = (used_bytes(first, "Metadata") - metadata) / 100
    trial.holds(
        "each uses one metadata block of 16 KiB, and less than another for its entries",
        NODE_BYTES <= per_snapshot < 2 * NODE_BYTES,
    )


@behaviour
def test_space_comes_back_with_the_last_snapshot(trial: Trial) -> None:
    """What was deleted or overwritten takes its space until the last snapshot that has it is deleted.

    Expected: deleting a file of 3 MB frees nothing while a snapshot has it. Overwriting costs the new data
    besides the old. The order in which snapshots are deleted does not matter.

    btrsync: deletes no snapshot of yours for space; no space is one of its errors.

    Source: the original notes, 挙動 (the question about space); measured.
    """
    share = trial.share()
    old = trial.snapshot(share, trial.source / "old")
    with_photo = used_bytes(share, "Data")
    trial.run("rm", share / "photo")
    trial.holds("deleting the photo frees nothing", used_bytes(share, "Data") == with_photo)
    (share / "other").write_bytes(random.Random(4).randbytes(PHOTO_BYTES))
    new = trial.snapshot(share, trial.source / "new")
    with_both = used_bytes(share, "Data")
    trial.holds("another photo costs its size besides", with_both - with_photo >= PHOTO_BYTES)
    deleted_for_good(trial, new)
    trial.holds(
        "deleting the younger snapshot frees nothing, for the subvolume has all of it",
        used_bytes(share, "Data") == with_both,
    )
    deleted_for_good(trial, old)
    trial.holds(
        "with the last snapshot that has it, the photo's space comes back",
        with_both - used_bytes(share, "Data") >= PHOTO_BYTES,
    )
