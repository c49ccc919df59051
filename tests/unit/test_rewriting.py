"""Clones from the send parent that become writes, and the checksum that these need."""

from __future__ import annotations

import os
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.errors import StreamError
from btrsync.stream.checksum import LANES, bulk_crc32c
from btrsync.stream.commands import ATTRIBUTE_HEADER, COMMAND_HEADER, Attribute, Kind
from btrsync.stream.head import crc32c
from btrsync.stream.rewriting import WRITE_BYTES, Rewriter

OWN, PARENT = UUID(int=1), UUID(int=2)
DATA = os.urandom(3 * WRITE_BYTES + 17)
LIMIT_BYTES = 1 << 20


def command(kind: int, *attributes: tuple[int, bytes], tail: bytes = b"") -> bytes:
    payload = (
        b"".join(ATTRIBUTE_HEADER.pack(number, len(value)) + value for number, value in attributes) + tail
    )
    crc = crc32c(COMMAND_HEADER.pack(len(payload), kind, 0) + payload)
    return COMMAND_HEADER.pack(len(payload), kind, crc) + payload


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def clone(size_bytes: int, source: UUID = PARENT, *, offset: bytes = number(4096)) -> bytes:
    return command(
        Kind.CLONE,
        (Attribute.FILE_OFFSET, offset), (Attribute.CLONE_LEN, number(size_bytes)), (Attribute.PATH, b"new"),
        (Attribute.CLONE_UUID, source.bytes), (Attribute.CLONE_CTRANSID, number(7)),
        (Attribute.CLONE_PATH, b"old"), (Attribute.CLONE_OFFSET, number(0)),
    )  # fmt: skip


def read(path: bytes, offset_bytes: int, size_bytes: int) -> bytes:
    assert path == b"old"
    return DATA[offset_bytes : offset_bytes + size_bytes]


MAKE = command(Kind.MKFILE, (Attribute.PATH, b"new"), (Attribute.INO, number(300)))
END = command(Kind.END)


def rewriter(version: int = 1) -> Rewriter:
    return Rewriter(version, OWN, read, limit_bytes=LIMIT_BYTES)


@given(st.binary(max_size=64), st.integers(0, 9), st.integers(0, 3 * LANES))
def test_the_checksum_in_lanes_is_that_of_the_table(piece: bytes, times: int, more: int) -> None:
    block = piece * (times * LANES) + bytes(range(256)) * 2 + bytes(more)
    assert bulk_crc32c(block) == crc32c(block)


def test_the_checksum_is_that_of_the_kernel() -> None:
    # CRC32C of RFC 3720 begins with ones and inverts the end; that of "123456789" is e3069283.
    block = bytes(8192) + b"123456789"
    inverted = bytes(byte ^ 0xFF for byte in b"1234") + b"56789"
    assert bulk_crc32c(bytes(8192) + inverted) ^ 0xFFFFFFFF == 0xE3069283
    assert bulk_crc32c(block) == crc32c(b"123456789")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size_bytes", [1, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1, len(DATA)])
def test_a_clone_becomes_writes_of_the_same_bytes(version: int, size_bytes: int) -> None:
    made = b"".join(rewriter(version).feed(MAKE + clone(size_bytes) + END, 0))
    assert made.startswith(MAKE) and made.endswith(END)
    at, found = len(MAKE), bytearray(size_bytes)
    while at < len(made) - len(END):
        length, kind, crc = COMMAND_HEADER.unpack_from(made, at)
        payload = made[at + COMMAND_HEADER.size : at + COMMAND_HEADER.size + length]
        assert (kind, crc) == (Kind.WRITE, crc32c(COMMAND_HEADER.pack(length, kind, 0) + payload))
        path = ATTRIBUTE_HEADER.pack(Attribute.PATH, 3) + b"new"
        assert payload.startswith(path + ATTRIBUTE_HEADER.pack(Attribute.FILE_OFFSET, 8))
        offset_bytes = int.from_bytes(payload[11:19], "little")
        data = payload[19 + (4 if version == 1 else 2) :]
        assert payload[19:21] == int(Attribute.DATA).to_bytes(2, "little")
        if version == 1:
            assert int.from_bytes(payload[21:23], "little") == len(data)
        assert len(data) <= WRITE_BYTES
        found[offset_bytes - 4096 : offset_bytes - 4096 + len(data)] = data
        at += COMMAND_HEADER.size + length
    assert found == DATA[:size_bytes]


