"""Parents that are not what they seem: doubled, flipped writable, or gone; each is told with its evidence."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

import pytest

from tests.network import mirror

if TYPE_CHECKING:
    from pathlib import Path

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

SERVER = "/MirrorRoot/btrsync/workstation/share"


def make_writable(subvolume: Path) -> None:
    """Clear the read-only flag and nothing else. Source: linux/btrfs.h, BTRFS_IOC_SUBVOL_SETFLAGS."""
    fd = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, 0x4008941A, struct.pack("Q", 0))
    finally:
        os.close(fd)


def refused(both: TwoHosts) -> str:
    """Run, see a conflict and nothing changed on either side, and return what was said."""
    snapshots, listing = both.snapshots(), mirror.lasting(both.server_listing())
    said = mirror.words(both.sync(ok=(7,)))
    assert both.snapshots() == snapshots
    assert mirror.lasting(both.server_listing()) == listing
    return said


@pytest.mark.parametrize("place", [f"{SERVER}/twin", "/MirrorRoot/elsewhere"])
def test_a_doubled_received_uuid_is_a_conflict_that_full_resolves(both: TwoHosts, place: str) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    # A read-only snapshot of a backup carries its received UUID; receive would take the oldest silently.
    both.daisy.run(["btrfs", "subvolume", "snapshot", "-r", f"{SERVER}/{first}", place])
    mirror.change(both)
    said = refused(both)
    assert "2 subvolumes on daisy carry the received UUID" in said
    assert "btrfs subvolume list -R" in said
    assert "btrsync sync --full" in said
    synced = both.sync("--full")
    assert synced.outcome()["kind"] == "full"
    second = mirror.assert_mirrored(both, synced)
    mirror.change(both, seed=2)
    again = both.sync()
    assert again.outcome()["send_parent"] == second
    mirror.assert_mirrored(both, again)


def test_a_backup_that_was_made_writable_is_no_parent_and_an_older_one_is(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    second = mirror.assert_mirrored(both, both.sync())
    backup = both.backup_directory() / second
    make_writable(backup)
    (backup / "written-on-the-server").write_text("this is no longer what was sent\n")
    mirror.change(both, seed=2)
    synced = both.sync()
    assert synced.outcome()["send_parent"] == first
    name = mirror.assert_mirrored(both, synced)
    assert not (both.backup_directory() / name / "written-on-the-server").exists()


def test_only_writable_backups_are_a_conflict(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    make_writable(both.backup_directory() / first)
    mirror.change(both)
    assert f"the backup {first} on daisy is writable" in refused(both)
    synced = both.sync("--full")
    mirror.assert_mirrored(both, synced)


def test_nothing_in_common_is_a_conflict_with_both_lists(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.delete_subvolumes(both, "share", [first])
    by_hand = both.jobs["share"].snapshots / "by-hand"
    both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", by_hand])
    said = refused(both)
    assert "daisy holds 1" in said and first in said
    assert "the source holds 1" in said and "by-hand" in said
    assert "no snapshot is common to both by UUID" in said
    full = both.sync("--full")
    assert mirror.assert_mirrored(both, full) == "by-hand"
    assert both.backups() == sorted(["by-hand", first])


def test_a_parent_deleted_on_the_server_gives_way_to_the_next_older_one(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    second = mirror.assert_mirrored(both, both.sync())
    both.daisy.run(["btrfs", "subvolume", "delete", f"{SERVER}/{second}"])
    mirror.change(both, seed=2)
    synced = both.sync()
    assert synced.outcome()["send_parent"] == first
    mirror.assert_mirrored(both, synced)


def test_a_parent_deleted_on_the_client_gives_way_to_the_next_older_one(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    second = mirror.assert_mirrored(both, both.sync())
    mirror.delete_subvolumes(both, "share", [second])
    mirror.change(both, seed=2)
    synced = both.sync()
    assert synced.outcome()["send_parent"] == first
    mirror.assert_mirrored(both, synced)


def test_a_backup_whose_name_is_taken_is_not_replaced(both: TwoHosts) -> None:
    backup = both.backup_directory()
    backup.mkdir(parents=True, mode=0o700)
    backup.parent.chmod(0o700)
    by_hand = both.jobs["share"].snapshots / "by-hand"
    both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", by_hand])
    (backup / "by-hand").mkdir()
    (backup / "by-hand" / "precious").write_text("not to be lost\n")
    said = mirror.words(both.sync(ok=(10,)))
    assert "share/by-hand is there already, and a backup is never replaced" in said
    assert (backup / "by-hand" / "precious").read_text() == "not to be lost\n"
    assert both.backups() == ["by-hand"]
    assert both.snapshots() == ["by-hand"]
    mirror.assert_mirrored(both, both.sync("--always"))
