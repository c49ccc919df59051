"""The inspector before real streams: it lets pass all that `btrfs send` writes, unchanged."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from btrsync.stream.head import parse_first_command
from btrsync.stream.inspector import Boundary, Inspector
from harness import command, tree
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

FLAGS = {"version 1": (), "version 2": ("--proto", "2"), "compressed": ("--proto", "2", "--compressed-data")}


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    here = tmp_path_factory.mktemp("inspector")
    found: dict[str, bytes] = {}
    with Array(members=1) as array, mount(array, here / "source", subvolume=None) as source:
        live = source / "live"
        command.run(["btrfs", "subvolume", "create", live])
        tree.generate(live, 7, "small")
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, source / "s1"])
        tree.mutate(live, 7)
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, source / "s2"])
        for name, flags in FLAGS.items():
            incremental: list[str | Path] = ["-p", source / "s1"]
            for kind, send_parent in (("full", []), ("incremental", incremental)):
                stream = here / "stream"
                command.run(["btrfs", "send", "-q", *flags, "-f", stream, *send_parent, source / "s2"])
                found[f"{kind}, {name}"] = stream.read_bytes()
                stream.unlink()
        yield found


def inspected(stream: bytes, sizes: Iterator[int]) -> tuple[bytes, int]:
    """Return what came through, and how many bytes of it nobody looked at."""
    first = parse_first_command(stream[:8192])
    assert first is not None
    allowed = [first.parent_uuid] if first.parent_uuid else []
    start = Boundary(0, 0, b"")
    inspector = Inspector(first.stream_version, first.uuid, allowed_uuids=allowed, start=start)
    passed = bytearray(stream[: first.size_bytes])
    at, unseen = first.size_bytes, 0
    while at < len(stream):
        size = next(sizes)
        step = inspector.feed(stream[at : at + size])
        at += len(stream[at : at + size])
        passed += step.block
        if step.unseen_bytes:
            passed += stream[at : at + step.unseen_bytes]
            at += step.unseen_bytes
            unseen += step.unseen_bytes
    assert inspector.is_ended
    assert inspector.offset_bytes == len(stream) - first.size_bytes
    return bytes(passed), unseen


@pytest.mark.parametrize("name", [f"{kind}, {flags}" for kind in ("full", "incremental") for flags in FLAGS])
def test_all_that_send_writes_passes_unchanged_however_it_is_cut(
    streams: dict[str, bytes], name: str
) -> None:
    stream = streams[name]
    rng = Random(name)
    for sizes in (
        iter(lambda: 1 << 20, 0),
        iter(lambda: 4096, 0),
        iter(lambda: rng.choice((1, 7, 100, 5000, 70_000)), 0),
    ):
        passed, _ = inspected(stream, sizes)
        assert passed == stream


def test_the_data_of_large_writes_is_not_looked_at(streams: dict[str, bytes]) -> None:
    stream = streams["full, version 1"]
    _, unseen = inspected(stream, iter(lambda: 4096, 0))
    assert unseen > 0
