"""Streams that mean ill: what the stock `btrfs receive` does with each, and that `btrsync serve` refuses it.

docs/threat-model.md has a table of it (tests/unit/test_threat_model.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from btrsync.protocol import (
    FRAME_HEADER,
    Begin,
    Committed,
    End,
    Failed,
    FrameType,
    Message,
    PartialEntry,
    Progress,
    Ready,
    Stream,
)
from btrsync.stream.commands import Kind
from btrsync.stream.head import parse_first_command
from tests.kernel import hostile_streams
from tests.kernel.hostile_host import ATTACKER, HostileHost, hostile_host
from tests.kernel.hostile_streams import (
    ATTACKS,
    CTRANSID,
    END,
    EVIL,
    FILE,
    INHERITED,
    MEMORY_BYTES,
    NEWLINE,
    Attack,
    make,
    whole,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from btrsync.wire import Wire

pytestmark = pytest.mark.requires("host", "root", "loop", "btrfs")

CONFINED = ("-e", "-C")
BEGUN = {1: UUID(int=0xB1), 2: UUID(int=0xB2)}
"""Snapshots of the attacker of which the server has partials: by stream version."""


@pytest.fixture(scope="module")
def server() -> Iterator[HostileHost]:
    with hostile_host() as made:
        yield made


# ------------------------------------------------------------------------------- the stock receive


@pytest.mark.parametrize("flags", [(), CONFINED], ids=["stock", "confined"])
@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_hostile_stream_does_to_the_stock_receive(
    server: HostileHost, name: str, flags: tuple[str, ...]
) -> None:
    server.prepare()
    attack = ATTACKS[name]
    stream = attack.build(server.place)
    if name == "an oversized command":
        stream += bytes(MEMORY_BYTES - 1)
    done = server.receive(stream, ATTACKER, *flags, ok=None)
    assert server.harm(done) == (attack.confined if flags else attack.harm), done.stderr


# ----------------------------------------------------------------------------------- the refusals


def begin(attack: Attack, uuid: UUID, name: str = "evil") -> Begin:
    return Begin("job", name, uuid, CTRANSID, total_bytes=attack.total_bytes)


def sent(wire: Wire, message: Begin, stream: bytes, version: int) -> Message:
    """Offer a transfer and send it; return the server's last word."""
    wire.send(message)
    answer = wire.receive()
    if isinstance(answer, Ready):
        wire.send(Stream(version, is_compressed=False))
        for start in range(0, len(stream), 1 << 18):
            part = stream[start : start + (1 << 18)]
            wire._write(FRAME_HEADER.pack(FrameType.DATA, len(part)) + part)
        wire.send(End(len(stream)))
        while isinstance(answer := wire.receive(), Progress):
            pass
    assert isinstance(answer, Message)
    return answer


def hang_up_amid(server: HostileHost, uuid: UUID, version: int, first: bytes = b"") -> None:
    """Leave a partial there: with what `first` makes, and a file whose data has come."""
    message = Begin("job", f"begun-{version}", uuid, CTRANSID)
    with server.connected() as (wire, _):
        wire.send(message)
        assert isinstance(wire.receive(), Ready)
        wire.send(Stream(version, is_compressed=False))
        data = write(b"begun", b"x" * 10, version=version)
        made = make(Kind.MKFILE, b"begun")
        stream = hostile_streams.head(uuid, version=version) + first + made + data * 2
        wire._write(FRAME_HEADER.pack(FrameType.DATA, len(stream)) + stream)


@pytest.fixture(scope="module")
def busy(server: HostileHost) -> HostileHost:
    """The server with a backup of the attacker's own and partials of two others."""
    server.prepare()
    with server.connected() as (wire, _):
        own = UUID(int=0xA)
        stream = whole(FILE)(replace(server.place, own=own))
        assert isinstance(sent(wire, Begin("job", "own", own, CTRANSID), stream, 1), Committed)
    for version, uuid in BEGUN.items():
        hang_up_amid(server, uuid, version)
    names = [name.rpartition("/")[2] for name in server.listing() if name.startswith("mallory")]
    assert sum(name.startswith(".partial-") and not name.endswith(".json") for name in names) == len(BEGUN)
    return server


def refused(answer: Message, attack: Attack) -> None:
    assert isinstance(answer, Failed), answer
    assert attack.refusal in answer.message
    assert answer.message.isprintable(), "one sentence"
    assert answer.kept_bytes == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_stream_is_refused_with_the_reason_and_changes_nothing(
    busy: HostileHost, name: str
) -> None:
    attack = ATTACKS[name]
    before = busy.listing()
    with busy.connected() as (wire, inventory):
        stream = attack.build(busy.place)
        refused(sent(wire, begin(attack, busy.place.own), stream, attack.version), attack)
        if attack.is_begun:
            refused(goes_on(wire, busy, attack, inventory.partials["job"]), attack)
    assert busy.listing() == before
    assert busy.is_untouched()


