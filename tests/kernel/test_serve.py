"""`btrsync serve` on a real filesystem, asked by a client that these tests play by hand.

Whatever the client does, the server's directory holds what it held before, or a whole backup.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID, uuid4

import pytest

from btrsync.errors import IntegrityError, LockedError, ProtocolError, RefusedError, StorageError, StreamError
from btrsync.protocol import (
    FRAME_HEADER,
    OUR_VERSIONS,
    Abort,
    Begin,
    Bye,
    Committed,
    End,
    Failed,
    FrameType,
    Hello,
    Inventory,
    Message,
    Progress,
    Ready,
    Stream,
    Versions,
    Waiting,
)
from btrsync.system import btrfs, process
from btrsync.system.mounts import missing_mount
from btrsync.target import open_target
from btrsync.wire import ClosedError, Wire
from harness import command, manifest, wait
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from btrsync.plan.snapshots import Subvolume

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

Expected = TypeVar("Expected", bound=Message)


@dataclass(frozen=True, slots=True)
class Place:
    """A source subvolume with two read-only snapshots, and an empty server root."""

    source: Path
    root: Path

    @property
    def directory(self) -> Path:
        return self.root / "workstation"

    def snapshot(self, name: str) -> Path:
        return self.source / name

    def begin(self, snapshot: str, **changes: object) -> Begin:
        found = btrfs.subvolume(self.snapshot(snapshot))
        return replace_message(Begin("share", snapshot, found.uuid, found.ctransid), **changes)

    def stream(self, name: str, send_parent: str | None = None) -> bytes:
        parent = self.snapshot(send_parent) if send_parent else None
        return process.run(btrfs.send_argv(self.snapshot(name), send_parent=parent)).stdout

    def listing(self) -> list[str]:
        """Every client, job and backup on the server, the hidden ones too, but for the lock."""
        found = [path for pattern in ("*", "*/*", "*/*/*") for path in self.root.glob(pattern)]
        return sorted(str(path.relative_to(self.root)) for path in found if path.name != ".lock")


def replace_message(begin: Begin, **changes: object) -> Begin:
    fields = {name: getattr(begin, name) for name in begin.__struct_fields__}
    return Begin(**{**fields, **changes})


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    here = tmp_path_factory.mktemp("serve")
    with (
        Array(members=1) as one,
        Array(members=2) as other,
        mount(one, here / "source", subvolume=None) as source,
        mount(other, here / "target") as target,
    ):
        live = source / "live"
        command.run(["btrfs", "subvolume", "create", live])
        for number in range(20):
            (live / f"file-{number}").write_bytes(os.urandom(50_000))
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, source / "s1"])
        (live / "file-3").write_bytes(b"changed")
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, source / "s2"])
        (live / "big").write_bytes(os.urandom(4 << 20))
        command.run(["btrfs", "subvolume", "snapshot", "-r", live, source / "big"])
        yield source, target


@pytest.fixture
def place(mounted: tuple[Path, Path]) -> Iterator[Place]:
    source, target = mounted
    root = target / uuid4().hex
    root.mkdir()
    yield Place(source, root)
    for path in root.glob("*/*/*"):
        if path.is_dir():
            btrfs.delete_subvolume(path)


class Client:
    """The client's end, by hand: `wire` speaks to a real `btrsync serve`."""

    def __init__(self, wire: Wire, server: process.Process, write_fd: int) -> None:
        self.wire = wire
        self.server = server
        self.write_fd = write_fd

    def expect(self, wanted: type[Expected]) -> Expected:
        message = self.wire.receive()
        assert isinstance(message, wanted), message
        return message

    def hello(self, *, run_id: str = "", is_look_only: bool = False) -> Inventory:
        self.wire.send(Hello(run_id or uuid4().hex, "test", "0", 1, is_look_only))
        assert self.expect(Hello).run_id
        return self.expect(Inventory)

    def data(self, block: bytes) -> None:
        for start in range(0, len(block), 1 << 18):
            part = block[start : start + (1 << 18)]
            self.wire._write(FRAME_HEADER.pack(FrameType.DATA, len(part)) + part)

    def begin(self, begin: Begin) -> None:
        self.wire.send(begin)
        assert self.expect(Ready).btrfs_progs == btrfs.progs_version()
        self.wire.send(Stream(1, is_compressed=False))

    def send(self, begin: Begin, stream: bytes) -> Message:
        self.wire.send(begin)
        answer = self.wire.receive()
        if not isinstance(answer, Ready):
            assert isinstance(answer, Message)
            return answer
        self.wire.send(Stream(1, is_compressed=False))
        self.data(stream)
        self.wire.send(End(len(stream)))
        while isinstance(answer := self.wire.receive(), Progress):
            pass
        assert isinstance(answer, Message)
        return answer


