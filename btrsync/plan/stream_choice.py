"""Which send stream is made: its version, and whether data comes as it lies compressed on disk."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from btrsync.errors import RefusedError

COMPRESSED_VERSION = 2
"""Stream version with compressed data: Linux 6.0. 3 is for those who work on the kernel, and never chosen."""
LEAST_PROGS = (6, 2)
"""btrfs-progs 6.0 lost data where the kernel lacks encoded writes, 6.1 decompressed zstd wrongly."""
VERSION = re.compile(r"v?(\d{1,5})\.(\d{1,5})(\S*)")


class StreamChoice(NamedTuple):
    """A form of a send stream."""

    stream_version: int
    is_compressed: bool


PLAIN = StreamChoice(1, is_compressed=False)
COMPRESSED = StreamChoice(COMPRESSED_VERSION, is_compressed=True)


def can_receive(stream_version: int, progs_version: str | None) -> bool:
    """Tell whether `btrfs receive` of that version takes such a stream without loss.

    progs_version: as `btrfs version` says it, None if it is not known yet and shall be thought good enough.
    What is no version is taken for an old one, and a release candidate for what came before it.
    """
    if stream_version == 1 or progs_version is None:
        return True
    found = VERSION.fullmatch(progs_version.strip())
    if found is None:
        return False
    version = int(found[1]), int(found[2])
    return version > LEAST_PROGS or (version == LEAST_PROGS and not found[3].startswith("-rc"))


def choose_stream(
    compressed: Literal["auto", "always", "never"],
    *,
    send_protocol: int,
    progs_version: str | None,
    target: str,
) -> StreamChoice:
    """Return the stream to send.

    compressed: the target's setting; send_protocol: the highest stream version of this kernel;
    progs_version: of the receiver, as for `can_receive`. Raises RefusedError if compressed data always
    has to be sent and cannot be; it says which end is too old.
    """
    if compressed == "never":
        return PLAIN
    if send_protocol < COMPRESSED_VERSION:
        problem = f"this kernel's send streams are of version {send_protocol}, and that takes Linux 6.0"
    elif not can_receive(COMPRESSED_VERSION, progs_version):
        problem = f"{target} has btrfs-progs {progs_version}, and that takes 6.2"
    else:
        return COMPRESSED
    if compressed == "always":
        raise RefusedError(
            f"{target} is to be sent compressed data always, and cannot be: {problem}",
            hint='upgrade that, or set `compressed = "auto"` for the target',
        )
    return PLAIN


def why_not_again(
    before: StreamChoice, compressed: Literal["auto", "always", "never"], send_protocol: int
) -> str | None:
    """Return why a stream like the one `before` is not made now, None if it is."""
    if before.stream_version > min(send_protocol, COMPRESSED_VERSION):
        return f"this kernel does not make its stream, of version {before.stream_version}"
    if compressed == "never" and before.is_compressed:
        return 'it was sent compressed, and `compressed` is "never" now'
    if compressed == "always" and not before.is_compressed:
        return 'it was not sent compressed, and `compressed` is "always" now'
    return None
