"""Mutations of the tree's shape: renames that swap, turn over, replace and empty directories."""

from __future__ import annotations

import stat
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.tree.content import Content
from harness.tree.generator import ODD_NAMES, make_fan
from harness.tree.mutation import NotExercised
from harness.tree.survey import GUARDED, LONGEST_PATH_BYTES, Found, pick, survey, unrelated

if TYPE_CHECKING:
    from random import Random

    from harness.tree.root import Root

_FAN_NAMES = 80
"""Long names of one inode in one directory: some 65 fill the leaf that ordinary references live in."""


def invert(root: Root, rng: Random) -> None:
    """In a path some directories deep, the deepest become the ancestors."""
    movable = {found.path for found in survey(root).movable}
    tops = {path: path.rsplit(b"/", 2)[0] for path in sorted(movable) if path.count(b"/") >= 2}
    deep = [path for path, top in tops.items() if top in movable]
    if not deep:
        raise NotExercised("no directory lies three deep")
    names = rng.choice(deep).split(b"/")
    depth = rng.randint(3, 6)
    while depth > 3 and (depth > len(names) or b"/".join(names[: len(names) - depth + 1]) not in movable):
        depth -= 1
    base, chain = b"/".join(names[: len(names) - depth]), names[len(names) - depth :]
    prefix = base + b"/" if base else b""
    aside = root.free_name(prefix + b".turning")
    # The deepest is taken out first; each of the others is then put below the one before it.
    root.rename(prefix + b"/".join(chain), aside)
    bottom = aside
    while len(chain) > 1:
        chain.pop()
        next_bottom = root.free_name(bottom + b"/" + chain[-1])
        root.rename(prefix + b"/".join(chain), next_bottom)
        bottom = next_bottom
    root.rename(aside, root.free_name(prefix + names[-1]))


def rotate_names(root: Root, rng: Random) -> None:
    """Names go round among directories, among files, and between one file and one directory."""
    directories = unrelated(rng, survey(root).movable, 3)
    if len(directories) < 3 or len(survey(root).files) < 3:
        raise NotExercised("fewer than three directories beside each other, or three files")
    _rotate(root, [item.path for item in directories])
    # Looked up only now, for they may lie in the directories that went round.
    _rotate(root, [item.path for item in pick(rng, survey(root).files, 3)])
    found = survey(root)
    for file in rng.sample(found.files, len(found.files)):
        outside = [item.path for item in found.movable if not file.path.startswith(item.path + b"/")]
        if outside and len(file.path) < 1500:
            _rotate(root, [file.path, rng.choice(outside)])
            break


def _rotate(root: Root, paths: list[bytes]) -> None:
    """Give each the name of the next, the last that of the first: none may lie inside another."""
    aside = root.free_name(b".rotating")
    root.rename(paths[0], aside)
    for free, path in pairwise(paths):
        root.rename(path, free)
    root.rename(aside, paths[-1])


def take_directory_names(root: Root, rng: Random) -> None:
    """A file takes the name of the directory it lay in, and a hard link that of another directory."""
    found = survey(root)
    movable = {item.path for item in found.movable}
    inside = tuple(file for file in found.files if file.parent in movable)
    if not inside:
        raise NotExercised("no file lies in a directory that can be moved")
    file = rng.choice(inside)
    aside = root.free_name(b".taking")
    root.rename(file.path, aside)
    root.rename(file.parent, root.free_name(file.parent + b".was"))
    root.rename(aside, file.parent)
    found = survey(root)
    if found.movable:
        directory, linked = rng.choice(found.movable), rng.choice(found.files)
        link = root.link(linked.path, root.free_name(b".linking"))
        root.rename(directory.path, root.free_name(directory.path + b".was"))
        root.rename(link, directory.path)


