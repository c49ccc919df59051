"""Streams cut at safe boundaries and gone on with, by the stock `btrfs receive`: nothing may be missing.

How many trees are tried is the environment's to say: `tox -e checkpoints` tries many.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest

from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.prefix import Prefix
from btrsync.system import btrfs
from harness import command, manifest, tree
from harness.filesystem import Array, mount
from tests.kernel.cutting import boundaries_of, first_of, receive_in_pieces
from tests.kernel.send_stream import announced_bytes, commands_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from btrsync.stream.inspector import Boundary

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

GIB = 1 << 30
SEEDS = range(1, 1 + int(os.environ.get("BTRSYNC_CHECKPOINT_SEEDS", "1")))
IS_THOROUGH = len(SEEDS) > 1
FLAGS = {"version 1": ["--proto", "1"], "version 2": ["--proto", "2"],
         "compressed": ["--proto", "2", "--compressed-data"]}  # fmt: skip
MAX_PIECES = 40
FIRST = ("xattrs", "holes", "reflinks-between", "reflinks-within", "changed-and-moved", "name-rotation")
"""Between the full stream and the incremental one; what is left of the table comes behind that."""


@dataclass(frozen=True)
class Filesystems:
    source: Path
    target: Path
    work: Path

    def subvolume(self, name: str) -> Path:
        command.run(["btrfs", "subvolume", "create", self.source / name])
        return self.source / name

    def snapshot(self, of: Path, name: str) -> Path:
        command.run(["btrfs", "subvolume", "snapshot", "-r", of, self.source / name])
        return self.source / name

    def send(self, snapshot: Path, *options: str | Path) -> bytes:
        stream = self.work / "stream"
        command.run(["btrfs", "send", "--quiet", *options, "-f", stream, snapshot], timeout_s=120)
        return stream.read_bytes()


@dataclass(frozen=True)
class Chain:
    """Three snapshots of one subvolume; into the second data was cloned from another subvolume's."""

    filesystems: Filesystems
    name: str
    flags: list[str]
    snapshots: tuple[Path, Path, Path]
    clone_source: Path
    expected: dict[int, manifest.Manifest] = field(default_factory=dict)

    @property
    def turn(self) -> int:
        return list(FLAGS.values()).index(self.flags)

    def stream(self, step: int) -> bytes:
        """Send a snapshot as an increment of the one before, the first one in full."""
        if step == 0:
            return self.filesystems.send(self.snapshots[0], *self.flags)
        options = ("-c", self.clone_source) if step == 1 else ()
        return self.filesystems.send(
            self.snapshots[step], *self.flags, "-p", self.snapshots[step - 1], *options
        )

    def boundaries(self, stream: bytes) -> list[Boundary]:
        return boundaries_of(stream, [btrfs.subvolume(self.clone_source).uuid])

    def receive(self, stream: bytes, cuts: list[int], name: str) -> Path:
        return receive_in_pieces(stream, cuts, self.filesystems.target, f"{self.name}-{name}")

    def differences(self, step: int, received: Path) -> list[str]:
        if step not in self.expected:
            self.expected[step] = _read(self.snapshots[step], step)
        return manifest.difference(self.expected[step], _read(received, step), names=("source", "received"))


def _read(root: Path, step: int) -> manifest.Manifest:
    # A hole punched in a file that was there before arrives as zeros, cut or not.
    return manifest.without_root_time(manifest.read(root, with_holes=step == 0))


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filesystems]:
    base = tmp_path_factory.mktemp("checkpoints")
    with (
        Array(members=1, size_bytes=4 * GIB, label="cut-source") as source_array,
        Array(members=1, size_bytes=4 * GIB, label="cut-target") as target_array,
        mount(source_array, base / "source", options="noatime,compress-force=zstd", subvolume=None) as source,
        mount(target_array, base / "target", options="noatime", subvolume=None) as target,
    ):
        yield Filesystems(source, target, base)


def _edit_as_editors_do(file: Path) -> None:
    """Change the copy of a file and rename it over the original: data is then cloned from the parent."""
    copy = file.with_suffix(".new")
    command.run(["cp", "--reflink=always", file, copy])
    with copy.open("r+b") as opened:
        opened.write(b"edited")
    copy.rename(file)


def make_chain(filesystems: Filesystems, name: str, size: str, seed: int, flags: list[str]) -> Chain:
    other, live = filesystems.subvolume(f"{name}-other"), filesystems.subvolume(f"{name}-live")
    (other / "lent").write_bytes(Random(seed).randbytes(200_000))
    tree.generate(live, seed, size)
    (live / "edited").write_bytes(Random(~seed).randbytes(150_000))
    first = filesystems.snapshot(live, f"{name}-0")
    clone_source = filesystems.snapshot(other, f"{name}-lent")
    tree.mutate(live, seed, FIRST)
    (live / "own").write_bytes(Random(-seed).randbytes(150_000))
    for original, copy in ((other / "lent", "borrowed"), (live / "own", "own-again")):
        command.run(["cp", "--reflink=always", original, live / copy])
    _edit_as_editors_do(live / "edited")
    second = filesystems.snapshot(live, f"{name}-1")
    tree.mutate(live, seed + 1000, [each for each in tree.MUTATIONS if each not in FIRST][::2])
    third = filesystems.snapshot(live, f"{name}-2")
    chain = Chain(filesystems, name, flags, (first, second, third), clone_source)
    receive_in_pieces(filesystems.send(clone_source, *flags), [], filesystems.target, clone_source.name)
    return chain


