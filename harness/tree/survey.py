"""What there is in a tree to choose from, in an order that does not depend on the disk."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import ioctls

if TYPE_CHECKING:
    from random import Random

    from harness.tree.root import Root

GUARDED = b"guarded"
"""Top directory of what cannot be changed (immutable, append-only): only the flags mutation goes there."""

LONGEST_PATH_BYTES = 3800
"""No path gets longer: `btrfs receive` puts its own directory before each, into PATH_MAX bytes."""

_MOVABLE_BYTES = 1500
"""Of directories with longer paths below them none is moved: two such lengths stay within the longest."""


@dataclass(frozen=True, slots=True)
class Found:
    """One path of the tree. nlink counts the names of its inode."""

    path: bytes
    mode: int
    inode: int
    size_bytes: int
    nlink: int

    @property
    def depth(self) -> int:
        return self.path.count(b"/") + 1

    @property
    def parent(self) -> bytes:
        return self.path.rpartition(b"/")[0]

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


@dataclass(frozen=True, slots=True)
class Survey:
    """A tree by kinds, each sorted by path. The guarded directory is in none of them.

    Nested subvolumes are in `subvolumes` only, and nothing inside them is anywhere.
    """

    files: tuple[Found, ...]
    directories: tuple[Found, ...]
    others: tuple[Found, ...]
    subvolumes: tuple[Found, ...]

    @property
    def leaves(self) -> tuple[Found, ...]:
        return tuple(sorted(self.files + self.others, key=lambda found: found.path))

    @property
    def all(self) -> tuple[Found, ...]:
        return tuple(sorted(self.files + self.others + self.directories, key=lambda found: found.path))

    @property
    def movable(self) -> tuple[Found, ...]:
        """The directories that can go anywhere without a path in them getting too long."""
        unmovable: set[bytes] = set()
        for found in self.all + self.subvolumes:
            directory = found.path if len(found.path) > _MOVABLE_BYTES else b""
            while directory and directory not in unmovable:
                unmovable.add(directory)
                directory = directory.rpartition(b"/")[0]
        return tuple(found for found in self.directories if found.path not in unmovable)

    def below(self, directory: bytes) -> tuple[Found, ...]:
        return tuple(found for found in self.all if found.path.startswith(directory + b"/"))


def survey(root: Root, *, with_guarded: bool = False) -> Survey:
    """Look at the whole tree; with_guarded: at what no mutation but one may change, too."""
    files: list[Found] = []
    directories: list[Found] = []
    others: list[Found] = []
    subvolumes: list[Found] = []
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        for name in root.names(directory):
            path = directory + b"/" + name if directory else name
            if path == GUARDED and not with_guarded:
                continue
            status = root.stat(path)
            found = Found(path, status.st_mode, status.st_ino, status.st_size, status.st_nlink)
            if stat.S_ISDIR(status.st_mode):
                if status.st_ino == ioctls.SUBVOLUME_ROOT_INODE:
                    subvolumes.append(found)
                else:
                    directories.append(found)
                    waiting.append(path)
            elif stat.S_ISREG(status.st_mode):
                files.append(found)
            else:
                others.append(found)
    kinds = (files, directories, others, subvolumes)
    return Survey(*(tuple(sorted(kind, key=lambda found: found.path)) for kind in kinds))


def pick(rng: Random, candidates: tuple[Found, ...], count: int) -> list[Found]:
    """Return up to `count` different ones, chosen by chance."""
    return rng.sample(candidates, min(count, len(candidates)))


def unrelated(rng: Random, candidates: tuple[Found, ...], count: int) -> list[Found]:
    """Return up to `count` of them by chance, none of which lies inside another."""
    chosen: list[Found] = []
    for found in rng.sample(candidates, len(candidates)):
        if len(chosen) == count:
            break
        paths = [other.path for other in chosen]
        if not any(
            found.path == path or found.path.startswith(path + b"/") or path.startswith(found.path + b"/")
            for path in paths
        ):
            chosen.append(found)
    return chosen
