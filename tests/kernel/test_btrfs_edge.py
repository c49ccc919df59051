"""btrsync.system.btrfs against a real filesystem: what it reads, what it makes, what it says of failures."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from btrsync.errors import NoSpaceError, StorageError
from btrsync.system import btrfs, files, process
from harness import command
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

MIB = 1 << 20
# mkfs.btrfs takes two loop devices with one name of their files for one: no label comes twice here.
TOP, OTHER = "edge", "edge-other"


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The top level of a filesystem of one member; relatime, as most machines have it."""
    # commit=300: no periodic commit falls between a change and a look at the generation.
    with Array(1, 1024 * MIB, label=TOP) as array:
        with mount(
            array, tmp_path_factory.mktemp("edge"), options="relatime,commit=300", subvolume=None
        ) as point:
            yield point


@pytest.fixture
def share(top: Path, request: pytest.FixtureRequest) -> Path:
    """A subvolume of the test's own, with a file in it and a plain directory for snapshots."""
    path = top / f"share-{request.node.name[:150]}-{time.monotonic_ns()}"
    command.run(["btrfs", "subvolume", "create", path])
    (path / "snapshots").mkdir()
    (path / "file").write_bytes(b"content")
    return path


def send_and_receive(snapshot: Path, directory: Path) -> Path:
    directory.mkdir()
    stream = process.run(btrfs.send_argv(snapshot)).stdout
    process.run(btrfs.receive_argv(directory), input=stream)
    return directory / snapshot.name


# Looking.


def test_a_subvolume_is_read_as_btrfs_progs_shows_it(share: Path) -> None:
    snapshot = share / "snapshots" / "one"
    btrfs.create_snapshot(share, snapshot)
    found, origin = btrfs.subvolume(snapshot), btrfs.subvolume(share)
    shown = command.run(["btrfs", "subvolume", "show", "--raw", snapshot]).stdout
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in shown.splitlines())
    }
    assert str(found.uuid) == fields["UUID"]
    assert str(found.parent_uuid) == fields["Parent UUID"] == str(origin.uuid)
    assert str(found.id) == fields["Subvolume ID"]
    assert str(found.generation) == fields["Generation"]
    assert str(found.otransid) == fields["Gen at creation"]
    assert found.received_uuid is None and fields["Received UUID"] == "-"
    assert found.is_readonly and not origin.is_readonly
    assert origin.parent_uuid is None
    assert abs((found.created - datetime.now(UTC)).total_seconds()) < 60


def test_a_received_subvolume_carries_the_senders_uuid_and_transaction(share: Path, top: Path) -> None:
    snapshot = share / "snapshots" / "one"
    btrfs.create_snapshot(share, snapshot)
    backup = send_and_receive(snapshot, top / f"{share.name}-in")
    sent, received = btrfs.subvolume(snapshot), btrfs.subvolume(backup)
    assert received.received_uuid == sent.uuid
    assert received.stransid == sent.ctransid
    assert received.is_readonly
    assert received.announced_uuid == sent.uuid


def test_only_subvolumes_are_listed_and_by_their_names(share: Path) -> None:
    directory = share / "snapshots"
    for name in ("one", "two"):
        btrfs.create_snapshot(share, directory / name)
    btrfs.create_snapshot(share, directory / "writable", readonly=False)
    (directory / "plain").mkdir()
    (directory / "file").touch()
    (directory / "link").symlink_to("one")
    found = btrfs.subvolumes_in(directory)
    assert sorted(found) == ["one", "two", "writable"]
    assert found["one"] == btrfs.subvolume(directory / "one")
    assert [found[name].is_readonly for name in sorted(found)] == [True, True, False]


def test_listing_does_not_move_the_generation_of_the_subvolume_around_it(share: Path) -> None:
    directory = share / "snapshots"
    btrfs.create_snapshot(share, directory / "one")
    make_atime_old(directory)
    before = btrfs.subvolume(share).generation
    btrfs.subvolumes_in(directory)
    btrfs.sync_filesystem(share)
    assert btrfs.subvolume(share).generation == before
    # And the reason for the care: an ordinary listing does.
    os.listdir(directory)
    btrfs.sync_filesystem(share)
    assert btrfs.subvolume(share).generation > before


