"""Losses: what does not arrive, though send and receive both end with exit status 0."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from harness import command, kernel_log, manifest
from tests.kernel.send_stream import FALLOCATE, commands_of, data_bytes
from tests.kernel.trial import Trial, behaviour, show

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

MIB = 1 << 20
LEFT_BEHIND = re.compile(r"o\d+-\d+-0")
PUNCH = ("fallocate", "--punch-hole", "--offset", str(MIB), "--length", str(MIB))


def lost(snapshot: Path, backup: Path, *, with_holes: bool = False) -> list[str]:
    """Return in what a backup differs from its snapshot, a line each."""
    trees = [manifest.read(path, with_holes=with_holes) for path in (snapshot, backup)]
    return manifest.difference(*trees, names=("source", "target"))


def is_root_time_only(lines: list[str]) -> bool:
    """Whether just one thing differs, the time of the root directory."""
    return len(lines) == 1 and lines[0].startswith(".: mtime_ns: ")


def mirrored(trial: Trial, share: Path, number: int, send_parent: Path | None = None) -> tuple[Path, Path]:
    """Take snapshot-`number` and send it to /target; return it and its backup."""
    snapshot = trial.snapshot(share, trial.source / f"snapshot-{number}")
    trial.receive(trial.send(snapshot, send_parent))
    return snapshot, trial.target / snapshot.name


def mirrored_in_full(trial: Trial, snapshot: Path) -> Path:
    """Send a snapshot without a parent to /target/full; return the backup."""
    full = trial.mkdir(trial.target / "full")
    trial.receive(trial.send(snapshot, to="full.stream"), full)
    return full / snapshot.name


def spare_ids(trial: Trial, count: int = 8) -> None:
    """Make subvolumes, so that the id of the next one is above the inode numbers of a small tree."""
    for number in range(count):
        command.run(["btrfs", "subvolume", "create", trial.source / f"before-{number}"])


# ------------------------------------------------------------------------------ the time of the root


@behaviour
def test_the_time_of_the_root_after_a_new_file_below_it(trial: Trial) -> None:
    """Where a file is new in a subdirectory and the root is untouched, the backup's root has a wrong time.

    Expected: the root directory of the backup has the time of the receive. Receive makes every new file in
    the root first, under a name such as o261-7-0, and then moves it to its place; send, for which the root
    has not changed, does not tell its time. Later increments keep the wrong time until one tells it.

    btrsync: nothing; it transfers what btrfs send writes. `stat` on snapshot and backup shows it. Nothing
    else is wrong in that backup. To put it right, `touch --no-create --reference=DIR DIR` with the
    subvolume as DIR, which leaves its time as it is, and `btrsync sync` before anything new is made.

    Source: btrfs-progs issue 461; process_recorded_refs(), fs/btrfs/send.c; measured.
    """
    share = trial.share()
    first, backup = mirrored(trial, share, 1)
    trial.holds("of the first backup the whole tree is the same", lost(first, backup) == [])
    trial.run("touch", share / "letters" / "second")
    # A file's time, for the clock of those lags behind the others.
    (trial.target / "began").touch()
    began_ns = (trial.target / "began").stat().st_mtime_ns
    second, backup = mirrored(trial, share, 2, first)
    trial.holds("of the second only the root's time differs", is_root_time_only(lost(second, backup)))
    trial.holds("it is the time of the receive", backup.stat().st_mtime_ns >= began_ns)
    trial.run("rm", share / "letters" / "second")
    third, backup = mirrored(trial, share, 3, second)
    trial.holds("the next increment does not mend it", is_root_time_only(lost(third, backup)))
    trial.run("touch", "--no-create", f"--reference={share}", share)
    fourth, backup = mirrored(trial, share, 4, third)
    trial.holds("one in which the root was touched, and nothing made, does", lost(fourth, backup) == [])


@behaviour
def test_the_time_of_the_root_after_a_full_send(trial: Trial) -> None:
    """A full send of many directories gives the backup's root a wrong time, too.

    Expected: every file is new in a full send, and the root's time is told before the last of them is made
    in it. Newer kernels put off the times of up to 64 directories, so that a small tree arrives right.

    btrsync: nothing, and `--full` is no remedy. The touch above is.

    Source: btrfs-progs issue 461; SEND_MAX_DIR_UTIMES_CACHE_SIZE, fs/btrfs/send.c; measured.
    """
    share = trial.source / "share"
    trial.run("btrfs", "subvolume", "create", share)
    trial.shell(f"for i in $(seq 100); do mkdir -p {share}/all/$i; touch {share}/all/$i/file; done")
    first, backup = mirrored(trial, share, 1)
    trial.holds("only the root's time differs", is_root_time_only(lost(first, backup)))
    trial.run("touch", "--no-create", f"--reference={share}", share)
    second, backup = mirrored(trial, share, 2, first)
    trial.holds("after a touch of the root and an increment it is right", lost(second, backup) == [])


# ------------------------------------------------------------- directories that held nested subvolumes


@pytest.mark.kernel_errors_expected  # the kernel warns of it, in btrfs_ioctl_send
@pytest.mark.requires("kernel_log")
@behaviour
def test_a_removed_directory_that_held_a_subvolume(trial: Trial) -> None:
    """A removed directory that held a nested subvolume stays at the target, empty, under another name.

    Expected: it becomes `o<inode>-<generation>-0` in the root of the backup, whether the nested subvolume
    was deleted or moved out, where that subvolume's id is above the inode number of the directory. Send
    takes the id for an inode that is still to come and puts the removal off for ever. Both programs end
    with exit status 0; the only word of it is in the sender's kernel log. Later increments keep it. A
    subvolume whose `snapshots/` directory lies inside it can be hit when that directory is removed.

    btrsync: nothing; it transfers what btrfs send writes. The `find` here shows it in a backup, and a
    WARNING of fs/btrfs/send.c in the log of the source tells of it. No data is lost by it. `btrsync sync
    --full` makes a backup without it, at the price of the whole space once more.

    Source: can_rmdir(), fs/btrfs/send.c; measured.
    """
    spare_ids(trial)
    share = trial.source / "share"
    trial.run("btrfs", "subvolume", "create", share)
    early = [share / "deleted-from", share / "moved-from"]
    trial.run("mkdir", *early)
    trial.shell(f"touch $(seq --format {share}/file-%g 300)")
    late = trial.mkdir(share / "late")
    nested = [directory / "nested" for directory in (*early, late)]
    for path in nested:
        trial.run("btrfs", "subvolume", "create", path)
    ids, inodes = [show(path).id for path in nested], [path.parent.stat().st_ino for path in nested]
    trial.holds(
        "the ids are above the inode numbers of deleted-from and moved-from, and below that of late",
        ids[0] > inodes[0] and ids[1] > inodes[1] and ids[2] < inodes[2],
    )
    first, _ = mirrored(trial, share, 1)
    trial.run("btrfs", "subvolume", "delete", nested[0], nested[2])
    trial.run("mv", nested[1], share)
    trial.run("rmdir", *early, late)
    with kernel_log.Marker() as marker:
        second, backup = mirrored(trial, share, 2, first)
        said = marker.lines()
    trial.shell(f"find {backup} -maxdepth 1 -type d -empty -name 'o[0-9]*-[0-9]*-0' | wc -l")
    more = {path.name for path in backup.iterdir()} - {path.name for path in second.iterdir()}
    trial.holds(
        "the backup has two empty directories more, named after the inodes of deleted-from and moved-from",
        all(LEFT_BEHIND.fullmatch(name) for name in more)
        and sorted(int(name[1:].partition("-")[0]) for name in more) == sorted(inodes[:2]),
    )
    trial.holds("that is all that differs", len(lost(second, backup)) == 2)
    trial.holds(
        "the kernel log has a WARNING at fs/btrfs/send.c",
        any("WARNING:" in line and "fs/btrfs/send.c" in line for line in said),
    )
    trial.run("touch", share / "new")
    third, backup = mirrored(trial, share, 3, second)
    trial.holds("the next backup has both still", more <= {path.name for path in backup.iterdir()})
    trial.holds("one by a full send has neither", lost(third, mirrored_in_full(trial, third)) == [])


@behaviour
def test_a_directory_that_held_a_subvolume_removed_in_two_steps(trial: Trial) -> None:
    """With an increment between the deletion of the nested subvolume and the `rmdir`, both are carried.

    Expected: send looks only at the parent snapshot for what the directory held. If the nested subvolume
    was gone already by then, there is nothing to wait for.

    btrsync: nothing; run `btrsync sync` between the two to keep the backups clean.

    Source: can_rmdir(), fs/btrfs/send.c; measured.
    """
    spare_ids(trial)
    share = trial.source / "share"
    trial.run("btrfs", "subvolume", "create", share)
    held = trial.mkdir(share / "held")
    trial.run("btrfs", "subvolume", "create", held / "nested")
    trial.holds("the id is above the inode number", show(held / "nested").id > held.stat().st_ino)
    first, _ = mirrored(trial, share, 1)
    trial.run("btrfs", "subvolume", "delete", held / "nested")
    second, _ = mirrored(trial, share, 2, first)
    trial.run("rmdir", held)
    third, backup = mirrored(trial, share, 3, second)
    trial.holds("the whole tree is the same", lost(third, backup) == [])


# -------------------------------------------------------------------------------- setuid and setgid


@behaviour
def test_setuid_and_setgid_after_a_change_of_owner(trial: Trial) -> None:
    """setuid and setgid are lost where the owner changes and the mode is the same before and after.

    Expected: chown clears the bits and a chmod sets them again, so that the two snapshots differ in the
    owner only. Send tells the owner alone, and the receiving kernel clears the bits. They stay lost until
    the mode differs between two snapshots; off and on again between the same two is not enough.

    btrsync: nothing; it transfers what btrfs send writes. The two `find` here, compared, show it. To put
    it right, take the bits off, `btrsync sync`, set them again, `btrsync sync`; or `btrsync sync --full`,
    at the price of the whole space once more. Restored programs may lack the bits: compare before relying
    on a backup from before.

    Source: finish_inode_if_needed(), fs/btrfs/send.c; chown(2); measured.
    """
    share = trial.share()
    program, game = share / "program", share / "game"
    trial.run("touch", program, game)
    trial.run("chmod", "4755", program)
    trial.run("chmod", "2755", game)
    first, backup = mirrored(trial, share, 1)
    trial.holds("the first backup has the bits", lost(first, backup) == [])
    trial.run("chown", "1000:1000", program)
    trial.run("chmod", "4755", program)
    trial.run("chgrp", "1000", game)
    trial.run("chmod", "2755", game)
    second, backup = mirrored(trial, share, 2, first)
    for tree in (second, backup):
        trial.shell(f"find {tree} -perm /6000 -printf '%m %P\\n' | sort")
    without = [f"{name}: mode: source has {mode}, target has 0755"
               for name, mode in (("game", "2755"), ("program", "4755"))]  # fmt: skip
    trial.holds("the modes of the two are all that differs", sorted(lost(second, backup)) == without)
    trial.holds("a full send has them", lost(second, mirrored_in_full(trial, second)) == [])
    off_and_on = f"chmod 0755 {program} {game}; chmod u+s {program}; chmod g+s {game}"
    trial.shell(off_and_on)
    third, backup = mirrored(trial, share, 3, second)
    trial.holds("off and on between two snapshots: still lost", sorted(lost(third, backup)) == without)
    trial.run("chmod", "0755", program, game)
    fourth, _ = mirrored(trial, share, 4, third)
    trial.shell(off_and_on)
    fifth, backup = mirrored(trial, share, 5, fourth)
    trial.holds(
        "off in one snapshot and on in the next: the whole tree is the same", lost(fifth, backup) == []
    )


# -------------------------------------------------------------------------------------------- holes


@behaviour
def test_a_hole_punched_between_two_snapshots(trial: Trial) -> None:
    """A hole punched between two snapshots is sent as zeros: the bytes are right, the space is not saved.

    Expected: protocol 1 has no command for a hole. In a file that the parent has, send writes zeros over
    the place; they cross the network, and take their room at the target. In a new file it leaves the hole
    out, so that a full send keeps it.

    btrsync: nothing; it transfers what btrfs send writes, in protocol 1, the default of btrfs send. `du`
    on snapshot and backup shows it. A copy in the file's place (`cp --sparse=always --reflink=never
    --preserve=all`, then `mv`) is a new file and keeps its holes, and so does `btrsync sync --full`.

    Source: send_hole(), fs/btrfs/send.c; measured.
    """
    share = trial.share()
    first, _ = mirrored(trial, share, 1)
    trial.run(*PUNCH, share / "photo")
    second, backup = mirrored(trial, share, 2, first)
    stream = (trial.work / "snapshot-2.stream").read_bytes()
    trial.holds("the stream carries the hole's 1,048,576 zeros", data_bytes(stream) == MIB)
    trial.run("btrfs", "filesystem", "sync", trial.target)
    trial.run("du", "--block-size=1K", second / "photo", backup / "photo")
    trial.holds("every byte is the same", lost(second, backup) == [])
    hole = "photo: holes: source has 1048576-2097152, target has no holes"
    trial.holds("the backup has no hole", lost(second, backup, with_holes=True) == [hole])
    full = mirrored_in_full(trial, second)
    trial.holds("one by a full send has it", lost(second, full, with_holes=True) == [])
    photo = share / "photo"
    trial.shell(
        f"cp --sparse=always --reflink=never --preserve=all {photo} {photo}.new && mv {photo}.new {photo}"
    )
    third, backup = mirrored(trial, share, 3, second)
    trial.holds("a sparse copy in its place arrives with it", lost(third, backup, with_holes=True) == [])


@behaviour
def test_a_punched_hole_in_protocol_2(trial: Trial) -> None:
    """In protocol 2 a new kernel sends a punched hole as a hole.

    Expected: the stream has a FALLOCATE command in place of the zeros. Older kernels write zeros in
    protocol 2, too; there this is not tried.

    btrsync: asks for no protocol yet, so its streams are of protocol 1.

    Source: BTRFS_SEND_C_FALLOCATE, fs/btrfs/send.h; measured.
    """
    share = trial.share()
    first, _ = mirrored(trial, share, 1)
    trial.run(*PUNCH, share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    stream = trial.send(second, first, "--proto", "2")
    if not any(each.type == FALLOCATE for each in commands_of(stream.read_bytes())):
        pytest.skip("this kernel sends no FALLOCATE for a hole")
    trial.holds("the stream has less than 1,000 bytes", stream.stat().st_size < 1000)
    trial.receive(stream)
    backup = trial.target / "snapshot-2"
    trial.holds("the backup has the hole", lost(second, backup, with_holes=True) == [])
