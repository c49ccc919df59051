"""Moving and deleting: what mv, rm, rmdir and renameat2 do with snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.trial import (
    Trial,
    behaviour,
    is_subvolume,
    rename_exchange,
    rename_noreplace,
    show,
)

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def exchanged(trial: Trial, one: Path, other: Path) -> OSError | None:
    error = rename_exchange(one, other)
    trial.note(f"renameat2({one}, {other}, RENAME_EXCHANGE)", error)
    return error


def renamed(trial: Trial, old: Path, new: Path) -> OSError | None:
    error = rename_noreplace(old, new)
    trial.note(f"renameat2({old}, {new}, RENAME_NOREPLACE)", error)
    return error


@behaviour
def test_mv_of_a_read_only_snapshot(trial: Trial) -> None:
    """`mv` renames a read-only snapshot inside its directory, but cannot move it to another.

    Expected: the new name in the same directory is well; into any other directory "Read-only file system"
    (EROFS), for root too, because the move would have to write the snapshot's own `..`.

    btrsync: receives under a staging name in the very directory of the final name.

    Source: the original notes, 挙動 ("mv is possible"); btrfs_rename(), fs/btrfs/inode.c.
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-new")
    before = show(snapshot)
    renamed = trial.source / "snapshot-old"
    trial.run("mv", snapshot, renamed)
    trial.holds("its UUID is the one it had", show(renamed).uuid == before.uuid)
    trial.holds("it is still read-only", show(renamed).is_readonly)
    elsewhere = trial.source / "elsewhere"
    trial.mkdir(elsewhere)
    trial.run("mv", renamed, elsewhere, status=1)
    trial.holds("it is where it was", is_subvolume(renamed) and not any(elsewhere.iterdir()))


@behaviour
def test_mv_of_a_writable_snapshot(trial: Trial) -> None:
    """`mv` moves a writable snapshot to any directory of the same mount.

    Expected: its UUID stays the same; a snapshot is found by UUID, so nothing is lost by it.

    btrsync: knows the snapshots in the configured directory by UUID; one moved out of it is not used.

    Source: measured.
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1", readonly=False)
    before = show(snapshot)
    elsewhere = trial.source / "elsewhere"
    trial.mkdir(elsewhere)
    trial.run("mv", snapshot, elsewhere)
    trial.holds("its UUID is the one it had", show(elsewhere / "snapshot-1").uuid == before.uuid)


@behaviour
def test_mv_across_mounts_copies(trial: Trial) -> None:
    """`mv` to another mount, even of the same filesystem, copies the files: what arrives is no snapshot.

    Expected: rename(2) does not cross mounts, so `mv` copies and deletes. A writable snapshot becomes an
    ordinary directory, with exit status 0; of a read-only one there are two afterwards, because the copy
    succeeds and the deletion fails.

    btrsync: renames with renameat2 only, which never copies.

    Source: rename(2), EXDEV; measured.
    """
    share = trial.share()
    writable = trial.snapshot(share, trial.source / "writable", readonly=False)
    readonly = trial.snapshot(share, trial.source / "readonly")
    trial.run("btrfs", "subvolume", "create", trial.source / "bar")
    with trial.mounted(trial.pair.source_device, "bar-mounted", f"subvol={trial.inside('bar')}") as bar:
        trial.run("mv", writable, bar)
        trial.holds(
            "what was the writable snapshot is an ordinary directory now",
            (bar / "writable").is_dir() and not is_subvolume(bar / "writable") and not writable.exists(),
        )
        said = trial.run("mv", readonly, bar, status=1)
        assert "Read-only file system" in said
        trial.holds(
            "the read-only snapshot is complete, and so is a copy of it which is no snapshot",
            trial.same_tree(readonly, share) and not is_subvolume(bar / "readonly"),
        )


@behaviour
def test_rm_cannot_delete_a_read_only_snapshot(trial: Trial) -> None:
    """Neither `rm -r` nor `rm -rf` deletes a read-only snapshot, `btrfs subvolume delete` does.

    Expected: `rm` says "Read-only file system" for each file and exits 1, `-f` or not; nothing is lost.
    `btrfs subvolume delete` takes the whole snapshot away, whatever is in it.

    btrsync: deletes with the ioctl, and only what the plan names.

    Source: the original notes, 挙動 ("rm is not possible, it must be btrfs subvolume delete").
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    for options in ("-r", "-rf"):
        trial.run("rm", options, snapshot, status=1)
    trial.run("rmdir", snapshot, status=1)
    trial.holds("the snapshot still equals the subvolume", trial.same_tree(share, snapshot))
    trial.run("btrfs", "subvolume", "delete", snapshot)
    trial.holds("the snapshot is gone", not snapshot.exists())


