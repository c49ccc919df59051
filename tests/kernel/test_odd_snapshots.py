"""Snapshots and backups that somebody else made, named or edited: what is sent then, and from which parent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import StorageError
from btrsync.source import Source
from btrsync.system import btrfs
from btrsync.target import Target
from harness import command
from tests.kernel.local_mirror import LocalMirror, local_mirror

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

ODD_NAMES = ["two words", "a\nline", os.fsdecode(b"\xff\xfe"), "-rf", "n" * 200, "sn:ap", "ünï"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LocalMirror]:
    with local_mirror(tmp_path) as made:
        yield made


def edit(subvolume: Path, words: str) -> None:
    """Edit a read-only subvolume as a tool does that knows the ioctl and not btrfs-progs' precautions."""
    btrfs.set_readonly(subvolume, False)
    (subvolume / "file").write_text(words)
    command.run(["btrfs", "filesystem", "sync", subvolume])
    btrfs.set_readonly(subvolume, True)


def test_an_edited_snapshot_that_was_never_sent_is_not_sent_for_the_subvolume(place: LocalMirror) -> None:
    edit(place.snapshot("by-hand"), "edited")
    run = place.sync()
    assert run.outcome["result"] == "sent"
    assert run.outcome["snapshot"] != "by-hand"
    place.assert_mirrored()


def test_no_snapshot_is_kept_of_a_subvolume_that_took_the_place_of_the_one_looked_at(
    place: LocalMirror,
) -> None:
    source = Source(place.live, place.snapshots)
    looked_at = source.inventory().subvolume
    assert source.make_snapshot("s1", origin=looked_at).subvolume.parent_uuid == looked_at.uuid
    place.live.rename(place.live.with_name("old"))
    command.run(["btrfs", "subvolume", "snapshot", place.live.with_name("old"), place.live])
    with pytest.raises(StorageError, match="was replaced"):
        source.make_snapshot("s2", origin=looked_at)
    assert os.listdir(place.snapshots) == ["s1"]
    run = place.sync("-v")
    assert run.outcome["result"] == "sent", run
    place.assert_mirrored()


def test_a_backup_edited_long_after_its_receive_is_no_parent(
    place: LocalMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = str(place.sync().outcome["snapshot"])
    before = btrfs.subvolume(place.backups / first)
    assert not before.was_edited
    edit(place.backups / first, "edited")
    after = btrfs.subvolume(place.backups / first)
    assert after.received_uuid == before.received_uuid, "the ioctl leaves it"
    assert after.ctransid > before.ctransid >= after.rtransid == before.rtransid
    assert after.ctime > before.ctime
    assert after.rtime == before.rtime
    monkeypatch.setattr("btrsync.plan.snapshots.RECEIVE_SETTLES", before.ctime - before.rtime)
    assert after.was_edited
    assert not before.was_edited
    (entry,) = Target(place.target).inventory()["job"]
    assert entry.was_edited


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_snapshot_whose_name_no_server_takes_keeps_nothing_from_being_sent(
    place: LocalMirror, name: str
) -> None:
    place.snapshot(name)
    run = place.sync()
    assert run.outcome["result"] == "sent", run
    place.assert_mirrored()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_snapshot_and_its_backup_serve_as_parent_whatever_they_are_called(
    place: LocalMirror, name: str
) -> None:
    first = str(place.sync().outcome["snapshot"])
    os.rename(place.snapshots / first, place.snapshots / name)
    os.rename(place.backups / first, place.backups / name)
    assert place.sync().outcome["result"] == "nothing_changed"
    place.change("second")
    shown = place.sync("--dry-run")
    assert shown.outcome["kind"] == "incremental", shown
    run = place.sync("-v")
    assert run.outcome["kind"] == "incremental", run
    assert name != "a\nline" or run.outcome["send_parent"] == "a\\nline"
    place.assert_mirrored()
    for words in (["list"], ["list", "--json"], ["status"], ["status", "--json"]):
        done = place.btrsync(*words)
        assert done.returncode == 0, done
        assert done.stderr == ""
