"""Changes to an input that leave it well-formed: lengths and CRCs fit again, so that they reach what lies behind."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import msgspec

from btrsync.protocol import FRAME_HEADER
from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.head import STREAM_HEADER, crc32c
from tests.fuzz.targets import OWN, PARENT, STEERING_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Item = tuple[int, bytes]
"""A command's kind and payload, an attribute's and value, or a frame's and payload."""

PATHS = (
    b"",
    b"a",
    b"b",
    b"d",
    b"d/a",
    b"d/b",
    b"e",
    b"e/a",
    b"a/x",
    b"b/x",
    b"./a",
    b"d//a",
    b"d/../a",
    b"..",
    b"/a",
)
PATH_ATTRIBUTES = (Attribute.PATH, Attribute.PATH_TO, Attribute.PATH_LINK, Attribute.CLONE_PATH)
UUIDS = (OWN.bytes, PARENT.bytes, bytes(16))
NUMBERS = (0, 1, 2, 4096, 1 << 20, (1 << 20) + 1, 1 << 62)
NUMBER_ATTRIBUTES = (
    Attribute.SIZE, Attribute.FALLOCATE_MODE, Attribute.UNENCODED_FILE_LEN, Attribute.UNENCODED_LEN,
    Attribute.CLONE_LEN, Attribute.INO,
)  # fmt: skip
LARGE_BYTES = (1, 100, 16 << 10, 20_000)
EXTRA = {
    Kind.RENAME: (Attribute.PATH_TO,), Kind.LINK: (Attribute.PATH_LINK,), Kind.SYMLINK: (Attribute.PATH_LINK,),
    Kind.CLONE: (Attribute.CLONE_UUID, Attribute.CLONE_PATH), Kind.SET_XATTR: (Attribute.XATTR_NAME,),
    Kind.WRITE: (Attribute.DATA,), Kind.UPDATE_EXTENT: (Attribute.SIZE,), Kind.FALLOCATE: (Attribute.SIZE,),
    Kind.ENCODED_WRITE: (Attribute.UNENCODED_FILE_LEN, Attribute.UNENCODED_LEN, Attribute.DATA),
}  # fmt: skip


