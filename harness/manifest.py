"""What a whole tree is, as values that can be compared: the oracle of every test that moves one.

A *manifest* maps each path, as bytes below the root, to an *entry*: everything a faithful copy must
carry. What a copy may change (inode numbers, ctime, birth time, atime, allocated blocks) is not read
into it. Names that share an inode form a *link group*; each entry names the first of its group, so
two trees have equal groups exactly when these agree, whatever the inode numbers.

Make the manifest of a source from its read-only snapshot, never from the live tree.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from harness import ioctls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

ROOT = b"."
"""The path under which the root directory itself stands in a manifest."""

FORMAT_VERSION = 1

DEFAULT_LIMIT = 40
"""Differences shown before the rest is only counted."""

_PATH_PIECE_BYTES = 3500
"""Longest path given to one system call: PATH_MAX is 4096 with the final zero byte."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree. What its kind does not have is None.

    mode: permission bits with setuid, setgid and sticky. rdev: major, minor. xattrs: name and value
    of all of them, sorted; ACLs, file capabilities and btrfs properties are among them.
    linked_to: the first name, in byte order, of the inode that this path shares with others; None
    for that first name itself and for what is not shared. holes: begin and end of each, in bytes,
    as SEEK_HOLE and SEEK_DATA show them; None if they were not asked for.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    target: bytes | None = None
    rdev: tuple[int, int] | None = None
    linked_to: bytes | None = None
    holes: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All entries of a tree by path, and the directories in it that belong to other trees.

    left_out: nested subvolumes (in a snapshot: the empty directories with inode 2 that stand where
    they were) and mount points. They are not compared, because send carries nothing of them: a test
    about them asserts that a received tree has none. Source: measured, kernel 6.18.
    """

    entries: Mapping[bytes, Entry]
    left_out: tuple[bytes, ...] = ()


def read(root: Path, *, with_holes: bool = False) -> Manifest:
    """Return the manifest of the tree at `root`, a subvolume or any directory.

    with_holes: record the holes of each file. Any name is fine (bytes), and so is a path longer than
    PATH_MAX. Nothing is changed, access times neither. Raises OSError, with the path, if something
    cannot be read, and so if the tree changes meanwhile.
    """
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _read(root_fd, with_holes=with_holes)
    finally:
        os.close(root_fd)


def _read(root_fd: int, *, with_holes: bool) -> Manifest:
    root_stat = os.fstat(root_fd)
    is_btrfs = ioctls.is_btrfs(root_fd)
    entries = {ROOT: _directory_entry(root_fd, root_stat)}
    left_out: list[bytes] = []
    link_groups: dict[int, list[bytes]] = {}
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        directory_fd = open_directory(root_fd, directory)
        try:
            names_directory = b"/proc/self/fd/%d" % directory_fd
            if directory:
                entries[directory] = _directory_entry(directory_fd, os.fstat(directory_fd))
            for name in sorted(os.listdir(names_directory), reverse=True):
                path = directory + b"/" + name if directory else name
                status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if (is_btrfs and status.st_ino == ioctls.EMPTY_SUBVOLUME_INODE) or (
                        status.st_dev != root_stat.st_dev
                    ):
                        left_out.append(path)
                    else:
                        waiting.append(path)
                    continue
                entries[path] = _leaf_entry(directory_fd, name, status, with_holes=with_holes)
                if status.st_nlink > 1:
                    link_groups.setdefault(status.st_ino, []).append(path)
        except OSError as error:
            error.add_note(f"while reading {escape(directory or ROOT)}")
            raise
        finally:
            os.close(directory_fd)
    for group in link_groups.values():
        first = min(group)
        for path in group:
            if path != first:
                entries[path] = replace(entries[path], linked_to=first)
    return Manifest(entries, tuple(sorted(left_out)))


def open_directory(root_fd: int, path: bytes) -> int:
    """Return a new descriptor of the directory `path` below `root_fd`, however long the path is.

    A long path is walked in pieces, so that neither PATH_MAX nor the number of open descriptors
    bounds the depth of a tree.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
    fd = os.open(b".", flags, dir_fd=root_fd)
    while path:
        piece, path = path, b""
        if len(piece) > _PATH_PIECE_BYTES:
            cut = piece.rindex(b"/", 0, _PATH_PIECE_BYTES)
            piece, path = piece[:cut], piece[cut + 1 :]
        try:
            next_fd = os.open(piece, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = next_fd
    return fd


def _directory_entry(fd: int, status: os.stat_result) -> Entry:
    return Entry(
        kind="directory",
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs=_xattrs(b"/proc/self/fd/%d/." % fd),
    )


def _leaf_entry(directory_fd: int, name: bytes, status: os.stat_result, *, with_holes: bool) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    sha256: str | None = None
    holes: tuple[tuple[int, int], ...] | None = None
    if kind == stat.S_IFREG:
        holes = () if with_holes else None
        if status.st_size:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME, dir_fd=directory_fd)
            with open(fd, "rb", buffering=0) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if with_holes:
                    holes = tuple(_holes(fd, status.st_size))
    return Entry(
        kind=_KINDS[kind],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs=_xattrs(b"/proc/self/fd/%d/%s" % (directory_fd, name)),
        size_bytes=status.st_size if kind == stat.S_IFREG else None,
        sha256=sha256,
        target=os.readlink(name, dir_fd=directory_fd) if kind == stat.S_IFLNK else None,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind in (stat.S_IFCHR, stat.S_IFBLK)
        else None,
        holes=holes,
    )


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    # By path and not by descriptor: neither a symlink nor a device can be opened for it.
    names = os.listxattr(path, follow_symlinks=False)
    if not names:
        return ()
    return tuple(
        sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)
    )


