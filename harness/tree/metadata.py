"""Mutations of what a file is besides its bytes: owners, modes, times, xattrs, inode flags."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from harness import ioctls
from harness.tree import attributes
from harness.tree.content import Content
from harness.tree.generator import LARGEST_XATTR_BYTES
from harness.tree.mutation import NotExercised
from harness.tree.survey import GUARDED, pick, survey

if TYPE_CHECKING:
    from random import Random

    from harness.tree.root import Root

_MODES = (0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0o000)
_SET_ID = 0o6000
_FIXED_TIME_NS = 1_234_567_890_123_456_789


def change_and_move(root: Root, rng: Random) -> None:
    """Owner, mode and times change on what also moves; a chown comes after a setcap, and drops it."""
    found = survey(root)
    if not found.files:
        raise NotExercised("no file to change")
    empty = tuple(item for item in found.directories if not root.names(item.path))
    moving = pick(rng, found.leaves, 4) + pick(rng, empty, 2)
    target = root.make_directory(root.free_name(b"changed"))
    for item in moving:
        path = root.free_name(target + b"/" + item.name)
        root.rename(item.path, path)
        # What is setuid or setgid stays so, and keeps its owner. Where the owner changes and the mode
        # is the same before and after, send tells the owner only, and the receiving kernel clears the
        # bits. Source: measured, kernel 6.18.
        has_set_id = stat.S_ISREG(item.mode) and bool(root.stat(path).st_mode & _SET_ID)
        if not has_set_id:
            root.change_owner(path, rng.randrange(70_000), rng.randrange(70_000))
        if not stat.S_ISLNK(item.mode):
            root.change_mode(path, rng.choice([mode for mode in _MODES if mode & _SET_ID or not has_set_id]))
        if rng.random() < 0.5:
            root.change_time(path, rng.randrange(-(10**18), 10**18))
    for number in range(3):
        path = root.write(root.free_name(target + b"/program-%d" % number), rng.randbytes(2000))
        root.set_xattr(path, attributes.CAPABILITY, attributes.encode_capability(number, 30))
        if number != 1:
            root.change_owner(path, 1000, 1000 + number)  # the kernel drops the capability here
        if number == 2:
            root.set_xattr(path, attributes.CAPABILITY, attributes.encode_capability(31 + number))
    for item in pick(rng, tuple(item for item in found.directories if root.exists(item.path)), 3):
        root.change_owner(item.path, rng.randrange(70_000), rng.randrange(70_000))
        root.change_mode(item.path, rng.choice(_MODES))
    root.change_mode(b"", rng.choice((0o755, 0o700, 0o2775)))


def change_xattrs(root: Root, rng: Random) -> None:
    """Many small xattrs, one near the leaf size, ACLs and capabilities: set, changed and removed."""
    found = survey(root)
    if not found.files:
        raise NotExercised("no file to set xattrs on")
    for item in found.all:
        if stat.S_ISDIR(item.mode) or rng.random() < 0.5:
            continue
        for name in root.xattr_names(item.path):
            if name != attributes.COMPRESSION and rng.random() < 0.5:
                root.remove_xattr(item.path, name)
    plain = tuple(item for item in found.files if not root.xattr_names(item.path))
    for item in pick(rng, plain, 6):
        for number in range(rng.randint(1, 25)):
            root.set_xattr(item.path, b"user.n%d" % number, rng.randbytes(rng.randrange(40)))
        acl = attributes.encode_acl({rng.randrange(1, 60_000): 6}, {rng.randrange(1, 60_000): 4}, other=4)
        root.set_xattr(item.path, attributes.ACCESS_ACL, acl)
    large = root.write(root.free_name(b"large-xattr"), b"")
    root.set_xattr(large, b"trusted.large", rng.randbytes(LARGEST_XATTR_BYTES))
    for item in pick(rng, found.files, 4):
        root.set_xattr(item.path, b"user.changed", rng.randbytes(rng.choice((0, 1, 500, 4000))))
        root.set_xattr(item.path, attributes.CAPABILITY, attributes.encode_capability(rng.randrange(40)))
    for item in pick(rng, found.directories, 3):
        if attributes.DEFAULT_ACL in root.xattr_names(item.path):
            root.remove_xattr(item.path, attributes.DEFAULT_ACL)
        else:
            acl = attributes.encode_acl({rng.randrange(1, 999): 7}, {})
            root.set_xattr(item.path, attributes.DEFAULT_ACL, acl)
        root.write(root.free_name(item.path + b"/heir"), b"of a default ACL\n")
    for item in pick(rng, tuple(item for item in found.others if stat.S_ISLNK(item.mode)), 3):
        root.set_xattr(item.path, b"trusted.link", rng.randbytes(20))


def change_flags(root: Root, rng: Random) -> None:
    """A NOCOW directory, immutable and append-only files, an (inactive) swap file.

    All in one guarded directory. The flags are lifted first where they are set already, so this can
    be done again and again.
    """
    content = Content(rng.random())
    first = not root.exists(GUARDED)
    if first:
        root.make_directory(GUARDED)
        root.make_directory(GUARDED + b"/nocow")
        root.set_flags(GUARDED + b"/nocow", add=ioctls.NO_COW)
        for name in (b"/immutable", b"/append-only"):
            root.write(GUARDED + name, content.piece(rng, 5000))
        make_swap_file(root, GUARDED + b"/swap")
    else:
        lift_flags(root)
        immutable = root.free_name(GUARDED + b"/was-immutable")
        root.rename(GUARDED + b"/immutable", immutable)
        root.write(GUARDED + b"/immutable", content.piece(rng, 4000))
    root.write(root.free_name(GUARDED + b"/nocow/file"), content.piece(rng, 50_000))
    root.write(GUARDED + b"/nocow/file", content.piece(rng, 4096), offset=8192)
    append_only = GUARDED + b"/append-only"
    root.write(append_only, content.piece(rng, 2000), offset=root.stat(append_only).st_size)
    for name, flag in ((b"/immutable", ioctls.IMMUTABLE), (b"/append-only", ioctls.APPEND_ONLY)):
        root.change_time(GUARDED + name, _FIXED_TIME_NS)  # while it can still be set
        root.set_flags(GUARDED + name, add=flag)


def make_swap_file(root: Root, path: bytes, *, size_bytes: int = 1 << 20) -> None:
    """Make a file that swapon takes: NOCOW, without holes, with the heading of mkswap.

    Source of the heading: union swap_header, linux/swap.h: version and last page at 1024, the magic
    at the end of the first page.
    """
    with root.open(path, 0o102, 0o600) as fd:  # O_RDWR | O_CREAT
        ioctls.set_inode_flags(fd, add=ioctls.NO_COW)
        ioctls.preallocate(fd, 0, size_bytes, keep_size=False)
    last_page = size_bytes // 4096 - 1
    root.write(path, (1).to_bytes(4, "little") + last_page.to_bytes(4, "little"), offset=1024)
    root.write(path, b"SWAPSPACE2", offset=4086)


def lift_flags(root: Root) -> None:
    """Clear immutable and append-only flags in the guarded directory, so that it can be deleted."""
    if root.exists(GUARDED):
        for name in root.names(GUARDED):
            path = GUARDED + b"/" + name
            if stat.S_ISREG(root.stat(path).st_mode):
                root.set_flags(path, remove=ioctls.IMMUTABLE | ioctls.APPEND_ONLY)
