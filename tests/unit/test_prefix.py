"""The proof that a stream begins as the one did of which the server has a part."""

from __future__ import annotations

import struct
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.errors import PrefixMismatchError, StreamError
from btrsync.protocol import Proof
from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.head import FirstCommand, format_head
from btrsync.stream.inspector import Boundary, Inspector
from btrsync.stream.pieces import END_COMMAND
from btrsync.stream.prefix import LARGE_BLOCK_BYTES, SKIPPED_BYTES, Prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OWN = UUID(int=1)


def head(name: bytes = b"snapshot") -> bytes:
    return format_head(FirstCommand(2, name, OWN, 7, None, None, 0), path=name)


def command(kind: int, path: bytes, data: bytes | None = None) -> bytes:
    payload = struct.pack("<HH", Attribute.PATH, len(path)) + path
    if data is not None:
        payload += struct.pack("<H", Attribute.DATA) + data
    # Nobody here computes the CRC: what counts is that it differs where the payload does.
    return struct.pack("<IHI", len(payload), kind, hash(payload) & 0xFFFFFFFF) + payload


def file(number: int, sizes: Sequence[int]) -> bytes:
    path = b"file-%d" % number
    writes = [command(Kind.WRITE, path, bytes(size)) for size in sizes]
    return b"".join([*writes, command(Kind.UTIMES, path)])


def ends_of(body: bytes) -> list[int]:
    ends = [0]
    while ends[-1] < len(body):
        ends.append(ends[-1] + 10 + int.from_bytes(body[ends[-1] : ends[-1] + 4], "little"))
    return ends


def proofs_of(body: bytes, cut_bytes: Sequence[int]) -> list[Proof]:
    """Ask the inspector, as the server does: a new one for each connection, which ends behind a cut."""
    found: list[Proof] = []
    start = Boundary(0, 0, b"")
    for cut in cut_bytes:
        inspector = Inspector(2, OWN, allowed_uuids=[], start=start)
        for begin, end in pairwise(each for each in ends_of(body) if each >= start.offset_bytes):
            inspector.feed(body[begin:end])
            if inspector.safe.offset_bytes > max(cut, start.offset_bytes):
                break
        if inspector.safe != start:
            start = inspector.safe
            found.append(Proof(start.offset_bytes, start.digest))
    return found


def take(prefix: Prefix, stream: bytes, at_most: Callable[[], int] = lambda: 1 << 20) -> int:
    """Take the prefix off `stream`, in parts as a pipe may give them; return where in it that ended."""
    at = 0
    while (wanted := prefix.next_bytes())[0]:
        block = stream[at : at + min(wanted[0], at_most())]
        at += len(block)
        if wanted[1] and block:
            prefix.skip(len(block))
        else:
            prefix.feed(block)
    return at


SIZES = st.sampled_from([0, 1, 300, SKIPPED_BYTES - 50, SKIPPED_BYTES, 50_000])
FILES = st.lists(st.lists(SIZES, max_size=4), min_size=1, max_size=6)


def body_of(files: list[list[int]]) -> bytes:
    return b"".join(file(number, sizes) for number, sizes in enumerate(files)) + END_COMMAND


@given(FILES, st.lists(st.integers(0, 500_000), min_size=1, max_size=5), st.integers(0, 1 << 30))
def test_any_chunking_proves_the_same_under_any_name(
    files: list[list[int]], cuts: list[int], seed: int
) -> None:
    rng, body = Random(seed), body_of(files)
    proofs = proofs_of(body, sorted(cuts))
    renamed = head(b"a" * rng.randrange(1, 200))
    prefix = Prefix(proofs)
    at = take(prefix, renamed + body, lambda: rng.choice((1, 9, 1000, 1 << 20)))
    assert prefix.is_proven
    assert at - len(renamed) == prefix.offset_bytes == proofs[-1].offset_bytes
    assert prefix.first is not None
    assert prefix.first.uuid == OWN


