"""The oracle itself: it notices every property that it claims to compare, each when it alone differs."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import ioctls, manifest
from harness.filesystem import Array, mount
from harness.tree import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

TIME_NS = 1_500_000_000_123_456_789
GIB = 1 << 30


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with Array(members=1, size_bytes=GIB, label="manifest") as array:
        point = tmp_path_factory.mktemp("manifest") / "btrfs"
        with mount(array, point, options="noatime", subvolume=None) as path:
            yield path


@pytest.fixture
def pair(btrfs: Path) -> tuple[Path, Path]:
    """Two trees made by the same steps."""
    place = btrfs / f"test-{len(list(btrfs.iterdir()))}"
    place.mkdir()
    made = []
    for name in ("a", "b"):
        make_tree(place / name)
        made.append(place / name)
    return made[0], made[1]


def make_tree(root: Path) -> None:
    root.mkdir()
    for name in ("one", "two", "three", "four", "five"):
        (root / name).write_bytes(b"the same content\n" * 1000)
    os.link(root / "one", root / "one-again")
    os.link(root / "two", root / "two-again")
    (root / "directory" / "inside").mkdir(parents=True)
    (root / "link").symlink_to("over/there")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "three", b"user.known", b"value")
    os.setxattr(root / "link", b"trusted.known", b"value", follow_symlinks=False)
    settle(root)


def settle(root: Path) -> None:
    """Give everything one time, so that a change shows only where it was meant to."""
    for directory, names, files in os.walk(root):
        for name in [".", *names, *files]:
            os.utime(os.path.join(directory, name), ns=(TIME_NS, TIME_NS), follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing done to the second tree, and the lines it must cause: path and property of each."""

    name: str
    change: Callable[[Path], object]
    expected: tuple[str, ...]
    sets_time: bool = False


def replace_node(path: Path, mode: int, device: int = 0) -> None:
    path.unlink()
    os.mknod(path, mode, device)


def relink(root: Path) -> None:
    """The same counts of names everywhere, and other partners."""
    (root / "one-again").unlink()
    (root / "two-again").unlink()
    os.link(root / "two", root / "one-again")
    os.link(root / "one", root / "two-again")


def link_over(root: Path) -> None:
    """One inode with two names, where the other tree has two inodes that are alike in everything."""
    (root / "four").unlink()
    os.link(root / "five", root / "four")


def point_elsewhere(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("over/here")
    os.setxattr(root / "link", b"trusted.known", b"value", follow_symlinks=False)


CHANGES = (
    Change("a mode", lambda root: (root / "three").chmod(0o600), ("three: mode",)),
    Change("a setuid bit", lambda root: (root / "three").chmod(0o4644), ("three: mode",)),
    Change("the mode of a directory", lambda root: (root / "directory").chmod(0o1755), ("directory: mode",)),
    Change("the mode of a fifo", lambda root: (root / "fifo").chmod(0o606), ("fifo: mode",)),
    Change("the mode of the root", lambda root: root.chmod(0o700), (".: mode",)),
    Change("an owner", lambda root: os.chown(root / "three", 5, -1), ("three: uid",)),
    Change("a group", lambda root: os.chown(root / "three", -1, 5), ("three: gid",)),
    Change("the owner of a symlink", lambda root: os.lchown(root / "link", 5, -1), ("link: uid",)),
    Change("the group of the root", lambda root: os.chown(root, -1, 5), (".: gid",)),
    *(
        Change(
            f"one nanosecond of {name}",
            lambda root, name=name: os.utime(  # type: ignore[misc]
                root / name, ns=(TIME_NS, TIME_NS + 1), follow_symlinks=False
            ),
            (f"{name}: mtime_ns",),
            sets_time=True,
        )
        for name in ("three", "directory", "link", "fifo", "device", ".")
    ),
    Change(
        "one byte",
        lambda root: (root / "three").write_bytes(b"the same content\n" * 999 + b"the same Content\n"),
        ("three: sha256",),
    ),
    Change("the size", lambda root: os.truncate(root / "three", 3), ("three: size_bytes", "three: sha256")),
    Change(
        "a file made empty",
        lambda root: (root / "four").write_bytes(b""),
        ("four: size_bytes", "four: sha256"),
    ),
    Change("the target of a symlink", point_elsewhere, ("link: target",)),
    Change(
        "a device number",
        lambda root: replace_node(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5)),
        ("device: rdev",),
    ),
    Change(
        "a kind of device",
        lambda root: replace_node(root / "device", stat.S_IFBLK | 0o600, os.makedev(1, 3)),
        ("device: kind",),
    ),
    Change(
        "a kind of node", lambda root: replace_node(root / "fifo", stat.S_IFSOCK | 0o644), ("fifo: kind",)
    ),
    Change(
        "the value of an xattr",
        lambda root: os.setxattr(root / "three", b"user.known", b"valuE"),
        ("three: xattr user.known",),
    ),
    Change(
        "an xattr removed",
        lambda root: os.removexattr(root / "three", b"user.known"),
        ("three: xattr user.known",),
    ),
    Change(
        "an empty xattr", lambda root: os.setxattr(root / "four", b"user.new", b""), ("four: xattr user.new",)
    ),
    Change(
        "an xattr of a symlink",
        lambda root: os.setxattr(root / "link", b"trusted.known", b"other", follow_symlinks=False),
        ("link: xattr trusted.known",),
    ),
    Change(
        "an xattr of a fifo",
        lambda root: os.setxattr(root / "fifo", b"trusted.new", b"x"),
        ("fifo: xattr trusted.new",),
    ),
    Change("an xattr of the root", lambda root: os.setxattr(root, b"user.new", b"x"), (".: xattr user.new",)),
    Change(
        "a capability",
        lambda root: os.setxattr(root / "three", attributes.CAPABILITY, attributes.encode_capability(13)),
        ("three: xattr security.capability",),
    ),
    Change(
        "an ACL",
        lambda root: os.setxattr(
            root / "directory", attributes.DEFAULT_ACL, attributes.encode_acl({1000: 7}, {})
        ),
        ("directory: xattr system.posix_acl_default",),
    ),
    Change(
        "a property of btrfs",
        lambda root: os.setxattr(root / "directory", attributes.COMPRESSION, b"zstd"),
        ("directory: xattr btrfs.compression",),
    ),
    Change(
        "partners of hard links", relink, ("one-again: linked_to", "two-again: linked_to", "two: linked_to")
    ),
    Change("a link instead of a copy", link_over, ("four: linked_to",)),
    Change("a missing name", lambda root: (root / "one-again").unlink(), ("one-again: only in a (file)",)),
    Change(
        "an empty directory missing",
        lambda root: (root / "directory" / "inside").rmdir(),
        ("directory/inside: only in a (directory)",),
    ),
    Change("a new name", lambda root: os.mkfifo(root / "new\n\xff"), ("new\\x0aÿ: only in b (fifo)",)),
)


