"""What a send will write, counted before it or beside it, against real streams."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import CommandError, StreamError
from btrsync.stream.commands import Kind
from btrsync.stream.head import parse_first_command
from btrsync.stream.inspector import Boundary, Inspector
from btrsync.system import btrfs, process
from btrsync.totals import TotalsBeside, count_totals
from harness import command, tree
from harness.filesystem import Array, mount
from harness.wait import until
from tests.kernel.send_stream import FALLOCATE, commands_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

FORMS = {"version 1": (1, False), "version 2": (2, False), "compressed": (2, True)}
SENDS = {
    "full": (None, ()),
    "full with clone sources": (None, (1, 2)),
    "incremental": (2, ()),
    "incremental over three steps": (0, ()),
    "incremental with clone sources": (0, (1, 2)),
}


@pytest.fixture(scope="module", params=["compress=lzo", "noatime"])
def snapshots(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Path]]:
    """Four states of one subvolume, each three dozen mutations from the one before."""
    here = tmp_path_factory.mktemp("totals")
    with (
        Array(members=1) as array,
        mount(array, here / "source", subvolume=None, options=request.param) as source,
    ):
        live = source / "live"
        command.run(["btrfs", "subvolume", "create", live])
        tree.generate(live, 3, "small")
        made = []
        for number in range(4):
            made.append(source / f"s{number}")
            command.run(["btrfs", "subvolume", "snapshot", "-r", live, made[-1]])
            tree.mutate(live, 3 + number)
        yield made


def argv_of(
    snapshots: list[Path], send: str, *, version: int, is_compressed: bool, is_without_data: bool
) -> list[str]:
    parent, clone_sources = SENDS[send]
    return btrfs.send_argv(
        snapshots[3],
        send_parent=None if parent is None else snapshots[parent],
        clone_sources=[snapshots[number] for number in clone_sources],
        stream_version=version, is_compressed=is_compressed, is_without_data=is_without_data,
    )  # fmt: skip


def written_by(stream: bytes, allowed: list[UUID]) -> int:
    """What the inspector counts."""
    first = parse_first_command(stream[:8192])
    assert first is not None
    inspector = Inspector(first.stream_version, first.uuid, allowed_uuids=allowed, start=Boundary(0, 0, b""))
    at = first.size_bytes
    while at < len(stream):
        passed = inspector.feed(stream[at : at + (1 << 20)])
        at += len(stream[at : at + (1 << 20)]) + passed.unseen_bytes
    assert inspector.is_ended
    return inspector.data_bytes


@pytest.mark.parametrize("send", SENDS)
def test_the_totals_are_exactly_what_the_stream_writes(snapshots: list[Path], send: str) -> None:
    allowed = [btrfs.subvolume(path).uuid for path in snapshots]
    found = {
        version: count_totals(
            argv_of(snapshots, send, version=version, is_compressed=False, is_without_data=True)
        )
        for version in (1, 2)
    }
    written = {}
    for form, (version, is_compressed) in FORMS.items():
        argv = argv_of(snapshots, send, version=version, is_compressed=is_compressed, is_without_data=False)
        stream = process.run(argv).stdout
        written[form] = written_by(stream, allowed)
        assert found[version].data_bytes == written[form], form
        assert found[2].written_bytes(version) == written[form], form
        assert sum(each.type == Kind.CLONE for each in commands_of(stream)), "it clones too"
    assert written["version 1"] > 0


def test_new_holes_are_what_version_1_writes_more(snapshots: list[Path]) -> None:
    argv = argv_of(
        snapshots, "incremental over three steps", version=2, is_compressed=False, is_without_data=True
    )
    punches = [each for each in commands_of(process.run(argv).stdout) if each.type == FALLOCATE]
    if not punches:  # a kernel that writes zeros in version 2 as well
        assert count_totals(argv).punched_bytes == 0
        return
    totals = count_totals(argv)
    assert totals.written_bytes(1) > totals.written_bytes(2) == totals.data_bytes


@pytest.mark.parametrize("send", SENDS)
def test_the_largest_paths_are_those_of_the_snapshot_and_none_is_larger(
    snapshots: list[Path], send: str
) -> None:
    argv = argv_of(snapshots, send, version=1, is_compressed=False, is_without_data=True)
    totals = count_totals(argv)
    assert len(totals.largest) == 10
    for path, size in totals.largest:
        # Data of one file may be written twice over by clones within it, never beyond its end.
        assert 0 < size <= os.lstat(os.path.join(os.fsencode(snapshots[3]), path)).st_size
    assert sum(size for _, size in totals.largest) <= totals.data_bytes


def test_a_full_send_makes_as_many_nodes_as_there_are(snapshots: list[Path]) -> None:
    totals = count_totals(argv_of(snapshots, "full", version=1, is_compressed=False, is_without_data=True))
    files: set[int] = set()
    others: set[int] = set()
    directories = 0
    for root, names, leaves in os.walk(os.fsencode(snapshots[3])):
        for name in [*names, *leaves]:
            status = os.lstat(os.path.join(root, name))
            kind = status.st_mode & 0o170000
            if kind == 0o040000:
                # Of a nested subvolume, the snapshot has an empty directory that no send carries.
                directories += status.st_ino != 2
            else:
                (files if kind == 0o100000 else others).add(status.st_ino)
    assert (totals.files, totals.directories, totals.others) == (len(files), directories, len(others))
    assert totals.removed == 0


def test_a_send_that_fails_has_no_totals(snapshots: list[Path]) -> None:
    with pytest.raises(CommandError):
        count_totals(btrfs.send_argv(snapshots[0] / "none", is_without_data=True))
    with pytest.raises(StreamError, match="it has data"):
        count_totals(btrfs.send_argv(snapshots[0]))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "totals"]


@pytest.fixture
def descriptors() -> Iterator[None]:
    """See that no descriptor and no thread is left."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert threads() == []