@pytest.fixture(scope="module", params=[f"{seed}, {flags}" for seed in SEEDS for flags in FLAGS])
def chain(filesystems: Filesystems, request: pytest.FixtureRequest) -> Chain:
    seed, _, flags = str(request.param).partition(", ")
    return make_chain(filesystems, f"tiny-{seed}-{flags.replace(' ', '')}", "tiny", int(seed), FLAGS[flags])


def test_a_stream_may_be_cut_at_every_safe_boundary(chain: Chain) -> None:
    """Once each, so that receive has the long rest to go wrong in; the next test cuts at all of them at once.

    By default the stream versions take turns: it is nearly the same stream three times.
    """
    for step in (0, 1):
        stream = chain.stream(step)
        boundaries = chain.boundaries(stream)
        assert len(boundaries) > 50
        for boundary in boundaries if IS_THOROUGH else boundaries[chain.turn :: len(FLAGS)]:
            received = chain.receive(stream, [boundary.offset_bytes], "once")
            assert chain.differences(step, received) == [], boundary
            btrfs.delete_subvolume(received)
        whole = chain.receive(stream, [], f"whole-{step}")
        assert chain.differences(step, whole) == []
    for step in (0, 1):
        btrfs.delete_subvolume(chain.filesystems.target / f"{chain.name}-whole-{step}")


def test_what_was_cut_at_all_of_them_is_a_parent_like_any_other(chain: Chain) -> None:
    made = []
    for step in range(3):
        stream = chain.stream(step)
        cuts = [each.offset_bytes for each in chain.boundaries(stream)] if step < 2 else []
        made.append(chain.receive(stream, cuts, f"all-{step}"))
        assert chain.differences(step, made[-1]) == []
        assert btrfs.subvolume(made[-1]).received_uuid == btrfs.subvolume(chain.snapshots[step]).uuid
    for each in made:
        btrfs.delete_subvolume(each)


def test_the_streams_hold_what_makes_cutting_hard(chain: Chain) -> None:
    own, lent, parent = (
        btrfs.subvolume(path).uuid.bytes
        for path in (chain.snapshots[1], chain.clone_source, chain.snapshots[0])
    )
    full, incremental = (commands_of(chain.stream(step)) for step in (0, 1))
    cloned = {each.attributes[Attribute.CLONE_UUID] for each in incremental if each.type == Kind.CLONE}
    assert cloned >= {own, lent, parent}
    kinds = Counter(Kind(each.type) for each in full)
    assert (kinds[Kind.ENCODED_WRITE] > 0) == ("--compressed-data" in chain.flags)
    assert b"security.capability" in {each.attributes.get(Attribute.XATTR_NAME) for each in full}
    assert kinds[Kind.LINK] > 0


def test_every_boundary_can_be_proven_by_who_sends_the_stream_again(chain: Chain) -> None:
    for step in (0, 1):
        stream = chain.stream(step)
        again = chain.stream(step)
        for boundary in chain.boundaries(stream):
            prefix, at = Prefix([boundary]), 0
            while (wanted := prefix.next_bytes())[0]:
                block = again[at : at + wanted[0]]
                at += len(block)
                prefix.skip(len(block)) if wanted[1] else prefix.feed(block)
            assert prefix.is_proven
            assert at == first_of(again).size_bytes + boundary.offset_bytes


def test_what_is_written_adds_up_to_what_a_send_without_data_announces(chain: Chain) -> None:
    for step in (0, 1):
        options = ("-p", chain.snapshots[0], "-c", chain.clone_source) if step else ()
        announced = chain.filesystems.send(chain.snapshots[step], *chain.flags[:2], "--no-data", *options)
        assert chain.boundaries(chain.stream(step))[-1].data_bytes == announced_bytes(announced)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_larger_stream_in_up_to_forty_pieces_arrives(
    filesystems: Filesystems, flags: str, seed: int
) -> None:
    name = f"small-{seed}-{flags.replace(' ', '')}"
    chain = make_chain(filesystems, name, "small", seed, FLAGS[flags])
    rng = Random(name)
    for step in range(3):
        stream = chain.stream(step)
        offsets = [each.offset_bytes for each in chain.boundaries(stream)]
        cuts = sorted(rng.sample(offsets, rng.randrange(3, MAX_PIECES))) if step < 2 else []
        received = chain.receive(stream, cuts, str(step))
        assert chain.differences(step, received) == [], cuts
