"""What may reach `btrfs receive`, decided a second time: slowly, and from what the commands would do.

No code is shared with the inspector but the numbers of the format. Instead of following names, it plays the
stream on a model of a filesystem whose rules are the kernel's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from btrsync.stream.commands import Attribute, Kind

MAX_COMMAND, MAX_DATA_COMMAND, MAX_PATH = 128 << 10, 1 << 20, 4095
WRITES = {Kind.WRITE, Kind.ENCODED_WRITE}
DATA = WRITES | {Kind.CLONE, Kind.FALLOCATE, Kind.UPDATE_EXTENT}


class Forbidden(Exception):
    """What the stream asks may not be done."""


class Fails(Exception):
    """The kernel or receive refuses it: receive stops here, and nothing after it matters."""


@dataclass(frozen=True, slots=True)
class Command:
    kind: int
    attributes: dict[int, bytes]
    start: int
    end: int
    header: bytes


@dataclass
class Read:
    """What a stream is: its commands up to the first that is malformed; `bad_at` is where that begins."""

    commands: list[Command] = field(default_factory=list)
    bad_at: int | None = None


def read(stream: bytes, version: int) -> Read:
    """Take a stream apart; what is cut off at its end is left out."""
    result = Read()
    at, is_ended = 0, False
    last = 22 if version == 1 else 25
    while at < len(stream):
        header = stream[at : at + 10]
        if is_ended:
            result.bad_at = at
            return result
        if len(header) < 10:
            return result
        size, kind, _ = struct.unpack("<IHI", header)
        limit = MAX_DATA_COMMAND if kind in WRITES else MAX_COMMAND
        if not 3 <= kind <= last or size > limit:
            result.bad_at = at
            return result
        payload = stream[at + 10 : at + 10 + size]
        if len(payload) < size:
            return result
        attributes = take_apart(payload, version)
        if attributes is None:
            result.bad_at = at
            return result
        is_ended = kind == Kind.END
        result.commands.append(Command(kind, attributes, at, at + 10 + size, header))
        at += 10 + size
    return result


def take_apart(payload: bytes, version: int) -> dict[int, bytes] | None:
    attributes: dict[int, bytes] = {}
    while payload:
        if len(payload) < 2:
            return None
        (kind,) = struct.unpack_from("<H", payload)
        if version == 2 and kind == Attribute.DATA:
            value, payload = payload[2:], b""
        else:
            if len(payload) < 4:
                return None
            (length,) = struct.unpack_from("<H", payload, 2)
            value, payload = payload[4 : 4 + length], payload[4 + length :]
            if len(value) < length or (kind == Attribute.DATA and payload):
                return None
        if kind in attributes:
            return None
        attributes[kind] = value
    return attributes


# ---------------------------------------------------------------------------------- the filesystem


class Node:
    """An inode: a directory has entries; kind is one of "dir", "file", "link", "device", "socket"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[bytes, Node] = {}


class Model:
    """A subvolume as a full stream makes it, from nothing."""

    def __init__(self) -> None:
        self.root = Node("dir")

    def walk(self, path: bytes) -> tuple[Node, bytes]:
        """Return the directory that the last part of `path` lies in, and that part."""
        if path.startswith(b"/"):
            raise Forbidden("absolute")
        parts = path.split(b"/")
        here = self.root
        for part in parts[:-1]:
            here = self.step(here, part)
        return here, parts[-1]

    def step(self, here: Node, part: bytes) -> Node:
        if part == b"..":
            raise Forbidden("leads out")
        if part in {b"", b"."}:
            return here
        found = here.entries.get(part)
        if found is None:
            raise Fails("not there")
        if found.kind == "link":
            raise Forbidden("through a link")
        if found.kind != "dir":
            raise Fails("no directory")
        return found

    def find(self, path: bytes) -> Node:
        """What a path names, itself."""
        directory, name = self.walk(path)
        if name == b"..":
            raise Forbidden("leads out")
        found = directory if name in {b"", b"."} else directory.entries.get(name)
        if found is None:
            raise Fails("not there")
        return found

    def opened(self, path: bytes, *, is_read: bool = False) -> None:
        found = self.find(path)
        if found.kind in {"link", "device"}:
            raise Forbidden("opens a link or a device")
        if found.kind != "file" and not is_read:
            raise Fails("no file")

    def place(self, path: bytes) -> tuple[Node, bytes]:
        directory, name = self.walk(path)
        if name == b"..":
            raise Forbidden("leads out")
        if name in {b"", b"."}:
            raise Fails("no name")
        if len(name) > 255:
            raise Fails("name too long")
        return directory, name

    def make(self, kind: str, path: bytes) -> None:
        directory, name = self.place(path)
        there = directory.entries.get(name)
        if there is not None:
            if kind == "file" and there.kind in {"link", "device"}:
                raise Forbidden("opens a link or a device")
            if kind == "file" and there.kind == "file":
                return
            raise Fails("there already")
        directory.entries[name] = Node(kind)

    def link(self, old: bytes, new: bytes) -> None:
        node = self.find(old)
        directory, name = self.place(new)
        if node.kind == "dir" or name in directory.entries:
            raise Fails("no hard link")
        directory.entries[name] = node

    def remove(self, path: bytes, *, is_directory: bool) -> None:
        directory, name = self.place(path)
        node = directory.entries.get(name)
        if node is None or (node.kind == "dir") != is_directory or node.entries:
            raise Fails("cannot be removed")
        del directory.entries[name]

    def rename(self, old: bytes, new: bytes) -> bool:
        """Return whether both were links or devices: then the inspector may be too careful."""
        old_directory, old_name = self.place(old)
        new_directory, new_name = self.place(new)
        node = old_directory.entries.get(old_name)
        there = new_directory.entries.get(new_name)
        if node is None or self.is_below(new_directory, node):
            raise Fails("cannot be renamed")
        if there is node:
            return False
        if there is not None and ((there.kind == "dir") != (node.kind == "dir") or there.entries):
            raise Fails("cannot be replaced")
        del old_directory.entries[old_name]
        new_directory.entries[new_name] = node
        return there is not None and {there.kind, node.kind} <= {"link", "device"}

    def is_below(self, directory: Node, node: Node) -> bool:
        return directory is node or any(self.is_below(directory, each) for each in node.entries.values())


