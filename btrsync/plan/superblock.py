"""The superblock of btrfs, as far as it tells which member of which array a device is.

Offsets are those of struct btrfs_super_block and struct btrfs_dev_item, <linux/btrfs_tree.h>; all
numbers are little-endian, and nothing is padded.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Final, Literal
from uuid import UUID

import msgspec

SUPERBLOCK_OFFSET: Final = 65536
SUPERBLOCK_BYTES: Final = 4096
MAGIC: Final = b"_BHRfS_M"

CSUM_BYTES: Final = 32
CSUM_TYPES: Final = {0: "crc32c", 1: "xxhash64", 2: "sha256", 3: "blake2b"}

FREE_SPACE_TREE: Final = 1 << 0
BLOCK_GROUP_TREE: Final = 1 << 3
METADATA_UUID: Final = 1 << 10

_HEAD: Final = struct.Struct("<16sQQ8sQ")  # fsid, bytenr, flags, magic, generation, at 32
_COUNTS: Final = struct.Struct("<QQQQII")  # sizes in all and used, root_dir, num_devices, two sizes, at 112
_FLAGS: Final = struct.Struct("<QQQH")  # compat, compat_ro, incompat, csum_type, at 172
_DEV_ITEM: Final = struct.Struct("<QQQ")  # devid, total_bytes, bytes_used, at 201
_DEV_UUID_AT: Final = 267
_LABEL_AT: Final = 299
_LABEL_BYTES: Final = 256
_METADATA_UUID_AT: Final = 571


class Superblock(msgspec.Struct, frozen=True, kw_only=True):
    """What one device says of itself and of the filesystem that it belongs to.

    `fsid` is the UUID that users see, `metadata_uuid` the one in the trees, usually the same. `devid` 0
    is the target of a replacement that has not ended.
    """

    fsid: UUID
    metadata_uuid: UUID
    generation: int
    num_devices: int
    devid: int
    device_uuid: UUID
    device_bytes: int
    total_bytes: int
    label: str
    nodesize: int
    csum_type: str
    compat_ro_flags: int
    incompat_flags: int

    @property
    def has_free_space_tree(self) -> bool:
        return bool(self.compat_ro_flags & FREE_SPACE_TREE)

    @property
    def has_block_group_tree(self) -> bool:
        return bool(self.compat_ro_flags & BLOCK_GROUP_TREE)


Absence = Literal["no_magic", "damaged", "too_short"]
"""Why a block is no superblock: no magic, a wrong checksum behind it, or not even that many bytes."""


def parse_superblock(block: bytes) -> Superblock | Absence:
    """Return the superblock in the 4096 bytes at SUPERBLOCK_OFFSET of a device, or why there is none.

    A checksum of xxhash64 is not verified: it takes a library for what the magic, the UUIDs and the
    generation tell already.
    """
    if len(block) < SUPERBLOCK_BYTES:
        return "too_short"
    fsid, bytenr, _, magic, generation = _HEAD.unpack_from(block, 32)
    if magic != MAGIC:
        return "no_magic"
    total, _, _, num_devices, _, nodesize = _COUNTS.unpack_from(block, 112)
    _, compat_ro, incompat, csum_type = _FLAGS.unpack_from(block, 172)
    if bytenr != SUPERBLOCK_OFFSET or not _is_intact(block[:SUPERBLOCK_BYTES], csum_type):
        return "damaged"
    devid, device_bytes, _ = _DEV_ITEM.unpack_from(block, 201)
    label = block[_LABEL_AT : _LABEL_AT + _LABEL_BYTES].split(b"\0")[0]
    other = block[_METADATA_UUID_AT : _METADATA_UUID_AT + 16]
    return Superblock(
        fsid=UUID(bytes=fsid),
        metadata_uuid=UUID(bytes=other if incompat & METADATA_UUID else fsid),
        generation=generation,
        num_devices=num_devices,
        devid=devid,
        device_uuid=UUID(bytes=block[_DEV_UUID_AT : _DEV_UUID_AT + 16]),
        device_bytes=device_bytes,
        total_bytes=total,
        label=label.decode(errors="replace"),
        nodesize=nodesize,
        csum_type=CSUM_TYPES[csum_type],
        compat_ro_flags=compat_ro,
        incompat_flags=incompat,
    )


def _is_intact(block: bytes, csum_type: int) -> bool:
    """Return whether the checksum before the other bytes is theirs; an unknown kind is no superblock."""
    found, covered = block[:CSUM_BYTES], block[CSUM_BYTES:]
    match CSUM_TYPES.get(csum_type):
        case "crc32c":
            wanted = crc32c(covered).to_bytes(4, "little")
        case "sha256":
            wanted = hashlib.sha256(covered).digest()
        case "blake2b":
            wanted = hashlib.blake2b(covered, digest_size=32).digest()
        case "xxhash64":
            return True
        case _:
            return False
    return found[: len(wanted)] == wanted


def crc32c(data: bytes) -> int:
    """Return the CRC32C of some bytes as it is usually written: seed and final xor of all ones."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(byte) for byte in range(256))
