"""The first command of a send stream: read, checked, written anew."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.errors import StreamError
from btrsync.stream.head import (
    COMMAND_HEADER,
    MAGIC,
    MAX_FIRST_COMMAND_BYTES,
    STREAM_HEADER,
    FirstCommand,
    crc32c,
    format_head,
    parse_first_command,
)
from btrsync.stream.pieces import END_COMMAND, format_resumption

FULL = FirstCommand(1, b"snapshot-1", UUID(int=5), 7, None, None, 0)
INCREMENTAL = FirstCommand(2, b"snapshot-2", UUID(int=6), 9, UUID(int=5), 7, 0)


def parsed(head: bytes) -> FirstCommand:
    first = parse_first_command(head)
    assert first is not None
    return first


def head_of(payload: bytes, *, command: int = 1, version: int = 1) -> bytes:
    crc = crc32c(COMMAND_HEADER.pack(len(payload), command, 0) + payload)
    return STREAM_HEADER.pack(MAGIC, version) + COMMAND_HEADER.pack(len(payload), command, crc) + payload


def test_the_crc_is_crc32c_without_inversions() -> None:
    # The check value of CRC-32C is 0xE3069283; with seed and final xor of all ones undone by hand:
    inverted = bytes(byte ^ 0xFF for byte in b"1234") + b"56789"
    assert crc32c(inverted) ^ 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize("first", [FULL, INCREMENTAL])
def test_a_head_written_anew_says_the_same_under_another_name(first: FirstCommand) -> None:
    head = format_head(first, path=b".incoming-1")
    again = parsed(head + b"what follows")
    assert again.path == b".incoming-1"
    assert again.size_bytes == len(head)
    assert (again.uuid, again.ctransid, again.parent_uuid, again.parent_ctransid, again.stream_version) == (
        first.uuid, first.ctransid, first.parent_uuid, first.parent_ctransid, first.stream_version,
    )  # fmt: skip


@pytest.mark.parametrize("first", [FULL, INCREMENTAL])
def test_every_shorter_head_asks_for_more(first: FirstCommand) -> None:
    head = format_head(first, path=first.path)
    assert [parse_first_command(head[:length]) for length in range(len(head))] == [None] * len(head)


@pytest.mark.parametrize("first", [FULL, INCREMENTAL])
def test_every_flipped_bit_is_noticed(first: FirstCommand) -> None:
    head = format_head(first, path=first.path)
    good = parsed(head)
    for position in range(len(head)):
        bad = bytearray(head)
        bad[position] ^= 0x10
        try:
            outcome = parse_first_command(bytes(bad))
        except StreamError:
            continue
        assert outcome is None or outcome.stream_version != good.stream_version, f"byte {position}"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"hello, this is no stream at all", "not a btrfs send stream"),
        (head_of(b"", version=3), "stream version 3"),
        (head_of(b"", version=0), "stream version 0"),
        (head_of(b"", command=5), "command 5 instead of SUBVOL"),
        (head_of(b""), "has the attributes"),
        (head_of(b"\x0f\x00\x05\x00abc"), "cut short"),
        (head_of(b"\x0f"), "cut short"),
        (head_of(struct.pack("<HH", 15, 1) + b"a" + struct.pack("<HH", 15, 1) + b"b"), "doubled"),
        (
            head_of(
                struct.pack("<HH", 15, 1)
                + b"a"
                + struct.pack("<HH", 1, 3)
                + b"abc"
                + struct.pack("<HHQ", 2, 8, 1)
            ),
            "attribute 1 of its first command has 3 bytes",
        ),
        (
            STREAM_HEADER.pack(MAGIC, 1) + COMMAND_HEADER.pack(MAX_FIRST_COMMAND_BYTES + 1, 1, 0),
            "too large",
        ),
    ],
)
def test_a_wrong_head_is_refused_with_what_is_wrong(head: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        parse_first_command(head)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_stream_error(block: bytes) -> None:
    for head in (block, STREAM_HEADER.pack(MAGIC, 1) + block, head_of(block), head_of(block, command=2)):
        try:
            first = parse_first_command(head)
        except StreamError as error:
            assert error.problem  # noqa: PT017  both ways are right: it must only be no other error
        else:
            assert first is None or len(first.path) <= len(head)


def test_the_end_of_our_own_has_the_crc_of_any_end() -> None:
    size_bytes, kind, crc = COMMAND_HEADER.unpack(END_COMMAND)
    assert (size_bytes, kind) == (0, 21)
    assert crc == crc32c(COMMAND_HEADER.pack(size_bytes, kind, 0))


@pytest.mark.parametrize("version", [1, 2])
def test_a_resumption_is_a_snapshot_of_the_partial_under_the_uuid_of_the_whole(version: int) -> None:
    head = format_resumption(version, b".incoming-x", UUID(int=5), 7, UUID(int=9), 1 << 40)
    assert parsed(head) == FirstCommand(
        version, b".incoming-x", UUID(int=5), 7, UUID(int=9), 1 << 40, len(head)
    )