def make_atime_old(directory: Path) -> None:
    """Make the next reading of a directory one that relatime notes, and commit that."""
    os.utime(directory, (1, os.stat(directory).st_mtime))
    btrfs.sync_filesystem(directory)


def test_a_thousand_snapshots_are_listed_in_well_under_a_third_of_a_second(share: Path) -> None:
    directory = share / "snapshots"
    for number in range(1000):
        btrfs.create_snapshot(share, directory / f"snapshot-{number:04}")
    spent_s = []
    for _ in range(3):
        began = time.process_time()
        assert len(btrfs.subvolumes_in(directory)) == 1000
        spent_s.append(time.process_time() - began)
    assert min(spent_s) < 0.3


def test_names_that_are_not_utf8_are_no_obstacle(share: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(share) + b"/snapshots/caf\xe9"))
    odd.mkdir()
    btrfs.create_snapshot(share, odd / "one")
    assert sorted(btrfs.subvolumes_in(odd)) == ["one"]
    btrfs.set_readonly(odd / "one", False)
    assert not btrfs.subvolume(odd / "one").is_readonly
    command.run(["btrfs", "subvolume", "snapshot", share, odd / os.fsdecode(b"tw\xf6")])
    assert sorted(btrfs.subvolumes_in(odd)) == ["one", os.fsdecode(b"tw\xf6")]
    with pytest.raises(StorageError, match="not valid UTF-8"):
        btrfs.delete_subvolume(odd / os.fsdecode(b"tw\xf6"))
    btrfs.delete_subvolume(odd / "one")
    assert not (odd / "one").exists()


def test_what_is_deleted_while_it_is_listed_is_passed_over(share: Path) -> None:
    btrfs.create_snapshot(share, share / "stays")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                btrfs.create_snapshot(share, share / f"goes-{number}")
            for number in range(20):
                btrfs.delete_subvolume(share / f"goes-{number}")

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert "stays" in btrfs.subvolumes_in(share)
    finally:
        stop.set()
        churning.join()


def test_received_uuids_are_counted_over_the_whole_filesystem(share: Path, top: Path) -> None:
    snapshot = share / "snapshots" / "one"
    btrfs.create_snapshot(share, snapshot)
    uuid = btrfs.subvolume(snapshot).uuid
    assert btrfs.received_uuid_counts(top)[uuid] == 0
    for number in (1, 2):
        send_and_receive(snapshot, top / f"{share.name}-in{number}")
    counts = btrfs.received_uuid_counts(share)  # from anywhere in it
    assert isinstance(counts, Counter)
    assert counts[uuid] == 2
    assert UUID(int=0) not in counts


def test_a_filesystem_has_its_uuid_wherever_it_is_asked(share: Path, tmp_path: Path) -> None:
    shown = command.run(["findmnt", "--noheadings", "--output", "UUID", "--target", share]).stdout.strip()
    assert str(btrfs.fsid(share)) == shown
    assert btrfs.fsid(share / "file") == btrfs.fsid(share)
    assert btrfs.is_btrfs(share)
    assert not btrfs.is_btrfs(Path("/proc"))
    with pytest.raises(StorageError, match="/proc is not on btrfs"):
        btrfs.fsid(Path("/proc"))
    with pytest.raises(StorageError, match="does not exist"):
        btrfs.is_btrfs(tmp_path / "missing")


def test_space_is_what_btrfs_progs_counts(share: Path) -> None:
    btrfs.sync_filesystem(share)
    shown = command.run(["btrfs", "filesystem", "usage", "--raw", share]).stdout
    fields = {
        key.strip(): value.split() for key, _, value in (line.partition(":") for line in shown.splitlines())
    }
    found = btrfs.space(share)
    assert found.total_bytes == int(fields["Device size"][0])
    assert found.unallocated_bytes == int(fields["Device unallocated"][0])
    assert found.available_bytes == os.statvfs(share).f_bavail * os.statvfs(share).f_frsize
    assert 0 < found.data_free_bytes < found.total_bytes
    assert 0 < found.metadata_free_bytes < found.total_bytes


