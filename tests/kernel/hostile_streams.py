"""Streams that mean ill: what each does to the stock `btrfs receive`, and the words it is refused with.

Every stream is whole and right but for its one trick, CRCs included, so that nothing but the check that is
meant can refuse it. They only ever meet `btrfs receive` inside a rehearsal host.
"""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from btrsync.stream.commands import ATTRIBUTE_HEADER, COMMAND_HEADER, Attribute, Kind
from btrsync.stream.head import MAGIC, STREAM_HEADER, crc32c

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

CTRANSID = 7
OUTSIDE = "/srv/outside"
"""The directory of the canary, on the host's own root."""
CANARY = f"{OUTSIDE}/canary"
MEMORY_BYTES = 128 << 20
"""Of the oversized command, and of the compressed data that grows."""
SECRET_BYTES = 8192
TOTAL_BYTES = 1 << 20
"""What the client announces, where that is asked for; the server lets a little more pass."""


class Harm(Enum):
    """What the stock receive lets happen, in the words of docs/threat-model.md."""

    CANARY = "a file of the server is changed"
    PLANTED = "a file is made on the server"
    DEVICE = "a disk of the server is written to"
    LEAK = "another client's data is taken"
    SECOND = "a second subvolume is made"
    SIBLING = "something beside the backup is made or renamed"
    MEMORY = "its memory grows with the stream"
    ACCEPTED = "taken without a word"
    NONE = "it fails"


@dataclass(frozen=True, slots=True)
class Place:
    """What the attacker knows: how its own snapshot is called, and another client's backup; a device."""

    own: UUID
    secret: UUID
    device: int


@dataclass(frozen=True, slots=True)
class Attack:
    """harm: without and with `-e -C`, as btrsync calls receive; refusal: a part of the server's sentence."""

    build: Callable[[Place], bytes]
    harm: Harm
    confined: Harm
    refusal: str
    version: int = 1
    total_bytes: int | None = None
    is_begun: bool = True
    """Whether the stream's first command passes."""


# ------------------------------------------------------------------------------------- the builder


def attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE_HEADER.pack(kind, len(value)) + value


def number(value: int, size_bytes: int = 8) -> bytes:
    return value.to_bytes(size_bytes, "little")


def framed(kind: int, payload: bytes) -> bytes:
    """Return a command with its right CRC."""
    crc = crc32c(COMMAND_HEADER.pack(len(payload), kind, 0) + payload)
    return COMMAND_HEADER.pack(len(payload), kind, crc) + payload


def command(kind: int, path: bytes | None, *attributes: tuple[int, bytes], tail: bytes = b"") -> bytes:
    whole = [(Attribute.PATH, path), *attributes] if path is not None else attributes
    return framed(kind, b"".join(attribute(number, value) for number, value in whole) + tail)


def make(kind: int, path: bytes, *attributes: tuple[int, bytes]) -> bytes:
    return command(kind, path, (Attribute.INO, number(257)), *attributes)


def symlink(path: bytes, to: str) -> bytes:
    return make(Kind.SYMLINK, path, (Attribute.PATH_LINK, to.encode()))


def rename(old: bytes, new: bytes) -> bytes:
    return command(Kind.RENAME, old, (Attribute.PATH_TO, new))


def link(new: bytes, old: bytes) -> bytes:
    return command(Kind.LINK, new, (Attribute.PATH_LINK, old))


def write(path: bytes, data: bytes, *, version: int = 1) -> bytes:
    offset = (Attribute.FILE_OFFSET, number(0))
    if version == 1:
        return command(Kind.WRITE, path, offset, (Attribute.DATA, data))
    return command(Kind.WRITE, path, offset, tail=struct.pack("<H", Attribute.DATA) + data)


def clone(path: bytes, source: UUID, source_path: bytes, size_bytes: int = SECRET_BYTES) -> bytes:
    return command(
        Kind.CLONE,
        path,
        (Attribute.FILE_OFFSET, number(0)),
        (Attribute.CLONE_LEN, number(size_bytes)),
        (Attribute.CLONE_UUID, source.bytes),
        (Attribute.CLONE_CTRANSID, number(CTRANSID)),
        (Attribute.CLONE_PATH, source_path),
        (Attribute.CLONE_OFFSET, number(0)),
    )


