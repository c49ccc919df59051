"""What the stock `btrfs send` and `btrfs receive` make of generated trees, scenario by scenario.

The oracle and the trees are tried on the real thing here, before they judge btrsync. What the kernel
itself does not carry is written down as tests of its own, so that nobody takes it for our fault.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest

from harness import command, ioctls, manifest, tree
from harness.filesystem import Array, mount
from harness.tree import drivers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

GIB = 1 << 30
PROTOCOLS = {
    "protocol 1": ["--proto", "1"],
    "protocol 2": ["--proto", "2"],
    "compressed protocol 2": ["--proto", "2", "--compressed-data"],
}
SUBVOLUMES_BEFORE = 20
"""Made first, so that a nested subvolume's id is above the inode numbers of a small tree's directories."""


def run(*argv: str | Path) -> None:
    command.run(argv, timeout_s=120)


@dataclass
class Pair:
    """Two filesystems, and what was last sent from one to the other."""

    source: Path
    target: Path
    streams: Path
    flags: list[str] = field(default_factory=list)

    def subvolume(self, name: str) -> Path:
        command.run(["btrfs", "subvolume", "create", self.source / name])
        return self.source / name

    def snapshot(self, of: Path, name: str, *, readonly: bool = True) -> Path:
        option: list[str | Path] = ["-r"] if readonly else []
        run("btrfs", "subvolume", "snapshot", *option, of, of.parent / name)
        return of.parent / name

    def transfer(self, snapshot: Path, send_parent: Path | None = None, *, into: Path | None = None) -> Path:
        """Send into a file and receive from it; the file stays where the test failed."""
        into = into or self.target
        stream = self.streams / f"{snapshot.name}.stream"
        parent: list[str | Path] = ["-p", send_parent] if send_parent else []
        run("btrfs", "send", "--quiet", *self.flags, *parent, "-f", stream, snapshot)
        run("btrfs", "receive", "--quiet", "-f", stream, into)
        return into / snapshot.name

    def remount_source(self) -> None:
        drivers.remount(self.source)


def differences(snapshot: Path, received: Path, *, with_holes: bool = False) -> list[str]:
    """Compare all but the time of the root directory, which stock send and receive lose."""
    a, b = (
        manifest.without_root_time(manifest.read(path, with_holes=with_holes))
        for path in (snapshot, received)
    )
    assert b.left_out == (), "nothing of a nested subvolume may arrive"
    return manifest.difference(a, b, names=("source", "received"))


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    base = tmp_path_factory.mktemp("round-trip")
    with (
        Array(members=1, size_bytes=4 * GIB, label="source") as source_array,
        Array(members=1, size_bytes=4 * GIB, label="target") as target_array,
        mount(source_array, base / "source", options="noatime,compress-force=zstd", subvolume=None) as source,
        mount(target_array, base / "target", options="noatime", subvolume=None) as target,
    ):
        for number in range(SUBVOLUMES_BEFORE):
            command.run(["btrfs", "subvolume", "create", source / f"before-{number}"])
        yield Pair(source, target, base)


@pytest.fixture(params=list(PROTOCOLS))
def pair(filesystems: Pair, request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(filesystems.source, filesystems.target, tmp_path, PROTOCOLS[request.param])


@dataclass(frozen=True)
class Based:
    """A tree that is on both sides already."""

    pair: Pair
    full: Path
    protocol: str


@pytest.fixture(scope="module", params=list(PROTOCOLS))
def based(
    filesystems: Pair, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Based:
    protocol = str(request.param).replace(" ", "-")
    streams = tmp_path_factory.mktemp("streams")
    pair = Pair(filesystems.source, filesystems.target, streams, PROTOCOLS[request.param])
    live = pair.subvolume(f"{protocol}-live")
    tree.generate(live, 21, "small")
    full = pair.snapshot(live, f"{protocol}-full")
    assert differences(full, pair.transfer(full), with_holes=True) == []
    return Based(pair, full, protocol)


@pytest.mark.parametrize("name", list(tree.MUTATIONS))
def test_a_mutation_arrives_as_an_increment(name: str, based: Based) -> None:
    pair = based.pair
    child = pair.snapshot(based.full, f"{based.protocol}-{name}-child", readonly=False)
    assert tree.mutate(child, 22, [name], remount=pair.remount_source) == [name]
    snapshot = pair.snapshot(child, f"{based.protocol}-{name}")
    received = pair.transfer(snapshot, based.full)
    assert differences(snapshot, received) == []


@pytest.mark.parametrize("name", list(tree.MUTATIONS))
def test_a_mutated_tree_arrives_as_a_whole_with_its_holes(name: str, based: Based) -> None:
    pair = based.pair
    child = pair.snapshot(based.full, f"{based.protocol}-{name}-whole-child", readonly=False)
    assert tree.mutate(child, 23, [name], remount=pair.remount_source) == [name]
    snapshot = pair.snapshot(child, f"{based.protocol}-{name}-whole")
    assert differences(snapshot, pair.transfer(snapshot), with_holes=True) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chain_of_ten_steps_arrives_although_each_parent_is_deleted(seed: int, pair: Pair) -> None:
    name = f"{'-'.join(pair.flags[1:])}-soak-{seed}"
    live = pair.subvolume(name)
    tree.generate(live, seed, "tiny")
    parents = [pair.snapshot(live, f"{name}-0")]
    assert differences(parents[0], pair.transfer(parents[0])) == []

    def transfer(step: int, applied: list[str]) -> None:
        snapshot = pair.snapshot(live, f"{name}-{step}")
        received = pair.transfer(snapshot, parents[-1])
        assert differences(snapshot, received) == [], applied
        run("btrfs", "subvolume", "delete", parents[-1], pair.target / parents[-1].name)
        parents.append(snapshot)

    drivers.soak(live, seed, transfer, remount=pair.remount_source)
    for mount_point in (pair.source, pair.target):
        drivers.remount(mount_point)
    assert differences(parents[-1], pair.target / parents[-1].name) == []


def test_what_live_writers_had_written_at_the_snapshot_arrives(pair: Pair) -> None:
    name = f"{'-'.join(pair.flags[1:])}-writers"
    live = pair.subvolume(name)
    tree.generate(live, 5, "tiny")
    with drivers.live_writers(live, 5) as writers:
        snapshots = [pair.snapshot(live, f"{name}-0")]
        for number in range(1, 4):
            writers.wait_for_rounds(3)
            snapshots.append(pair.snapshot(live, f"{name}-{number}"))
        writers.wait_for_rounds(3)
        for send_parent, snapshot in zip([None, *snapshots], snapshots, strict=False):
            assert differences(snapshot, pair.transfer(snapshot, send_parent)) == []
        writers.wait_for_rounds(1)


@pytest.fixture
def fresh_pair(tmp_path: Path) -> Iterator[Pair]:
    """Two filesystems with nothing in them, for what looks at all that is in them."""
    # Labels of their own: mkfs takes two loop devices for one if their backing files have one name.
    with (
        Array(members=1, size_bytes=2 * GIB, label="fresh-source") as source_array,
        Array(members=1, size_bytes=2 * GIB, label="fresh-target") as target_array,
        mount(source_array, tmp_path / "source", options="noatime", subvolume=None) as source,
        mount(target_array, tmp_path / "target", options="noatime", subvolume=None) as target,
    ):
        yield Pair(source, target, tmp_path, PROTOCOLS["compressed protocol 2"])


def test_sending_goes_on_while_the_filesystem_is_balanced_scrubbed_and_deduped(fresh_pair: Pair) -> None:
    pair, name = fresh_pair, "meanwhile"
    live, other = pair.subvolume(name), pair.subvolume(f"{name}-other")
    tree.generate(live, 6, "small")
    tree.generate(other, 6, "small")
    numbers = iter(range(10_000))

    def repeated(*argv: str | Path) -> Callable[[], None]:
        # Status 1: a balance is refused while a send is on. Whatever it finds, the tree is the verdict.
        return lambda: (command.run(argv, ok=(0, 1), timeout_s=120), None)[1]

    def make_and_delete() -> None:
        made = pair.snapshot(other, f"{name}-passing-{next(numbers)}")
        command.run(["btrfs", "subvolume", "delete", made])

    actions: dict[str, Callable[[], None]] = {
        "scrub": repeated("btrfs", "scrub", "start", "-B", pair.source),
        "balance": repeated("btrfs", "balance", "start", "-dusage=50", pair.source),
        "dedupe": lambda: (tree.mutate(other, next(numbers), ["dedupe"]), None)[1],
        "snapshots": make_and_delete,
    }
    send_parent: Path | None = None
    with drivers.Meanwhile(actions) as meanwhile:
        for step in range(3):
            tree.mutate(live, step, ["churn", "reflinks-between"])
            snapshot = pair.snapshot(live, f"{name}-{step}")
            assert differences(snapshot, pair.transfer(snapshot, send_parent)) == []
            send_parent = snapshot
        meanwhile.wait_for_rounds(1)
        assert all(count >= 1 for count in meanwhile.rounds.values())


def test_a_cut_or_damaged_stream_is_never_received_as_complete(pair: Pair) -> None:
    name = f"{'-'.join(pair.flags[1:])}-mess"
    live = pair.subvolume(name)
    tree.generate(live, 7, "tiny")
    snapshot = pair.snapshot(live, f"{name}-0")
    whole = pair.streams / "whole"
    command.run(["btrfs", "send", "--quiet", *pair.flags, "-f", whole, snapshot])
    rng = Random(7)
    for attempt in range(8):
        messed, what = drivers.mess_up(whole.read_bytes(), rng)
        (pair.streams / "messed").write_bytes(messed)
        place = pair.target / f"{name}-{attempt}"
        place.mkdir()
        argv = ["btrfs", "receive", "--quiet", "-f", str(pair.streams / "messed"), str(place)]
        done = command.run(argv, ok=None)
        assert done.returncode != 0, what
        for leftover in place.iterdir():
            assert "ro=false" in command.run(["btrfs", "property", "get", leftover, "ro"]).stdout, what
            command.run(["btrfs", "subvolume", "delete", leftover])


# ------------------------------------------------------------- what the kernel itself does not carry


def test_the_time_of_the_root_is_lost_when_a_file_is_made_below_it(pair: Pair) -> None:
    """btrfs-progs issue 461: receive makes it under a passing name in the root, and send tells no time."""
    name = f"{'-'.join(pair.flags[1:])}-root-time"
    live = pair.subvolume(name)
    (live / "directory").mkdir()
    first = pair.snapshot(live, f"{name}-0")
    assert manifest.difference(manifest.read(first), manifest.read(pair.transfer(first))) == []
    (live / "directory" / "file").touch()
    second = pair.snapshot(live, f"{name}-1")
    lines = manifest.difference(manifest.read(second), manifest.read(pair.transfer(second, first)))
    if not lines:
        return  # a kernel that has mended it
    assert len(lines) == 1 and lines[0].startswith(".: mtime_ns: ")


@pytest.mark.kernel_errors_expected  # the kernel warns of it, in btrfs_ioctl_send
@pytest.mark.parametrize("is_moved", [False, True], ids=["deleted", "moved out"])
def test_a_removed_directory_that_held_a_subvolume_is_left_behind(is_moved: bool, pair: Pair) -> None:
    """Send takes the subvolume's id for an inode that has yet to leave, and waits for it for ever.

    Only where that id is above the directory's inode number. Both programs end with status 0; the only
    word of it is a WARNING of btrfs_ioctl_send in the kernel log of the sender.
    """
    name = f"{'-'.join(pair.flags[1:])}-held-{is_moved}"
    live = pair.subvolume(name)
    (live / "directory").mkdir()
    command.run(["btrfs", "subvolume", "create", live / "directory" / "nested"])
    first = pair.snapshot(live, f"{name}-0")
    pair.transfer(first)
    inode = (live / "directory").stat().st_ino
    if is_moved:
        (live / "directory" / "nested").rename(live / "nested")
    else:
        command.run(["btrfs", "subvolume", "delete", live / "directory" / "nested"])
    (live / "directory").rmdir()
    second = pair.snapshot(live, f"{name}-1")
    lines = differences(second, pair.transfer(second, first))
    if not lines:
        return  # a kernel that has mended it
    assert len(lines) == 1
    assert lines[0].startswith(f"o{inode}-") and lines[0].endswith("-0: only in received (directory)")


def test_a_setuid_bit_is_lost_where_only_the_owner_differs(pair: Pair) -> None:
    """Send tells the new owner and no mode, for the mode is the same; the receiving kernel clears the bit."""
    name = f"{'-'.join(pair.flags[1:])}-setuid"
    live = pair.subvolume(name)
    (live / "program").write_text("#!/bin/true\n")
    (live / "program").chmod(0o4755)
    first = pair.snapshot(live, f"{name}-0")
    pair.transfer(first)
    os.chown(live / "program", 1000, 1000)
    (live / "program").chmod(0o4755)
    second = pair.snapshot(live, f"{name}-1")
    lines = differences(second, pair.transfer(second, first))
    if not lines:
        return  # a kernel that has mended it
    assert lines == ["program: mode: source has 4755, received has 0755"]


def test_a_hole_punched_between_two_snapshots_arrives_as_zeros(pair: Pair) -> None:
    """The bytes are right, the room is not saved: send has no command for it that it uses."""
    name = f"{'-'.join(pair.flags[1:])}-punched"
    live = pair.subvolume(name)
    (live / "file").write_bytes(bytes(range(1, 256)) * 4096)
    first = pair.snapshot(live, f"{name}-0")
    pair.transfer(first)
    with (live / "file").open("r+b") as file:
        ioctls.punch_hole(file.fileno(), 262_144, 131_072)
    second = pair.snapshot(live, f"{name}-1")
    received = pair.transfer(second, first)
    assert differences(second, received) == []
    lines = differences(second, received, with_holes=True)
    if not lines:
        return  # a kernel that has mended it
    assert lines == ["file: holes: source has 262144-393216, received has no holes"]
