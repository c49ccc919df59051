"""Snapshots and backups that somebody else made, named or edited: what is sent then, and from which parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import StorageError
from btrsync.source import Source
from btrsync.system import btrfs
from btrsync.system.lock import directory_lock
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


def test_after_a_rollback_the_next_send_starts_from_what_the_subvolume_has_been(place: LocalMirror) -> None:
    names = []
    for words in ("first", "second", "third", "fourth"):
        place.change(words)
        names.append(str(place.sync().outcome["snapshot"]))
    place.live.rename(place.live.with_name("given-up"))
    command.run(["btrfs", "subvolume", "snapshot", place.snapshots / names[2], place.live])
    place.change("fifth")
    command.run(["btrfs", "subvolume", "delete", place.backups / names[2]])
    told = place.btrsync("sync", "--explain").stdout
    assert f"{names[1]}: SEND PARENT" in told
    assert f"{names[3]}: CLONE SOURCE" in told, "it is younger, and was given up"
    run = place.sync()
    assert (run.outcome["kind"], run.outcome["send_parent"]) == ("incremental", names[1])
    place.assert_mirrored()


def test_an_explanation_changes_nothing(place: LocalMirror) -> None:
    place.sync()
    place.change("second")
    before = os.listdir(place.snapshots), os.listdir(place.backups)
    done = place.btrsync("sync", "--explain", "--json")
    assert done.returncode == 0, done
    (told,) = json.loads(done.stdout)["explanations"]
    assert (told["decision"], told["snapshot"]) == ("incremental", None)
    (one,) = told["candidates"]
    backup = btrfs.subvolume(place.backups / told["send_parent"])
    assert one["verdict"] == "send_parent"
    assert (one["there"]["uuid"], one["there"]["received_uuid"]) == (str(backup.uuid), one["here"]["uuid"])
    assert (os.listdir(place.snapshots), os.listdir(place.backups)) == before


def test_an_explanation_of_a_conflict_or_of_what_cannot_be_seen_ends_with_1(place: LocalMirror) -> None:
    first = str(place.sync().outcome["snapshot"])
    place.change("second")
    btrfs.set_readonly(place.backups / first, False)
    done = place.btrsync("sync", "--explain")
    assert done.returncode == 1, done
    assert "job → disk: CONFLICT" in done.stdout
    assert f"{first}: UNFIT: the backup {first} on disk is writable" in done.stdout
    place.snapshots.rename(place.snapshots.with_name("elsewhere"))
    done = place.btrsync("sync", "--explain")
    assert (done.returncode, done.stdout) == (1, "")
    assert "btrsync: job → disk:" in done.stderr


def test_what_a_killed_dry_run_left_is_neither_sent_nor_kept_and_what_looks_like_it_is_left_alone(
    place: LocalMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, script = shutil.which("btrfs"), tmp_path / "killing" / "btrfs"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\n[ "$1" = send ] || exec {real} "$@"\ntouch {script}.struck; kill -KILL $PPID; exit 1\n'
    )
    script.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        assert place.btrsync("sync", "--dry-run").returncode == -signal.SIGKILL
    assert script.with_name("btrfs.struck").exists()
    (left,) = os.listdir(place.snapshots)
    assert left.startswith(".dry-run-")

    others = [f".dry-run-{number:016}" for number in range(4)]
    command.run(["btrfs", "subvolume", "create", place.snapshots / others[0]])
    command.run(["btrfs", "subvolume", "snapshot", place.live, place.snapshots / others[1]])
    command.run(["btrfs", "subvolume", "create", place.live.with_name("another")])
    another = place.live.with_name("another")
    command.run(["btrfs", "subvolume", "snapshot", "-r", another, place.snapshots / others[2]])
    in_use = place.snapshot(others[3])
    before = place.snapshots / left
    assert place.sync("--dry-run").outcome["result"] == "would_send"
    assert before.exists(), "a dry run changes nothing"
    with directory_lock(in_use, "a dry run", is_shared=False):
        done = place.sync("-v")
    assert f"deleted {left}, left by a dry run" in done.stderr
    sent = done.outcome["snapshot"]
    assert not sent.startswith(".")
    assert sorted(os.listdir(place.snapshots)) == sorted([*others, sent])
    place.assert_mirrored()
