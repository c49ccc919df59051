"""What is fuzzed, and how a wrong answer is known: each target takes any bytes and raises at a fault only.

The first bytes of an input steer (sizes of blocks, limits); the rest is what a peer would send.
"""

from __future__ import annotations

import contextlib
import os
import struct
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from btrsync.errors import BtrsyncError, PrefixMismatchError, ProtocolError, StreamError
from btrsync.protocol import (
    FRAME_HEADER,
    MAX_DATA_BYTES,
    FrameType,
    Proof,
    Versions,
    agree,
    decode,
    encode,
    format_banner,
    parse_banner,
)
from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.head import format_head, parse_first_command
from btrsync.stream.inspector import Boundary, Inspector
from btrsync.stream.prefix import Prefix
from btrsync.stream.totals import Totals, TotalsCounter
from btrsync.wire import Data, Wire
from tests.fuzz import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OWN, PARENT = UUID(int=1), UUID(int=2)
STEERING_BYTES = 3
MAX_WIRE_BYTES = 48 << 10
"""What a pipe takes without a reader."""


def steer(data: bytes) -> tuple[Random, int, bytes]:
    """Return chance, flags, and the rest of an input."""
    padded = data[:STEERING_BYTES].ljust(STEERING_BYTES, b"\0")
    return Random(padded[:2]), padded[2], data[STEERING_BYTES:]


def blocks(stream: bytes, rng: Random) -> Iterator[bytes]:
    at = 0
    # Byte by byte only what is short: the whole must be quick.
    most = rng.choice((1, 12, 200) if len(stream) < 1000 else (200, 5000, 300_000))
    while at < len(stream):
        size = rng.randint(1, most)
        yield stream[at : at + size]
        at += size


# ------------------------------------------------------------------------------------------- head


def head(data: bytes) -> None:
    """The first command: known as soon as it is whole, never differently, and again after formatting."""
    first = None
    with contextlib.suppress(StreamError):
        first = parse_first_command(data)
    if first is None:
        return
    assert parse_first_command(data[: first.size_bytes]) == first
    assert parse_first_command(data[: first.size_bytes - 1]) is None
    again = parse_first_command(format_head(first, path=first.path))
    assert again == first, (again, first)


# -------------------------------------------------------------------------------------- inspector


def inspected(subject: Inspector, pieces: Iterator[bytes]) -> tuple[bytes, StreamError | None]:
    """Feed it, passing over what it wants not to see; return what it let pass, and its refusal."""
    passed, unseen = bytearray(), 0
    for piece in pieces:
        passed += piece[:unseen]
        rest = piece[unseen:]
        unseen = max(0, unseen - len(piece))
        if not rest:
            continue
        try:
            step = subject.feed(rest)
        except StreamError as error:
            return bytes(passed), error
        passed += step.block
        unseen = step.unseen_bytes
    return bytes(passed), None


def inspector(data: bytes) -> None:
    """What passes is what a slow reference lets pass, however it is cut; and its sums are right."""
    rng, flags, stream = steer(data)
    version = 1 + (flags & 1)
    limit = None if flags & 2 else (flags >> 2) * 1000
    found = reference.read(stream, version)
    verdict = reference.judge(found.commands, OWN.bytes, {PARENT.bytes}, limit)
    # Whole commands only, and what is malformed: the sums of half a write depend on how it comes.
    end = found.commands[-1].end if found.commands else 0
    stream = stream if found.bad_at is not None else stream[:end]

    def subject() -> Inspector:
        start = Boundary(0, 0, b"")
        return Inspector(version, OWN, allowed_uuids=[PARENT], limit_bytes=limit, start=start)

    one, other = subject(), subject()
    at_once, refusal = inspected(one, iter([stream] if stream else []))
    in_blocks, refusal_in_blocks = inspected(other, blocks(stream, rng))
    assert str(refusal) == str(refusal_in_blocks), (refusal, refusal_in_blocks)
    assert stream.startswith(in_blocks)
    wrong_at = verdict.forbidden_at if verdict.forbidden_at is not None else found.bad_at
    if refusal is None:
        assert wrong_at is None, f"it let pass what begins at {wrong_at}"
        assert at_once == in_blocks == stream
        assert (one.data_bytes, one.safe) == (other.data_bytes, other.safe)
        assert one.data_bytes == verdict.data_bytes
        assert one.offset_bytes == len(stream)
        check_boundary(found.commands, one.safe)
        return
    assert len(in_blocks) <= refusal.offset_bytes, "what it refuses has not passed"
    if wrong_at is None or refusal.offset_bytes < wrong_at:
        failed = verdict.fails_at is not None and verdict.fails_at <= refusal.offset_bytes
        assert failed or verdict.is_careful, f"refused for nothing: {refusal}"
    assert wrong_at is None or refusal.offset_bytes <= wrong_at, f"too late: {refusal}, {wrong_at}"