def mutated(target: str, data: bytes, rng: Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Return `data` changed by one to three steps; mutate_bytes: for a change without any sense."""
    if rng.random() < 0.15:
        return mutate_bytes(data)
    if target == "wire":
        frames = split_frames(data[STEERING_BYTES:])
        change_list(
            frames,
            rng,
            lambda: (rng.choice((1, 1, 2, 3)), b""),
            lambda frame: changed_frame(frame, rng, mutate_bytes),
        )
        return data[:STEERING_BYTES].ljust(STEERING_BYTES, b"\0") + b"".join(
            FRAME_HEADER.pack(kind & 0xFF, len(payload)) + payload for kind, payload in frames
        )
    if target == "message":
        return changed_message(data, rng, mutate_bytes)
    if target == "banner":
        return mutate_bytes(data)
    fixed_bytes = {"head": 0, "inspector": STEERING_BYTES}.get(target, STEERING_BYTES)
    fixed_bytes += 0 if target == "inspector" else STREAM_HEADER.size
    fixed = bytearray(data[:fixed_bytes].ljust(fixed_bytes, b"\0"))
    if rng.random() < 0.2 and target != "head":
        fixed[rng.randrange(STEERING_BYTES)] = rng.randrange(256)
    is_v2 = bool(fixed[2] & 1) if target == "inspector" else fixed[-4] == 2
    commands = split_commands(data[fixed_bytes:])
    for _ in range(rng.randint(1, 3)):
        change_list(
            commands,
            rng,
            lambda: new_command(rng, is_v2=is_v2),
            lambda item: changed_command(item, rng, mutate_bytes, is_v2=is_v2),
        )
    return bytes(fixed) + joined(commands)


def change_list(
    items: list[Item], rng: Random, make: Callable[[], Item], change: Callable[[Item], Item]
) -> None:
    """Insert, delete, double, move or change one item."""
    if not items or rng.random() < 0.3:
        items.insert(rng.randint(0, len(items)), make())
        return
    at = rng.randrange(len(items))
    match rng.randrange(6):
        case 0:
            del items[at]
        case 1:
            items.insert(rng.randint(0, len(items)), items[at])
        case 2:
            items.insert(rng.randint(0, len(items) - 1), items.pop(at))
        case _:
            items[at] = change(items[at])


# --------------------------------------------------------------------------------------- commands


def split_commands(stream: bytes) -> list[Item]:
    found: list[Item] = []
    at = 0
    while at + 10 <= len(stream) and len(found) < 2000:
        size, kind, _ = struct.unpack_from("<IHI", stream, at)
        found.append((kind, stream[at + 10 : at + 10 + size]))
        at += 10 + size
    return found


def joined(commands: list[Item]) -> bytes:
    """Return them with their CRCs: the first one's right, for that is looked at; others' only differ."""
    parts: list[bytes] = []
    for kind, payload in commands:
        header = struct.pack("<IHI", len(payload), kind, 0)
        crc = zlib.crc32(payload) if parts else crc32c(header + payload)
        parts += [struct.pack("<IHI", len(payload), kind, crc), payload]
    return b"".join(parts)


def new_command(rng: Random, *, is_v2: bool) -> Item:
    kind = rng.choice(list(Kind))
    attributes = [(int(Attribute.PATH), rng.choice(PATHS[:10]))]
    attributes += [(int(extra), new_value(extra, rng)) for extra in EXTRA.get(kind, ())]
    return int(kind), b"" if kind == Kind.END else packed(attributes, is_v2=is_v2)


def new_value(attribute: int, rng: Random) -> bytes:
    if attribute in PATH_ATTRIBUTES:
        return rng.choice(PATHS)
    if attribute == Attribute.CLONE_UUID:
        return rng.choice(UUIDS)
    if attribute == Attribute.XATTR_NAME:
        return rng.choice((b"user.a", b"security.capability"))
    if attribute in NUMBER_ATTRIBUTES:
        return rng.choice(NUMBERS).to_bytes(8, "little")
    return bytes(rng.choice(LARGE_BYTES))


def changed_command(item: Item, rng: Random, mutate_bytes: Callable[[bytes], bytes], *, is_v2: bool) -> Item:
    kind, payload = item
    attributes = unpacked(payload, is_v2=is_v2)
    match rng.randrange(8):
        case 0:
            kind = rng.choice(list(Kind))
        case 1:
            kind = rng.randrange(40)
        case 2 if attributes:
            del attributes[rng.randrange(len(attributes))]
        case 3:
            extra = rng.choice(list(Attribute))
            attributes.insert(rng.randint(0, len(attributes)), (int(extra), new_value(extra, rng)))
        case 4:
            return kind, mutate_bytes(payload)
        case _ if attributes:
            at = rng.randrange(len(attributes))
            number, _ = attributes[at]
            attributes[at] = number, new_value(number, rng)
    return kind, packed(attributes, is_v2=is_v2)


def unpacked(payload: bytes, *, is_v2: bool) -> list[Item]:
    found, at = [], 0
    while at + 4 <= len(payload):
        kind, length = struct.unpack_from("<HH", payload, at)
        if is_v2 and kind == Attribute.DATA:
            found.append((kind, payload[at + 2 :]))
            break
        found.append((kind, payload[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def packed(attributes: list[Item], *, is_v2: bool) -> bytes:
    parts = []
    for kind, value in attributes:
        if is_v2 and kind == Attribute.DATA:
            parts.append(struct.pack("<H", kind) + value)
        else:
            parts.append(struct.pack("<HH", kind, len(value) & 0xFFFF) + value[:0xFFFF])
    return b"".join(parts)


# ------------------------------------------------------------------------------------------- wire


def split_frames(stream: bytes) -> list[Item]:
    found, at = [], 0
    while at + FRAME_HEADER.size <= len(stream):
        kind, size = FRAME_HEADER.unpack_from(stream, at)
        at += FRAME_HEADER.size
        found.append((kind, stream[at : at + size]))
        at += size
    return found


def changed_frame(frame: Item, rng: Random, mutate_bytes: Callable[[bytes], bytes]) -> Item:
    kind, payload = frame
    if rng.random() < 0.2:
        return rng.randrange(6), payload
    return kind, changed_message(payload, rng, mutate_bytes) if kind == 1 else mutate_bytes(payload)


def changed_message(data: bytes, rng: Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Change one value somewhere in a message, or its bytes."""
    try:
        found = msgspec.msgpack.decode(data)
        if rng.random() < 0.7:
            return msgspec.msgpack.encode(changed_value(found, rng))
    except (ValueError, msgspec.MsgspecError, RecursionError, OverflowError, TypeError):
        pass
    return mutate_bytes(data)


def changed_value(value: object, rng: Random) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [
            *value[:at],
            changed_value(value[at], rng),
            *value[at + 1 :],
            *value[at : at + rng.randint(0, 1)],
        ]
    return rng.choice(
        (
            None,
            0,
            -1,
            1 << 63,
            1.5,
            float("nan"),
            "",
            "x",
            "\ud7ff",
            b"",
            b"\xff" * 16,
            [],
            {},
            True,
            "2026-01-01T00:00:00Z",
        )
    )
