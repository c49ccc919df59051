"""Receiving: what a backup is, what it is called, and where it goes."""

from __future__ import annotations

import pytest

from tests.kernel.send_stream import WRITE, commands_of
from tests.kernel.trial import CrashableDisk, Trial, behaviour, is_subvolume, show

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


@behaviour
def test_receive_makes_a_snapshot_of_the_same_name(trial: Trial) -> None:
    """`receive` makes a read-only subvolume with the name that the snapshot had when it was sent.

    Expected: not files unpacked into a directory, but a snapshot, called as at the sender; it carries the
    sent snapshot's UUID as received_uuid, and has a UUID of its own.

    btrsync: commits a backup only when it is read-only and has the received_uuid that was announced.

    Source: the original notes, 挙動 ("what is put together is a snapshot; snapshot1 becomes snapshot1").
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.receive(trial.send(snapshot))
    backup = trial.target / "snapshot-1"
    trial.holds("it is a subvolume of that name", is_subvolume(backup))
    trial.holds("it is read-only", show(backup).is_readonly)
    trial.holds("its received_uuid is the snapshot's UUID", show(backup).received_uuid == show(snapshot).uuid)
    trial.holds("its own UUID is another", show(backup).uuid != show(snapshot).uuid)
    trial.holds("its whole tree equals the snapshot's", trial.same_tree(snapshot, backup))


@behaviour
def test_the_same_name_twice_is_refused(trial: Trial) -> None:
    """A second stream of the same name is refused: "File exists", and the first backup is untouched.

    Expected: exit status 1, whether the second is another snapshot or the same. This is how a forgotten
    `snapshot-new` at the server stops every later run of the original script.

    btrsync: receives under a staging name of its own, and deletes what an interrupted receive left there.

    Source: the original server script; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-new")
    stream = trial.send(first)
    trial.receive(stream)
    trial.receive(stream, status=1)
    trial.run("mv", first, trial.source / "snapshot-old")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-new")
    incremental = trial.send(second, trial.source / "snapshot-old", to="second.stream")
    trial.receive(incremental, status=1)
    trial.holds(
        "what had that name is as it was",
        trial.same_tree(trial.source / "snapshot-old", trial.target / "snapshot-new"),
    )


@behaviour
def test_a_name_with_minutes_when_there_are_two_runs_in_a_minute(trial: Trial) -> None:
    """Two runs in one minute, named by minutes: `mv` tries to put the second snapshot inside the first.

    Expected: the target of `mv` exists and is a directory, so `mv` means a place inside it. Where the
    first backup is read-only, as a complete one is, this fails ("Read-only file system"), the server's
    script exits 1, and `snapshot-new` stays in the way of every later run. Where it is writable, as one
    left by a cut transfer, the second goes inside it and the script exits 0.

    btrsync: names snapshots to the second in UTC and commits with RENAME_NOREPLACE.

    Source: the original server script (`date +%y%m%d%H%M`); measured.
    """
    share = trial.share()
    stream = trial.send(trial.snapshot(share, trial.source / "snapshot-new"))
    dated = trial.target / "snapshot1409010102"
    trial.receive(stream)
    trial.run("mv", trial.target / "snapshot-new", dated)
    trial.receive(stream)
    trial.run("mv", trial.target / "snapshot-new", dated, status=1)
    trial.holds("snapshot-new is left over", is_subvolume(trial.target / "snapshot-new"))
    trial.receive(stream, status=1)
    # A writable pair, as two transfers cut short leave it.
    other = trial.target / "cut-short"
    trial.mkdir(other)
    whole = stream.read_bytes()
    write = next(each for each in commands_of(whole) if each.type == WRITE)
    (trial.work / "cut.stream").write_bytes(whole[: write.offset_bytes])
    dated = other / "snapshot1409010102"
    trial.receive(trial.work / "cut.stream", other, status=1)
    trial.run("mv", other / "snapshot-new", dated)
    trial.receive(trial.work / "cut.stream", other, status=1)
    trial.run("mv", other / "snapshot-new", dated)
    trial.holds("of two writable ones the second is inside the first", is_subvolume(dated / "snapshot-new"))


@behaviour
def test_a_snapshot_of_a_backup(trial: Trial) -> None:
    """A read-only snapshot of a backup keeps its received_uuid, a writable one does not.

    Expected: the read-only one can serve as the parent of later streams as well as the backup itself; the
    writable one is nobody's backup and cannot. Taking either moves the generation of the backup itself, so
    that a moved generation does not mean that it was edited.

    btrsync: counts how many subvolumes of the whole filesystem carry a received_uuid before it uses one as
    a parent.

    Source: create_pending_snapshot(), fs/btrfs/transaction.c; measured.
    """
    share = trial.share()
    trial.receive(trial.send(trial.snapshot(share, trial.source / "snapshot-1")))
    trial.run("btrfs", "filesystem", "sync", trial.target)
    backup = trial.target / "snapshot-1"
    before = show(backup)
    readonly = trial.snapshot(backup, trial.target / "readonly")
    writable = trial.snapshot(backup, trial.target / "writable", readonly=False)
    trial.holds(
        "read-only: the same received_uuid", show(readonly).received_uuid == show(backup).received_uuid
    )
    trial.holds("writable: none", show(writable).received_uuid is None)
    trial.run("btrfs", "filesystem", "sync", trial.target)
    trial.holds(
        "the backup's own generation has moved by it, its ctransid has not",
        show(backup).generation > before.generation and show(backup).ctransid == before.ctransid,
    )