def _holes(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size_bytes:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size_bytes
        if data > position:
            yield position, data
        if data < size_bytes:
            position = os.lseek(fd, data, os.SEEK_HOLE)
        else:
            position = size_bytes


def without_root_time(manifest: Manifest) -> Manifest:
    """Return a manifest that says nothing of when the root directory was changed.

    For what stock `btrfs send` and `receive` made: receive creates a new file under a passing name in
    the root, and send restores the root's time only if something else changed there. Source:
    btrfs-progs issue 461; measured, kernel 6.18: incremental streams of protocol 1 and 2.
    """
    root = replace(manifest.entries[ROOT], mtime_ns=0)
    return Manifest({**manifest.entries, ROOT: root}, manifest.left_out)


def difference(
    a: Manifest, b: Manifest, *, names: tuple[str, str] = ("a", "b"), limit: int | None = DEFAULT_LIMIT
) -> list[str]:
    """Return one readable line for each difference, with both values; empty when the trees are equal.

    names: what the two trees are called. limit: how many lines at most, before one that counts the
    rest; None for all. Holes are compared where both manifests recorded them.
    """
    lines: list[str] = []
    for path in sorted(a.entries.keys() | b.entries.keys()):
        first, second = a.entries.get(path), b.entries.get(path)
        if first == second:
            continue
        shown = escape(path)
        if first is None or second is None:
            there, entry = (names[0], first) if first is not None else (names[1], second)
            lines.append(f"{shown}: only in {there} ({entry.kind if entry else ''})")
            continue
        lines += [
            f"{shown}: {what}: {names[0]} has {old}, {names[1]} has {new}"
            for what, old, new in _differing(first, second)
        ]
    if limit is not None and len(lines) > limit:
        lines[limit:] = [f"… and {len(lines) - limit} more differences"]
    return lines


def _differing(a: Entry, b: Entry) -> Iterator[tuple[str, str, str]]:
    """Yield name and both values of each property that differs, rendered."""
    if a.linked_to is not None and a.linked_to == b.linked_to:
        return  # one inode: what differs is said once, at its first name
    for field in fields(Entry):
        old, new = getattr(a, field.name), getattr(b, field.name)
        if old == new or (field.name == "holes" and None in (old, new)):
            continue
        if a.kind != b.kind and None in (old, new) and field.name != "linked_to":
            continue  # a property that one of the two kinds does not have at all
        if field.name == "xattrs":
            yield from _differing_xattrs(dict(old), dict(new))
        else:
            yield field.name, _format_value(field.name, old), _format_value(field.name, new)


def _differing_xattrs(a: dict[bytes, bytes], b: dict[bytes, bytes]) -> Iterator[tuple[str, str, str]]:
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield f"xattr {escape(name)}", _format_bytes(a.get(name)), _format_bytes(b.get(name))


def _format_bytes(value: bytes | None, *, limit_bytes: int = 48) -> str:
    if value is None:
        return "none"
    if len(value) > limit_bytes:
        digest = hashlib.sha256(value).hexdigest()[:16]
        return f"'{escape(value[:limit_bytes])}…' ({len(value)} bytes, sha256 {digest})"
    return f"'{escape(value)}'"


def _format_value(name: str, value: object) -> str:
    if value is None:
        return "no other name" if name == "linked_to" else "none"
    if name == "mode":
        return f"{value:04o}"
    if name == "mtime_ns" and isinstance(value, int):
        return f"{value // 10**9}.{value % 10**9:09d}"
    if isinstance(value, bytes):
        return _format_bytes(value, limit_bytes=400)
    if name == "holes" and isinstance(value, tuple):
        return ", ".join(f"{begin}-{end}" for begin, end in value) or "no holes"
    return str(value)


def escape(value: bytes) -> str:
    r"""Return `value` as printable text: UTF-8 where it is printable, `\\` and `\xNN` for the rest."""
    text = value.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text  # a lone surrogate is not printable, so this is all of the ordinary names
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def parse_escaped(text: str) -> bytes:
    """Return the bytes that `escape` rendered as `text`."""
    if "\\" not in text:
        return text.encode()
    return re.sub(
        rb"\\(?:x([0-9a-f]{2})|\\)",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
        text.encode(),
    )


def format_lines(manifest: Manifest) -> Iterator[str]:
    """Yield the manifest as JSON lines, a heading first, to be read in one host and compared outside."""
    heading = {"manifest": FORMAT_VERSION, "left_out": [escape(path) for path in manifest.left_out]}
    yield json.dumps(heading)
    for path in sorted(manifest.entries):
        entry = manifest.entries[path]
        record: dict[str, Any] = {"path": escape(path)}
        for field in fields(Entry):
            value = getattr(entry, field.name)
            if field.name == "xattrs":
                value = [[escape(name), escape(content)] for name, content in value]
            elif isinstance(value, bytes):
                value = escape(value)
            if value is not None and value != []:
                record[field.name] = value
        yield json.dumps(record)
    yield json.dumps({"entries": len(manifest.entries)})


def parse_lines(lines: Iterable[str]) -> Manifest:
    """Return the manifest that `format_lines` rendered.

    Raises ValueError if it is cut off, or of another format.
    """
    records = [json.loads(line) for line in lines if line.strip()]
    if not records or records[0].get("manifest") != FORMAT_VERSION:
        raise ValueError(f"this is no manifest of format {FORMAT_VERSION}")
    if records[-1] != {"entries": len(records) - 2}:
        raise ValueError("this manifest is cut off: its last line does not count its entries")
    left_out = tuple(parse_escaped(path) for path in records[0]["left_out"])
    entries = dict(_parse_entry(record) for record in records[1:-1])
    return Manifest(entries, left_out)


def _parse_entry(record: dict[str, Any]) -> tuple[bytes, Entry]:
    path = parse_escaped(record.pop("path"))
    for key in ("target", "linked_to"):
        if key in record:
            record[key] = parse_escaped(record[key])
    if "xattrs" in record:
        pairs = record["xattrs"]
        record["xattrs"] = tuple((parse_escaped(name), parse_escaped(value)) for name, value in pairs)
    if "rdev" in record:
        record["rdev"] = tuple(record["rdev"])
    if "holes" in record:
        record["holes"] = tuple((begin, end) for begin, end in record["holes"])
    return path, Entry(**record)