@pytest.mark.parametrize("case", CHANGES, ids=[case.name for case in CHANGES])
def test_a_property_is_noticed_when_it_alone_differs(case: Change, pair: tuple[Path, Path]) -> None:
    a, b = pair
    assert manifest.difference(manifest.read(a), manifest.read(b)) == []
    case.change(b)
    if not case.sets_time:
        settle(b)
    lines = manifest.difference(manifest.read(a), manifest.read(b))
    assert len(lines) == len(case.expected), lines
    for line, expected in zip(sorted(lines), sorted(case.expected), strict=True):
        assert line.startswith(expected)


def test_a_hole_is_noticed_only_where_holes_are_asked_for(pair: tuple[Path, Path]) -> None:
    for root, is_sparse in zip(pair, (True, False), strict=True):
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
            if not is_sparse:
                file.write(bytes(1 << 20))
        settle(root)
    a, b = (manifest.read(root, with_holes=True) for root in pair)
    assert manifest.difference(a, b) == ["sparse: holes: a has 0-1048576, b has no holes"]
    assert manifest.difference(a, manifest.read(pair[1])) == []
    assert manifest.difference(*(manifest.read(root) for root in pair)) == []


def test_holes_at_every_place_of_a_file_are_found(btrfs: Path) -> None:
    root = btrfs / "holes"
    root.mkdir()
    with (root / "file").open("wb") as file:
        for offset in (65_536, 196_608):
            file.seek(offset)
            file.write(b"x" * 65_536)
        file.truncate(300_000)
    entry = manifest.read(root, with_holes=True).entries[b"file"]
    assert entry.holes == ((0, 65_536), (131_072, 196_608), (262_144, 300_000))


def test_a_copy_with_other_inodes_and_other_times_of_access_is_equal(pair: tuple[Path, Path]) -> None:
    a, b = pair
    before = manifest.read(a)
    os.utime(b / "three", ns=(1, TIME_NS))
    (b / "three").rename(b / "aside")
    (b / "three").write_bytes((b / "aside").read_bytes())
    os.setxattr(b / "three", b"user.known", b"value")
    (b / "aside").unlink()
    settle(b)
    assert (a / "three").stat().st_ino != (b / "three").stat().st_ino
    assert manifest.difference(before, manifest.read(b)) == []