def test_every_device_of_an_array_has_its_error_counters(tmp_path: Path) -> None:
    with Array(3, 128 * MIB, label=OTHER) as array, mount(array, tmp_path / "m", subvolume=None) as point:
        assert btrfs.device_errors(point) == {1: (0, 0, 0, 0, 0), 2: (0, 0, 0, 0, 0), 3: (0, 0, 0, 0, 0)}
        command.run(["btrfs", "device", "remove", "2", point])
        assert sorted(btrfs.device_errors(point)) == [1, 3]


# Making and removing.


def test_a_snapshot_is_readonly_unless_told_otherwise(share: Path) -> None:
    btrfs.create_snapshot(share, share / "snapshots" / "one")
    assert (share / "snapshots" / "one" / "file").read_bytes() == b"content"
    with pytest.raises(OSError, match="Read-only"):
        (share / "snapshots" / "one" / "new").touch()
    btrfs.create_snapshot(share, share / "snapshots" / "two", readonly=False)
    (share / "snapshots" / "two" / "new").touch()


def test_a_snapshot_never_lands_inside_one_of_the_same_name(share: Path) -> None:
    path = share / "snapshots" / "one"
    btrfs.create_snapshot(share, path, readonly=False)
    before = sorted(os.listdir(path))
    with pytest.raises(StorageError, match="exists already"):
        btrfs.create_snapshot(share, path)
    assert sorted(os.listdir(path)) == before


def test_a_deleted_subvolume_is_gone_though_it_was_readonly(share: Path) -> None:
    path = share / "snapshots" / "one"
    btrfs.create_snapshot(share, path)
    btrfs.delete_subvolume(path)
    assert btrfs.subvolumes_in(share / "snapshots") == {}


def test_readonly_can_be_taken_back_and_given_again(share: Path) -> None:
    path = share / "snapshots" / "one"
    btrfs.create_snapshot(share, path)
    for readonly in (False, True):
        btrfs.set_readonly(path, readonly)
        assert btrfs.subvolume(path).is_readonly is readonly


def test_a_readonly_subvolume_is_renamed_and_never_over_another(share: Path) -> None:
    directory = share / "snapshots"
    for name in ("one", "two"):
        btrfs.create_snapshot(share, directory / name)
    before = btrfs.subvolumes_in(directory)
    with files.directory_opened(directory) as fd:
        with pytest.raises(FileExistsError):
            files.rename_noreplace(fd, "one", "two")
        files.rename_noreplace(fd, "one", "three")
        assert btrfs.subvolumes_in(directory) == {"three": before["one"], "two": before["two"]}
        files.rename_exchange(fd, "three", "two")
        assert btrfs.subvolumes_in(directory) == {"two": before["one"], "three": before["two"]}
        files.fsync_directory(fd)


# What failures say.


@pytest.mark.parametrize(
    "ask", [btrfs.subvolume, btrfs.delete_subvolume, lambda path: btrfs.set_readonly(path, True)]
)
def test_what_is_no_subvolume_is_named_with_the_remedy(ask: object, share: Path, tmp_path: Path) -> None:
    assert callable(ask)
    (share / "plain").mkdir()
    with pytest.raises(StorageError, match="plain is a directory, not a subvolume") as caught:
        ask(share / "plain")
    assert caught.value.hint == f"make one with: btrfs subvolume create {share / 'plain'}"
    with pytest.raises(StorageError, match="missing does not exist"):
        ask(share / "missing")
    with pytest.raises(StorageError, match="is not"):
        ask(share / "file")
    assert (share / "file").read_bytes() == b"content"
    with pytest.raises(StorageError, match="is not on btrfs"):
        ask(Path("/proc/self"))
    assert tmp_path.exists()


def test_a_directory_that_cannot_be_listed_is_named(share: Path) -> None:
    with pytest.raises(StorageError, match="missing does not exist"):
        btrfs.subvolumes_in(share / "missing")
    with pytest.raises(StorageError, match="file is not a directory"):
        btrfs.subvolumes_in(share / "file")


