"""What is mirrored in the rows: trees of one kind, the same in every run."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

from harness import tree
from harness.tree.content import Content

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
FILES = 50_000
FILES_PER_DIRECTORY = 100
SMALL_MEAN_BYTES = 1200
"""Most lie inside the metadata, as small files do: the default limit of btrfs is 2 KiB."""
LARGE_FILE_BYTES = 2048 * MIB
LZO_FILE_BYTES = MIB // 2
TEXT_OF_LZO = 0.6


def mixed(directory: Path, scale: float) -> None:
    """Every kind of node, and at full scale 52,000 files of 1.1 GB, a quarter of it compressible."""
    size = "large" if scale >= 1 else "medium" if scale >= 0.05 else "small"
    tree.generate(directory, 1, size)


def small_files(directory: Path, scale: float) -> None:
    """Fifty thousand small files, a hundred to a directory."""
    rng = Random("small-files")
    content = Content("small-files")
    for number in range(round(FILES * scale)):
        below = directory / f"d{number // FILES_PER_DIRECTORY}"
        if number % FILES_PER_DIRECTORY == 0:
            below.mkdir()
        size_bytes = int(rng.expovariate(1 / SMALL_MEAN_BYTES))
        (below / f"file-{number}").write_bytes(content.piece(rng, size_bytes))


def noise(directory: Path, size_bytes: int, *, files: int = 1) -> None:
    """Bytes that do not compress and do not repeat, as in photos and films."""
    for number in range(files):
        with (directory / f"noise-{number}").open("wb") as file:
            for _ in range(max(1, size_bytes // files // MIB)):
                file.write(os.urandom(MIB))


def compressible(directory: Path, size_bytes: int) -> None:
    """Files of half a MiB, three of five text: on a disk mounted with lzo about half its size."""
    rng = Random("compressible")
    content = Content("compressible")
    for number in range(max(1, size_bytes // LZO_FILE_BYTES)):
        is_text = rng.random() < TEXT_OF_LZO
        piece = (content.text if is_text else content.noise)(rng, LZO_FILE_BYTES)
        (directory / f"file-{number}").write_bytes(piece)


def change_one(file: Path, number: int) -> None:
    """Write over 4 KiB of a file, other ones for each number."""
    with file.open("r+b") as opened:
        opened.write(Random(f"change:{number}").randbytes(4096))
