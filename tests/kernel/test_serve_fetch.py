"""What `btrsync serve` gives back, asked by a client that these tests play by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from btrsync.errors import ProtocolError, RefusedError
from btrsync.protocol import Begin, Committed, End, Failed, Fetch, PartialEntry, Proof, Ready, Stream
from btrsync.stream.head import parse_first_command
from btrsync.system import btrfs
from btrsync.target import backup_entry
from btrsync.wire import Data
from tests.kernel.test_serve import connected, cut, ended, hang_up
from tests.kernel.test_serve_partials import kept

if TYPE_CHECKING:
    from pathlib import Path

    from btrsync.protocol import AnyMessage
    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


@pytest.fixture
def allowed(place: Place, tmp_path: Path) -> Path:
    """The configuration of a server that holds both snapshots, another client's too, and lets this one fetch."""
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
        second = place.begin("s2", send_parent=place.begin("s1").uuid)
        assert isinstance(client.send(second, place.stream("s2", "s1")), Committed)
    config = tmp_path / "server.toml"
    config.write_text(f'root = "{place.root}"\n[clients.workstation]\nallow_fetch = true\n')
    config.chmod(0o600)
    return config


def answered(client: Client, fetch: Fetch) -> AnyMessage | Data:
    client.wire.send(fetch)
    return client.wire.receive()


def taken(client: Client) -> bytes:
    """The stream of a fetch that has begun, committed as if it had been received."""
    client.wire.send(Ready("6.2"))
    assert client.expect(Stream).stream_version in {1, 2}
    stream = bytearray()
    while isinstance(message := client.wire.receive(), Data):
        while len(block := client.wire.read_body(message.size_bytes)) < message.size_bytes:
            message = Data(message.size_bytes - len(block))
            stream += block
        stream += block
    assert message == End(len(stream))
    return bytes(stream)


def test_a_client_gets_back_what_it_has_sent(place: Place, allowed: Path) -> None:
    before = place.listing()
    first, second = place.begin("s1").uuid, place.begin("s2").uuid
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        begin = answered(client, Fetch("share", "s2", first))
        assert isinstance(begin, Begin)
        assert (begin.name, begin.uuid, begin.send_parent, begin.total_bytes) == ("s2", second, first, 7)
        head = parse_first_command(taken(client))
        assert head is not None
        assert (head.uuid, head.parent_uuid, head.ctransid) == (second, first, begin.ctransid)
        client.wire.send(Committed(backup_entry("s2", btrfs.subvolume(place.snapshot("s2")), 1)))
        again = answered(client, Fetch("share", "s1", is_look_only=True))
        assert isinstance(again, Begin)
        assert (again.uuid, again.send_parent, again.total_bytes) == (first, None, 20 * 50_000)
    assert place.listing() == before


def test_without_leave_nothing_is_given_back(place: Place, allowed: Path) -> None:
    allowed.write_text(f'root = "{place.root}"\n[clients.workstation]\n')
    before = place.listing()
    for config, remedy in (
        (allowed, "`allow_fetch = true` in [clients.workstation]"),
        (None, "--allow-fetch"),
    ):
        with connected(place, config=config) as client:
            client.hello(is_look_only=True)
            failed = answered(client, Fetch("share", "s1"))
            assert isinstance(failed, Failed)
            assert failed.exit_status == RefusedError.exit_status
            assert "the client workstation may not fetch its backups" in failed.message
            assert remedy in str(failed.hint)
            assert str(allowed.parent) not in f"{failed.message} {failed.hint}"
    assert place.listing() == before


def test_nothing_but_the_clients_own_backups_is_found(place: Place, allowed: Path) -> None:
    # Another client's, which a path would lead to.
    other = place.root / "other" / "share"
    other.mkdir(parents=True)
    btrfs.create_snapshot(place.directory / "share" / "s1", other / "s1")
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        for job, name in (
            ("share", "nosuch"), ("nosuch", "s1"), ("../other/share", "s1"), ("share", "../share/s1"), ("", ""),
            (".", "share"), ("share", "."), ("share/s1", "."), ("share", "s1\0"), ("share", "s1/"), ("other", "s1"),
        ):  # fmt: skip
            failed = answered(client, Fetch(job, name))
            assert isinstance(failed, Failed), (job, name)
            assert "there is no backup" in failed.message
        assert isinstance(answered(client, Fetch("share", "s1", is_look_only=True)), Begin)


def test_no_partial_is_given_back_and_none_is_a_parent(place: Place, allowed: Path) -> None:
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("big"))
        client.data(cut(place.stream("big")))
        hang_up(client)
        assert ended(client) == 5
    entry = kept(place)
    (name,) = [
        name for name in btrfs.subvolumes_in(place.directory / "share") if name.startswith(".partial-")
    ]
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        for fetch in (Fetch("share", name), Fetch("share", "big"), Fetch("share", "s1", entry.uuid)):
            assert isinstance(answered(client, fetch), Failed)


def test_what_was_edited_on_the_server_is_neither_given_back_nor_a_parent(
    place: Place, allowed: Path
) -> None:
    backup = place.directory / "share" / "s1"
    btrfs.set_readonly(backup, readonly=False)
    first = place.begin("s1").uuid
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        for fetch in (Fetch("share", "s1"), Fetch("share", "s2", first), Fetch("share", "s2", uuid4())):
            assert isinstance(answered(client, fetch), Failed)


LIES: tuple[dict[str, Any], ...] = (
    {"stream_version": 3}, {"stream_version": 0}, {"is_compressed": True}, {"proofs": []}, {"ctransid": 1},
    {"proofs": [Proof(-5, b"")]}, {"proofs": [Proof(50, b"x" * 32)]}, {"proofs": [Proof(1 << 62, b"x" * 32)]},
    {"proofs": [Proof(50, b""), Proof(40, b"")]}, {"uuid": uuid4()}, {"send_parent": uuid4()},
)  # fmt: skip


def test_a_lie_about_what_the_client_has_begins_anew(place: Place, allowed: Path) -> None:
    found = btrfs.subvolume(place.directory / "share" / "s1")
    fields: dict[str, Any] = {
        "name": "s1", "uuid": place.begin("s1").uuid, "ctransid": found.ctransid, "send_parent": None,
        "clone_sources": [], "stream_version": 1, "is_compressed": False, "proofs": [Proof(100, b"x" * 32)],
        "data_bytes": 1, "total_bytes": None, "made": found.created,
    }  # fmt: skip
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        for changes in LIES:
            begin = answered(client, Fetch("share", "s1", partial=PartialEntry(**{**fields, **changes})))
            assert isinstance(begin, Begin), (changes, begin)
            assert begin.offset_bytes == 0
            assert parse_first_command(taken(client)) is not None
            client.wire.send(Committed(backup_entry("s1", found, 1)))


def test_who_asks_for_a_backup_and_then_sends_one_is_out_of_turn(place: Place, allowed: Path) -> None:
    before = place.listing()
    with connected(place, config=allowed) as client:
        client.hello(is_look_only=True)
        assert isinstance(answered(client, Fetch("share", "s1")), Begin)
        client.wire.send(place.begin("big"))
        assert client.expect(Failed).exit_status == ProtocolError.exit_status
        assert ended(client) == ProtocolError.exit_status
    assert place.listing() == before
