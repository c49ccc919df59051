"""The superblock of btrfs: read from blocks made by hand, with every checksum and every way to be none."""

from __future__ import annotations

import hashlib
import struct
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.superblock import (
    BLOCK_GROUP_TREE,
    FREE_SPACE_TREE,
    METADATA_UUID,
    SUPERBLOCK_BYTES,
    Superblock,
    crc32c,
    parse_superblock,
)

FSID = UUID("7ebc7d8d-35c6-4d98-8457-3323c242e9fe")
OTHER = UUID("11111111-2222-4333-8444-555555555555")
DEVICE = UUID("0d09b605-a52b-48f4-8ad5-ed26456ab6cd")


def block(
    *,
    csum_type: int = 0,
    compat_ro: int = 0,
    incompat: int = 0,
    label: bytes = b"MirrorBtr",
    bytenr: int = 65536,
    magic: bytes = b"_BHRfS_M",
) -> bytes:
    """A superblock as mkfs.btrfs would write it: member 3 of 4, generation 1234."""
    made = bytearray(SUPERBLOCK_BYTES)
    struct.pack_into("<16sQQ8sQ", made, 32, FSID.bytes, bytenr, 1, magic, 1234)
    struct.pack_into("<QQQQII", made, 112, 4 << 40, 1 << 40, 6, 4, 4096, 16384)
    struct.pack_into("<QQQH", made, 172, 0, compat_ro, incompat, csum_type)
    struct.pack_into("<QQQ", made, 201, 3, 1 << 40, 1 << 30)
    made[267:283] = DEVICE.bytes
    made[299 : 299 + len(label)] = label
    made[571:587] = OTHER.bytes
    return signed(made, csum_type)


def signed(made: bytearray, csum_type: int) -> bytes:
    covered = bytes(made[32:])
    sums = {
        0: crc32c(covered).to_bytes(4, "little"),
        1: b"whatever",
        2: hashlib.sha256(covered).digest(),
        3: hashlib.blake2b(covered, digest_size=32).digest(),
    }
    made[: len(sums.get(csum_type, b""))] = sums.get(csum_type, b"")
    return bytes(made)


def parsed(**words: Any) -> Superblock:
    found = parse_superblock(block(**words))
    assert isinstance(found, Superblock)
    return found


def test_a_member_says_which_one_it_is_and_of_what() -> None:
    assert parsed(compat_ro=FREE_SPACE_TREE) == Superblock(
        fsid=FSID,
        metadata_uuid=FSID,
        generation=1234,
        num_devices=4,
        devid=3,
        device_uuid=DEVICE,
        device_bytes=1 << 40,
        total_bytes=4 << 40,
        label="MirrorBtr",
        nodesize=16384,
        csum_type="crc32c",
        compat_ro_flags=FREE_SPACE_TREE,
        incompat_flags=0,
    )


def test_crc32c_is_the_one_of_the_standard() -> None:
    # Source: RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(("number", "name"), [(0, "crc32c"), (1, "xxhash64"), (2, "sha256"), (3, "blake2b")])
def test_every_kind_of_checksum_is_known(number: int, name: str) -> None:
    assert parsed(csum_type=number).csum_type == name


@pytest.mark.parametrize("number", [0, 2, 3])
@given(at=st.integers(0, SUPERBLOCK_BYTES - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_passes_where_the_checksum_is_verified(number: int, at: int, bit: int) -> None:
    made = bytearray(block(csum_type=number))
    made[at] ^= 1 << bit
    found = parse_superblock(bytes(made))
    if number == 0 and 4 <= at < 32:
        assert isinstance(found, Superblock)  # zeros behind a short checksum, which nothing covers
    elif 64 <= at < 72:
        assert found == "no_magic"
    elif at in (196, 197) and made[196:198] == b"\1\0":
        assert isinstance(found, Superblock)  # it now claims a checksum that is not verified
    else:
        assert found == "damaged"


def test_an_unknown_checksum_is_damage_and_no_error() -> None:
    assert parse_superblock(block(csum_type=4)) == "damaged"


@given(noise=st.binary(min_size=0, max_size=SUPERBLOCK_BYTES + 8))
def test_noise_is_no_superblock(noise: bytes) -> None:
    assert parse_superblock(noise) == ("no_magic" if len(noise) >= SUPERBLOCK_BYTES else "too_short")


def test_a_copy_from_another_place_of_the_disk_is_damage() -> None:
    assert parse_superblock(block(bytenr=64 << 20)) == "damaged"


def test_a_filesystem_whose_mkfs_has_not_ended_is_none() -> None:
    assert parse_superblock(block(magic=b"!BHRfS_M")) == "no_magic"


def test_the_uuid_in_the_trees_is_told_where_it_is_another() -> None:
    assert parsed().metadata_uuid == FSID
    assert parsed(incompat=METADATA_UUID).metadata_uuid == OTHER


@pytest.mark.parametrize(
    ("flags", "has_tree", "has_groups"),
    [(0, False, False), (3, True, False), (FREE_SPACE_TREE | BLOCK_GROUP_TREE, True, True)],
)
def test_the_trees_that_forbid_options_are_seen(flags: int, has_tree: bool, has_groups: bool) -> None:
    found = parsed(compat_ro=flags)
    assert (found.has_free_space_tree, found.has_block_group_tree) == (has_tree, has_groups)


@pytest.mark.parametrize("label", [b"", b"\xff\xfe", "鏡".encode(), b"x" * 255])
def test_any_label_is_text(label: bytes) -> None:
    assert parsed(label=label).label == label.decode(errors="replace")