@contextlib.contextmanager
def connected(
    place: Place,
    *,
    versions: Versions = OUR_VERSIONS,
    is_greeting: bool = True,
    config: Path | None = None,
    program: Sequence[str] = ("-m", "btrsync"),
) -> Iterator[Client]:
    where = ["--root", str(place.root)] if config is None else ["--config", str(config)]
    argv = [sys.executable, *program, "serve", *where, "workstation"]
    child_read, write_fd = os.pipe()
    read_fd, child_write = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, read_fd)
        closer = stack.enter_context(contextlib.ExitStack())
        closer.callback(os.close, write_fd)
        with contextlib.ExitStack() as mine:
            mine.callback(os.close, child_read)
            mine.callback(os.close, child_write)
            server = stack.enter_context(process.spawn(argv, stdin=child_read, stdout=child_write))
        wire = stack.enter_context(Wire(read_fd, write_fd, peer="server"))
        client = Client(wire, server, write_fd)
        client.hang_up = closer.close  # type: ignore[attr-defined]
        if is_greeting:
            wire.greet(versions)
        yield client


def hang_up(client: Client) -> None:
    """Close our end without a word, as the kernel does for a killed client."""
    client.hang_up()  # type: ignore[attr-defined]


def ended(client: Client) -> int:
    return client.server.wait(timeout_s=15).returncode


def equal(place: Place, name: str) -> None:
    differences = manifest.difference(
        manifest.read(place.snapshot(name)), manifest.read(place.directory / "share" / name)
    )
    assert differences == []


def test_a_full_and_an_incremental_stream_are_committed_under_their_names(place: Place) -> None:
    with connected(place) as client:
        assert client.hello().jobs == {}
        first = client.send(place.begin("s1"), place.stream("s1"))
        assert isinstance(first, Committed)
        second = client.send(place.begin("s2", send_parent=place.begin("s1").uuid), place.stream("s2", "s1"))
        assert isinstance(second, Committed)
        client.wire.send(Bye())
        assert ended(client) == 0
    equal(place, "s1")
    equal(place, "s2")
    received: Subvolume = btrfs.subvolume(place.directory / "share" / "s2")
    assert received.is_readonly
    assert received.received_uuid == place.begin("s2").uuid
    assert received.stransid == place.begin("s2").ctransid
    assert (place.directory.stat().st_mode & 0o7777, place.directory.stat().st_uid) == (0o700, 0)
    with connected(place) as client:
        inventory = client.hello()
    assert [entry.name for entry in inventory.jobs["share"]] == ["s1", "s2"]
    assert inventory.leftovers_deleted == []


