"""Generations: how to tell that nothing has changed since a snapshot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.kernel.send_stream import END, SNAPSHOT, UTIMES, commands_of
from tests.kernel.trial import CrashableDisk, Trial, behaviour, show, sync

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def list_quietly(directory: Path) -> list[str]:
    """List a directory without having its access time written."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


@behaviour
def test_the_generation_tells_that_nothing_has_changed(trial: Trial) -> None:
    """After a sync, a subvolume is unchanged since a snapshot if its generation is the snapshot's otransid.

    Expected: taking the snapshot sets both to the same value ("Generation" of the subvolume, "Gen at
    creation" of the snapshot). Work elsewhere on the filesystem moves neither; a change of one byte moves
    the subvolume's.

    btrsync: syncs the filesystem, compares the two, and makes no snapshot when they are equal.

    Source: create_pending_snapshot(), fs/btrfs/transaction.c; measured.
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds(
        "generation of the subvolume = otransid of the snapshot",
        show(share).generation == show(snapshot).otransid,
    )
    (trial.source / "elsewhere").write_text("other work\n")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds(
        "work elsewhere on the filesystem does not move it",
        show(share).generation == show(snapshot).otransid,
    )
    trial.shell(f"echo >> {share}/letters/first")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("one byte does", show(share).generation > show(snapshot).otransid)


@behaviour
def test_buffered_writes_do_not_move_the_generation(trial: Trial) -> None:
    """What is still in memory does not move the generation: without a sync a change is overlooked.

    Expected: the generation stands in the root item, which is written at the commit of the transaction
    (every 30 s, or by sync).

    btrsync: syncs first. The sync is the price of a reliable "nothing changed".

    Source: measured.
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    sync(trial.source)
    trial.shell(f"echo changed >> {share}/letters/first")
    trial.holds(
        "right after the write the generation still says unchanged",
        show(share).generation == show(snapshot).otransid,
    )
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("after the sync it has moved", show(share).generation > show(snapshot).otransid)


@behaviour
def test_listing_a_directory_moves_the_generation(trial: Trial) -> None:
    """Merely listing a directory moves the generation, where access times are kept (relatime).

    Expected: relatime, the default, writes an access time when it is older than the last change or than a
    day; that is a change of the subvolume. Opening with O_NOATIME, or a mount with noatime, avoids it.

    btrsync: lists with O_NOATIME, so that its own looking changes nothing; the reading of others costs a
    small incremental, and the mount option noatime saves that.

    Source: mount(8), relatime; open(2), O_NOATIME; measured.
    """
    share = trial.share()
    sync(trial.source)
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    assert list_quietly(share) and list_quietly(share / "letters")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("listing with O_NOATIME does not move it", show(share).generation == show(snapshot).otransid)
    with trial.mounted(
        trial.pair.source_device, "noatime", f"noatime,subvol={trial.inside('share')}"
    ) as quiet:
        trial.run("ls", quiet)
        trial.run("btrfs", "filesystem", "sync", trial.source)
        trial.holds(
            "listing through a noatime mount does not move it",
            show(share).generation == show(snapshot).otransid,
        )
    trial.run("ls", share)
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("listing through a relatime mount does", show(share).generation > show(snapshot).otransid)
    second = trial.snapshot(share, trial.source / "snapshot-2")
    stream = trial.send(second, snapshot).read_bytes()
    trial.holds(
        "the access time itself is sent: UTIMES and nothing else, in less than 400 bytes",
        {each.type for each in commands_of(stream)} == {SNAPSHOT, UTIMES, END} and len(stream) < 400,
    )
    trial.run("ls", share)
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds(
        "listing once more on the same day does not move it again",
        show(share).generation == show(second).otransid,
    )