def check_boundary(commands: list[reference.Command], safe: Boundary) -> None:
    """Nothing is cut but between two commands, at the end of one file's, or inside its data."""
    before = [each for each in commands if each.end <= safe.offset_bytes]
    assert safe.offset_bytes == (before[-1].end if before else 0)
    assert safe.data_bytes == sum(reference.writes(each) for each in before)
    if safe.offset_bytes == 0:
        return
    digest = blake2b(b"".join(each.header for each in before), digest_size=32).digest()
    assert safe.digest == digest
    last, following = before[-1], commands[len(before) :]
    assert (
        last.kind == Kind.UTIMES
        or following[0].kind == Kind.END
        or (
            {last.kind, following[0].kind} <= reference.DATA
            and last.attributes[Attribute.PATH] == following[0].attributes[Attribute.PATH]
        )
    )


# ----------------------------------------------------------------------------------------- prefix


def prefix(data: bytes) -> None:
    """A stream is proven if it is the same up to the last proof, and only then; nothing behind is read."""
    rng, flags, stream = steer(data)
    try:
        first = parse_first_command(stream[:8300])
    except StreamError:
        first = None
    if first is None:
        return
    ends, headers = command_ends(stream, first.size_bytes)
    if not ends:
        return
    chosen = sorted(rng.sample(range(len(ends)), min(len(ends), 1 + flags % 4)))
    proofs: list[Proof] = []
    for number in chosen:
        begin = chosen[len(proofs) - 1] + 1 if proofs else 0
        digest = blake2b(
            (proofs[-1].digest if proofs else b"") + b"".join(headers[begin : number + 1]), digest_size=32
        )
        proofs.append(Proof(ends[number] - first.size_bytes, digest.digest()))
    last = ends[chosen[-1]]
    assert walked(Prefix(proofs), stream[:last] + b"\xff" * 100) == last
    # Another stream: one bit of one of its headers differs.
    wrong = bytearray(stream[:last])
    wrong[
        rng.choice(
            [
                end - length
                for end, length in zip(ends, lengths(ends, first.size_bytes), strict=True)
                if end <= last
            ]
        )
        + rng.randrange(10)
    ] ^= 1
    with contextlib.suppress(PrefixMismatchError):
        walked(Prefix(proofs), bytes(wrong))
        raise AssertionError("another stream was taken for the same")
    with contextlib.suppress(PrefixMismatchError):
        walked(Prefix(proofs), stream[: last - 1])
        raise AssertionError("a stream that ends earlier was taken for the same")


def lengths(ends: list[int], start: int) -> list[int]:
    return [end - begin for begin, end in zip([start, *ends], ends, strict=False)]


def command_ends(stream: bytes, at: int) -> tuple[list[int], list[bytes]]:
    ends, headers = [], []
    while at + 10 <= len(stream):
        end = at + 10 + int(struct.unpack_from("<I", stream, at)[0])
        if end > len(stream):
            break
        headers.append(stream[at : at + 10])
        ends.append(end)
        at = end
    return ends, headers


def walked(subject: Prefix, stream: bytes) -> int:
    """Let it walk through `stream`; return how much it took."""
    at = 0
    while not subject.is_proven:
        size, is_skipped = subject.next_bytes()
        assert size > 0
        block = stream[at : at + size]
        at += len(block)
        if is_skipped and block:
            subject.skip(len(block))
        else:
            subject.feed(block)
    assert subject.next_bytes()[0] == 0
    return at


# ----------------------------------------------------------------------------------------- totals