@behaviour
def test_a_backup_is_not_on_disk_when_receive_ends(trial: Trial) -> None:
    """When receive ends the backup is not on disk: after a crash it looks complete and its files are empty.

    Expected: receive never syncs. The two marks of completeness are committed at once, the content of the
    files follows when the kernel writes it out. (The crash here is a copy of the disk taken right after
    receive has ended, mounted instead of the original)

    btrsync: syncs the filesystem before it gives a backup its name and acknowledges it.

    Source: btrfs_ioctl_set_received_subvol(), fs/btrfs/ioctl.c; measured.
    """
    snapshot = trial.snapshot(trial.share(), trial.source / "snapshot-1")
    stream = trial.send(snapshot)
    with CrashableDisk(trial) as disk:
        trial.receive(stream, disk.root)
        disk.crash()
        backup = disk.root / "snapshot-1"
        trial.holds(
            "it is read-only and has the snapshot's UUID as received_uuid",
            show(backup).is_readonly and show(backup).received_uuid == show(snapshot).uuid,
        )
        trial.run("stat", "--format", "%n: %s bytes", backup / "photo")
        trial.holds("the photo's 3,000,000 bytes are not there", (backup / "photo").stat().st_size == 0)
        trial.run("btrfs", "subvolume", "delete", "--commit-after", backup)
        trial.receive(stream, disk.root)
        trial.run("btrfs", "filesystem", "sync", disk.root)
        disk.crash()
        trial.holds(
            "synced before the crash, the whole tree equals the snapshot's",
            trial.same_tree(snapshot, backup),
        )


@behaviour
def test_receive_chrooted_with_the_parent_in_the_same_directory(trial: Trial) -> None:
    """`receive -C` into a deep directory finds a parent that lies in that directory.

    Expected: with `-C` receive confines itself to the directory; an incremental stream is received there
    as long as its parent is there too.

    btrsync: always receives with `-C`, into the one directory that holds that client's backups of a job.

    Source: btrfs-receive(8), -C; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    deep = trial.target / "workstation" / "share"
    deep.mkdir(parents=True)
    trial.receive(trial.send(first), deep, "-C")
    trial.receive(trial.send(second, first), deep, "-C")
    trial.holds("the whole tree is the same", trial.same_tree(second, deep / "snapshot-2"))


@behaviour
def test_receive_chrooted_with_the_parent_elsewhere(trial: Trial) -> None:
    """`receive -C` does not confine the search for the parent: one outside the directory is used.

    Expected: one would think that a parent outside the chroot is out of reach. It is found by UUID in the
    whole filesystem, and opened below a descriptor of the mount that was opened before the chroot.

    btrsync: the server checks the announced parent against the backups of that job before receive sees it;
    `-C` alone does not keep one client from the data of another.

    Source: process_snapshot(), btrfs-progs cmds/receive.c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    (share / "letters" / "first").write_text("Mine.\n")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    for client in ("workstation", "laptop"):
        trial.mkdir(trial.target / client)
    trial.receive(trial.send(first), trial.target / "workstation")
    trial.receive(trial.send(second, first), trial.target / "laptop", "-C")
    trial.holds(
        "the laptop has the workstation's photo now",
        trial.same_tree(second, trial.target / "laptop" / "snapshot-2"),
    )


@behaviour
def test_receive_into_a_mount_that_does_not_hold_the_parent(trial: Trial) -> None:
    """A parent that exists on the filesystem but not below the mounted subvolume cannot be used.

    Expected: receive reaches the parent by a path below the mount it receives into. Mounted by
    `subvol=mirror`, as the original has it, only what is inside that subvolume can be a parent.

    btrsync: uses as parents only the backups in the directory that it receives into, and counts their
    received_uuids on the whole filesystem.

    Source: process_snapshot(), btrfs-progs cmds/receive.c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    mirror = trial.target / "mirror"
    trial.run("btrfs", "subvolume", "create", mirror)
    trial.receive(trial.send(first))
    stream = trial.send(second, first)
    with trial.mounted(trial.pair.target_device, "MirrorRoot", f"subvol={trial.inside('mirror')}") as root:
        trial.receive(stream, root, status=1)
        trial.holds("nothing is left behind", not any(root.iterdir()))
        trial.receive(trial.work / "snapshot-1.stream", root)
        trial.receive(stream, root, status=1)
        trial.holds(
            "a second copy of the parent inside the mount does not help: the oldest is looked for",
            not (root / "snapshot-2").exists(),
        )
        trial.run("btrfs", "subvolume", "delete", "--commit-after", trial.target / "snapshot-1")
        trial.receive(stream, root)
        trial.holds("once it is the only one it does", trial.same_tree(second, root / "snapshot-2"))