def spread_links(root: Root, rng: Random) -> None:
    """So many long names of one inode that references overflow; some renamed, their directory dropped."""
    found = survey(root)
    links = [file for file in found.files if file.parent and file.nlink >= _FAN_NAMES // 2]
    names_in = Counter(file.parent for file in links)
    fans = sorted(directory for directory, count in names_in.items() if count >= _FAN_NAMES // 2)
    if fans:
        fan = rng.choice(fans)
        moved = rng.sample([file.path for file in links if file.parent == fan], 12)
        for number, path in enumerate(moved[:6]):
            root.rename(path, root.free_name(fan + b"/renamed-%d-" % number + b"r" * 200))
        for path in moved[6:8]:
            root.rename(path, root.free_name(b"out-of-the-fan"))
        for path in moved[8:]:
            root.unlink(path)
        if len(fans) > 1 or rng.random() < 0.5:
            root.remove(fan)
    make_fan(root, root.free_name(b"fan"), _FAN_NAMES + rng.randrange(60), rng.randbytes(3000))


def make_same_inode_again(root: Root, rng: Random) -> None:
    """The newest inode is deleted and another thing made at its path, with the same inode number.

    The kernel hands out inode numbers above the highest in use when a subvolume is first looked at
    after a mount: hence the remount, and hence the newest.
    """
    found = survey(root, with_guarded=True)
    newest = max(found.all, key=lambda item: item.inode, default=None)
    if newest is None:
        raise NotExercised("the tree is empty")
    if newest.path.partition(b"/")[0] == GUARDED:
        raise NotExercised("the newest inode cannot be deleted")
    if stat.S_ISDIR(newest.mode) and found.below(newest.path):
        raise NotExercised("the newest inode is a directory that older ones were moved into")
    for name in [item.path for item in found.leaves if item.inode == newest.inode] or [newest.path]:
        root.remove(name)
    root.remount()
    kinds = ["file", "directory", "symlink"]
    match rng.choice(kinds):
        case "file":
            root.write(newest.path, Content(rng.random()).piece(rng, 10_000))
        case "directory":
            root.make_directory(newest.path)
        case _:
            root.symlink(b"made again", newest.path)
    if (inode := root.stat(newest.path).st_ino) != newest.inode:
        # The tree has changed by now, so this cannot be "nothing was done".
        raise AssertionError(f"inode {inode} was given where {newest.inode} was expected")


def empty_and_remove(root: Root, rng: Random) -> None:
    """Directories are removed whose children moved out in the same delta, one level up and elsewhere."""
    found = survey(root)
    filled = tuple(item for item in found.movable if root.names(item.path))
    if not filled:
        raise NotExercised("no directory has anything in it")
    for directory in unrelated(rng, filled, 2):
        parent = directory.parent + b"/" if directory.parent else b""
        elsewhere = root.make_directory(root.free_name(b"moved-out"))
        for name in root.names(directory.path):
            wish = parent + name if rng.random() < 0.5 else elsewhere + b"/" + name
            root.rename(directory.path + b"/" + name, root.free_name(wish))
        root.remove_directory(directory.path)


def give_odd_names(root: Root, rng: Random) -> None:
    """Things get names that are not UTF-8, hold newlines or quotes, start with a dash, are 255 bytes long."""
    found = survey(root)
    candidates = tuple(item for item in found.leaves if _has_room(item))
    if not candidates:
        raise NotExercised("nothing can be given a name of 255 bytes without too long a path")
    for item in pick(rng, candidates, 5):
        prefix = item.parent + b"/" if item.parent else b""
        root.rename(item.path, root.free_name(prefix + rng.choice(ODD_NAMES)))
    for item in pick(rng, tuple(found.directories), 2):
        if _has_room(item):
            root.write(root.free_name(item.path + b"/" + rng.choice(ODD_NAMES)), rng.randbytes(700))
    root.make_directory(top := root.free_name(rng.choice(ODD_NAMES)))
    path = top
    while len(path) + 256 < LONGEST_PATH_BYTES:  # through 230 bytes, where send changes its buffers
        path = root.make_directory(path + b"/" + bytes([rng.randrange(128, 256)]) * rng.randint(100, 255))
    root.symlink(rng.choice(ODD_NAMES), path + b"/" + b"link")
    long_names = [item for item in found.directories if len(item.path) > 230]
    if long_names:
        root.rename(rng.choice(long_names).path, root.free_name(b"was-deep"))


def _has_room(found: Found) -> bool:
    return len(found.parent) + 260 < LONGEST_PATH_BYTES