def totals(data: bytes) -> None:
    """The sums do not depend on the blocks, and are those of an addition by hand."""
    rng, _, stream = steer(data)
    at_once, in_blocks = counted(iter([stream])), counted(blocks(stream, rng))
    assert at_once == in_blocks, (at_once, in_blocks)
    if isinstance(at_once, Totals):
        first = parse_first_command(stream)
        assert first is not None
        found = reference.read(stream[first.size_bytes :], 2)
        commands = found.commands
        if found.bad_at is not None or not commands or commands[-1].kind != Kind.END:
            return
        announced = [each for each in commands if each.kind == Kind.UPDATE_EXTENT]
        assert at_once.data_bytes == sum(reference.value(each, Attribute.SIZE) for each in announced)
        assert sum(size for _, size in at_once.largest) <= at_once.data_bytes
        assert at_once.directories == sum(each.kind == Kind.MKDIR for each in commands)


def counted(pieces: Iterator[bytes]) -> Totals | str:
    counter = TotalsCounter()
    try:
        for piece in pieces:
            counter.feed(piece)
        return counter.totals()
    except StreamError as error:
        return str(error)


# ------------------------------------------------------------------------------------------- wire


def message(data: bytes) -> None:
    """A message is one that can be written again, or ProtocolError."""
    with contextlib.suppress(ProtocolError):
        found = decode(data, peer="peer")
        again = encode(found)
        assert decode(again[FRAME_HEADER.size :], peer="peer") == found


def banner(data: bytes) -> None:
    """A banner is exactly that, and two ends agree on a version that both speak."""
    theirs = parse_banner(data)
    if theirs is None:
        return
    assert theirs.oldest <= theirs.newest
    for ours in (Versions(1, 1), Versions(2, 2), Versions(1, 900)):
        with contextlib.suppress(ProtocolError):
            version = agree(ours, theirs, peer="peer")
            assert ours.oldest <= version <= ours.newest
            assert theirs.oldest <= version <= theirs.newest
    assert len(format_banner(theirs)) == len(data) or theirs.newest > 999


def wire(data: bytes) -> None:
    """Frames arrive as they were sent, and whatever else comes ends as an error of ours."""
    rng, flags, stream = steer(data[:MAX_WIRE_BYTES])
    read_fd, write_fd = os.pipe()
    null_fd = os.open(os.devnull, os.O_WRONLY)
    expected, heard = frames(stream), []
    try:
        os.write(write_fd, stream)
        os.close(write_fd)
        with Wire(read_fd, null_fd, peer="peer", silence_s=5) as subject:
            while True:
                found = subject.receive()
                if isinstance(found, Data):
                    heard.append(body(subject, found.size_bytes, rng, is_dropped=bool(flags & 1)))
                else:
                    heard.append(encode(found)[FRAME_HEADER.size :])
    except BtrsyncError as error:
        assert error.message  # noqa: PT017  every end is one: the pipe ends
    finally:
        os.close(read_fd)
        os.close(null_fd)
    assert heard == expected, (heard, expected)


def body(subject: Wire, size_bytes: int, rng: Random, *, is_dropped: bool) -> bytes:
    if is_dropped:
        subject.drop_body()
        return b"data" + size_bytes.to_bytes(4)
    taken = 0
    while taken < size_bytes:
        taken += len(subject.read_body(rng.randint(1, size_bytes)))
    return b"data" + taken.to_bytes(4)


def frames(stream: bytes) -> list[bytes]:
    """Split whole frames by hand, up to the first that is none."""
    found, at = [], 0
    while at + 5 <= len(stream):
        kind, size = struct.unpack_from("<BI", stream, at)
        payload = stream[at + 5 : at + 5 + size]
        if len(payload) < size or (kind == FrameType.HEARTBEAT and size):
            break
        if kind == FrameType.CONTROL:
            try:
                found.append(encode(decode(payload, peer="peer"))[5:])
            except ProtocolError:
                break
        elif kind == FrameType.DATA and size <= MAX_DATA_BYTES:
            found.append(b"data" + size.to_bytes(4))
        elif kind != FrameType.HEARTBEAT:
            break
        at += 5 + size
    return found


TARGETS: dict[str, Callable[[bytes], None]] = {
    "head": head,
    "inspector": inspector,
    "prefix": prefix,
    "totals": totals,
    "message": message,
    "banner": banner,
    "wire": wire,
}