def goes_on(wire: Wire, server: HostileHost, attack: Attack, partials: list[PartialEntry]) -> Message:
    """Send what is hostile as the rest of a transfer of which the server has the beginning."""
    (entry,) = [entry for entry in partials if entry.stream_version == attack.version]
    stream = attack.build(replace(server.place, own=entry.uuid))
    first = parse_first_command(stream)
    assert first is not None
    message = Begin(
        "job", "evil", entry.uuid, CTRANSID,
        total_bytes=attack.total_bytes, offset_bytes=entry.offset_bytes, digest=entry.proofs[-1].digest,
    )  # fmt: skip
    return sent(wire, message, stream[first.size_bytes :], attack.version)


def test_another_clients_backup_is_no_send_parent_and_no_clone_source(busy: HostileHost) -> None:
    attack = ATTACKS["another client's backup as parent"]
    before = busy.listing()
    secret = busy.place.secret
    with busy.connected() as (wire, _):
        for ancestors in ({"send_parent": secret}, {"clone_sources": [secret]}):
            message = Begin("job", "evil", busy.place.own, CTRANSID, **ancestors)
            answer = sent(wire, message, attack.build(busy.place), 1)
            assert isinstance(answer, Failed)
            assert f"{secret} is not among the backups of job job here" in answer.message
    assert busy.listing() == before


# ---------------------------------------------- what the inspector cannot know: it came another time

OLDER = UUID(int=0xC)


@pytest.mark.parametrize("flags", [(), CONFINED], ids=["stock", "confined"])
@pytest.mark.parametrize("what", INHERITED)
def test_what_data_into_a_door_of_the_parent_does_to_the_stock_receive(
    server: HostileHost, what: str, flags: tuple[str, ...]
) -> None:
    server.prepare()
    door, *harms = INHERITED[what]
    older = hostile_streams.head(OLDER, path=b"older") + door(server.place) + END
    server.receive(older, ATTACKER, *flags)
    stream = hostile_streams.head(server.place.own, parent=OLDER) + write(b"door", EVIL) + END
    done = server.receive(stream, ATTACKER, *flags, ok=None)
    server.host.run(["btrfs", "subvolume", "delete", f"{ATTACKER}/older"])
    assert server.harm(done) == harms[bool(flags)], done.stderr


@pytest.mark.parametrize("what", INHERITED)
def test_data_into_a_door_of_the_parent_goes_nowhere(server: HostileHost, what: str) -> None:
    server.prepare()
    door, *_ = INHERITED[what]
    with server.connected() as (wire, _):
        stream = hostile_streams.head(OLDER) + door(server.place) + END
        assert isinstance(sent(wire, Begin("job", "older", OLDER, CTRANSID), stream, 1), Committed)
        before = server.listing()
        stream = hostile_streams.head(server.place.own, parent=OLDER) + write(b"door", EVIL) + END
        message = Begin("job", "evil", server.place.own, CTRANSID, send_parent=OLDER)
        assert isinstance(sent(wire, message, stream, 1), Failed)
    assert server.is_untouched()
    assert server.listing() == before


@pytest.mark.parametrize("what", INHERITED)
def test_data_into_a_door_of_what_came_before_the_cut_goes_nowhere(server: HostileHost, what: str) -> None:
    server.prepare()
    hang_up_amid(server, OLDER, 1, INHERITED[what][0](server.place))
    before = server.listing()
    with server.connected() as (wire, inventory):
        (entry,) = inventory.partials["job"]
        message = Begin(
            "job", "evil", OLDER, CTRANSID, offset_bytes=entry.offset_bytes, digest=entry.proofs[-1].digest
        )
        assert isinstance(sent(wire, message, write(b"door", EVIL) + END, 1), Failed)
    assert server.is_untouched()
    assert server.listing() == before


def test_a_name_with_a_newline_is_a_name(server: HostileHost) -> None:
    server.prepare()
    with server.connected() as (wire, _):
        message = Begin("job", "odd", server.place.own, CTRANSID)
        assert isinstance(sent(wire, message, NEWLINE(server.place), 1), Committed)
    assert [path.name for path in (server.host.path(ATTACKER) / "odd").iterdir()] == ["two\nlines\x1b[31m"]