def encoded(path: bytes, data: bytes, *, file_bytes: int, unencoded_bytes: int) -> bytes:
    zlib_compressed = 1
    return command(
        Kind.ENCODED_WRITE,
        path,
        (Attribute.FILE_OFFSET, number(0)),
        (Attribute.UNENCODED_FILE_LEN, number(file_bytes)),
        (Attribute.UNENCODED_LEN, number(unencoded_bytes)),
        (Attribute.UNENCODED_OFFSET, number(0)),
        (Attribute.COMPRESSION, number(zlib_compressed, 4)),
        tail=struct.pack("<H", Attribute.DATA) + data,
    )


END = framed(Kind.END, b"")


def head(own: UUID, *, version: int = 1, parent: UUID | None = None, path: bytes = b"evil") -> bytes:
    """Return stream header and first command: a full stream, or one that goes on from `parent`."""
    stream_header = STREAM_HEADER.pack(MAGIC, version)
    named = (Attribute.UUID, own.bytes), (Attribute.CTRANSID, number(CTRANSID))
    if parent is None:
        return stream_header + command(Kind.SUBVOL, path, *named)
    parents = (Attribute.CLONE_UUID, parent.bytes), (Attribute.CLONE_CTRANSID, number(CTRANSID))
    return stream_header + command(Kind.SNAPSHOT, path, *named, *parents)


def whole(*commands: bytes, version: int = 1) -> Callable[[Place], bytes]:
    """A stream of these commands between the first one and END."""
    return lambda place: head(place.own, version=version) + b"".join(commands) + END


# ------------------------------------------------------------------------------------- the corpus

EVIL = b"evil\n"
FILE = make(Kind.MKFILE, b"file")
DOOR = symlink(b"door", OUTSIDE)
KEYHOLE = symlink(b"door", CANARY)
SECRET_PATH = "/MirrorRoot/victim/job/secret/file"


def bad_first_crc(place: Place) -> bytes:
    stream = bytearray(whole(FILE)(place))
    stream[STREAM_HEADER.size + 6] ^= 1
    return bytes(stream)


def bad_later_crc(place: Place) -> bytes:
    stream = bytearray(head(place.own) + FILE)
    stream[-len(FILE) + 6] ^= 1
    return bytes(stream) + END


def node(path: bytes, place: Place) -> bytes:
    """Make a block device: one of the server's disks."""
    block_device = number(0o60600)
    return make(Kind.MKNOD, path, (Attribute.MODE, block_device), (Attribute.RDEV, number(place.device)))


def device_write(place: Place) -> bytes:
    return whole(node(b"disk", place), write(b"disk", EVIL))(place)


def changed_device_write(place: Place) -> bytes:
    mode = command(Kind.CHMOD, b"disk", (Attribute.MODE, number(0o600)))
    return whole(node(b"disk", place), mode, write(b"disk", EVIL))(place)


def linked_device_write(place: Place) -> bytes:
    made = node(b"o7", place), rename(b"o7", b"disk"), link(b"same", b"disk")
    return whole(*made, write(b"same", EVIL))(place)


def second_subvolume(place: Place) -> bytes:
    return head(place.own) + FILE + head(place.own, path=b"second")[STREAM_HEADER.size :] + END


def second_stream(place: Place) -> bytes:
    return whole(FILE)(place) + head(place.own, path=b"second") + END


def clone_of_secret(place: Place) -> bytes:
    return whole(FILE, clone(b"file", place.secret, b"file"))(place)


def clone_of_secret_by_link(place: Place) -> bytes:
    return whole(FILE, symlink(b"door", SECRET_PATH), clone(b"file", place.own, b"door"))(place)


def snapshot_of_secret(place: Place) -> bytes:
    return head(place.own, parent=place.secret) + END


@functools.cache
def growing_write() -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    data = b"".join(packer.compress(block) for _ in range(MEMORY_BYTES >> 20)) + packer.flush()
    return encoded(b"file", data, file_bytes=4096, unencoded_bytes=MEMORY_BYTES)


