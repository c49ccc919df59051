"""The room that `btrsync serve` gives a client: what is free, and what its quota leaves it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from btrsync.errors import NoSpaceError
from btrsync.protocol import Abort, Committed, End, Failed, Inventory, Progress, Ready
from btrsync.system import btrfs
from harness import command
from tests.kernel.test_serve import connected, equal, hang_up, replace_message
from tests.kernel.test_serve_sessions import say_hello

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

S1_BYTES = 20 * 50_000


def with_quota(place: Place, tmp_path: Path, quota_bytes: int) -> Path:
    config = tmp_path / "server.toml"
    # With checkpoints: what is refused must not leave these behind either.
    config.write_text(
        f'root = "{place.root}"\ncheckpoint_bytes = 200000\n'
        f"[clients.workstation]\nquota_bytes = {quota_bytes}\n"
    )
    config.chmod(0o600)
    return config


def test_the_inventory_tells_what_is_free(place: Place) -> None:
    with connected(place) as client:
        available_bytes = client.hello().available_bytes
    assert available_bytes is not None
    assert abs(available_bytes - btrfs.space(place.root).available_bytes) < 64 << 20


@pytest.fixture
def uncompressed(place: Place) -> Iterator[None]:
    mount_point = place.root.parent
    command.run(["mount", "-o", "remount,compress=no", mount_point])
    yield
    command.run(["mount", "-o", "remount,compress=lzo", mount_point])


def test_what_cannot_fit_is_refused_before_its_first_byte(place: Place, uncompressed: None) -> None:
    with connected(place) as client:
        available_bytes = client.hello().available_bytes
        assert available_bytes is not None
        before = place.listing()
        client.wire.send(replace_message(place.begin("s1"), total_bytes=available_bytes + 1))
        failed = client.expect(Failed)
        assert failed.exit_status == NoSpaceError.exit_status
        assert "are free on the server" in failed.message
        assert place.listing() == before
        # And the conversation goes on.
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)


def test_on_a_compressing_target_the_same_is_a_warning(place: Place) -> None:
    with connected(place) as client:
        available_bytes = client.hello().available_bytes
        assert available_bytes is not None
        client.wire.send(replace_message(place.begin("s1"), total_bytes=available_bytes + 1))
        ready = client.expect(Ready)
        assert ready.warning is not None
        assert "before compression" in ready.warning
        client.wire.send(Abort("that was all"))
        client.expect(Failed)


def test_who_writes_more_than_was_announced_is_stopped(place: Place) -> None:
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        assert isinstance(
            client.send(replace_message(place.begin("s1"), total_bytes=S1_BYTES), stream), Committed
        )
    with connected(place) as client:
        client.hello()
        before = place.listing()
        lie = replace_message(place.begin("big"), total_bytes=0)
        answer = client.send(lie, place.stream("big"))
        assert isinstance(answer, Failed)
        assert "it writes more than" in answer.message
        assert place.listing() == before


def test_a_quota_is_what_all_backups_may_have_written(place: Place, tmp_path: Path) -> None:
    config = with_quota(place, tmp_path, S1_BYTES + 500_000)
    with connected(place, config=config) as client:
        assert client.hello().available_bytes == S1_BYTES + 500_000
        begin = replace_message(place.begin("s1"), total_bytes=S1_BYTES)
        assert isinstance(client.send(begin, place.stream("s1")), Committed)
    with connected(place, config=config) as client:
        assert client.hello().available_bytes == 500_000
        before = place.listing()
        client.wire.send(replace_message(place.begin("big"), total_bytes=4 << 20))
        failed = client.expect(Failed)
        assert "quota" in failed.message
        # Nor may it come unannounced.
        answer = client.send(place.begin("big"), place.stream("big"))
        assert isinstance(answer, Failed)
        assert "it writes more than" in answer.message
        assert place.listing() == before
        increment = replace_message(
            place.begin("s2", send_parent=place.begin("s1").uuid), total_bytes=len(b"changed")
        )
        assert isinstance(client.send(increment, place.stream("s2", "s1")), Committed)
    with connected(place, config=config) as client:
        assert client.hello().available_bytes == 500_000 - len(b"changed")
    equal(place, "s2")
    # What is deleted does not count any more.
    for name in ("s1", "s2"):
        btrfs.delete_subvolume(place.directory / "share" / name)
    with connected(place, config=config) as client:
        assert client.hello().available_bytes == S1_BYTES + 500_000


def test_two_sessions_of_one_run_do_not_use_one_quota_twice(place: Place, tmp_path: Path) -> None:
    config = with_quota(place, tmp_path, S1_BYTES + 500_000)
    run_id = uuid4().hex
    with connected(place, config=config) as first, connected(place, config=config) as second:
        assert isinstance(say_hello(first, run_id, 0), Inventory)
        assert isinstance(say_hello(second, run_id, 1), Inventory)
        stream = place.stream("s1")
        # Both begin while all of it is left.
        first.begin(place.begin("s1"))
        other = replace_message(place.begin("s1"), job="other")
        second.begin(other)
        first.data(stream)
        second.data(stream)
        first.wire.send(End(len(stream)))
        assert isinstance(answer_of(first), Committed)
        second.wire.send(End(len(stream)))
        failed = answer_of(second)
        assert isinstance(failed, Failed)
        assert failed.exit_status == NoSpaceError.exit_status
        assert "have used up the quota" in failed.message
        hang_up(second)
    assert not list(place.directory.glob("other/*"))


def answer_of(client: Client) -> object:
    """Return what the server says at the end of a transfer."""
    while isinstance(message := client.wire.receive(), Progress):
        pass
    return message
