"""What `btrsync serve` keeps of a transfer that was cut, and how the next one goes on from it."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from btrsync import partials
from btrsync.errors import IntegrityError, NoSpaceError, RefusedError
from btrsync.protocol import Abort, Begin, Committed, End, Failed, PartialEntry, Progress, Stream, Total
from btrsync.stream.head import parse_first_command
from btrsync.system import btrfs
from harness import command, wait
from tests.kernel.test_serve import connected, cut, ended, equal, flipped, hang_up, replace_message

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def names(place: Place) -> list[str]:
    """What lies in the job's directory."""
    return [name.rpartition("/")[2] for name in place.listing() if name.count("/") == 2]


def backups(place: Place) -> list[str]:
    return [name for name in names(place) if not name.startswith(".")]


def often(place: Place, tmp_path: Path, **settings: object) -> Path:
    """A server's configuration with many checkpoints."""
    fields = {"root": str(place.root), "checkpoint_bytes": 1 << 20, **settings}
    config = tmp_path / "server.toml"
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in fields.items()]
    config.write_text("\n".join(lines) + "\n")
    config.chmod(0o600)
    return config


def interrupted(place: Place, stream: bytes, begin: Begin | None = None) -> PartialEntry:
    """Hang up in the middle of `stream`, and return what the server says that it has kept."""
    with connected(place) as client:
        client.hello()
        client.begin(begin or place.begin("s1"))
        client.data(stream)
        hang_up(client)
        assert ended(client) == 5
    return kept(place)


def kept(place: Place) -> PartialEntry:
    with connected(place) as client:
        (entry,) = client.hello(is_look_only=True).partials["share"]
    return entry


def going_on(begin: Begin, entry: PartialEntry) -> Begin:
    return replace_message(begin, offset_bytes=entry.offset_bytes, digest=entry.proofs[-1].digest)


def go_on(client: Client, begin: Begin, stream: bytes, entry: PartialEntry) -> object:
    return client.send(going_on(begin, entry), rest_of(stream, entry))


def rest_of(stream: bytes, entry: PartialEntry, end: int | None = None) -> bytes:
    """What comes behind what was kept; its offset counts from behind the first command."""
    first = parse_first_command(stream)
    assert first is not None
    return stream[first.size_bytes + entry.offset_bytes : end]


def test_a_client_that_vanishes_has_its_transfer_kept_and_goes_on(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, cut(stream))
    assert 0 < entry.offset_bytes <= len(stream) // 2
    assert len(names(place)) == 2
    with connected(place) as client:
        client.hello()
        committed = go_on(client, place.begin("s1"), stream, entry)
        assert isinstance(committed, Committed)
        assert committed.data_bytes == 20 * 50_000
        incremental = client.send(
            place.begin("s2", send_parent=place.begin("s1").uuid), place.stream("s2", "s1")
        )
        assert isinstance(incremental, Committed)
    assert names(place) == ["s1", "s2"]
    equal(place, "s1")
    equal(place, "s2")


