"""Parents: which snapshot `-p` finds at the receiver, and what defeats it."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.kernel.trial import Trial, behaviour, is_subvolume, show

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

# _IOW(0x94, 26, __u64), BTRFS_SUBVOL_RDONLY: include/uapi/linux/btrfs.h
SUBVOL_SETFLAGS, SUBVOL_RDONLY = 0x4008941A, 2


def sent_once(trial: Trial) -> tuple[Path, Path]:
    """Make a share, send its first snapshot, change the share, take a second; return both snapshots."""
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.receive(trial.send(first))
    trial.shell(f"echo 'P.S. More.' >> {share}/letters/first")
    return first, trial.snapshot(share, trial.source / "snapshot-2")


def received_on_top(trial: Trial, second: Path, parent: Path) -> None:
    """Send `second` with -p, receive it, and require a complete backup."""
    stream = trial.send(second, parent)
    trial.holds("the stream is an incremental one: less than 1,000 bytes", stream.stat().st_size < 1000)
    trial.receive(stream)
    trial.holds(
        "the whole tree of the backup equals the snapshot's",
        trial.same_tree(second, trial.target / second.name),
    )


def flipped(trial: Trial, path: Path, *, readonly: bool) -> None:
    """Change a subvolume between writable and read-only as every tool did before btrfs-progs 5.14.2."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, SUBVOL_SETFLAGS, struct.pack("Q", SUBVOL_RDONLY if readonly else 0))
    finally:
        os.close(descriptor)
    trial.note(
        f"ioctl({path}, BTRFS_IOC_SUBVOL_SETFLAGS, {'BTRFS_SUBVOL_RDONLY' if readonly else '0'})", None
    )


@behaviour
def test_p_after_the_parent_was_renamed_at_the_sender(trial: Trial) -> None:
    """`-p` works after the parent was renamed by `mv` on the sending side.

    Expected: the parent is known by its UUID on both sides, its name is not in the stream. This answers the
    question that the notes left open, for the case that the original script itself makes at every run.

    btrsync: finds parents by UUID; names are for people.

    Source: the original notes, 挙動 ("what becomes of -p after mv I have not tried yet").
    """
    first, second = sent_once(trial)
    trial.run("mv", first, trial.source / "snapshot-old")
    received_on_top(trial, second, trial.source / "snapshot-old")


@behaviour
def test_p_after_the_parent_was_renamed_at_the_receiver(trial: Trial) -> None:
    """`-p` works after the parent was renamed by `mv` on the receiving side.

    Expected: receive looks for the subvolume that carries the parent's UUID as received_uuid, anywhere on
    the filesystem. The original's server script renames every backup.

    btrsync: finds parents by UUID; names are for people.

    Source: the original notes, 挙動 (the open question).
    """
    first, second = sent_once(trial)
    trial.run("mv", trial.target / "snapshot-1", trial.target / "snapshot1409010102")
    received_on_top(trial, second, first)


@behaviour
def test_p_after_the_parent_was_renamed_on_both_sides(trial: Trial) -> None:
    """`-p` works after the parent was renamed on both sides, to different names.

    Expected: as above; also when a stranger has taken the parent's old name on both sides.

    btrsync: finds parents by UUID; `./rehearse` has this as a step of its own.

    Source: the original notes, 挙動 (the open question).
    """
    first, second = sent_once(trial)
    trial.run("mv", first, trial.source / "snapshot-old")
    trial.run("mv", trial.target / "snapshot-1", trial.target / "snapshot1409010102")
    trial.run("btrfs", "subvolume", "create", trial.source / "snapshot-1")
    trial.run("btrfs", "subvolume", "create", trial.target / "snapshot-1")
    received_on_top(trial, second, trial.source / "snapshot-old")


@behaviour
def test_p_after_the_directory_around_the_parent_was_renamed(trial: Trial) -> None:
    """`-p` works after the directories that hold the parents were renamed or moved.

    Expected: a read-only snapshot cannot be moved to another directory, but the directory that holds it
    can, with the snapshot in it.

    btrsync: finds parents by UUID, in the directory that the configuration names at the time.

    Source: the original notes, 挙動 (the open question).
    """
    share = trial.share()
    for side in (trial.source, trial.target):
        trial.mkdir(side / "old")
        trial.mkdir(side / "attic")
    first = trial.snapshot(share, trial.source / "old" / "snapshot-1")
    trial.receive(trial.send(first), trial.target / "old")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    for side in (trial.source, trial.target):
        trial.run("mv", side / "old", side / "attic")
    received_on_top(trial, second, trial.source / "attic" / "old" / "snapshot-1")