INHERITED: dict[str, tuple[Callable[[Place], bytes], Harm, Harm]] = {
    "a symbolic link": (lambda _: KEYHOLE, Harm.CANARY, Harm.NONE),
    "a device": (lambda place: node(b"door", place), Harm.DEVICE, Harm.DEVICE),
}
"""What makes `door`, in what the server holds already; then what data into it does to the stock receive."""


def growing_data(place: Place) -> bytes:
    return whole(FILE, growing_write(), version=2)(place)


TWICE = command(Kind.MKFILE, b"good", (Attribute.INO, number(257)), (Attribute.PATH, b"../planted"))
BEHIND_DATA = command(
    Kind.WRITE,
    b"file",
    (Attribute.FILE_OFFSET, number(0)),
    (Attribute.DATA, EVIL),
    (Attribute.XATTR_NAME, b"hidden"),
)
TRUNCATED = framed(Kind.MKFILE, attribute(Attribute.INO, number(257)) + b"\x0f\x00\x09\x00abc")
MUCH = write(b"file", bytes(48_000))

ATTACKS: dict[str, Attack] = {
    "a symbolic link, and a file through it": Attack(
        whole(DOOR, make(Kind.MKFILE, b"door/planted")), Harm.PLANTED, Harm.NONE, "symbolic link"
    ),
    "a symbolic link, and data through it": Attack(
        whole(DOOR, write(b"door/canary", EVIL)), Harm.CANARY, Harm.NONE, "symbolic link"
    ),
    "a symbolic link to the file itself, and data into it": Attack(
        whole(KEYHOLE, write(b"door", EVIL)), Harm.CANARY, Harm.NONE, "symbolic link"
    ),
    "a symbolic link to the file itself, and a file made over it": Attack(
        whole(KEYHOLE, make(Kind.MKFILE, b"door")), Harm.CANARY, Harm.NONE, "symbolic link"
    ),
    "a symbolic link to the file itself, and its length": Attack(
        whole(KEYHOLE, command(Kind.TRUNCATE, b"door", (Attribute.SIZE, number(0)))),
        Harm.CANARY, Harm.NONE, "symbolic link",
    ),
    "a symbolic link to the file itself, and its mode": Attack(
        whole(KEYHOLE, command(Kind.CHMOD, b"door", (Attribute.MODE, number(0o4777)))),
        Harm.CANARY, Harm.NONE, "symbolic link",
    ),
    "a symbolic link under another spelling of its name": Attack(
        whole(symlink(b"./door", OUTSIDE), write(b"door/canary", EVIL)), Harm.CANARY, Harm.NONE, "not spelt as send does"
    ),
    "a symbolic link with a slash too many in its name": Attack(
        whole(make(Kind.MKDIR, b"d"), symlink(b"d//door", OUTSIDE), write(b"d/door/canary", EVIL)),
        Harm.CANARY, Harm.NONE, "not spelt as send does",
    ),
    "a symbolic link renamed to itself": Attack(
        whole(DOOR, rename(b"door", b"door"), write(b"door/canary", EVIL)),
        Harm.CANARY, Harm.NONE, "symbolic link",
    ),
    "a symbolic link renamed to another name that it has": Attack(
        whole(DOOR, link(b"too", b"door"), rename(b"door", b"too"), write(b"door/canary", EVIL)),
        Harm.CANARY, Harm.NONE, "symbolic link",
    ),
    "a symbolic link in a renamed directory": Attack(
        whole(make(Kind.MKDIR, b"d"), symlink(b"d/door", OUTSIDE), rename(b"d", b"e"), write(b"e/door/canary", EVIL)),
        Harm.CANARY, Harm.NONE, "symbolic link",
    ),
    "a symbolic link to another client's file, cloned from": Attack(
        clone_of_secret_by_link, Harm.LEAK, Harm.NONE, "symbolic link"
    ),
    "a device, and data into it": Attack(device_write, Harm.DEVICE, Harm.DEVICE, "through the device"),
    "a device, its mode, and data into it": Attack(
        changed_device_write, Harm.DEVICE, Harm.DEVICE, "through the device"
    ),
    "a device under its third name, and data into it": Attack(
        linked_device_write, Harm.DEVICE, Harm.DEVICE, "through the device"
    ),
    "a file beside the subvolume": Attack(
        whole(make(Kind.MKFILE, b"../planted")), Harm.SIBLING, Harm.SIBLING, "leads out"
    ),
    "another client's backup renamed": Attack(
        whole(rename(b"../../../victim/job/secret", b"../../../victim/job/gone")),
        Harm.SIBLING, Harm.NONE, "leads out",
    ),
    "an absolute path": Attack(
        whole(make(Kind.MKFILE, CANARY.encode())), Harm.NONE, Harm.NONE, "is absolute"
    ),
    "another client's backup as clone source": Attack(
        clone_of_secret, Harm.LEAK, Harm.LEAK, "not agreed"
    ),
    "another client's backup as parent": Attack(
        snapshot_of_secret, Harm.LEAK, Harm.LEAK, "announces the parent", is_begun=False
    ),
    "a second subvolume": Attack(second_subvolume, Harm.SECOND, Harm.SECOND, "second subvolume"),
    "a second stream behind END": Attack(second_stream, Harm.SECOND, Harm.ACCEPTED, "behind its END"),
    "a command behind END": Attack(
        lambda place: whole(FILE)(place) + make(Kind.MKFILE, b"late") , Harm.NONE, Harm.ACCEPTED, "behind its END"
    ),
    "an oversized command": Attack(
        lambda place: head(place.own, version=2) + FILE + COMMAND_HEADER.pack(MEMORY_BYTES, Kind.WRITE, 0),
        Harm.MEMORY, Harm.MEMORY, "are taken", version=2,
    ),
    "compressed data that grows": Attack(
        growing_data, Harm.MEMORY, Harm.MEMORY, "when decompressed", version=2
    ),
    "space taken without data": Attack(
        whole(
            FILE,
            command(
                Kind.FALLOCATE, b"file", (Attribute.FALLOCATE_MODE, number(0, 4)),
                (Attribute.FILE_OFFSET, number(0)), (Attribute.SIZE, number(64 << 20)),
            ),
            version=2,
        ),
        Harm.ACCEPTED, Harm.ACCEPTED, "that were announced", version=2, total_bytes=TOTAL_BYTES,
    ),
    "more data than was announced": Attack(
        whole(FILE, *[MUCH] * 60), Harm.ACCEPTED, Harm.ACCEPTED, "that were announced", total_bytes=TOTAL_BYTES
    ),
    "a bad CRC of the first command": Attack(
        bad_first_crc, Harm.NONE, Harm.NONE, "CRC of its first command", is_begun=False
    ),
    "a bad CRC of a later command": Attack(bad_later_crc, Harm.NONE, Harm.NONE, "crc32 mismatch"),
    "an unknown command": Attack(whole(framed(99, b"")), Harm.ACCEPTED, Harm.ACCEPTED, "unknown"),
    "a truncated attribute": Attack(whole(TRUNCATED), Harm.NONE, Harm.NONE, "longer than its command"),
    "a huge path": Attack(whole(make(Kind.MKFILE, b"a/" * 3000 + b"a")), Harm.NONE, Harm.NONE, "too long"),
    "a NUL in a name": Attack(
        whole(make(Kind.MKFILE, b"shown\0hidden")), Harm.ACCEPTED, Harm.ACCEPTED, "has a NUL"
    ),
    "an attribute that stands twice": Attack(whole(TWICE), Harm.SIBLING, Harm.SIBLING, "stands twice"),
    "an attribute behind the data": Attack(
        whole(FILE, BEHIND_DATA), Harm.ACCEPTED, Harm.ACCEPTED, "behind the data"
    ),
}  # fmt: skip

NEWLINE = whole(make(Kind.MKFILE, b"two\nlines\x1b[31m"))
"""That is no attack: files may be called so."""


def table() -> str:
    """Return all of it as the table of docs/threat-model.md."""
    rows = [
        (name, attack.harm.value, attack.confined.value, f"…{attack.refusal}…")
        for name, attack in ATTACKS.items()
    ]
    titles = ("the stream holds", "`btrfs receive`", "`btrfs receive -e -C`", "btrsync says")
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
