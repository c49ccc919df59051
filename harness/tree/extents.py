"""Mutations of how bytes lie on disk: holes, reflinks, dedupe, compression."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING

from harness import ioctls
from harness.tree import attributes
from harness.tree.content import Content
from harness.tree.mutation import NotExercised
from harness.tree.survey import Found, pick, survey

if TYPE_CHECKING:
    from random import Random

    from harness.tree.root import Root

BLOCK_BYTES = 4096
_COMPRESSIONS = (b"zlib", b"lzo", b"zstd", b"none", b"")


def _blocks(rng: Random, size_bytes: int) -> tuple[int, int]:
    """Return offset and length, in bytes, of some whole blocks of a file that has at least one."""
    blocks = size_bytes // BLOCK_BYTES
    first = rng.randrange(blocks)
    return first * BLOCK_BYTES, rng.randint(1, min(blocks - first, 32)) * BLOCK_BYTES


def _of_size(found: tuple[Found, ...], minimum_bytes: int) -> tuple[Found, ...]:
    return tuple(file for file in found if file.size_bytes >= minimum_bytes)


def change_holes(root: Root, rng: Random) -> None:
    """Holes punched, up to the end too; sparse and preallocated past the end; truncated down, then up."""
    content = Content(rng.random())
    files = pick(rng, _of_size(survey(root).files, 2 * BLOCK_BYTES), 6)
    if not files:
        raise NotExercised("no file has two blocks")
    for number, file in enumerate(files):
        size_bytes = root.stat(file.path).st_size  # another name of it may have come before
        if size_bytes < BLOCK_BYTES:
            continue
        with root.open(file.path) as fd:
            match number:
                case 0:
                    ioctls.punch_hole(fd, *_blocks(rng, size_bytes))
                case 1:
                    os.ftruncate(fd, size_bytes + rng.randint(1, 1_000_000))
                case 2:
                    ioctls.preallocate(fd, size_bytes + 10_000, 200_000, keep_size=True)
                case 3:
                    smaller = rng.randrange(1, size_bytes)
                    os.ftruncate(fd, smaller)
                    os.fsync(fd)
                    os.ftruncate(fd, smaller + rng.randint(1, 500_000))
                case 4:
                    begin = rng.randrange(size_bytes)
                    ioctls.punch_hole(fd, begin, size_bytes - begin)
                case _:
                    offset, length = _blocks(rng, size_bytes)
                    ioctls.preallocate(fd, offset, length + 150_000, keep_size=False)
                    os.pwrite(fd, content.noise(rng, 100), size_bytes + 100_000)
    begin = rng.randrange(1, 5_000_000)
    sparse = root.write(root.free_name(b"sparse"), content.piece(rng, 10_000), offset=begin)
    root.truncate(sparse, root.stat(sparse).st_size + 70_001)


def reflink_within(root: Root, rng: Random) -> None:
    """A file grows by reflinks of its own ranges, with tails that end on no block."""
    files = pick(rng, _of_size(survey(root).files, BLOCK_BYTES), 3)
    if not files:
        raise NotExercised("no file has a block")
    for file in files:
        size_bytes = root.stat(file.path).st_size  # another name of it may have come before
        for _ in range(rng.randint(2, 5)):
            offset, length = _blocks(rng, size_bytes)
            end = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
            with root.open(file.path) as fd:
                if rng.random() < 0.4:  # up to the end of the file, wherever that is
                    length = size_bytes - offset
                ioctls.clone_range(fd, fd, source_offset=offset, length=length, target_offset=end)
                size_bytes = end + length
                if rng.random() < 0.5:
                    root.write(file.path, rng.randbytes(77), offset=rng.randrange(size_bytes - 77))
                if rng.random() < 0.3:
                    size_bytes -= rng.randrange(min(3000, size_bytes - BLOCK_BYTES) or 1)
                    os.ftruncate(fd, size_bytes)


def reflink_between(root: Root, rng: Random) -> None:
    """Files reflinked from others and partly overwritten; and copy, edit, move over the original."""
    found = survey(root)
    files = _of_size(found.files, 2 * BLOCK_BYTES)
    if len(files) < 2:
        raise NotExercised("fewer than two files have two blocks")
    for file in pick(rng, files, 3):
        copy = root.clone(file.path, root.free_name(b"reflink"))
        root.write(copy, rng.randbytes(5000), offset=rng.randrange(file.size_bytes))
    for file in pick(rng, files, 3):
        copy = root.clone(file.path, root.free_name(b"edited"))
        root.write(copy, rng.randbytes(300), offset=rng.randrange(file.size_bytes))
        root.rename(copy, file.path)
    for _ in range(3):
        source, target = pick(rng, files, 2)
        offset, length = _blocks(rng, min(root.stat(source.path).st_size, 1 << 20))
        place = rng.randrange(root.stat(target.path).st_size // BLOCK_BYTES + 3) * BLOCK_BYTES
        with root.open(source.path, os.O_RDONLY) as source_fd, root.open(target.path) as target_fd:
            if os.fstat(source_fd).st_ino == os.fstat(target_fd).st_ino:
                continue  # two names of one file
            ioctls.clone_range(source_fd, target_fd, source_offset=offset, length=length, target_offset=place)


def dedupe(root: Root, rng: Random) -> None:
    """Equal files come to share extents: those the tree had, and a new copy of another."""
    files = _of_size(survey(root).files, 4 * BLOCK_BYTES)
    if not files:
        raise NotExercised("no file has four blocks")
    original = rng.choice(files)
    copy = root.write(root.free_name(b"duplicate"), root.read(original.path))
    pairs = [(original.path, copy), *_equal_files(root, files)]
    for one, other in pairs:
        root.flush(one)
        root.flush(other)
        with root.open(one, os.O_RDONLY) as source, root.open(other) as target:
            size_bytes = min(os.fstat(source).st_size, 16 << 20)
            if dedupe_count := ioctls.dedupe_range(source, target, length=size_bytes):
                assert dedupe_count <= size_bytes
            else:
                raise AssertionError("the kernel found equal files different")
    # Something to find next time, whose extents are shared with nothing.
    root.flush(root.write(root.free_name(b"duplicate"), root.read(original.path)))


def _equal_files(root: Root, files: tuple[Found, ...], *, limit: int = 4) -> list[tuple[bytes, bytes]]:
    """Return pairs of different inodes with the same bytes."""
    by_size: dict[int, list[Found]] = {}
    for file in files:
        by_size.setdefault(file.size_bytes, []).append(file)
    pairs: list[tuple[bytes, bytes]] = []
    for group in by_size.values():
        for one, other in combinations(group[:4], 2):
            if len(pairs) == limit or one.inode == other.inode:
                continue
            if root.read(one.path) == root.read(other.path):
                pairs.append((one.path, other.path))
    return pairs


def change_compression(root: Root, rng: Random) -> None:
    """The compression property changes on files and directories; what lies there is partly rewritten."""
    content = Content(rng.random())
    found = survey(root)
    if not found.files:
        raise NotExercised("no file to compress")
    for item in pick(rng, found.files, 8) + pick(rng, found.directories, 3):
        with root.open(item.path, os.O_RDONLY) as fd:
            if ioctls.inode_flags(fd) & ioctls.NO_COW:
                continue  # the two exclude each other
        root.set_xattr(item.path, attributes.COMPRESSION, rng.choice(_COMPRESSIONS))
        if item in found.directories:
            root.write(root.free_name(item.path + b"/compressed"), content.text(rng, 40_000))
        else:
            offset = rng.randrange(item.size_bytes + 1)
            root.write(item.path, content.text(rng, rng.randint(1, 150_000)), offset=offset)
            root.write(item.path, content.noise(rng, 9000), offset=offset // 2)