@behaviour
def test_a_snapshot_inside_moves_the_generation_to_its_own_otransid(trial: Trial) -> None:
    """Taking a snapshot inside the subvolume does not look like a change, deleting or renaming one does.

    Expected: the new name is written in the transaction of the snapshot, so the subvolume's generation
    becomes the snapshot's otransid, as with a snapshot elsewhere. A later deletion or renaming writes
    another transaction.

    btrsync: renames nothing at the source. With `snapshots` inside the subvolume, every deletion of an old
    snapshot costs one small incremental at the next run; with `snapshots` beside it, none.

    Source: measured.
    """
    share = trial.share()
    inside = share / "snapshots"
    trial.mkdir(inside)
    old = trial.snapshot(share, inside / "snapshot-1")
    new = trial.snapshot(share, inside / "snapshot-2")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds(
        "taking one inside: generation = otransid of the newest", show(share).generation == show(new).otransid
    )
    trial.run("mv", old, inside / "renamed")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    moved = show(share).generation
    trial.holds("renaming one inside moves it", moved > show(new).otransid)
    trial.run("btrfs", "subvolume", "delete", inside / "renamed")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("deleting one inside moves it further", show(share).generation > moved)


@behaviour
def test_others_move_the_generation_without_changing_anything(trial: Trial) -> None:
    """Somebody else's snapshot, or a balance, moves the generation though nothing has changed.

    Expected: every snapshot of a subvolume moves its generation, whoever takes it (snapper, btrbk, a
    person), and a balance moves that of all. The kernel's ctransid, "changed transid", stays: it moves
    with inodes only.

    btrsync: compares the generation, which is on the safe side: such a run costs a snapshot and an empty
    incremental.

    Source: measured.
    """
    share = trial.share()
    ours = trial.snapshot(share, trial.source / "snapshot-1")
    changed = show(share).ctransid
    trial.snapshot(share, trial.source / "somebody-elses")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    moved = show(share).generation
    trial.holds(
        "after somebody else's snapshot the generation is beyond our snapshot's otransid",
        moved > show(ours).otransid,
    )
    trial.run("btrfs", "balance", "start", "--full-balance", trial.pair.source)
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("after a balance it is further", show(share).generation > moved)
    trial.holds("the ctransid is where it was", show(share).ctransid == changed)


@behaviour
def test_what_fsync_saved_from_a_crash_moves_the_generation_only(trial: Trial) -> None:
    """What fsync saved from a crash moves the generation, but not the ctransid.

    Expected: after a crash the kernel replays the log of what was fsynced since the last commit. The replay
    writes the file, and so moves the generation, but leaves the ctransid alone. (The crash here is a copy
    of the disk taken right after fsync returned, mounted instead of the original)

    btrsync: compares the generation and not the ctransid, for this reason.

    Source: btrfs_update_inode(), fs/btrfs/inode.c, BTRFS_FS_LOG_RECOVERING; measured.
    """
    with CrashableDisk(trial) as disk:
        share = disk.root / "share"
        trial.run("btrfs", "subvolume", "create", share)
        snapshot = trial.snapshot(share, disk.root / "snapshot-1")
        with (share / "ledger").open("wb", buffering=0) as ledger:
            ledger.write(b"paid\n")
            os.fsync(ledger.fileno())
        trial.holds(
            "before the crash nothing is committed: generation = otransid",
            show(share).generation == show(snapshot).otransid,
        )
        disk.crash()
        found, otransid = show(share), show(snapshot).otransid
        trial.run("cat", share / "ledger")
        trial.holds("after it the generation is beyond the otransid", found.generation > otransid)
        trial.holds("the ctransid is not", found.ctransid <= otransid)


@behaviour
def test_an_incremental_without_changes_is_tiny(trial: Trial) -> None:
    """An incremental without any change is two commands in about a hundred bytes.

    Expected: SNAPSHOT and END. It is received like any other and makes one more backup that shares
    everything with the last.

    btrsync: does not even take the snapshot unless asked (`--always`).

    Source: measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    trial.receive(trial.send(first))
    stream = trial.send(second, first)
    trial.holds(
        "the stream is SNAPSHOT, END",
        [each.type for each in commands_of(stream.read_bytes())] == [SNAPSHOT, END],
    )
    trial.holds("it has less than 150 bytes", stream.stat().st_size < 150)
    trial.receive(stream)
    trial.holds("the backup is complete", trial.same_tree(second, trial.target / "snapshot-2"))