def test_reading_changes_no_access_time(btrfs: Path) -> None:
    root = btrfs / "read-only-look"
    root.mkdir()
    (root / "file").write_bytes(b"x" * 5000)
    (root / "directory").mkdir()
    places = (root, root / "file", root / "directory")
    for place in places:
        os.utime(place, ns=(5, TIME_NS))
    manifest.read(root, with_holes=True)
    assert [place.stat().st_atime_ns for place in places] == [5, 5, 5]


ODD_NAMES = (
    b"n" * 255,
    b"new\nline",
    b"not-utf8-\xff\xfe",
    b"-dash",
    b"back\\x41",
    "日本語".encode(),
    b"\x01\x1b[31m",
    b"A",
)


def test_odd_names_are_read_and_told_apart(btrfs: Path) -> None:
    root = btrfs / "odd"
    root.mkdir()
    for name in ODD_NAMES:
        os.mkdir(os.fsencode(root) + b"/" + name)
        with open(os.fsencode(root) + b"/" + name + b"/" + name, "wb") as file:
            file.write(name)
    read = manifest.read(root)
    assert set(read.entries) == {b".", *ODD_NAMES, *(name + b"/" + name for name in ODD_NAMES)}
    lines = manifest.difference(read, manifest.Manifest({}), limit=None)
    assert len(lines) == len(read.entries)
    assert all("\n" not in line and line.isprintable() for line in lines)


def test_a_path_longer_than_the_kernel_takes_is_read(btrfs: Path) -> None:
    root = btrfs / "long"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"d" * 250, dir_fd=fd)
        below = os.open(b"d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"deep down")
    os.setxattr(file, b"user.deep", b"yes")
    os.close(file)
    os.close(fd)
    entries = manifest.read(root).entries
    path = b"/".join([b"d" * 250] * 30) + b"/file"
    assert len(path) > 7000
    assert entries[path].size_bytes == 9
    assert entries[path].xattrs == ((b"user.deep", b"yes"),)


def test_a_nested_subvolume_is_left_out_of_the_live_tree_and_of_its_snapshot(btrfs: Path) -> None:
    place = btrfs / "nested"
    place.mkdir()
    root_fd = os.open(place, os.O_RDONLY)
    ioctls.create_subvolume(root_fd, b"tree")
    (place / "tree" / "directory").mkdir()
    with open_directory(place / "tree" / "directory") as directory:
        ioctls.create_subvolume(directory, b"below")
    (place / "tree" / "directory" / "below" / "file").write_text("not ours")
    with open_directory(place / "tree") as tree:
        ioctls.create_snapshot(tree, root_fd, b"snapshot")
    os.close(root_fd)
    for name, inode in (("tree", 256), ("snapshot", 2)):
        read = manifest.read(place / name)
        assert (place / name / "directory" / "below").stat().st_ino == inode
        assert read.left_out == (b"directory/below",)
        assert set(read.entries) == {b".", b"directory"}


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_only_the_time_of_the_root_is_forgiven(pair: tuple[Path, Path]) -> None:
    a, b = pair
    os.utime(b, ns=(5, 5))
    one, two = manifest.read(a), manifest.read(b)
    assert len(manifest.difference(one, two)) == 1
    assert manifest.difference(manifest.without_root_time(one), manifest.without_root_time(two)) == []
    b.chmod(0o700)
    lines = manifest.difference(manifest.without_root_time(one), manifest.without_root_time(manifest.read(b)))
    assert lines == [".: mode: a has 0755, b has 0700"]


def test_more_differences_than_the_limit_are_counted(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    read = manifest.read(a)
    lines = manifest.difference(read, manifest.Manifest({}), limit=3)
    assert len(lines) == 4
    assert lines[-1] == f"… and {len(read.entries) - 3} more differences"


def test_what_differs_in_a_shared_inode_is_said_once(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (b / "one-again").chmod(0o600)
    settle(b)
    lines = manifest.difference(manifest.read(a), manifest.read(b), names=("source", "received"))
    assert lines == ["one: mode: source has 0644, received has 0600"]


def test_a_manifest_survives_being_written_and_read(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    os.mkfifo(os.fsencode(a) + b"/odd\n\xff\\")
    read = manifest.read(a, with_holes=True)
    lines = list(manifest.format_lines(read))
    assert manifest.parse_lines(lines) == read
    assert all(line.isascii() and "\n" not in line for line in lines)


def test_a_manifest_that_was_cut_off_is_refused(pair: tuple[Path, Path]) -> None:
    lines = list(manifest.format_lines(manifest.read(pair[0])))
    for end in (0, 1, len(lines) // 2, len(lines) - 1):
        with pytest.raises(ValueError, match=r"cut off|no manifest"):
            manifest.parse_lines(lines[:end])


@given(st.binary())
def test_every_name_survives_being_escaped(name: bytes) -> None:
    text = manifest.escape(name)
    assert text.isprintable()
    assert manifest.parse_escaped(text) == name
