"""Mutations that mix: the nested subvolume, and the ordinary life of a tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.tree.content import Content
from harness.tree.mutation import NotExercised
from harness.tree.survey import pick, survey

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from harness.tree.root import Root

_REPLACED = b".replaced-by-a-subvolume"


def nest_subvolume(root: Root, rng: Random) -> None:
    """A directory gives its name to a nested subvolume; one that did so before gets it back.

    Expected at a target: nothing of the subvolume, not even an empty directory in its place. Only in
    the root of the tree: send leaves a directory that held a nested subvolume and was removed behind,
    under a name such as `o257-7-0`, with exit status 0. Source: measured, kernel 6.18, where the
    subvolume's id is above the directory's inode number.
    """
    found = survey(root)
    for subvolume in found.subvolumes:
        if root.exists(subvolume.path + _REPLACED):
            root.delete_subvolume(subvolume.path)
            root.rename(subvolume.path + _REPLACED, subvolume.path)
    candidates = [item for item in survey(root).movable if item.depth == 1 and b"." not in item.name]
    if not candidates:
        raise NotExercised("no directory of the root to replace")
    directory = rng.choice(candidates).path
    root.rename(directory, directory + _REPLACED)
    root.create_subvolume(directory)
    root.write(directory + b"/of the nested subvolume", rng.randbytes(5000))
    nested = root.create_subvolume(root.free_name(b"nested"))
    root.write(nested + b"/file", rng.randbytes(500))


def churn(root: Root, rng: Random) -> None:
    """Files and directories are made, appended to, overwritten, cut, renamed, linked and removed."""
    content = Content(rng.random())
    if not survey(root).files:
        raise NotExercised("no file to change")
    for _ in range(12):
        rng.choice(_ACTIONS)(root, rng, content)


def _make(root: Root, rng: Random, content: Content) -> None:
    directory = root.make_directory(root.free_name(b"new-directory"))
    for number in range(rng.randint(1, 5)):
        root.write(directory + b"/file-%d" % number, content.piece(rng, rng.randrange(60_000)))


def _append(root: Root, rng: Random, content: Content) -> None:
    for file in pick(rng, survey(root).files, 3):
        root.write(file.path, content.piece(rng, rng.randint(1, 20_000)), offset=file.size_bytes)


def _overwrite(root: Root, rng: Random, content: Content) -> None:
    for file in pick(rng, survey(root).files, 3):
        offset = rng.randrange(file.size_bytes + 1)
        root.write(file.path, content.piece(rng, rng.randint(1, 10_000)), offset=offset)


def _cut(root: Root, rng: Random, content: Content) -> None:  # noqa: ARG001 - one of _ACTIONS
    for file in pick(rng, survey(root).files, 2):
        root.truncate(file.path, rng.randrange(file.size_bytes + 1))


def _replace(root: Root, rng: Random, content: Content) -> None:
    """Write aside and rename over, as editors do."""
    for file in pick(rng, survey(root).files, 2):
        aside = root.write(root.free_name(b".aside"), content.piece(rng, rng.randrange(30_000)))
        root.rename(aside, file.path)


def _move(root: Root, rng: Random, content: Content) -> None:  # noqa: ARG001 - one of _ACTIONS
    for _ in range(3):
        found = survey(root)  # anew: what moved took along what was in it
        if not found.movable:
            return
        item, target = rng.choice(found.leaves + found.movable), rng.choice(found.movable)
        if not (target.path + b"/").startswith(item.path + b"/"):
            root.rename(item.path, root.free_name(target.path + b"/" + item.name))


def _link(root: Root, rng: Random, content: Content) -> None:  # noqa: ARG001 - one of _ACTIONS
    for item in pick(rng, survey(root).leaves, 2):
        root.link(item.path, root.free_name(b"one-more-link"))


def _remove(root: Root, rng: Random, content: Content) -> None:  # noqa: ARG001 - one of _ACTIONS
    found = survey(root)
    small = [item for item in found.directories if len(found.below(item.path)) <= 5]
    for path in [item.path for item in pick(rng, found.leaves, 2)] + [item.path for item in small[-1:]]:
        if root.exists(path):
            root.remove(path)


def _flush(root: Root, rng: Random, content: Content) -> None:
    """Half of the next changes go to other extents than they would without it."""
    if rng.random() < 0.5:
        os.fsync(root.fd)
    _append(root, rng, content)


_ACTIONS: tuple[Callable[[Root, Random, Content], None], ...] = (
    _make,
    _append,
    _overwrite,
    _cut,
    _replace,
    _move,
    _link,
    _remove,
    _flush,
)