@dataclass
class Verdict:
    """allowed: how many commands may pass, None where the model does not know; sums of what these write.

    is_careful: from some command on, the inspector may refuse what would do no harm.
    """

    forbidden_at: int | None = None
    fails_at: int | None = None
    is_careful: bool = False
    data_bytes: int = 0


MAKES = {
    Kind.MKFILE: "file", Kind.MKDIR: "dir", Kind.MKNOD: "device", Kind.MKFIFO: "device", Kind.MKSOCK: "socket",
    Kind.SYMLINK: "link",
}  # fmt: skip


def judge(commands: list[Command], own: bytes, allowed: set[bytes], limit: int | None) -> Verdict:
    """Play a full stream and say at which command it first does what it may not, or stops."""
    verdict, model = Verdict(), Model()
    for command in commands:
        if command.kind == Kind.END:
            return verdict
        try:
            check_words(command, own, allowed)
            verdict.data_bytes += writes(command)
            if limit is not None and verdict.data_bytes > limit:
                raise Forbidden("more than announced")
            if verdict.fails_at is None:
                verdict.is_careful |= play(model, command, own)
        except Forbidden:
            verdict.forbidden_at = command.start
            return verdict
        except Fails:
            verdict.fails_at = command.start
    return verdict


def check_words(command: Command, own: bytes, allowed: set[bytes]) -> None:
    """What is forbidden whatever the filesystem looks like."""
    names = [Attribute.PATH]
    if command.kind == Kind.RENAME:
        names.append(Attribute.PATH_TO)
    if command.kind == Kind.LINK:
        names.append(Attribute.PATH_LINK)
    if command.kind == Kind.CLONE:
        names.append(Attribute.CLONE_PATH)
        if command.attributes.get(Attribute.CLONE_UUID) not in {own, *allowed}:
            raise Forbidden("a clone from elsewhere")
    for name in names:
        path = command.attributes.get(name)
        if path is None or path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH:
            raise Forbidden("no path, or not a good one")
        if path and {b"", b".", b".."} & set(path.split(b"/")):
            raise Forbidden("not spelt as send does")
    if command.kind == Kind.ENCODED_WRITE:
        sizes = value(command, Attribute.UNENCODED_FILE_LEN), value(command, Attribute.UNENCODED_LEN)
        if not sizes[0] or max(sizes) > MAX_DATA_COMMAND:
            raise Forbidden("grows too much")


def value(command: Command, attribute: Attribute) -> int:
    return int.from_bytes(command.attributes.get(attribute, b""), "little")


def writes(command: Command) -> int:
    if command.kind == Kind.WRITE:
        return len(command.attributes.get(Attribute.DATA, b""))
    if command.kind == Kind.ENCODED_WRITE:
        return value(command, Attribute.UNENCODED_FILE_LEN)
    if command.kind == Kind.FALLOCATE and not value(command, Attribute.FALLOCATE_MODE) & 2:
        return value(command, Attribute.SIZE)
    return 0


def play(model: Model, command: Command, own: bytes) -> bool:
    """Do on the model what receive does; return whether the inspector may be too careful from now on."""
    kind, found = command.kind, command.attributes
    path = found[Attribute.PATH]
    if kind in MAKES:
        model.make(MAKES[Kind(kind)], path)
    elif kind == Kind.RENAME:
        return model.rename(path, found[Attribute.PATH_TO])
    elif kind == Kind.LINK:
        model.link(found[Attribute.PATH_LINK], path)
    elif kind in {Kind.UNLINK, Kind.RMDIR}:
        model.remove(path, is_directory=kind == Kind.RMDIR)
    elif kind in DATA or kind == Kind.TRUNCATE:
        model.opened(path)
        if kind == Kind.CLONE and found[Attribute.CLONE_UUID] == own:
            model.opened(found[Attribute.CLONE_PATH], is_read=True)
    elif kind == Kind.FILEATTR:
        model.opened(path, is_read=True)
    elif model.find(path).kind == "link" and kind == Kind.CHMOD:
        raise Forbidden("follows a link")
    return False