@given(FILES, st.lists(st.integers(0, 500_000), min_size=1, max_size=5), st.integers(0, 1 << 30))
def test_another_header_anywhere_before_the_end_is_noticed(
    files: list[list[int]], cuts: list[int], seed: int
) -> None:
    rng, body = Random(seed), body_of(files)
    proofs = proofs_of(body, sorted(cuts))
    # In the type or the CRC: another length moves all that follows.
    wrong_at = rng.choice([end for end in ends_of(body) if end < proofs[-1].offset_bytes]) + rng.randrange(
        4, 10
    )
    wrong = bytearray(head() + body)
    wrong[len(head()) + wrong_at] ^= 1 << rng.randrange(8)
    with pytest.raises(PrefixMismatchError, match="another stream") as caught:
        take(Prefix(proofs), bytes(wrong), lambda: rng.choice((9, 1000, 1 << 20)))
    assert caught.value.offset_bytes == min(
        each.offset_bytes for each in proofs if each.offset_bytes > wrong_at
    )


@given(FILES, st.integers(0, 1 << 30))
def test_a_shorter_stream_is_noticed_wherever_it_ends(files: list[list[int]], seed: int) -> None:
    body = body_of(files)
    proofs = proofs_of(body, [0, 1 << 20])
    stream = head() + body[: proofs[-1].offset_bytes]
    with pytest.raises(PrefixMismatchError, match="ends before"):
        take(Prefix(proofs), stream[: Random(seed).randrange(len(stream))])


@given(FILES, st.integers(0, 1 << 30))
def test_an_offset_inside_a_command_is_refused(files: list[list[int]], seed: int) -> None:
    rng, body = Random(seed), body_of(files)
    proof = proofs_of(body, [1 << 20])[0]
    inside = rng.choice([end for end in ends_of(body) if end < proof.offset_bytes]) + rng.randrange(1, 20)
    with pytest.raises(PrefixMismatchError, match="no command of it ends") as caught:
        take(Prefix([Proof(inside, proof.digest)]), head() + body)
    assert caught.value.offset_bytes == inside


def test_a_length_that_leads_past_the_end_is_refused_before_it_is_taken() -> None:
    body = file(0, [100]) + file(1, [100])
    proof = proofs_of(body, [1 << 20])[0]
    wrong = bytearray(head() + body)
    wrong[len(head()) : len(head()) + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(PrefixMismatchError, match="no command of it ends"):
        take(Prefix([proof]), bytes(wrong))


def test_another_digest_before_it_is_noticed_although_the_last_stretch_is_the_same() -> None:
    body = file(0, [100]) + file(1, [100])
    before, last = proofs_of(body, [0, 1 << 20])
    other = proofs_of(file(2, [100]) + file(1, [100]), [0])[0]
    with pytest.raises(PrefixMismatchError):
        take(Prefix([Proof(before.offset_bytes, other.digest), last]), head() + body)


@pytest.mark.parametrize(
    "proofs", [[], [Proof(0, b"")], [Proof(9, b""), Proof(9, b"")], [Proof(9, b""), Proof(5, b"")]]
)
def test_what_proves_nothing_is_refused(proofs: list[Proof]) -> None:
    with pytest.raises(PrefixMismatchError, match="proves nothing"):
        Prefix(proofs)


def test_what_is_no_stream_is_refused_at_once() -> None:
    with pytest.raises(StreamError, match="not a btrfs send stream"):
        take(Prefix([Proof(9, b"")]), b"ERROR: not a subvolume: /nothing")


def test_small_commands_are_asked_for_in_blocks_and_large_payloads_to_be_skipped() -> None:
    small, large = file(0, [10] * 20_000), file(1, [LARGE_BLOCK_BYTES])
    prefix = Prefix(proofs_of(small + large, [1 << 30]))
    stream, at, asked = head() + small + large, 0, []
    while (wanted := prefix.next_bytes())[0]:
        asked.append(wanted)
        block = stream[at : at + wanted[0]]
        at += len(block)
        if wanted[1]:
            prefix.skip(len(block))
        else:
            prefix.feed(block)
    in_blocks = -(-len(small) // LARGE_BLOCK_BYTES)
    assert [each[1] for each in asked[: 2 + in_blocks]] == [False] * (2 + in_blocks)
    assert asked[2 : 2 + in_blocks] == [(LARGE_BLOCK_BYTES, False)] * in_blocks
    assert [is_unseen for _, is_unseen in asked[2 + in_blocks :]] == [True, False]
    with pytest.raises(ValueError, match="only 0 were asked for"):
        prefix.feed(b"more")
