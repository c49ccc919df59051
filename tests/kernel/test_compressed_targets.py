"""Compressed data on its way between filesystems that compress differently, or not at all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from btrsync.system import btrfs, process
from harness import command, manifest
from tests.kernel.local_mirror import local_mirror

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.local_mirror import LocalMirror

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

TEXT_BYTES = 3_000_000
PLAIN = "compress=no"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMirror]:
    with local_mirror(tmp_path_factory.mktemp("compressed")) as made:
        words = [f"{number:x} " for number in range(2000)]
        text = "".join(random.Random(5).choices(words, k=TEXT_BYTES))[:TEXT_BYTES]
        for algorithm in ("zlib", "lzo", "zstd", "none"):
            directory = made.live / algorithm
            directory.mkdir()
            command.run(["btrfs", "property", "set", directory, "compression", algorithm])
            (directory / "text").write_text(text)
            # Ends inside a sector, has a hole, and is too short for an extent of its own.
            (directory / "odd").write_text(text[:123_457])
            with (directory / "holes").open("wb") as file:
                file.write(text[:70_000].encode())
                file.seek(900_000)
                file.write(text[:70_001].encode())
            (directory / "short").write_text(text[:700])
        yield made


def remount(place: LocalMirror, options: str) -> None:
    command.run(["mount", "-o", f"remount,{options}", place.target.parent])


def set_compressed(place: LocalMirror, setting: str) -> None:
    lines = [line for line in place.config.read_text().splitlines() if not line.startswith("compressed")]
    lines.insert(1, f'compressed = "{setting}"')
    place.config.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("options", ["compress-force=lzo", "compress=zstd", PLAIN])
@pytest.mark.parametrize("setting", ["auto", "never"])
def test_a_tree_of_all_algorithms_arrives_whole_whatever_the_target_does(
    place: LocalMirror, options: str, setting: str
) -> None:
    remount(place, options)
    set_compressed(place, setting)
    try:
        full = place.sync("--full", "--always")
        assert full.returncode == 0, full.words
        place.assert_mirrored()
        place.change(f"{options} {setting}")
        increment = place.sync()
        assert increment.outcome["kind"] == "incremental"
        place.assert_mirrored()
    finally:
        remount(place, PLAIN)
    written, sent = full.outcome["bytes_written"], full.outcome["bytes_sent"]
    if setting == "auto":
        # Three of the four lie compressed at the source.
        assert sent < 0.85 * written
    else:
        assert sent > written


def test_what_receive_decompresses_for_a_kernel_without_encoded_writes_is_the_same(
    place: LocalMirror, tmp_path: Path
) -> None:
    snapshot = place.snapshot("decompressed")
    argv = btrfs.send_argv(snapshot, stream_version=2, is_compressed=True)
    stream = process.run(argv).stdout
    assert len(stream) < 0.85 * 4 * TEXT_BYTES
    into = place.target.parent / "decompressed-into"
    into.mkdir()
    command.run(["btrfs", "receive", "--force-decompress", "-f", _written(tmp_path, stream), into])
    seen = [manifest.without_root_time(manifest.read(path)) for path in (snapshot, into / "decompressed")]
    assert manifest.difference(*seen) == []


def _written(directory: Path, stream: bytes) -> Path:
    path = directory / "stream"
    path.write_bytes(stream)
    return path