def test_the_senders_name_never_reaches_receive(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1", name="chosen-here"), place.stream("s1")), Committed)
    assert place.listing() == ["workstation", "workstation/share", "workstation/share/chosen-here"]


REFUSALS: dict[str, tuple[dict[str, object], type[RefusedError]]] = {
    "a name with a path in it": ({"name": "../escape"}, RefusedError),
    "a hidden name": ({"name": ".incoming-x"}, RefusedError),
    "an empty name": ({"name": ""}, RefusedError),
    "a job with a path in it": ({"job": "../../etc"}, RefusedError),
    "a send parent that is not there": ({"send_parent": UUID(int=7)}, RefusedError),
    "a clone source that is not there": ({"clone_sources": [UUID(int=7)]}, RefusedError),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_not_allowed_is_refused_before_a_byte_of_it(place: Place, what: str) -> None:
    changes, error = REFUSALS[what]
    with connected(place) as client:
        client.hello()
        before = place.listing()
        answer = client.send(place.begin("s1", **changes), b"")
        assert isinstance(answer, Failed)
        assert answer.exit_status == error.exit_status
        assert place.listing() == before
        # The conversation goes on.
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)


def test_a_backup_is_never_replaced(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.send(place.begin("s1"), place.stream("s1"))
        answer = client.send(place.begin("s2", name="s1"), place.stream("s2"))
        assert isinstance(answer, Failed)
        assert answer.exit_status == RefusedError.exit_status
    equal(place, "s1")


def cut(stream: bytes) -> bytes:
    return stream[: len(stream) // 2]


def flipped(stream: bytes) -> bytes:
    # In the data of the first file, which nobody but receive looks at.
    return stream[:20_000] + bytes([stream[20_000] ^ 1]) + stream[20_001:]


BROKEN_STREAMS = {
    "cut in the middle": (cut, IntegrityError.exit_status),
    "without its END command": (lambda stream: stream[:-10], IntegrityError.exit_status),
    "with a flipped bit in its data": (flipped, 6),
    "empty": (lambda _: b"", IntegrityError.exit_status),
    "no stream at all": (lambda _: b"#!/bin/sh\necho hello\n" * 10, StreamError.exit_status),
    "with a wrong first command": (lambda stream: stream[:30] + b"!!" + stream[32:], StreamError.exit_status),
}


@pytest.mark.parametrize("what", BROKEN_STREAMS)
def test_a_broken_stream_leaves_nothing(place: Place, what: str) -> None:
    spoil, status = BROKEN_STREAMS[what]
    with connected(place) as client:
        client.hello()
        before = place.listing()
        answer = client.send(place.begin("s1"), spoil(place.stream("s1")))
        assert isinstance(answer, Failed)
        assert answer.exit_status == status, answer
        assert place.listing() == before
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
    equal(place, "s1")


def test_a_stream_that_announces_something_else_is_refused(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        before = place.listing()
        for begin, words in (
            (place.begin("s1", uuid=UUID(int=9)), "the UUID"),
            (place.begin("s1", ctransid=1), "the ctransid"),
        ):
            answer = client.send(begin, place.stream("s1"))
            assert isinstance(answer, Failed)
            assert words in answer.message
        assert place.listing() == before


def test_an_incremental_stream_where_a_full_one_was_agreed_is_refused(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.send(place.begin("s1"), place.stream("s1"))
        answer = client.send(place.begin("s2"), place.stream("s2", "s1"))
        assert isinstance(answer, Failed)
        assert "the parent" in answer.message


def test_a_second_subvolume_behind_the_first_is_not_received(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.send(place.begin("s1"), place.stream("s1") + place.stream("s2") * 4)
    names = [name for name in place.listing() if name.count("/") == 2]
    assert names in ([], ["workstation/share/s1"])


def test_a_client_that_gives_up_before_it_sends_anything_leaves_nothing(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        before = place.listing()
        client.begin(place.begin("s1"))
        client.wire.send(Abort("btrfs send was killed"))
        failed = client.expect(Failed)
        assert "btrfs send was killed" in failed.message
        assert failed.kept_bytes == 0
        assert place.listing() == before


@pytest.mark.parametrize("end", [End(5), End(0, send_status=1)])
def test_an_end_that_does_not_fit_what_came_is_no_success(place: Place, end: End) -> None:
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        before = place.listing()
        client.begin(place.begin("s1"))
        client.data(stream)
        client.wire.send(end if end.size_bytes else replace_end(end, len(stream)))
        assert client.expect(Failed).exit_status == IntegrityError.exit_status
        assert place.listing() == before


def replace_end(end: End, size_bytes: int) -> End:
    return End(size_bytes, end.send_status)


def test_what_a_killed_server_left_is_swept_at_the_next_connection(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.send(place.begin("s1"), place.stream("s1"))
        client.begin(place.begin("s2"))
        client.data(cut(place.stream("s2")))
        leftover = wait.until(
            lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive"
        )
        os.kill(client.server.pid, signal.SIGKILL)
        with pytest.raises(ClosedError):
            client.wire.receive()
        hang_up(client)
    with connected(place) as client:
        inventory = client.hello()
        assert inventory.leftovers_deleted == [f"share/{leftover[0].name}"]
        assert isinstance(client.send(place.begin("s2"), place.stream("s2")), Committed)
    equal(place, "s1")
    equal(place, "s2")


def test_looking_sweeps_nothing_and_waits_for_nobody(place: Place) -> None:
    with connected(place) as busy:
        busy.hello()
        busy.begin(place.begin("s1"))
        busy.data(cut(place.stream("s1")))
        wait.until(lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive")
        before = place.listing()
        with connected(place) as looking:
            assert looking.hello(is_look_only=True).jobs == {"share": []}
            looking.wire.send(place.begin("s2"))
            assert looking.expect(Failed).exit_status == ProtocolError.exit_status
        assert place.listing() == before


def test_a_second_connection_waits_its_turn_and_is_told_for_whom(place: Place) -> None:
    with connected(place) as first, connected(place) as second:
        first.hello()
        second.wire.send(Hello(uuid4().hex, "test", "0", 1))
        second.expect(Hello)
        waiting = second.expect(Waiting)
        assert f"pid {first.server.pid}" in waiting.holder
        first.wire.send(Bye())
        while isinstance(message := second.wire.receive(), Waiting):
            pass
        assert isinstance(message, Inventory)


def test_a_second_connection_of_the_same_run_takes_over_at_once(place: Place) -> None:
    run_id = uuid4().hex
    with connected(place) as first:
        first.hello(run_id=run_id)
        first.begin(place.begin("s1"))
        first.data(cut(place.stream("s1")))
        wait.until(lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive")
        with connected(place) as second:
            second.wire.send(Hello(run_id, "test", "0", 1))
            second.expect(Hello)
            while isinstance(message := second.wire.receive(), Waiting):
                pass
            assert isinstance(message, Inventory)
            assert not list(place.root.glob("*/*/.incoming-*"))
            assert len(message.partials["share"]) == 1
            assert first.server.poll() is not None
            assert isinstance(second.send(place.begin("s1"), place.stream("s1")), Committed)
            assert [name for name in place.listing() if name.count("/") == 2] == ["workstation/share/s1"]


def test_two_with_one_received_uuid_are_counted_and_refused_as_parent(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.send(place.begin("s1"), place.stream("s1"))
    twin = place.root / "twin"
    command.run(["btrfs", "subvolume", "snapshot", "-r", place.directory / "share" / "s1", twin])
    try:
        with connected(place) as client:
            (entry,) = client.hello().jobs["share"]
            assert entry.copies == 2
            answer = client.send(
                place.begin("s2", send_parent=place.begin("s1").uuid), place.stream("s2", "s1")
            )
            assert isinstance(answer, Failed)
            assert answer.exit_status == RefusedError.exit_status
            assert "2 subvolumes" in answer.message
    finally:
        btrfs.delete_subvolume(twin)


def test_a_root_that_others_can_write_is_refused(place: Place) -> None:
    place.root.chmod(0o777)
    with connected(place) as client:
        client.wire.send(Hello("run", "test", "0", 1))
        client.expect(Hello)
        failed = client.expect(Failed)
        assert failed.exit_status == StorageError.exit_status
        assert "only root can write" in failed.message
    assert place.listing() == []


def test_a_root_that_is_not_on_btrfs_is_refused(place: Place, tmp_path: Path) -> None:
    elsewhere = replace(place, root=tmp_path)
    tmp_path.chmod(0o755)
    with connected(elsewhere) as client:
        client.wire.send(Hello("run", "test", "0", 1))
        client.expect(Hello)
        failed = client.expect(Failed)
        assert failed.exit_status == StorageError.exit_status
        assert "not on a btrfs filesystem" in failed.message
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_missing_is_not_made(place: Place) -> None:
    missing = replace(place, root=place.root / "not-mounted")
    with connected(missing) as client:
        client.wire.send(Hello("run", "test", "0", 1))
        client.expect(Hello)
        assert "is the array open and mounted?" in str(client.expect(Failed).hint)
    assert not missing.root.exists()


def test_below_an_empty_mount_point_no_clients_directory_is_made(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(f"LABEL=MirrorBtr {place.root} btrfs noauto 0 0\n")
    monkeypatch.setattr("btrsync.target.missing_mount", partial(missing_mount, fstab=fstab))
    with pytest.raises(StorageError, match="nothing is mounted there"):
        open_target(place.directory, root=place.root, is_look_only=False)
    assert place.listing() == []
    place.directory.mkdir(mode=0o700)
    open_target(place.directory, root=place.root, is_look_only=False)


def test_a_neighbouring_newer_client_is_served_and_a_far_newer_one_told_what_to_upgrade(place: Place) -> None:
    with connected(place, versions=Versions(OUR_VERSIONS.newest, OUR_VERSIONS.newest + 1)) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
    newest = OUR_VERSIONS.newest
    with connected(place, is_greeting=False) as client:
        with pytest.raises(ProtocolError, match="none in common"):
            client.wire.greet(Versions(newest + 1, newest + 2))
        assert ended(client) == ProtocolError.exit_status


def test_who_speaks_out_of_turn_is_told_so(place: Place) -> None:
    with connected(place) as client:
        client.wire.send(Bye())
        assert client.expect(Failed).exit_status == ProtocolError.exit_status
        assert ended(client) == ProtocolError.exit_status
    assert place.listing() == []


def test_a_lock_that_stays_taken_ends_in_one_sentence(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(f'root = "{place.root}"\nlock_wait_s = 1\n')
    config.chmod(0o600)
    with connected(place) as first:
        first.hello()
        argv = [sys.executable, "-m", "btrsync", "serve", "--config", str(config), "workstation"]
        child_read, write_fd = os.pipe()
        read_fd, child_write = os.pipe()
        with (
            process.spawn(argv, stdin=child_read, stdout=child_write),
            Wire(read_fd, write_fd, peer="server") as wire,
        ):
            os.close(child_read)
            os.close(child_write)
            wire.greet(OUR_VERSIONS)
            wire.send(Hello(uuid4().hex, "test", "0", 1))
            while isinstance(message := wire.receive(), (Hello, Waiting)):
                pass
        os.close(read_fd)
        os.close(write_fd)
    assert isinstance(message, Failed)
    assert message.exit_status == LockedError.exit_status
    assert message.is_retryable
    assert "busy since" in message.message