def test_what_is_no_clone_from_the_parent_keeps_its_bytes() -> None:
    stream = MAKE + clone(WRITE_BYTES, OWN) + END
    tried = rewriter()
    assert b"".join(tried.feed(stream, 0)) == stream
    assert tried.written_bytes == 0
    assert tried.position(len(stream)) == len(stream)


def test_the_head_of_a_write_whose_data_passes_unseen_keeps_its_bytes() -> None:
    head = command(Kind.WRITE, (Attribute.PATH, b"new"), tail=bytes(100))[:40]
    assert b"".join(rewriter(2).feed(MAKE + head, 0)) == MAKE + head


@given(st.lists(st.integers(1, 100_000), max_size=8), st.data())
def test_a_place_in_the_stream_is_found_again_in_what_it_has_become(
    sizes: list[int], data: st.DataObject
) -> None:
    parts = [part for size in sizes for part in (MAKE, clone(size))]
    tried = rewriter()
    at_bytes = given_bytes = 0
    places = []
    while parts:
        count = data.draw(st.integers(1, len(parts)))
        block, parts = parts[:count], parts[count:]
        for part in block:
            at_bytes += len(part)
            places.append(at_bytes)
        given_bytes += sum(map(len, tried.feed(b"".join(block), at_bytes - len(b"".join(block)))))
        asked = data.draw(st.sampled_from(places))
        places = [place for place in places if place >= asked]
        alone = rewriter()
        assert tried.position(asked) == len(b"".join(alone.feed(_upto(sizes, asked), 0)))
    assert tried.position(at_bytes) == given_bytes
    assert tried.written_bytes == sum(sizes)


def _upto(sizes: list[int], end: int) -> bytes:
    return b"".join(MAKE + clone(size) for size in sizes)[:end]


@pytest.mark.parametrize(
    "wrong",
    [
        clone(0),
        clone(LIMIT_BYTES + 1),
        clone(1 << 63),
        clone(4096, offset=b"\0"),
        clone(4096, offset=bytes(16)),
    ],
    ids=["of nothing", "more than was announced", "without end", "a short number", "a long number"],
)
def test_a_clone_that_makes_no_sense_is_refused_before_anything_is_read(wrong: bytes) -> None:
    with pytest.raises(StreamError) as caught:
        rewriter().feed(MAKE + wrong, 1000)
    assert caught.value.offset_bytes == 1000 + len(MAKE)


@pytest.mark.parametrize(
    "hidden",
    [
        (Attribute.DATA, ATTRIBUTE_HEADER.pack(Attribute.PATH, 12) + b"../another/x"),
        (Attribute.PATH, b"../another/x"),
    ],
    ids=["behind data", "a second time"],
)
def test_a_clone_names_no_other_path_than_the_one_that_was_inspected(hidden: tuple[int, bytes]) -> None:
    wrong = clone(4096)[COMMAND_HEADER.size :]
    if hidden[0] == Attribute.DATA:
        # The inspector takes all behind it for data, whose length is not told; a reader of attributes would not.
        tail = ATTRIBUTE_HEADER.pack(Attribute.DATA, 0) + hidden[1]
    else:
        tail = ATTRIBUTE_HEADER.pack(hidden[0], len(hidden[1])) + hidden[1]
    with pytest.raises(StreamError, match="has data, or an attribute twice"):
        rewriter(2).feed(MAKE + command(Kind.CLONE, tail=wrong + tail), 0)