@behaviour
def test_a_backup_moved_by_a_snapshot_of_it(trial: Trial) -> None:
    """A backup is moved to another directory by a read-only snapshot of it there; `-p` still finds it.

    Expected: `mv` fails (EROFS). The read-only snapshot of it carries the same received_uuid, so after the
    original is deleted it takes its place.

    btrsync: between snapshot and deletion there are two of one received_uuid; it refuses to use such a
    parent until one of them is gone.

    Source: measured.
    """
    first, second = sent_once(trial)
    archive = trial.target / "archive"
    trial.mkdir(archive)
    trial.run("mv", trial.target / "snapshot-1", archive, status=1)
    trial.snapshot(trial.target / "snapshot-1", archive / "snapshot-1")
    trial.run("btrfs", "subvolume", "delete", "--commit-after", trial.target / "snapshot-1")
    received_on_top(trial, second, first)


@behaviour
def test_a_senders_parent_moved_by_a_snapshot_of_it(trial: Trial) -> None:
    """At the sender the same move loses the parent: a snapshot of a snapshot has a UUID of its own.

    Expected: with `-p` of the copy the stream is made without complaint, but names a UUID that the receiver
    has never seen: "cannot find parent subvolume".

    btrsync: does not take the copy for the snapshot: no backup has its UUID.

    Source: measured.
    """
    first, second = sent_once(trial)
    archive = trial.source / "archive"
    trial.mkdir(archive)
    copy = trial.snapshot(first, archive / "snapshot-1")
    trial.run("btrfs", "subvolume", "delete", first)
    trial.receive(trial.send(second, copy), status=1)
    trial.holds("nothing is left behind", not (trial.target / "snapshot-2").exists())


@behaviour
def test_a_senders_parent_moved_while_writable(trial: Trial) -> None:
    """At the sender a snapshot made writable, moved and made read-only again is still the parent.

    Expected: a snapshot that was made here carries no received_uuid, so `property set ro` lets it be
    flipped; its UUID stays. If anything is changed meanwhile, the incremental is the difference from what
    the receiver does not have, and goes wrong. The kernel's ctransid shows it.

    btrsync: finds the moved one by UUID. One that was edited, made read-only again or not, is recognised by its
    ctransid and is no send parent.

    Source: measured.
    """
    first, second = sent_once(trial)
    archive = trial.source / "archive"
    trial.mkdir(archive)
    trial.run("btrfs", "property", "set", first, "ro", "false")
    trial.run("mv", first, archive)
    moved = archive / "snapshot-1"
    trial.run("btrfs", "property", "set", moved, "ro", "true")
    received_on_top(trial, second, moved)
    trial.run("btrfs", "property", "set", moved, "ro", "false")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("not edited, it has ctransid <= otransid", show(moved).ctransid <= show(moved).otransid)
    trial.run("rm", moved / "photo")
    trial.run("btrfs", "property", "set", moved, "ro", "true")
    trial.run("btrfs", "filesystem", "sync", trial.source)
    trial.holds("edited, it has ctransid > otransid", show(moved).ctransid > show(moved).otransid)
    trial.run("rm", trial.source / "share" / "photo")
    third = trial.snapshot(trial.source / "share", trial.source / "snapshot-3")
    trial.receive(trial.send(third, moved))
    trial.holds(
        "used as the parent, it gives a backup with a photo that the snapshot does not have",
        (trial.target / "snapshot-3" / "photo").exists() and not (third / "photo").exists(),
    )


@behaviour
def test_the_parent_is_missing_at_the_receiver(trial: Trial) -> None:
    """With the parent missing at the receiver, receive says so at once and leaves nothing behind.

    Expected: "cannot find parent subvolume", exit status 1, before any subvolume is made.

    btrsync: never sends such a stream: the parent comes from both inventories. With nothing in common it
    stops with both lists as evidence, and a full send needs `--full`.

    Source: process_snapshot(), btrfs-progs cmds/receive.c.
    """
    first, second = sent_once(trial)
    trial.run("btrfs", "subvolume", "delete", "--commit-after", trial.target / "snapshot-1")
    trial.receive(trial.send(second, first), status=1)
    trial.holds("nothing is left behind", not any(trial.target.iterdir()))


@behaviour
def test_a_backup_made_writable(trial: Trial) -> None:
    """A backup is made writable by force only, and is no parent any more after that.

    Expected: `property set ro false` refuses a subvolume with a received_uuid; with `-f` it becomes
    writable and the received_uuid is cleared, for ever: moved to another directory and read-only again, it
    is still unknown to receive.

    btrsync: a backup without received_uuid has no role: it stays, and is no parent.

    Source: btrfs-property(8), ro; btrfs-progs 5.14.2.
    """
    first, second = sent_once(trial)
    backup = trial.target / "snapshot-1"
    trial.run("btrfs", "property", "set", backup, "ro", "false", status=1)
    trial.holds("refused, it is unchanged", show(backup).is_readonly and show(backup).received_uuid)
    trial.run("btrfs", "property", "set", "-f", backup, "ro", "false")
    trial.holds("forced, it has no received_uuid", show(backup).received_uuid is None)
    trial.run("mv", backup, trial.mkdir(trial.target / "archive"))
    backup = trial.target / "archive" / "snapshot-1"
    trial.run("btrfs", "property", "set", backup, "ro", "true")
    trial.holds("read-only again, it still has none", show(backup).received_uuid is None)
    trial.receive(trial.send(second, first), status=1)


