"""The step "hostile stream refused": with the key any stream can be sent; none leads out of the backup."""

from __future__ import annotations

import os
import struct
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

from harness.rehearsal.problems import NotExercised, StepFailed
from harness.rehearsal.show import Result
from harness.rehearsal.wire import Speaker
from harness.scenario import MIRROR_ROOT, SERVER_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.rehearsal.session import Pair, Session
    from harness.scenario import TwoHosts

STOCK = MIRROR_ROOT / "rehearsal-stock"
"""Where the stock `btrfs receive` is shown what these streams do."""
CANARY = MIRROR_ROOT / "rehearsal-canary/alive"
ALIVE = "alive\n"
DEAD = b"dead!\n"
NAME = "hostile"
SUBVOL, SYMLINK, WRITE, END = 1, 8, 15, 21
UUID, CTRANSID, INO, PATH, PATH_LINK, FILE_OFFSET, ATTRIBUTE_DATA = 1, 2, 3, 15, 17, 18, 19
"""Commands and attributes of a send stream. Source: fs/btrfs/send.h."""


class Attack(NamedTuple):
    """A stream that writes to the canary; refusal: what the server must say of it."""

    words: str
    build: Callable[[uuid.UUID, Path], bytes]
    refusal: str


def hostile_stream_refused(session: Session) -> Result:
    """Streams that would overwrite a file beside the backups, over the user's own key: refused."""
    pair = session.remote_pair
    assert pair is not None, "left out where no target is behind ssh"
    began, both = time.monotonic(), session.both
    both.daisy.write_text(CANARY, ALIVE)
    for attack in ATTACKS:
        _show_that_it_strikes(session, attack)
        before = session.names()
        said = _attack(both, pair, attack)
        if both.daisy.read_text(CANARY) != ALIVE:
            raise StepFailed(f"{attack.words}: it was written to", session.logs())
        if attack.refusal not in said:
            raise StepFailed(f"{attack.words}: refused, but not for that: {said}", session.logs())
        if session.names() != before:
            raise StepFailed(f"{attack.words}: refused, but not without a trace", session.logs())
        session.show.line(f"  {attack.words}: btrfs receive obeys; btrsync: {said}")
    return Result(
        "hostile stream refused",
        ok=True,
        seconds=time.monotonic() - began,
        bytes_sent=0,
        detail=f"{len(ATTACKS)} streams refused over the user's own key; nothing of them is left there",
    )


def _show_that_it_strikes(session: Session, attack: Attack) -> None:
    """See the stock receive obey the stream, then put everything back."""
    daisy = session.both.daisy
    daisy.path(STOCK).mkdir()
    try:
        stream = attack.build(uuid.uuid4(), STOCK / NAME)
        daisy.run(["btrfs", "receive", STOCK], input=stream, ok=None)
        if daisy.read_text(CANARY).encode() != DEAD:
            raise NotExercised(f"{attack.words}: the stock btrfs receive did not obey it", session.logs())
    finally:
        daisy.write_text(CANARY, ALIVE)
        if daisy.path(STOCK / NAME).exists():
            daisy.run(["btrfs", "subvolume", "delete", STOCK / NAME])
        daisy.path(STOCK).rmdir()


def _attack(both: TwoHosts, pair: Pair, attack: Attack) -> str:
    """Send the stream over the user's key, as btrsync would send a snapshot; return what the server says."""
    job, target = pair
    place = both.targets[target]
    announced = uuid.uuid4()
    stream = attack.build(announced, SERVER_ROOT / place.client / job / NAME)
    argv: list[str | Path] = [
        "ssh", "-T", "-i", place.key_file, "-p", str(place.port), "-o", "BatchMode=yes",
        f"root@{place.host}", "btrsync", "serve",
    ]  # fmt: skip
    with Speaker.by_ssh(both.workstation, argv) as server:
        server.say("hello", run_id=announced.hex, software="a stranger", kernel="", send_protocol=1)
        server.hear("hello")
        server.hear("inventory")
        server.say("begin", job=job, name=NAME, uuid=str(announced), ctransid=1)
        server.hear("ready")
        server.say("stream", stream_version=1, is_compressed=False)
        server.data(stream)
        server.say("end", size_bytes=len(stream), send_status=0)
        answer = server.hear("failed", "committed")
        server.say("bye")
    if answer["type"] == "committed":
        raise StepFailed(f"{attack.words}: the server took it", [str(answer)])
    return str(answer["message"])


def _through_a_link(announced: uuid.UUID, _subvolume: Path) -> bytes:
    return _stream(
        announced,
        _command(SYMLINK, (PATH, b"way-out"), (INO, _number(257)), (PATH_LINK, str(CANARY.parent).encode())),
        _write(f"way-out/{CANARY.name}"),
    )


def _upwards(announced: uuid.UUID, subvolume: Path) -> bytes:
    return _stream(announced, _write(os.path.relpath(CANARY, subvolume)))


ATTACKS = (
    Attack("a write through a symbolic link", _through_a_link, "leads through the symbolic link"),
    Attack("a write to ../..", _upwards, "leads out of the subvolume"),
)


def _stream(announced: uuid.UUID, *commands: bytes) -> bytes:
    begin = _command(SUBVOL, (PATH, NAME.encode()), (UUID, announced.bytes), (CTRANSID, _number(1)))
    return b"".join([b"btrfs-stream\0", struct.pack("<I", 1), begin, *commands, _command(END)])


def _write(path: str) -> bytes:
    return _command(WRITE, (PATH, path.encode()), (FILE_OFFSET, _number(0)), (ATTRIBUTE_DATA, DEAD))


def _command(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    payload = b"".join(struct.pack("<HH", number, len(value)) + value for number, value in attributes)
    crc = _crc32c(struct.pack("<IHI", len(payload), kind, 0) + payload)
    return struct.pack("<IHI", len(payload), kind, crc) + payload


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _crc32c(data: bytes) -> int:
    """CRC32C with seed 0 and no final xor, as btrfs has it."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
