"""The memory of `btrsync serve` does not grow with what a stream holds, nor with how a hostile one is made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from btrsync.protocol import Begin, Committed, End, Progress, Ready, Stream
from btrsync.stream.commands import Attribute, Kind
from btrsync.stream.head import COMMAND_HEADER, _crc_table, crc32c
from harness import command
from tests.kernel.hostile_streams import CTRANSID, END, FILE, attribute, head, make, number, write
from tests.kernel.hostile_streams import command as stream_command
from tests.kernel.test_serve import connected
from tests.kernel.test_serve_hostile import memory_kib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

MAX_KIB = 64 << 10
"""Beyond an interpreter that runs nothing; for what must be remembered, the links."""
USUAL_KIB = 20 << 10
"""The same, where there is nothing to remember: a connection takes 12 MiB, modules most of it."""
MUCH_BYTES = 4 * MAX_KIB << 10
LINKS = 80_000
BATCH = 1_000


def one_large_file() -> Iterator[bytes]:
    """The largest writes that may pass."""
    yield FILE
    block = write(b"file", bytes((1 << 20) - 100), version=2)
    yield from [block] * (MUCH_BYTES // len(block))


def many_small_commands() -> Iterator[bytes]:
    """Among them no safe boundary: their headers wait to be hashed."""
    yield FILE
    block = stream_command(Kind.CHMOD, b"file", (Attribute.MODE, number(0o644))) * BATCH
    yield from [block] * 300


def large_attributes() -> Iterator[bytes]:
    """As large as btrfs takes."""
    yield FILE
    value = (Attribute.XATTR_NAME, b"user.large"), (Attribute.XATTR_DATA, bytes(15_000))
    yield from [stream_command(Kind.SET_XATTR, b"file", *value)] * 2_000


def many_links() -> Iterator[bytes]:
    """With names so long that all of them take more memory than is allowed."""
    directory = b""
    for letter in (b"a", b"b", b"c", b"d"):
        directory += letter * 250
        yield make(Kind.MKDIR, directory)
        directory += b"/"
    payload = attribute(Attribute.INO, number(257)) + attribute(Attribute.PATH_LINK, b"/")
    name_bytes = len(b"%06d" % 0)
    payload += attribute(Attribute.PATH, directory + bytes(name_bytes))[:-name_bytes]
    size_bytes = len(payload) + name_bytes
    crc = crc32c(COMMAND_HEADER.pack(size_bytes, Kind.SYMLINK, 0) + payload)
    assert LINKS * len(directory) > MAX_KIB << 10
    for first in range(0, LINKS, BATCH):
        names = [b"%06d" % link for link in range(first, first + BATCH)]
        yield b"".join(
            COMMAND_HEADER.pack(size_bytes, Kind.SYMLINK, crc_of(name, crc)) + payload + name
            for name in names
        )


def crc_of(block: bytes, crc: int) -> int:
    """Go on with a CRC32C: what all these commands begin with is counted once."""
    table = _crc_table()
    for byte in block:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


STREAMS: dict[str, tuple[int, int, Callable[[], Iterator[bytes]]]] = {
    "one large file": (2, USUAL_KIB, one_large_file),
    "many small commands": (1, USUAL_KIB, many_small_commands),
    "large attributes": (1, USUAL_KIB, large_attributes),
    "many links with long names": (1, MAX_KIB, many_links),
}


def bare_kib() -> int:
    program = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    return int(command.run([sys.executable, "-c", program]).stdout)


def send(client: Client, version: int, commands: Iterator[bytes]) -> None:
    own = uuid4()
    client.wire.send(Begin("share", "large", own, CTRANSID))
    client.expect(Ready)
    client.wire.send(Stream(version, is_compressed=False))
    size_bytes = 0
    for block in (head(own, version=version), *commands, END):
        client.data(block)
        size_bytes += len(block)
    client.wire.send(End(size_bytes))


@pytest.mark.parametrize("what", STREAMS)
def test_the_memory_of_the_server_is_bounded_whatever_the_stream_holds(place: Place, what: str) -> None:
    version, most_kib, commands = STREAMS[what]
    with connected(place) as client:
        client.hello()
        send(client, version, commands())
        while isinstance(answer := client.wire.receive(), Progress):
            pass
        assert isinstance(answer, Committed), answer
        taken_kib = memory_kib(client.server.pid) - bare_kib()
        print(f"{what}: {taken_kib} KiB")
        assert taken_kib <= most_kib
