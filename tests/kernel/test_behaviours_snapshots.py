"""Snapshots: what they look like, and where they can be."""

from __future__ import annotations

import pytest

from tests.kernel.send_stream import END, SNAPSHOT, UTIMES, commands_of
from tests.kernel.trial import (
    Trial,
    behaviour,
    is_subvolume,
)

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


@behaviour
def test_a_snapshot_looks_like_a_complete_directory(trial: Trial) -> None:
    """A snapshot looks like a complete directory, and stays as it was.

    Expected: every file of the subvolume is there at the moment of the snapshot, can be read at any time
    like a file in an ordinary directory, and later changes of the subvolume do not show.

    btrsync: nothing; a single file is restored by `cp` out of a snapshot.

    Source: the original notes, 挙動 ("looks like a directory with the complete files").
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.holds("the snapshot's whole tree equals the subvolume's", trial.same_tree(share, snapshot))
    trial.run("rm", share / "photo")
    (share / "letters" / "first").write_text("Changed.\n")
    trial.run("cat", snapshot / "letters" / "first")
    trial.holds(
        "a file deleted from the subvolume is still in the snapshot", (snapshot / "photo").stat().st_size
    )
    trial.run("touch", snapshot / "new", status=1)


@behaviour
def test_what_was_written_but_never_synced_is_in_the_snapshot(trial: Trial) -> None:
    """What was written but not yet synced is in the snapshot.

    Expected: taking a snapshot writes out the subvolume's dirty data first and commits, so that no `sync`
    is needed, neither before it nor between it and `btrfs send`.

    btrsync: syncs only to learn whether anything has changed (see the generation).

    Source: create_snapshot(), fs/btrfs/ioctl.c; the original script calls `sync` after the snapshot.
    """
    share = trial.share()
    with (share / "journal").open("wb") as journal:
        journal.write(b"line\n" * 100_000)
        journal.flush()
        snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.holds(
        "a file of 500,000 bytes written just before has all of them in the snapshot",
        (snapshot / "journal").read_bytes() == b"line\n" * 100_000,
    )
    trial.receive(trial.send(snapshot))
    trial.holds(
        "sent at once, it has them at the receiver",
        trial.same_tree(snapshot, trial.target / "snapshot-1"),
    )


@behaviour
def test_a_snapshot_can_be_anywhere_on_the_same_filesystem(trial: Trial) -> None:
    """A snapshot need not lie inside its source: anywhere on the same filesystem will do.

    Expected: inside the subvolume, beside it, in another subvolume, and through another mount of the same
    filesystem. The notes say that it cannot be put outside the source ("/bar"); it can, as long as /bar is
    the same filesystem.

    btrsync: takes any directory of the same filesystem as `snapshots`.

    Source: the original notes, 挙動; corrected here.
    """
    share = trial.share()
    trial.mkdir(share / "snapshots")
    trial.mkdir(trial.source / "beside")
    trial.run("btrfs", "subvolume", "create", trial.source / "bar")
    # Each is compared before the next is taken: one inside the source is a new directory of the source.
    for place in (trial.source / "beside", trial.source / "bar"):
        snapshot = trial.snapshot(share, place / "snapshot-1")
        trial.holds(f"/source/{place.name}/snapshot-1 equals the subvolume", trial.same_tree(share, snapshot))
    with trial.mounted(trial.pair.source_device, "bar-mounted", f"subvol={trial.inside('bar')}") as bar:
        snapshot = trial.snapshot(share, bar / "snapshot-2")
        trial.holds(
            "the one taken through another mount equals the subvolume", trial.same_tree(share, snapshot)
        )
    snapshot = trial.snapshot(share, share / "snapshots" / "snapshot-1")
    trial.holds("the one inside the subvolume is a snapshot too", is_subvolume(snapshot))


@behaviour
def test_a_snapshot_cannot_be_on_another_filesystem(trial: Trial) -> None:
    """A snapshot cannot be put on another filesystem.

    Expected: "Invalid cross-device link" (EXDEV) where the other one is btrfs, "not a btrfs filesystem"
    where it is not. Note that btrfs-progs 6.2 announces the snapshot after its error all the same: only
    the exit status tells.

    btrsync: compares the filesystems of `subvolume` and `snapshots` before it makes anything.

    Source: btrfs_ioctl_snap_create(), fs/btrfs/ioctl.c.
    """
    share = trial.share()
    trial.run("btrfs", "subvolume", "snapshot", "-r", share, trial.target / "snapshot-1", status=1)
    trial.holds("nothing is left on the other filesystem", not any(trial.target.iterdir()))
    trial.run("btrfs", "subvolume", "snapshot", "-r", share, trial.work / "snapshot-1", status=1)


@behaviour
def test_an_existing_directory_as_the_snapshots_name(trial: Trial) -> None:
    """A snapshot whose name is taken by a directory goes inside it, under the subvolume's name.

    Expected: like `mv` and `cp`, `btrfs subvolume snapshot` takes an existing directory for the place, not
    for the name, and exits 0. If the directory is itself a read-only snapshot, as a `snapshot-new` that
    was left over, it fails with "Read-only file system".

    btrsync: takes no snapshot where the name is taken, whatever is there; at the server a taken name is
    refused before anything is sent.

    Source: btrfs-subvolume(8); measured.
    """
    share = trial.share()
    taken = trial.source / "snapshot-new"
    trial.mkdir(taken)
    trial.snapshot(share, taken)
    trial.holds("/source/snapshot-new/share is the snapshot", is_subvolume(taken / "share"))
    trial.holds("/source/snapshot-new is not", not is_subvolume(taken))
    leftover = trial.snapshot(share, trial.source / "snapshot-old")
    trial.run("btrfs", "subvolume", "snapshot", "-r", share, leftover, status=1)


@behaviour
def test_nested_subvolumes_are_empty_directories_in_a_snapshot(trial: Trial) -> None:
    """A nested subvolume is an empty directory in the snapshot, and nothing at all at the receiver.

    Expected: a snapshot is of one subvolume. In the place of a nested one it shows an empty directory with
    inode number 2; in a writable snapshot nothing can be made in it, but it can be removed. `btrfs send`
    leaves it out without a word.

    btrsync: nothing; a nested subvolume needs a job of its own.

    Source: btrfs-subvolume(8), nested subvolumes; measured.
    """
    share = trial.share()
    trial.run("btrfs", "subvolume", "create", share / "nested")
    (share / "nested" / "treasure").write_text("not in the backup\n")
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    writable = trial.snapshot(share, trial.source / "writable", readonly=False)
    trial.run("touch", writable / "nested" / "new", status=1)
    trial.run("rmdir", writable / "nested")
    placeholder = snapshot / "nested"
    trial.run("stat", "--format", "%F, inode %i", placeholder)
    trial.holds("it is empty in the snapshot", placeholder.is_dir() and not any(placeholder.iterdir()))
    trial.receive(trial.send(snapshot))
    trial.holds("it does not exist at the receiver", not (trial.target / "snapshot-1" / "nested").exists())
    trial.holds(
        "all the rest does: the whole tree equals the snapshot's",
        trial.same_tree(snapshot, trial.target / "snapshot-1"),
    )


@behaviour
def test_a_subvolume_that_contains_its_own_snapshots(trial: Trial) -> None:
    """A snapshot of a subvolume with its own `snapshots/` inside shows the earlier ones as empty directories.

    Expected: no recursion and no growth. Each snapshot has `snapshots/`, and in it an empty directory with
    inode 2 for each snapshot that was there before; the receiver gets an empty `snapshots/`. But
    `snapshots/` itself changes with every snapshot taken, so that an incremental is never quite empty: it
    has the times of that directory.

    btrsync: works with it, as the original did, and does not take the taking of a snapshot for a change
    (see the generation).

    Source: the original script's `/home/foo/share/snapshots`; measured.
    """
    share = trial.share()
    inside = share / "snapshots"
    trial.mkdir(inside)
    first = trial.snapshot(share, inside / "snapshot-1")
    second = trial.snapshot(share, inside / "snapshot-2")
    trial.run("ls", first / "snapshots")
    trial.run("ls", second / "snapshots")
    trial.run("stat", "--format", "%F, inode %i", second / "snapshots" / "snapshot-1")
    trial.receive(trial.send(first))
    stream = trial.send(second, first)
    kinds = [each.type for each in commands_of(stream.read_bytes())]
    trial.holds("the incremental is SNAPSHOT, UTIMES, END", kinds == [SNAPSHOT, UTIMES, END])
    trial.receive(stream)
    trial.holds(
        "at the receiver `snapshots/` is there and empty",
        (trial.target / "snapshot-2" / "snapshots").is_dir()
        and not any((trial.target / "snapshot-2" / "snapshots").iterdir()),
    )
    trial.holds(
        "apart from the empty directories both trees are equal",
        trial.same_tree(second, trial.target / "snapshot-2"),
    )