@pytest.mark.usefixtures("descriptors")
def test_a_count_beside_gives_the_same_totals(snapshots: list[Path]) -> None:
    argv = argv_of(snapshots, "full", version=1, is_compressed=False, is_without_data=True)
    with TotalsBeside(argv, delay_s=0) as beside:
        until(beside.value, what="the totals", timeout_s=20)
        assert beside.value() == count_totals(argv)
    assert beside.error is None
    with TotalsBeside(argv, delay_s=3600) as beside:
        assert beside.value() is None
        assert beside.finish() == count_totals(argv)


@pytest.mark.usefixtures("descriptors")
def test_what_is_sent_before_the_delay_is_over_starts_no_count(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    began = time.monotonic()
    with TotalsBeside(["touch", str(mark)], delay_s=30) as beside:
        assert beside.value() is None
    assert time.monotonic() - began < 5
    assert not mark.exists()
    assert beside.error is None


@pytest.mark.usefixtures("descriptors")
def test_a_count_ends_at_once_and_its_process_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    # It would not die of a SIGTERM either.
    words = 'trap "" TERM; echo $$ > "$0.new"; mv "$0.new" "$0"; while :; do sleep 60; done'
    with TotalsBeside(["sh", "-c", words, str(mark)], delay_s=0) as beside:
        until(mark.exists, what="the process", timeout_s=20)
        pid = int(mark.read_text())
        assert os.path.exists(f"/proc/{pid}")
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert not os.path.exists(f"/proc/{pid}")
    assert beside.value() is None and beside.error is None


@pytest.mark.usefixtures("descriptors")
def test_a_count_has_the_lowest_priority(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with TotalsBeside(["sh", "-c", f"nice > {said}; ionice >> {said}"], delay_s=0) as beside:
        beside.finish()
    assert said.read_text().split() == ["19", "idle"]


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["btrfs-no-such-program"], CommandError),
        (["false"], CommandError),
        (["echo", "no stream, this"], StreamError),
    ],
)
def test_a_count_that_fails_says_why_and_disturbs_nothing(argv: list[str], kind: type[Exception]) -> None:
    with TotalsBeside(argv, delay_s=0) as beside:
        assert beside.finish() is None
    assert isinstance(beside.error, kind)


@pytest.mark.usefixtures("descriptors")
def test_a_signal_reaches_the_main_thread_while_a_count_runs(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    old = signal.signal(signal.SIGUSR1, stop)
    read_fd, write_fd = os.pipe()
    try:
        began = time.monotonic()
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with TotalsBeside(["sleep", "60"], delay_s=0):
            timer.start()
            with pytest.raises(Stopped):
                os.read(read_fd, 1)
        assert time.monotonic() - began < 10
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, old)
        os.close(read_fd)
        os.close(write_fd)