def test_a_snapshot_that_cannot_be_made_says_why(share: Path, tmp_path: Path) -> None:
    (share / "plain").mkdir()
    with pytest.raises(StorageError, match="plain is a directory, not a subvolume"):
        btrfs.create_snapshot(share / "plain", share / "snapshots" / "one")
    with pytest.raises(StorageError, match="missing does not exist"):
        btrfs.create_snapshot(share / "missing", share / "snapshots" / "one")
    with pytest.raises(StorageError, match="nowhere does not exist"):
        btrfs.create_snapshot(share, share / "nowhere" / "one")
    btrfs.create_snapshot(share, share / "snapshots" / "frozen")
    with pytest.raises(StorageError, match="read-only"):
        btrfs.create_snapshot(share, share / "snapshots" / "frozen" / "one")
    with pytest.raises(StorageError, match="is not on btrfs"):
        btrfs.create_snapshot(Path("/proc"), tmp_path / "one")


def test_a_snapshot_directory_on_another_filesystem_is_refused(share: Path, tmp_path: Path) -> None:
    with Array(1, 128 * MIB, label=OTHER) as array, mount(array, tmp_path / "m", subvolume=None) as other:
        with pytest.raises(StorageError, match="on different filesystems") as caught:
            btrfs.create_snapshot(share, other / "one")
        assert caught.value.hint is not None
        assert not (other / "one").exists()


def test_a_snapshot_directory_inside_a_readonly_mount_is_refused(tmp_path: Path) -> None:
    with Array(1, 128 * MIB, label=OTHER) as array:
        with mount(array, tmp_path / "m", options="", subvolume=None) as point:
            command.run(["btrfs", "subvolume", "create", point / "share"])
        with mount(array, tmp_path / "m", options="ro", subvolume=None) as point:
            with pytest.raises(StorageError, match="read-only"):
                btrfs.create_snapshot(point / "share", point / "one")
            with pytest.raises(StorageError, match="read-only"):
                btrfs.delete_subvolume(point / "share")


def test_a_subvolume_with_another_inside_is_not_deleted(share: Path) -> None:
    command.run(["btrfs", "subvolume", "create", share / "inner"])
    with pytest.raises(StorageError, match="another subvolume lies inside it"):
        btrfs.delete_subvolume(share)
    assert (share / "file").exists()


@pytest.mark.kernel_errors_expected
def test_the_default_subvolume_is_not_deleted(share: Path) -> None:
    command.run(["btrfs", "subvolume", "set-default", share])
    try:
        with pytest.raises(StorageError, match="default"):
            btrfs.delete_subvolume(share)
    finally:
        command.run(["btrfs", "subvolume", "set-default", "5", share])


def test_a_snapshot_is_not_deleted_while_it_is_sent(share: Path) -> None:
    path = share / "snapshots" / "one"
    (share / "large").write_bytes(os.urandom(4 * MIB))
    btrfs.create_snapshot(share, path)
    read_fd, write_fd = os.pipe()
    with process.spawn(btrfs.send_argv(path), stdout=write_fd):
        os.close(write_fd)
        assert os.read(read_fd, 13) == b"btrfs-stream\0"  # it is under way, and more than the pipe holds
        with pytest.raises(StorageError, match="being sent"):
            btrfs.delete_subvolume(path)
    os.close(read_fd)
    btrfs.delete_subvolume(path)


def test_the_place_of_a_mount_is_not_deleted(top: Path) -> None:
    with pytest.raises(StorageError, match="mounted there"):
        btrfs.delete_subvolume(top)


def test_a_full_filesystem_is_told_apart(tmp_path: Path) -> None:
    with (
        Array(1, 128 * MIB, label=OTHER) as array,
        mount(array, tmp_path / "m", options="", subvolume=None) as point,
    ):
        command.run(["btrfs", "subvolume", "create", point / "share"])
        command.run(["btrfs", "quota", "enable", point])
        command.run(["btrfs", "quota", "rescan", "-w", point])
        command.run(["btrfs", "subvolume", "create", point / "limited"])
        command.run(["btrfs", "qgroup", "limit", "16K", point / "limited"])
        btrfs.sync_filesystem(point)
        with pytest.raises(NoSpaceError, match="no space left") as caught:
            fill_with_snapshots(point)
        assert caught.value.hint is not None


