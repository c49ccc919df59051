"""The counter of streams without data, over streams made here; tests/kernel has the real ones."""

from __future__ import annotations

import struct
from random import Random
from uuid import UUID

import pytest

from btrsync.errors import StreamError
from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.head import FirstCommand, format_head
from btrsync.stream.totals import TotalsCounter

HEAD = format_head(FirstCommand(2, b"", UUID(int=7), 9, None, None, 0), path=b"snapshot")


def command(kind: Kind, path: bytes, **attributes: int | bytes) -> bytes:
    values: dict[Attribute, bytes] = {Attribute.PATH: path} if kind != Kind.END else {}
    for name, value in attributes.items():
        values[Attribute[name]] = value if isinstance(value, bytes) else value.to_bytes(8, "little")
    if kind == Kind.CLONE:  # send_clone(), fs/btrfs/send.c: the path comes third
        values[Attribute.PATH] = values.pop(Attribute.PATH)
    payload = b"".join(struct.pack("<HH", key, len(value)) + value for key, value in values.items())
    return struct.pack("<IHI", len(payload), kind, 0) + payload


def extent(path: bytes, size: int) -> bytes:
    return command(Kind.UPDATE_EXTENT, path, FILE_OFFSET=0, SIZE=size)


def made(path: bytes, number: int) -> bytes:
    """As the kernel makes a file: under a number first."""
    orphan = b"o%d-7-0" % number
    return command(Kind.MKFILE, orphan, INO=number) + command(Kind.RENAME, orphan, PATH_TO=path)


END = command(Kind.END, b"")


def counter_of(*commands: bytes) -> TotalsCounter:
    counter = TotalsCounter()
    counter.feed(HEAD + b"".join(commands))
    return counter


def test_files_made_and_files_changed_are_counted_once_each() -> None:
    totals = counter_of(
        command(Kind.MKDIR, b"d"),
        command(Kind.MKNOD, b"n"),
        made(b"d/new", 260),
        command(Kind.LINK, b"d/link", PATH_LINK=b"d/new"),
        extent(b"d/link", 100),
        extent(b"d/link", 50),
        command(Kind.TRUNCATE, b"d/link", SIZE=150),
        made(b"empty", 261),
        command(Kind.CHMOD, b"mode-only", MODE=0o600),
        extent(b"old", 7),
        command(Kind.CLONE, b"old", CLONE_LEN=1000),
        command(Kind.TRUNCATE, b"cut", SIZE=0),
        command(Kind.UNLINK, b"gone"),
        command(Kind.RMDIR, b"gone-too"),
        END,
    ).totals()
    assert (totals.files, totals.directories, totals.others, totals.removed) == (4, 1, 1, 2)
    assert (totals.data_bytes, totals.cloned_bytes) == (157, 1000)
    assert totals.largest == ((b"d/link", 150), (b"old", 7))


def test_holes_are_data_in_version_1_only() -> None:
    totals = counter_of(
        extent(b"a", 5),
        command(Kind.FALLOCATE, b"a", FALLOCATE_MODE=3, FILE_OFFSET=0, SIZE=4096),
        command(Kind.FALLOCATE, b"a", FALLOCATE_MODE=1, FILE_OFFSET=0, SIZE=9000),
        END,
    ).totals()
    assert [totals.written_bytes(version) for version in (1, 2)] == [4101, 5]


def test_the_largest_are_ten_and_have_the_names_they_end_with() -> None:
    sizes = list(range(1, 21))
    Random(1).shuffle(sizes)
    totals = counter_of(
        *(made(b"o500-7-0/%d" % size, size) + extent(b"o500-7-0/%d" % size, size) for size in sizes),
        command(Kind.RENAME, b"o500-7-0", PATH_TO=b"directory"),
        command(Kind.RENAME, b"directory/20", PATH_TO=b"twenty"),
        extent(b"last", 30),
        command(Kind.RENAME, b"last", PATH_TO=b"renamed at last"),
        END,
    ).totals()
    assert totals.largest == (
        (b"renamed at last", 30),
        (b"twenty", 20),
        *((b"directory/%d" % size, size) for size in range(19, 11, -1)),
    )


def test_of_files_of_one_size_the_first_ten_are_shown() -> None:
    totals = counter_of(*(extent(b"%02d" % number, 8) for number in range(30)), END).totals()
    assert totals.largest == tuple((b"%02d" % number, 8) for number in range(10))


@pytest.mark.parametrize("block_bytes", [1, 3, 17, 1000])
def test_it_does_not_matter_how_a_stream_is_cut_into_blocks(block_bytes: int) -> None:
    stream = HEAD + made(b"a", 300) + extent(b"a", 5) + extent(b"b", 1 << 50) + END
    whole, parts = TotalsCounter(), TotalsCounter()
    whole.feed(stream)
    for at in range(0, len(stream), block_bytes):
        parts.feed(stream[at : at + block_bytes])
    assert parts.totals() == whole.totals()
    assert whole.totals().data_bytes == (1 << 50) + 5


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"no stream", "not a btrfs send stream"),
        (HEAD + command(Kind.WRITE, b"a", FILE_OFFSET=0, DATA=b"x"), "it has data"),
        (HEAD + command(Kind.ENCODED_WRITE, b"a", FILE_OFFSET=0, DATA=b"x"), "it has data"),
        (HEAD + END + END, "goes on behind its END"),
        (HEAD + struct.pack("<IHI", 1 << 20, Kind.SET_XATTR, 0), "a command of 1048576 bytes"),
        (HEAD + struct.pack("<IHIH", 2, Kind.CLONE, 0, 15), "an attribute is cut short"),
        (HEAD + struct.pack("<IHIHH", 4, Kind.CLONE, 0, 15, 9), "an attribute is cut short"),
        (HEAD + struct.pack("<IHI", 0, Kind.CLONE, 0), "a path missing"),
        (HEAD + struct.pack("<IHIHHQ", 12, Kind.CLONE, 0, 18, 8, 0), "a path missing"),
    ],
)
def test_what_is_no_stream_without_data_is_an_error(stream: bytes, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        TotalsCounter().feed(stream)


@pytest.mark.parametrize("stream", [b"", HEAD[:20], HEAD, HEAD + END[:-1], HEAD + extent(b"a", 5)])
def test_a_stream_that_was_cut_has_no_totals(stream: bytes) -> None:
    counter = TotalsCounter()
    counter.feed(stream)
    with pytest.raises(StreamError, match="without an END"):
        counter.totals()
