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

from btrsync.errors import ProtocolError, RemoteError

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


OUR_VERSIONS = Versions(2, 2)


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

    session: 0 for a run's first connection, another number for each that it opens beside it.
    is_server: without it a forced command such as `cat` would answer with our own words, heartbeats too.
    """

    run_id: str
    software: str
    kernel: str
    send_protocol: int
    is_look_only: bool = False
    is_server: bool = False
    session: int = 0


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


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a stream, told by the headers of its commands: each holds the CRC32C of its payload.

    The digest (BLAKE2b, 32 bytes) is that of the proof before it (nothing for the first one), then every
    command header from that one's offset to `offset_bytes`. Offsets count from behind the stream's first
    command, which holds the snapshot's name: it may be renamed before the stream goes on.
    """

    offset_bytes: int
    digest: bytes


class PartialEntry(msgspec.Struct, frozen=True, array_like=True):
    """A transfer that was cut: what the server has on disk of it, and how to prove that it goes on.

    UUIDs as the stream announces them; `proofs` cover the stream from its first command to where it is
    to go on; data_bytes: what it has written so far, total_bytes: what it will have written, if known.
    """

    name: str
    uuid: UUID
    ctransid: int
    send_parent: UUID | None
    clone_sources: list[UUID]
    stream_version: int
    is_compressed: bool
    proofs: list[Proof]
    data_bytes: int
    total_bytes: int | None
    made: datetime

    @property
    def offset_bytes(self) -> int:
        return self.proofs[-1].offset_bytes


class Inventory(Message, frozen=True):
    """Server: what this client has there, by job, and the room there is.

    available_bytes: what the filesystem has free, or the client's quota leaves it, whichever is less.
    """

    jobs: dict[str, list[BackupEntry]]
    leftovers_deleted: list[str] = []
    partials: dict[str, list[PartialEntry]] = {}
    available_bytes: int | None = None


class Begin(Message, frozen=True):
    """Client: a send stream is to come; UUIDs as the stream will announce them.

    total_bytes: of data that it will write, None if that was not counted. offset_bytes, digest: where it
    goes on in a stream of which the server has a partial, as that one's last proof has them: the
    client has read the stream up to there and found it the same. With 0 it begins anew. In a fetch the
    server says it, and cloned_bytes: what the stream takes from what the client has.
    """

    job: str
    name: str
    uuid: UUID
    ctransid: int
    send_parent: UUID | None = None
    clone_sources: list[UUID] = []
    total_bytes: int | None = None
    offset_bytes: int = 0
    digest: bytes = b""
    cloned_bytes: int = 0


class Fetch(Message, frozen=True):
    """Client: send us a backup of ours: from here on the two ends have each other's part, up to `Committed`.

    send_parent: what the client holds of the job, by the received UUID there; partial: what it has of that
    backup already. One that is look-only is answered with `Begin`, or `Failed`, and that is all.
    """

    job: str
    name: str
    send_parent: UUID | None = None
    partial: PartialEntry | None = None
    is_look_only: bool = False


class Ready(Message, frozen=True):
    """Server: say how, then send the stream; its receive is `btrfs_progs`. warning: of too little room.

    Only here, for to ask costs a process, and most runs find nothing to do.
    """

    btrfs_progs: str
    warning: str | None = None


class Stream(Message, frozen=True):
    """Client: data frames of this stream follow: its version, and whether data comes as it lies on disk."""

    stream_version: int
    is_compressed: bool


class Progress(Message, frozen=True):
    """Server: how far the stream has been written, and checkpointed, while it comes.

    offset_bytes: of the stream, safe from now on; data_bytes: written so far, before compression.
    """

    offset_bytes: int
    data_bytes: int


class Total(Message, frozen=True):
    """Client, between two data frames: what `Begin.total_bytes` did not say, for it was being counted."""

    total_bytes: int


class End(Message, frozen=True):
    """Client: the stream is whole: `size_bytes` came in data frames; the status is that of `btrfs send`."""

    size_bytes: int
    send_status: int = 0


class Abort(Message, frozen=True):
    """Client: the stream ends here and is not whole."""

    reason: str


class Committed(Message, frozen=True):
    """Server: the backup is complete, under its name and on disk. data_bytes: that the whole stream wrote."""

    backup: BackupEntry
    data_bytes: int = 0


class Failed(Message, frozen=True):
    """An end could not do what was asked; `exit_status` is that of the error there.

    kept_bytes: offset in the stream up to which a partial was kept, 0 if there is none.
    """

    message: str
    exit_status: int
    hint: str | None = None
    is_retryable: bool = False
    kept_bytes: int = 0

    def as_error(self) -> RemoteError:
        """Return the exception that it is at our end."""
        return RemoteError(
            self.message, hint=self.hint, exit_status=self.exit_status, retryable=self.is_retryable
        )


class Bye(Message, frozen=True):
    """Client: no more."""


AnyMessage = (
    Hello | Waiting | Inventory | Begin | Ready | Stream | Progress | Total | End | Abort | Committed
    | Failed | Bye | Fetch
)  # fmt: skip

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