def fill_with_snapshots(point: Path) -> None:
    for number in range(10_000):
        btrfs.create_snapshot(point / "share", point / "limited" / f"{number:0200}")


# Durability.


def test_what_was_written_is_on_the_devices_after_a_sync(share: Path) -> None:
    btrfs.sync_filesystem(share)
    before = btrfs.subvolume(share).generation
    (share / "file").write_bytes(b"other")
    assert btrfs.subvolume(share).generation == before  # it is in memory only
    with files.directory_opened(share) as fd:
        btrfs.sync_filesystem(fd)
    assert btrfs.subvolume(share).generation > before


def test_a_sync_of_what_is_not_btrfs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not on btrfs"):
        btrfs.sync_filesystem(Path("/proc"))
    with (tmp_path / "closed").open("wb") as file:
        fd = file.fileno()
    with pytest.raises(StorageError, match="cannot make durable"):
        btrfs.sync_filesystem(fd)


@pytest.mark.kernel_errors_expected
def test_a_sync_that_failed_on_the_device_is_an_error(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", small])
    try:
        # 512 MiB of device on 64 MiB of memory: writes fail once that is used up.
        with Array(1, 512 * MIB, metadata="single", directory=small, label=OTHER) as array:
            with mount(array, tmp_path / "m", options="", subvolume=None) as point:
                with files.directory_opened(point) as fd:
                    (point / "file").write_bytes(os.urandom(100 * MIB))
                    with pytest.raises(StorageError, match="cannot make durable what was written to"):
                        btrfs.sync_filesystem(fd)
    finally:
        command.run(["umount", small])


@pytest.mark.kernel_errors_expected
def test_a_device_that_fails_to_read_is_counted(tmp_path: Path) -> None:
    with Array(1, 512 * MIB, label=OTHER) as array:
        with mount(array, tmp_path / "m", options="", subvolume=None) as point:
            (point / "file").write_bytes(os.urandom(8 * MIB))
            btrfs.sync_filesystem(point)
            assert btrfs.device_errors(point) == {1: (0, 0, 0, 0, 0)}
            os.truncate(array.loops[0].backing_file, 0)
            with pytest.raises(OSError, match="Input/output error"):
                read_from_the_device(point / "file")
            writes, reads, flushes, _corruptions, _generations = btrfs.device_errors(point)[1]
            assert (writes, flushes) == (0, 0)
            assert reads > 0


def read_from_the_device(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.read(fd, 8 * MIB)
    finally:
        os.close(fd)


# Words for btrfs-progs.


def test_the_words_for_send_are_taken_by_this_btrfs_send(share: Path) -> None:
    (share / "data").write_bytes(b"x" * 100_000)
    first, second, third = (share / "snapshots" / name for name in ("one", "two", "three"))
    sizes = {}
    for path in (first, second, third):
        btrfs.create_snapshot(share, path)
        (share / f"after-{path.name}").write_bytes(os.urandom(10_000))
    sizes["full"] = len(process.run(btrfs.send_argv(third)).stdout)
    argv = btrfs.send_argv(
        third, send_parent=second, clone_sources=[first], stream_version=2, is_compressed=True
    )
    done = process.run(argv)
    sizes["incremental"] = len(done.stdout)
    sizes["sizes only"] = len(process.run(btrfs.send_argv(third, is_without_data=True)).stdout)
    assert sizes["full"] > 100_000
    assert sizes["incremental"] < 20_000
    assert sizes["sizes only"] < 5_000
    assert done.stdout[:17] == b"btrfs-stream\0\x02\0\0\0"
    assert done.stderr == ""


def test_the_kernel_and_btrfs_progs_tell_their_versions() -> None:
    assert btrfs.progs_version() in command.run(["btrfs", "--version"]).stdout
    assert btrfs.progs_version()[0].isdigit()
    assert btrfs.send_protocol() in {1, 2, 3}
