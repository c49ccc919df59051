"""The wire's words: banner, frame header and typed messages. No file descriptor is touched here.

A connection opens with one fixed-length plain-text *banner* in each direction, then carries *frames*:
type, length, payload. A control frame holds one message (MessagePack), a data frame bytes of a send
stream, a heartbeat nothing. End of file never means success: a stream ends with `End` or `Abort`.
docs/protocol.md is the long form.
"""

from __future__ import annotations

import struct
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

import msgspec

from btrsync.errors import ProtocolError

BANNER_BYTES = 32
MAX_CONTROL_BYTES = 16 << 20
MAX_REQUEST_BYTES = 64 << 10
"""Of a client's message: the longest is a `Begin` with its clone sources."""
MAX_DATA_BYTES = 1 << 20
FRAME_HEADER = struct.Struct("<BI")


class Versions(NamedTuple):
    """The oldest and newest protocol version that an end speaks."""

    oldest: int
    newest: int


OUR_VERSIONS = Versions(1, 1)


def format_banner(versions: Versions) -> bytes:
    """Return the banner, BANNER_BYTES long, a line of plain text."""
    return (
        f"btrsync wire {versions.oldest:03d}-{versions.newest:03d}".ljust(BANNER_BYTES - 1).encode() + b"\n"
    )


def parse_banner(line: bytes) -> Versions | None:
    """Return the versions of a banner, None if `line` is none."""
    words = line.decode("ascii", "replace").split()
    if (
        len(line) != BANNER_BYTES
        or not line.endswith(b"\n")
        or words[:2] != ["btrsync", "wire"]
        or len(words) != 3
    ):
        return None
    oldest, _, newest = words[2].partition("-")
    if not (oldest.isdigit() and newest.isdigit()) or int(oldest) > int(newest):
        return None
    return Versions(int(oldest), int(newest))


def agree(ours: Versions, theirs: Versions, *, peer: str) -> int:
    """Return the newest version that both ends speak.

    peer: what to call the other end. Raises ProtocolError that says which end to upgrade.
    """
    version = min(ours.newest, theirs.newest)
    if version >= max(ours.oldest, theirs.oldest):
        return version
    behind, words = (peer, "its") if theirs.newest < ours.oldest else ("this machine", "this machine's")
    raise ProtocolError(
        f"{peer} speaks protocol {theirs.oldest} to {theirs.newest}, this machine"
        f" {ours.oldest} to {ours.newest}: they have none in common",
        hint=f"upgrade btrsync on {behind}; {words} version is the older one",
    )


class FrameType(IntEnum):
    """What a frame's payload is."""

    CONTROL = 1
    DATA = 2
    HEARTBEAT = 3


class Frame(NamedTuple):
    """A frame's header: its payload of `size_bytes` follows."""

    type: FrameType
    size_bytes: int


def parse_frame_header(header: bytes, *, peer: str, max_control_bytes: int = MAX_CONTROL_BYTES) -> Frame:
    """Return the frame that `header` announces.

    max_control_bytes: of a message from that peer. Raises ProtocolError at an unknown type, or a length
    above what that type may have.
    """
    kind, size_bytes = FRAME_HEADER.unpack(header)
    limits = {FrameType.CONTROL: max_control_bytes, FrameType.DATA: MAX_DATA_BYTES, FrameType.HEARTBEAT: 0}
    if kind not in limits:
        raise ProtocolError(f"{peer} sent a frame of unknown type {kind}")
    if size_bytes > limits[FrameType(kind)]:
        raise ProtocolError(f"{peer} sent a frame of {size_bytes} bytes, more than its type {kind} may have")
    return Frame(FrameType(kind), size_bytes)


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """Base of all control messages. Unknown fields are passed over: a newer peer may have more."""


class Hello(Message, frozen=True):
    """First message of each end. A look-only client changes nothing, so it waits for no lock.

    is_server: without it a forced command such as `cat` would answer with our own words, heartbeats too.
    """

    run_id: str
    software: str
    kernel: str
    send_protocol: int
    is_look_only: bool = False
    is_server: bool = False


class Waiting(Message, frozen=True):
    """Server: another connection of this client is at work; we wait for it."""

    holder: str


class BackupEntry(msgspec.Struct, frozen=True, array_like=True):
    """One subvolume in a job's directory on the server."""

    name: str
    uuid: UUID
    received_uuid: UUID | None
    generation: int
    is_readonly: bool
    created: datetime
    copies: int
    was_edited: bool = False


class Inventory(Message, frozen=True):
    """Server: what this client has there, by job."""

    jobs: dict[str, list[BackupEntry]]
    leftovers_deleted: list[str] = []


class Begin(Message, frozen=True):
    """Client: a send stream is to come; UUIDs as the stream will announce them."""

    job: str
    name: str
    uuid: UUID
    ctransid: int
    send_parent: UUID | None = None
    clone_sources: list[UUID] = []


class Ready(Message, frozen=True):
    """Server: send the stream, from its byte `offset_bytes` on; its receive is `btrfs_progs`.

    Only here, for to ask costs a process, and most runs find nothing to do.
    """

    btrfs_progs: str
    offset_bytes: int = 0


class End(Message, frozen=True):
    """Client: the stream is whole; `btrfs send` ended with `send_status`."""

    size_bytes: int
    send_status: int = 0


class Abort(Message, frozen=True):
    """Client: the stream ends here and is not whole."""

    reason: str


class Committed(Message, frozen=True):
    """Server: the backup is complete, under its name and on disk."""

    backup: BackupEntry


class Failed(Message, frozen=True):
    """An end could not do what was asked; `exit_status` is that of the error there."""

    message: str
    exit_status: int
    hint: str | None = None
    is_retryable: bool = False


class Bye(Message, frozen=True):
    """Client: no more."""


AnyMessage = Hello | Waiting | Inventory | Begin | Ready | End | Abort | Committed | Failed | Bye

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Return a whole control frame."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_CONTROL_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(payload)} bytes is too large for the wire")
    return FRAME_HEADER.pack(FrameType.CONTROL, len(payload)) + payload


def decode(payload: bytes, *, peer: str) -> AnyMessage:
    """Return the message of a control frame's payload; ProtocolError if it is none."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{peer} sent a malformed message: {error}") from error