@behaviour
def test_rm_deletes_a_writable_snapshot(trial: Trial) -> None:
    """`rm -r` does delete a writable snapshot, file by file, and the subvolume with them.

    Expected: since Linux 4.18 `rmdir` deletes an empty subvolume, so `rm -r` ends well; before, it
    emptied the snapshot and failed at its root. The notes' "rm is not possible" holds for read-only
    snapshots and for old kernels.

    btrsync: makes its snapshots read-only in the call that makes them.

    Source: the original notes, 挙動; Linux commit a79a464d5675 (4.18).
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1", readonly=False)
    trial.run("rmdir", snapshot, status=1)
    trial.run("rm", "-r", snapshot)
    trial.holds("the snapshot is gone", not snapshot.exists())


@behaviour
def test_rmdir_deletes_an_empty_subvolume(trial: Trial) -> None:
    """`rmdir` deletes an empty subvolume, even an empty read-only snapshot.

    Expected: exit status 0 since Linux 4.18, "Operation not permitted" before. Being read-only protects
    what is in a subvolume; its name belongs to the directory around it.

    btrsync: reads the inventory of both sides anew in every run, and remembers nothing that could be gone.

    Source: Linux commit a79a464d5675 (4.18); measured.
    """
    empty = trial.source / "empty"
    trial.run("btrfs", "subvolume", "create", empty)
    snapshot = trial.snapshot(empty, trial.source / "snapshot-1")
    trial.run("rmdir", snapshot)
    trial.run("rmdir", empty)
    trial.holds("both are gone", not empty.exists() and not snapshot.exists())


@behaviour
def test_a_subvolume_that_holds_another_is_not_deleted(trial: Trial) -> None:
    """A subvolume that holds another subvolume cannot be deleted: its snapshots inside it come first.

    Expected: "Directory not empty", whatever else is in it. So a rollback by deleting the broken subvolume
    means first to bring the snapshots kept inside it to safety, which cannot be moved (they are
    read-only), only renamed with the subvolume around them.

    btrsync: works with a snapshot directory beside the subvolume as well as with one inside; beside it is
    better.

    Source: btrfs_ioctl_snap_destroy(), fs/btrfs/ioctl.c; the notes keep them inside.
    """
    share = trial.share()
    trial.mkdir(share / "snapshots")
    snapshot = trial.snapshot(share, share / "snapshots" / "snapshot-1")
    trial.run("btrfs", "subvolume", "delete", share, status=1)
    trial.holds("subvolume and snapshot are still there", is_subvolume(share) and is_subvolume(snapshot))
    trial.run("btrfs", "subvolume", "delete", snapshot)
    trial.run("btrfs", "subvolume", "delete", share)


@behaviour
def test_renameat2_noreplace_works_on_subvolumes(trial: Trial) -> None:
    """renameat2 with RENAME_NOREPLACE renames a subvolume, and never onto or into anything.

    Expected: a read-only snapshot gets a free name of its directory; a taken one is "File exists",
    whatever is there. Another directory is "Read-only file system", as with `mv`.

    btrsync: commits a backup by exactly this call.

    Source: renameat2(2); measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    assert renamed(trial, first, trial.source / "committed") is None
    error = renamed(trial, second, trial.source / "committed")
    trial.holds("a taken name is refused", isinstance(error, FileExistsError))
    trial.mkdir(trial.source / "empty")
    error = renamed(trial, second, trial.source / "empty")
    trial.holds("even that of an empty directory", isinstance(error, FileExistsError))
    assert renamed(trial, second, trial.source / "empty" / "snapshot-2") is not None
    trial.holds("what was refused is where it was", is_subvolume(second))


@behaviour
def test_renameat2_exchange_works_on_subvolumes(trial: Trial) -> None:
    """renameat2 with RENAME_EXCHANGE swaps two subvolumes in one step.

    Expected: inside one directory read-only ones too; across directories only writable ones.

    btrsync: nothing yet; a rollback by hand leaves no moment without the subvolume in this way.

    Source: renameat2(2); measured.
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    before = show(share).uuid, show(snapshot).uuid
    assert exchanged(trial, share, snapshot) is None
    trial.holds(
        "a subvolume and a read-only snapshot of one directory have swapped their names",
        (show(snapshot).uuid, show(share).uuid) == before,
    )
    assert exchanged(trial, share, snapshot) is None
    trial.mkdir(trial.source / "elsewhere")
    writable = trial.snapshot(share, trial.source / "elsewhere" / "writable", readonly=False)
    trial.holds(
        "two writable ones of two directories swap as well", exchanged(trial, share, writable) is None
    )
    error = exchanged(trial, snapshot, writable)
    trial.holds("a read-only and a writable one of two directories do not", isinstance(error, OSError))
