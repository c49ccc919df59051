"""What a stream has made that it must not go through: symbolic links, devices and FIFOs.

`btrfs receive` opens what some commands name, and follows it if it is a link: data into it would reach any
file of the server, or its disks. That nothing leads out is for the kernel to see to, in receive's mount
namespace (`btrsync.system.private`); here as many doors are known as memory allows, so that a stream that
goes through one is refused with the reason.
"""

from __future__ import annotations

from btrsync.stream.commands import Attribute, Kind

# Plain integers, as they stand in a stream.
DOORS = frozenset(map(int, (Kind.SYMLINK, Kind.MKNOD, Kind.MKFIFO)))
OPENING = frozenset(
    map(
        int,
        (
            Kind.MKFILE, Kind.WRITE, Kind.ENCODED_WRITE, Kind.CLONE, Kind.TRUNCATE, Kind.CHMOD,
            Kind.FALLOCATE, Kind.FILEATTR, Kind.UPDATE_EXTENT,
        ),
    )
)  # fmt: skip
"""Receive opens what these name, following a link; the others take a link for itself.

open(), creat(), truncate(), chmod(), and not lchown(), lsetxattr(), AT_SYMLINK_NOFOLLOW: cmds/receive.c.
"""

MAX_BYTES = 24 << 20
"""Of memory for names; a tree has rarely so many links (100,000), a hostile stream as many as it likes."""
ENTRY_BYTES = 160
"""What a name costs besides its own length (measured: 130 to 200)."""


class Doors:
    """The symbolic links, devices and FIFOs that a stream has made, under their present names."""

    def __init__(self) -> None:
        self.kinds: dict[bytes, int] = {}
        # Every directory that was ever above one: only such a one's renaming moves them.
        self._above: set[bytes] = set()
        self._open: bytes | None = None
        """A directory that no door leads to: most commands stay in the one of the command before."""
        self.size_bytes = 0

    def is_link(self, path: bytes) -> bool:
        return self.kinds[path] == Kind.SYMLINK

    def on_the_way(self, path: bytes, kind: int) -> bytes | None:
        """Return the door that a command leads through, if any; what it only names may be one itself."""
        directory = path[: max(path.rfind(b"/"), 0)]
        if directory != self._open:
            cut = path.find(b"/")
            while cut >= 0:
                if path[:cut] in self.kinds:
                    return path[:cut]
                cut = path.find(b"/", cut + 1)
            self._open = directory
        is_opened = path in self.kinds and kind in OPENING
        return path if is_opened and (kind != Kind.CHMOD or self.is_link(path)) else None

    def follow(self, kind: int, found: dict[int, bytes]) -> None:
        """Take in a command that makes, names, renames or removes a door, or a directory above one."""
        path = found[Attribute.PATH]
        if kind in DOORS:
            self._add(path, kind)
        elif not self.kinds:
            return
        elif kind == Kind.LINK and (door := self.kinds.get(found[Attribute.PATH_LINK])):
            self._add(path, door)
        elif kind == Kind.UNLINK:
            self.kinds.pop(path, None)
        elif kind == Kind.RENAME:
            self._rename(path, found[Attribute.PATH_TO])

    def _add(self, path: bytes, kind: int) -> None:
        self.kinds[path] = kind
        self._open = None
        self.size_bytes += len(path) + ENTRY_BYTES
        cut = path.rfind(b"/")
        # What is above one that is known is known too.
        while cut > 0 and path[:cut] not in self._above:
            self._above.add(path[:cut])
            self.size_bytes += cut + ENTRY_BYTES
            cut = path.rfind(b"/", 0, cut)
        if self.size_bytes > MAX_BYTES:
            self.kinds.clear()
            self._above.clear()
            self.size_bytes = 0

    def _rename(self, old: bytes, new: bytes) -> None:
        kind = self.kinds.get(old)
        if kind is None:
            self.kinds.pop(new, None)
        elif new not in self.kinds:
            del self.kinds[old]
            self._add(new, kind)
        # Both are doors: names of one file maybe, and then both stay (man 2 rename).
        if old in self._above:
            below = old + b"/"
            for path in [path for path in self.kinds if path.startswith(below)]:
                moved = self.kinds.pop(path, None)
                if moved is not None:
                    self._add(new + path[len(old) :], moved)
