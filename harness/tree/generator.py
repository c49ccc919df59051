"""A tree with every kind of node that btrfs can hold, the same for the same seed and size."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from harness import ioctls
from harness.tree import attributes
from harness.tree.content import Content
from harness.tree.root import Root, settled_times
from harness.tree.survey import LONGEST_PATH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ODD_NAMES = (
    b"new\nline",
    b"not-utf8-\xff\xfe\x80",
    b"-rf",
    b"quotes'\"`$(id)",
    b"x" * 255,
    b" spaces and\ttab ",
    b"back\\slash\\x41",
    b"*?[a]{b}",
    b"...",
    b".hidden",
    b"\x01\x1b[31m\x7f",
    "日本語のファイル".encode(),
    "composed-\u00e9".encode(),
    "composed-e\u0301".encode(),
    b"%s%n",
    ("雪" * 85).encode(),
)
"""Names that break what quotes, prints or decodes paths: two are 255 bytes long, two look the same."""


LARGEST_XATTR_BYTES = 16_000
"""Near what one leaf of 16 KiB takes: the limit is 16,283 less headings and the name."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything. files: ordinary ones; mean_bytes: their mean size.

    fan: names of one inode in one directory, of which 70 long ones overflow into extended references.
    """

    files: int
    mean_bytes: int
    files_per_directory: int
    odd_names: int
    fan: int
    many_xattrs: int
    longest_path_bytes: int


SIZES = {
    "tiny": Size(6, 4_000, 3, 2, 3, 5, 400),
    "small": Size(130, 20_000, 8, len(ODD_NAMES), 80, 40, LONGEST_PATH_BYTES),
    "medium": Size(2_700, 30_000, 20, len(ODD_NAMES), 200, 60, LONGEST_PATH_BYTES),
    "large": Size(52_000, 21_500, 60, len(ODD_NAMES), 200, 60, LONGEST_PATH_BYTES),
}
"""About 45 files; 250 and 9 MB; 2,900 and 90 MB; 52,000 and 1.1 GB (for benchmarks)."""


def generate(root: Path, seed: int, size: str = "small") -> None:
    """Fill the empty directory or subvolume `root` with the tree of that seed and size.

    size: one of SIZES. Raises PermissionError without root's rights, NotBtrfsError on another
    filesystem, FileExistsError if something is there already, KeyError for an unknown size.
    """
    wanted = SIZES[size]
    rng = Random(f"generate:{seed}")
    with Root(root) as tree:
        if tree.names(b""):
            raise FileExistsError(f"{root}: a tree is generated into an empty directory only")
        with settled_times(tree, f"generate:{seed}"):
            content = Content(seed)
            for part in PARTS:
                part(tree, rng, content, wanted)
            tree.change_owner(b"", 1000, 100)
            tree.change_mode(b"", 0o751)
            tree.set_xattr(b"", b"user.root", b"of the tree")


def _ordinary(tree: Root, rng: Random, content: Content, wanted: Size) -> None:
    """Files of many sizes in directories up to six deep: most of any real tree."""
    directories = [tree.make_directory(b"data")]
    for number in range(wanted.files):
        if number % wanted.files_per_directory == 0:
            parent = rng.choice(directories[-40:])
            if parent.count(b"/") > 4:
                parent = b"data"
            directories.append(tree.make_directory(b"%s/d%d" % (parent, number)))
        size_bytes = int(rng.expovariate(1 / wanted.mean_bytes))
        path = b"%s/file-%d" % (directories[-1], number)
        tree.write(path, content.piece(rng, size_bytes))
        if number % 10 == 0:
            tree.change_owner(path, rng.randrange(60_000), rng.randrange(60_000))
            tree.change_mode(path, rng.choice((0o600, 0o644, 0o4755, 0o2750, 0o444, 0o000)))


def _deep(tree: Root, rng: Random, content: Content, _wanted: Size) -> None:
    """A chain of directories, with something in each: what an inversion turns over."""
    path = b"deep"
    tree.make_directory(path)
    for name in (b"one", b"two", b"three", b"four"):
        path = tree.make_directory(path + b"/" + name)
        tree.write(path + b"/in-" + name, content.piece(rng, 3000))


def _nodes(tree: Root, _rng: Random, _content: Content, _wanted: Size) -> None:
    """Every kind of node that is no file: mode, owner and xattrs of a symlink too."""
    tree.make_directory(b"nodes")
    tree.make_node(b"nodes/fifo", stat.S_IFIFO | 0o640)
    tree.make_node(b"nodes/socket", stat.S_IFSOCK | 0o755)
    tree.make_node(b"nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    tree.make_node(b"nodes/whiteout", stat.S_IFCHR, os.makedev(0, 0))
    tree.make_node(b"nodes/disk", stat.S_IFBLK | 0o660, os.makedev(259, 1_048_575))
    tree.symlink(b"../deep/one", b"nodes/to-directory")
    tree.symlink(b"nowhere/at all\n\xff", b"nodes/dangling")
    tree.symlink(b"/etc/" + b"t/" * 2000, b"nodes/long-target")
    tree.change_owner(b"nodes/dangling", 1001, 1002)
    tree.set_xattr(b"nodes/dangling", b"trusted.link", b"of the link itself")
    tree.make_directory(b"nodes/empty")
    tree.make_directory(b"nodes/sticky", 0o700)
    tree.change_mode(b"nodes/sticky", 0o3777)
    tree.write(b"nodes/empty-file", b"")
    tree.change_time(tree.write(b"nodes/before-1970", b"time\n"), -86_400 * 365 * 10**9 - 1)
    tree.change_time(tree.write(b"nodes/after-2100", b"time\n"), 4_200_000_000 * 10**9 + 7)


def _odd_names(tree: Root, rng: Random, content: Content, wanted: Size) -> None:
    """Names that are not UTF-8, or 255 bytes, or hold a newline; a path near the longest."""
    tree.make_directory(b"names")
    for number, name in enumerate(ODD_NAMES[: wanted.odd_names]):
        if number % 4 == 3:
            tree.make_directory(b"names/" + name)
            tree.write(b"names/" + name + b"/" + name, content.piece(rng, 100))
        else:
            tree.write(b"names/" + name, content.piece(rng, 500))
    path = b"names/long"
    tree.make_directory(path)
    while len(path) + 201 <= wanted.longest_path_bytes:
        path = tree.make_directory(path + b"/" + b"%d-" % len(path) + b"l" * 195)
    tree.write(path + b"/end", content.piece(rng, 100))


def _links(tree: Root, rng: Random, content: Content, wanted: Size) -> None:
    """Hard links within a directory and across, and a fan: many long names of one inode."""
    tree.make_directory(b"links")
    tree.make_directory(b"links/other")
    tree.write(b"links/first", content.piece(rng, 9000))
    tree.link(b"links/first", b"links/second")
    tree.link(b"links/first", b"links/other/third")
    tree.link(b"nodes/fifo", b"links/fifo")
    make_fan(tree, b"links/fan", wanted.fan, content.piece(rng, 5000))


def make_fan(tree: Root, directory: bytes, count: int, data: bytes | memoryview) -> None:
    """Make a directory with `count` names of one inode, each 240 bytes long."""
    tree.make_directory(directory)
    first = tree.write(directory + b"/" + b"%06d" % 0 + b"n" * 234, data)
    for number in range(1, count):
        tree.link(first, directory + b"/" + b"%06d" % number + b"n" * 234)


def _attributes(tree: Root, rng: Random, content: Content, wanted: Size) -> None:
    """Small xattrs, one as large as a leaf takes, ACLs, capabilities, with neighbours that have none."""
    tree.make_directory(b"attributes")
    many = tree.write(b"attributes/many", content.piece(rng, 100))
    for number in range(wanted.many_xattrs):
        tree.set_xattr(many, b"user.number-%d" % number, rng.randbytes(number % 30))
    large = tree.write(b"attributes/large", b"")
    tree.set_xattr(large, b"user.large", rng.randbytes(LARGEST_XATTR_BYTES))
    for name, value in (
        (b"acl-directory", attributes.encode_acl({1000: 6, 1001: 4}, {100: 5})),
        (b"acl-file", attributes.encode_acl({65534: 7}, {})),
    ):
        path = b"attributes/" + name
        if name.endswith(b"directory"):
            tree.make_directory(path)
            tree.set_xattr(path, attributes.DEFAULT_ACL, value)
            tree.write(path + b"/heir", b"inherits\n")
        else:
            tree.write(path, content.piece(rng, 2000))
        tree.set_xattr(path, attributes.ACCESS_ACL, value)
    for number in range(4):
        path = tree.write(b"attributes/program-%d" % number, content.piece(rng, 6000))
        tree.change_owner(path, 1000 * number, 50)
        tree.change_mode(path, 0o755)
        if number % 2 == 0:  # a capability on one file must not leak to the next
            capability = attributes.encode_capability(attributes.CAP_NET_RAW, number)
            tree.set_xattr(path, attributes.CAPABILITY, capability)


def _holes(tree: Root, rng: Random, content: Content, _wanted: Size) -> None:
    """Sparse files: a hole first, in the middle, last; all hole; preallocated, past the end too."""
    tree.make_directory(b"holes")
    tree.write(b"holes/middle", content.piece(rng, 20_000))
    tree.write(b"holes/middle", content.piece(rng, 20_000), offset=300_000)
    tree.write(b"holes/first", content.piece(rng, 5000), offset=131_072)
    tree.write(b"holes/last", content.piece(rng, 5000))
    tree.truncate(b"holes/last", 1_000_003)
    tree.truncate(tree.write(b"holes/all", b""), 3_000_000)
    preallocated = tree.write(b"holes/preallocated", content.piece(rng, 10_000))
    with tree.open(preallocated) as fd:
        ioctls.preallocate(fd, 65_536, 65_536, keep_size=False)
        ioctls.preallocate(fd, 262_144, 131_072, keep_size=True)


def _reflinks(tree: Root, rng: Random, content: Content, _wanted: Size) -> None:
    """Whole and partial reflinks, inside one file too, and equal files that share nothing yet."""
    tree.make_directory(b"reflinks")
    original = tree.write(b"reflinks/original", content.piece(rng, 150_001))
    tree.clone(original, b"reflinks/copy")
    tree.write(b"reflinks/copy", content.piece(rng, 4096), offset=40_960)
    with tree.open(tree.write(b"reflinks/within", content.piece(rng, 65_536))) as fd:
        ioctls.clone_range(fd, fd, source_offset=8192, length=16_384, target_offset=65_536)
    twin = content.piece(rng, 131_072)
    tree.flush(tree.write(b"reflinks/twin-one", twin))
    tree.flush(tree.write(b"reflinks/twin-two", twin))


def _compressed(tree: Root, rng: Random, content: Content, _wanted: Size) -> None:
    """Directories and files with the compression property, of data that compresses and that does not."""
    tree.make_directory(b"compressed")
    for name in (b"zlib", b"lzo", b"zstd"):
        directory = tree.make_directory(b"compressed/" + name)
        tree.set_xattr(directory, attributes.COMPRESSION, name)
        tree.write(directory + b"/text", content.text(rng, 60_000))
    tree.write(b"compressed/zstd/noise", content.noise(rng, 30_000))


PARTS: tuple[Callable[[Root, Random, Content, Size], None], ...] = (
    _deep,
    _nodes,
    _odd_names,
    _links,
    _attributes,
    _holes,
    _reflinks,
    _compressed,
    _ordinary,  # last: the flush of _reflinks would wait for all of it
)