def test_a_transfer_goes_on_as_often_as_it_is_cut(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, stream[: len(stream) // 8])
    for eighth in range(2, 8):
        end = len(stream) * eighth // 8
        before = entry
        entry = interrupted(place, rest_of(stream, entry, end), going_on(place.begin("s1"), entry))
        assert entry.offset_bytes > before.offset_bytes
        assert entry.proofs[:-1] == before.proofs
        assert len(names(place)) == 2
    with connected(place) as client:
        client.hello()
        assert isinstance(go_on(client, place.begin("s1"), stream, entry), Committed)
    assert names(place) == ["s1"]
    equal(place, "s1")


def test_an_incremental_transfer_goes_on_too(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
    begin = place.begin("s2", send_parent=place.begin("s1").uuid)
    stream = place.stream("s2", "s1")
    entry = interrupted(place, stream[:-10], begin)
    assert entry.send_parent == begin.send_parent
    with connected(place) as client:
        client.hello()
        assert isinstance(go_on(client, begin, stream, entry), Committed)
    assert names(place) == ["s1", "s2"]
    equal(place, "s2")


def test_a_total_that_is_counted_while_data_comes_stands_in_the_record(place: Place) -> None:
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(stream[: len(stream) // 4])
        client.wire.send(Total(1_000_000))
        client.data(stream[len(stream) // 4 : len(stream) // 2])
        hang_up(client)
        assert ended(client) == 5
    entry = kept(place)
    assert (entry.total_bytes, place.begin("s1").total_bytes) == (1_000_000, None)
    with connected(place) as client:
        client.hello()
        assert isinstance(go_on(client, place.begin("s1"), stream, entry), Committed)
    equal(place, "s1")


def test_a_client_that_gives_up_is_told_what_was_kept(place: Place) -> None:
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(cut(stream))
        client.wire.send(Abort("stopped by SIGINT"))
        failed = client.expect(Failed)
        assert "stopped by SIGINT" in failed.message
        assert failed.kept_bytes > 0
        # On the same connection.
        assert isinstance(go_on(client, place.begin("s1"), stream, kept(place)), Committed)
    equal(place, "s1")


def test_a_server_that_is_asked_to_stop_keeps_what_came_and_says_so(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(cut(place.stream("s1")))
        wait.until(lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive")
        os.kill(client.server.pid, signal.SIGTERM)
        while isinstance(message := client.wire.receive(), Progress):
            pass
        assert isinstance(message, Failed)
        assert message.is_retryable
        assert message.kept_bytes > 0
        assert ended(client) == 128 + signal.SIGTERM
    assert kept(place).offset_bytes == message.kept_bytes


def test_a_killed_server_falls_back_to_its_last_checkpoint(place: Place, tmp_path: Path) -> None:
    config = often(place, tmp_path, checkpoint_bytes=300_000)
    stream = place.stream("s1")
    with connected(place, config=config) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(stream[:-60_000])
        wait.until(
            lambda: len(list(place.root.glob("*/*/.partial-*.json"))), timeout_s=10, what="a checkpoint"
        )
        while not isinstance(message := client.wire.receive(), Progress) or not message.offset_bytes:
            pass
        os.kill(client.server.pid, signal.SIGKILL)
        hang_up(client)
    with connected(place) as client:
        inventory = client.hello()
        (entry,) = inventory.partials["share"]
        assert 300_000 <= entry.offset_bytes < len(stream)
        assert isinstance(go_on(client, place.begin("s1"), stream, entry), Committed)
    assert names(place) == ["s1"]
    equal(place, "s1")


def test_checkpoints_come_by_time_as_well(place: Place, tmp_path: Path) -> None:
    config = often(place, tmp_path, checkpoint_bytes=1 << 40, checkpoint_seconds=1)
    stream = place.stream("s1")
    with connected(place, config=config) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(cut(stream))
        wait.until(lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive")
        assert not list(place.root.glob("*/*/.partial-*"))
        time.sleep(1.1)
        client.data(stream[len(cut(stream)) : -1000])
        wait.until(
            lambda: len(list(place.root.glob("*/*/.partial-*.json"))), timeout_s=10, what="a checkpoint"
        )


@pytest.mark.parametrize("has_partial", [False, True])
def test_a_refusal_behind_a_checkpoint_leaves_the_directory_as_it_was(
    place: Place, tmp_path: Path, *, has_partial: bool
) -> None:
    stream = place.stream("s1")
    begin, rest, start = place.begin("s1"), stream, 0
    if has_partial:
        entry = interrupted(place, stream[: len(stream) // 4])
        begin, rest, start = going_on(begin, entry), rest_of(stream, entry), entry.offset_bytes
    with connected(place, config=often(place, tmp_path, checkpoint_bytes=200_000)) as client:
        client.hello()
        before = place.listing()
        client.begin(begin)
        client.data(rest[:-5_000])
        wait.until(lambda: set(place.listing()) - set(before), timeout_s=10, what="a receive")
        while not isinstance(message := client.wire.receive(), Progress) or message.offset_bytes <= start:
            pass
        assert len(place.listing()) > len(before)
        client.data(stream[-5_000:] + stream)
        while isinstance(answer := client.wire.receive(), Progress):
            pass
        assert isinstance(answer, Failed)
        assert "goes on behind its END" in answer.message
        client.wire.send(Abort("so be it"))
        assert [name for name in place.listing() if "share/" in name] == [
            name for name in before if "share/" in name
        ]


def test_a_partial_that_receive_does_not_survive_twice_is_given_up(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, stream[: len(stream) // 4])
    rest = rest_of(stream, entry)
    for attempt in range(partials.MAX_FAILURES):
        with connected(place) as client:
            assert len(client.hello().partials["share"]) == 1, attempt
            answer = client.send(going_on(place.begin("s1"), entry), flipped(rest))
            assert isinstance(answer, Failed)
    with connected(place) as client:
        assert client.hello().partials == {}
    assert names(place) == []


def test_another_partial_than_there_is_cannot_be_gone_on_from(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, cut(stream))
    wrong = {
        "offset": {"offset_bytes": entry.offset_bytes + 1, "digest": entry.proofs[-1].digest},
        "digest": {"offset_bytes": entry.offset_bytes, "digest": bytes(32)},
        "ctransid": {"offset_bytes": entry.offset_bytes, "digest": entry.proofs[-1].digest, "ctransid": 1},
    }
    with connected(place) as client:
        client.hello()
        before = place.listing()
        for what, changes in wrong.items():
            answer = client.send(replace_message(place.begin("s1"), **changes), stream)
            assert isinstance(answer, Failed), what
            assert answer.exit_status == RefusedError.exit_status
            assert "no partial" in answer.message
            assert place.listing() == before


def test_to_go_on_in_another_stream_version_is_refused(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, cut(stream))
    with connected(place) as client:
        client.hello()
        before = place.listing()
        client.wire.send(going_on(place.begin("s1"), entry))
        client.wire.receive()
        client.wire.send(Stream(2, is_compressed=True))
        failed = client.expect(Failed)
        assert "another stream version" in failed.message
        client.wire.send(Abort("so be it"))
        assert place.listing() == before


def test_to_begin_anew_replaces_the_partial_in_the_end(place: Place) -> None:
    stream = place.stream("s1")
    interrupted(place, cut(stream))
    (old,) = place.root.glob("*/*/.partial-*.json")
    entry = interrupted(place, stream[: len(stream) // 8])
    assert 0 < entry.offset_bytes < len(stream) // 8
    (new,) = place.root.glob("*/*/.partial-*.json")
    assert new != old
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), stream), Committed)
    assert names(place) == ["s1"]
    equal(place, "s1")


def test_an_end_that_does_not_fit_what_came_behind_a_partial_leaves_it(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, cut(stream))
    with connected(place) as client:
        client.hello()
        before = place.listing()
        client.begin(going_on(place.begin("s1"), entry))
        client.data(rest_of(stream, entry))
        client.wire.send(End(7))
        assert client.expect(Failed).exit_status == IntegrityError.exit_status
        assert place.listing() == before


@pytest.mark.parametrize("snapshot", ["s1", "s2"])
def test_a_partial_beside_which_its_snapshot_or_a_later_one_has_no_room_is_given_up(
    place: Place, tmp_path: Path, snapshot: str
) -> None:
    config = often(place, tmp_path)
    with config.open("a") as file:
        file.write("[clients.workstation]\nquota_bytes = 1000\n")
    entry = interrupted(place, cut(place.stream("s1")))
    for _ in range(partials.MAX_FAILURES):
        with connected(place, config=config) as client:
            assert client.hello().partials == {"share": [entry]}
            before = place.listing()
            client.wire.send(place.begin(snapshot, total_bytes=1001))
            assert client.expect(Failed).exit_status == NoSpaceError.exit_status
            assert place.listing() == before
    with connected(place) as client:
        assert client.hello().partials == {}
    assert names(place) == []


def test_a_partial_whose_backup_is_there_goes_before_anything_else(place: Place) -> None:
    stream = place.stream("s1")
    entry = interrupted(place, cut(stream))
    (record,) = place.root.glob("*/*/.partial-*.json")
    content, partial = msgspec.json.decode(record.read_bytes()), record.with_suffix("")
    # A crash between the backup's rename and the partial's deletion, played: what was, put back.
    hidden = place.root / "hidden"
    command.run(["btrfs", "subvolume", "snapshot", "-r", partial, hidden])
    with connected(place) as client:
        client.hello()
        assert isinstance(go_on(client, place.begin("s1"), stream, entry), Committed)
    command.run(["btrfs", "subvolume", "snapshot", "-r", hidden, partial])
    btrfs.delete_subvolume(hidden)
    content["partial_uuid"] = str(btrfs.subvolume(partial).uuid)
    record.write_bytes(msgspec.json.encode(content))
    with connected(place) as client:
        looked = client.hello(is_look_only=True)
        (before,) = looked.jobs["share"]
        assert before.copies == 2
    with connected(place) as client:
        inventory = client.hello()
        assert inventory.leftovers_deleted == [f"share/{partial.name}"]
        (after,) = inventory.jobs["share"]
        assert after.copies == 1
        assert inventory.partials == {}
    assert names(place) == ["s1"]


def test_what_no_record_describes_and_what_describes_nothing_is_swept(place: Place) -> None:
    interrupted(place, cut(place.stream("s1")))
    (record,) = place.root.glob("*/*/.partial-*.json")
    record.write_bytes(b"{}")
    stray = record.with_name(".partial-0123456789abcdef.json")
    stray.write_bytes(b"half")
    aside = record.with_name("..partial-0123456789abcdef.json.00112233")
    aside.write_bytes(b"")
    with connected(place) as client:
        assert client.hello().partials == {}
    assert names(place) == []


@pytest.mark.parametrize(("made", "count"), [("2026-01-01T00:00:00Z", 0), ("2096-01-01T00:00:00Z", 1)])
def test_an_old_partial_expires_and_one_from_the_future_stays(
    place: Place, tmp_path: Path, made: str, count: int
) -> None:
    interrupted(place, cut(place.stream("s1")))
    (path,) = place.root.glob("*/*/.partial-*.json")
    content = msgspec.json.decode(path.read_bytes())
    content["entry"][-1] = made
    path.write_bytes(msgspec.json.encode(content))
    with connected(place, config=often(place, tmp_path, partial_ttl_days=1)) as client:
        assert len(client.hello().partials.get("share", [])) == count
    assert len(names(place)) == 2 * count