@behaviour
def test_a_backup_flipped_by_the_ioctl_and_edited(trial: Trial) -> None:
    """A backup flipped by the bare ioctl keeps its received_uuid, and spoils what is received on top of it.

    Expected: older tools called BTRFS_IOC_SUBVOL_SETFLAGS alone, and the kernel lets them. Edited and
    flipped back it looks like the untouched backup. An incremental that does not touch what was deleted
    from it is received with exit status 0, and the new backup lacks the file too. The ctransid has moved;
    but who has not remembered the old value cannot tell, for it is beyond the rtransid in an untouched
    backup as well, once that is written out.

    btrsync: a backup that is writable at the time is refused as a parent; one that was edited and made
    read-only again is not recognised yet.

    Source: measured.
    """
    first, second = sent_once(trial)
    backup = trial.target / "snapshot-1"
    flipped(trial, backup, readonly=False)
    trial.holds("writable, it still has its received_uuid", show(backup).received_uuid == show(first).uuid)
    trial.run("btrfs", "filesystem", "sync", trial.target)
    before = show(backup)
    trial.run("rm", backup / "photo")
    flipped(trial, backup, readonly=True)
    trial.run("btrfs", "filesystem", "sync", trial.target)
    after = show(backup)
    trial.holds(
        "edited and read-only again, it differs from the untouched one in generation and ctransid alone",
        replace(after, generation=before.generation, ctransid=before.ctransid)
        == replace(before, is_readonly=True)
        and after.ctransid > before.ctransid,
    )
    trial.receive(trial.send(second, first))
    trial.holds(
        "the new backup looks complete: read-only, with the received_uuid",
        show(trial.target / "snapshot-2").is_readonly
        and show(trial.target / "snapshot-2").received_uuid == show(second).uuid,
    )
    trial.holds(
        "the snapshot has the photo, the new backup does not",
        (second / "photo").exists() and not (trial.target / "snapshot-2" / "photo").exists(),
    )


@behaviour
def test_two_backups_with_one_received_uuid(trial: Trial) -> None:
    """Of several subvolumes with the parent's received_uuid the oldest is used, without a word.

    Expected: here the oldest is one that was edited, the younger one is right. Receive takes the oldest,
    exits 0, and files are missing. When the oldest is deleted, the next is used.

    btrsync: proves over the whole filesystem that the parent's received_uuid occurs once, and refuses
    otherwise.

    Source: subvol_uuid_search(), btrfs-progs common/send-utils.c; measured.
    """
    first, second = sent_once(trial)
    oldest = trial.target / "snapshot-1"
    flipped(trial, oldest, readonly=False)
    trial.run("rm", oldest / "photo")
    flipped(trial, oldest, readonly=True)
    again = trial.target / "again"
    trial.mkdir(again)
    trial.receive(trial.work / "snapshot-1.stream", again)
    trial.holds(
        "two subvolumes carry one received_uuid",
        show(oldest).received_uuid == show(again / "snapshot-1").received_uuid,
    )
    stream = trial.send(second, first)
    trial.receive(stream, again)
    trial.holds(
        "received beside the right parent, the new backup lacks the photo all the same",
        (again / "snapshot-1" / "photo").exists() and not (again / "snapshot-2" / "photo").exists(),
    )
    trial.run("btrfs", "subvolume", "delete", "--commit-after", oldest, again / "snapshot-2")
    trial.receive(stream, again)
    trial.holds(
        "with the oldest deleted the same stream gives a complete backup",
        trial.same_tree(second, again / "snapshot-2"),
    )


@behaviour
def test_a_writable_subvolume_can_carry_a_received_uuid(trial: Trial) -> None:
    """A snapshot of a subvolume that was received and flipped carries what it should not.

    Expected: a backup flipped writable by the ioctl is used as a working subvolume. A read-only snapshot of
    it inherits the received_uuid of the old backup, although its content has changed: sent on, it claims to
    be that old backup.

    btrsync: refuses a writable subvolume with a received_uuid as a source, and says how to clear it.

    Source: measured.
    """
    first, _second = sent_once(trial)
    backup = trial.target / "snapshot-1"
    flipped(trial, backup, readonly=False)
    trial.shell(f"echo 'Something else.' > {backup}/letters/first")
    snapshot = trial.snapshot(backup, trial.target / "snapshot-of-it")
    trial.holds(
        "a read-only snapshot of the changed one carries the old received_uuid",
        show(snapshot).received_uuid == show(first).uuid,
    )
    trial.run("btrfs", "property", "set", "-f", backup, "ro", "true")
    trial.run("btrfs", "property", "set", "-f", backup, "ro", "false")
    trial.holds(
        "read-only and forced writable again, the subvolume has none", show(backup).received_uuid is None
    )
    assert is_subvolume(backup)
