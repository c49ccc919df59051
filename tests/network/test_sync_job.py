"""The main job: full, incremental, nothing changed, renamed parents, adopted snapshots, two kinds of key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness import tree
from harness.scenario import Job, TwoHosts
from tests.network import mirror

BESIDE = Job(snapshots=Path("/home/foo/kept"))
"""A snapshot directory beside the subvolume; the usual one lies inside."""

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")


def test_an_rsa_key_serves_as_well() -> None:
    with mirror.small(kind="rsa") as both:
        mirror.assert_mirrored(both, both.sync())
        assert "Accepted publickey for root" in both.sshd.log_text()
        assert "ssh2: RSA " in both.sshd.log_text()


def test_full_then_incremental_then_nothing() -> None:
    with TwoHosts(members=2) as both:
        data = both.source() / "data"
        data.mkdir()
        tree.generate(data, 7, "small")
        full = both.sync()
        first = mirror.assert_mirrored(both, full)
        assert full.outcome()["kind"] == "full"

        applied = tree.mutate(
            data, 7, [name for name, one in tree.MUTATIONS.items() if not one.needs_remount]
        )
        assert len(applied) > 10
        incremental = both.sync()
        second = mirror.assert_mirrored(both, incremental)
        assert incremental.outcome()["kind"] == "incremental"
        assert incremental.outcome()["send_parent"] == first
        assert second > first

        listing = mirror.lasting(both.server_listing())
        nothing = both.sync()
        assert nothing.outcome()["result"] == "nothing_changed"
        assert nothing.outcome()["snapshot"] == second
        assert both.snapshots() == both.backups() == [first, second]
        assert mirror.lasting(both.server_listing()) == listing
        assert mirror.connections(both) == 3


def test_an_incremental_transfer_is_small_and_data_that_moved_is_not_sent_again(both: TwoHosts) -> None:
    mirror.add_bulk(both, size_bytes=4_000_000)
    full = both.sync()
    assert full.bytes_sent > 4_000_000
    bulk = both.source() / "bulk-2"
    bulk.rename(both.source() / "data" / "moved")
    both.workstation.run(["cp", "--reflink=always", "/home/foo/share/data/moved", "/home/foo/share/cloned"])
    incremental = both.sync()
    mirror.assert_mirrored(both, incremental)
    assert incremental.bytes_sent < 100_000


def test_data_of_an_older_common_snapshot_is_cloned_and_not_sent_again(both: TwoHosts) -> None:
    mirror.add_bulk(both, size_bytes=4_000_000)
    old = mirror.assert_mirrored(both, both.sync())
    (both.source() / "bulk-2").unlink()
    parent = mirror.assert_mirrored(both, both.sync())
    snapshots = both.jobs["share"].snapshots
    # Brought back from the older snapshot, as after a mistake: the parent of this send lacks it.
    both.workstation.run(["cp", "--reflink=always", snapshots / old / "bulk-2", "/home/foo/share/back"])
    cloned = both.sync()
    name = mirror.assert_mirrored(both, cloned)
    assert cloned.outcome()["send_parent"] == parent
    assert cloned.bytes_sent < 100_000
    without = f"btrfs send --quiet -p {snapshots / parent} {snapshots / name} | wc -c"
    assert int(both.workstation.run(["sh", "-c", without]).stdout) > 4_000_000


def test_parents_are_found_whatever_they_are_called_on_either_side() -> None:
    with mirror.small(jobs=(BESIDE,)) as both:
        first = mirror.assert_mirrored(both, both.sync())
        both.snapshot_path(first).rename(both.snapshot_path("renamed-here"))
        (both.backup_directory() / first).rename(both.backup_directory() / "renamed-there")
        # A name in the snapshot directory is no change of the subvolume beside it.
        assert both.sync().outcome()["result"] == "nothing_changed"
        mirror.change(both)
        synced = both.sync()
        assert synced.outcome()["kind"] == "incremental"
        assert synced.outcome()["send_parent"] == "renamed-here"
        name = mirror.assert_mirrored(both, synced)
        assert both.backups() == sorted(["renamed-there", name])


def test_a_snapshot_that_another_tool_made_and_sent_is_the_parent(both: TwoHosts) -> None:
    snapshots = both.jobs["share"].snapshots
    old = snapshots / "snapshot-old"
    both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", old])
    stream = both.workstation.path("/root/stream")
    both.workstation.run(["btrfs", "send", "--quiet", "-f", "/root/stream", old])
    both.backup_directory().mkdir(parents=True, mode=0o700)
    both.daisy.path("/root/stream").write_bytes(stream.read_bytes())
    both.daisy.run(["btrfs", "receive", "-f", "/root/stream", "/MirrorRoot/btrsync/workstation/share"])
    os.chmod(both.backup_directory().parent, 0o700)
    mirror.change(both)
    synced = both.sync()
    assert synced.outcome()["kind"] == "incremental"
    assert synced.outcome()["send_parent"] == "snapshot-old"
    mirror.assert_mirrored(both, synced)


def test_a_snapshot_that_was_made_by_hand_and_not_sent_is_sent_under_its_name(both: TwoHosts) -> None:
    by_hand = both.jobs["share"].snapshots / "by-hand"
    both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", by_hand])
    synced = both.sync()
    assert mirror.assert_mirrored(both, synced) == "by-hand"
    assert both.snapshots() == both.backups() == ["by-hand"]


def test_a_write_still_in_memory_is_seen_and_sent(both: TwoHosts) -> None:
    both.sync()
    # Neither sync nor fsync: the generation has not moved yet.
    (both.source() / "just-written").write_text("not on disk yet\n")
    synced = both.sync()
    name = mirror.assert_mirrored(both, synced)
    assert (both.backup_directory() / name / "just-written").read_text() == "not on disk yet\n"


def test_always_sends_a_new_snapshot_and_full_sends_all_of_it_though_nothing_changed(both: TwoHosts) -> None:
    mirror.add_bulk(both, size_bytes=1_000_000)
    first = mirror.assert_mirrored(both, both.sync())
    always = both.sync("--always")
    second = mirror.assert_mirrored(both, always)
    assert (always.outcome()["kind"], always.outcome()["send_parent"]) == ("incremental", first)
    full = both.sync("--full")
    third = mirror.assert_mirrored(both, full)
    assert full.outcome()["kind"] == "full"
    assert full.bytes_sent > 1_000_000 > always.bytes_sent
    assert both.backups() == sorted({first, second, third})
    assert len(both.backups()) == 3


def test_a_dry_run_tells_what_would_be_sent_and_changes_nothing_on_either_side(both: TwoHosts) -> None:
    empty = both.server_listing()
    would = both.sync("--dry-run").outcome()
    assert (would["result"], would["kind"]) == ("would_send", "full")
    assert both.snapshots() == []
    assert both.server_listing() == empty == []

    real = both.sync()
    first = mirror.assert_mirrored(both, real)
    assert would["bytes_written"] == real.outcome()["bytes_written"]
    mirror.change(both)
    mirror.add_bulk(both, size_bytes=100_000)
    both.workstation.run(["sync", "-f", "/home/foo"])
    listing = both.server_listing()
    would = both.sync("--dry-run").outcome()
    assert (would["result"], would["send_parent"]) == ("would_send", first)
    assert both.snapshots() == [first]
    assert both.server_listing() == listing
    (line,) = both.btrsync("sync", "--dry-run").stdout.splitlines()
    assert line.startswith(f"share → daisy: would send {would['files']} files, ")
    assert line.endswith(f", parent {first}: a new snapshot")

    real = both.sync("-v")
    assert would["bytes_written"] == real.outcome()["bytes_written"]
    assert would["files"] == real.outcome()["files"] > 1
    before = mirror.generation(both, "/home/foo/share")
    assert both.sync("--dry-run").outcome()["result"] == "nothing_changed"
    assert mirror.generation(both, "/home/foo/share") == before


def test_list_and_status_show_both_sides_and_change_nothing(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    by_hand = both.jobs["share"].snapshots / "zz-by-hand"
    both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", by_hand])
    (both.backup_directory() / first).rename(both.backup_directory() / "renamed-there")
    both.workstation.run(["sync", "-f", "/home/foo"])
    before, listing = mirror.generation(both, "/home/foo/share"), both.server_listing()

    status = both.btrsync("status")
    (line,) = status.stdout.splitlines()[1:]
    assert line.split()[:4] == ["share", "daisy", "zz-by-hand", first]
    assert "1 snapshot behind" in line
    (told,) = json.loads(both.btrsync("status", "--json").stdout)["statuses"]
    assert told["state"] == "behind"
    assert told["latest_common"] == first
    assert 0 <= told["age_seconds"] < 600

    lines = both.btrsync("list").stdout.splitlines()
    assert lines[0].split() == ["JOB", "TARGET", "SNAPSHOT", "CREATED", "WHERE", "REMARK"]
    assert "both" in lines[1] and "pinned" in lines[1] and "named renamed-there on the target" in lines[1]
    assert lines[2].split()[2] == "zz-by-hand" and "source" in lines[2]
    (survey,) = json.loads(both.btrsync("list", "--json").stdout)["surveys"]
    assert [(row["name"], row["where"]) for row in survey["snapshots"]] == [
        (first, "both"),
        ("zz-by-hand", "source"),
    ]
    assert both.server_listing() == listing
    assert mirror.generation(both, "/home/foo/share") == before


def test_two_runs_within_a_second_give_two_names(both: TwoHosts) -> None:
    names = {mirror.assert_mirrored(both, both.sync("--always")) for _ in range(3)}
    assert len(names) == 3
    assert both.snapshots() == both.backups() == sorted(names)


def test_a_run_for_people_says_what_was_done_in_one_line(both: TwoHosts) -> None:
    run = both.btrsync("sync")
    (name,) = both.backups()
    (line,) = run.stdout.splitlines()
    assert line.startswith(f"share → daisy: sent {name} (full, ")
    assert run.stderr == ""
    again = both.btrsync("sync")
    assert again.stdout == f"share → daisy: nothing changed since {name}\n"
    assert again.stderr == ""
