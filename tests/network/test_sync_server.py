"""A server that cannot take a backup: no space, no array, a wrong or read-only filesystem, wrong modes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from harness import faults
from harness.scenario import SERVER_FILE, SERVER_ROOT
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")


def test_no_space_in_the_middle_of_a_receive_is_told_and_leaves_nothing(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.add_bulk(both, size_bytes=30_000_000)
    with faults.FullFilesystem(both.daisy.path("/MirrorRoot"), free_bytes=8_000_000):
        before = mirror.lasting(both.server_listing())
        synced = both.sync(ok=(8,))
        said = mirror.words(synced)
        assert "no space left at the receiving end in /MirrorRoot/btrsync/workstation/share" in said
        assert "free space there, or add a disk" in said
        assert mirror.visible_backups(both) == [first]
        assert [line.split()[0] for line in mirror.lasting(both.server_listing())] == [
            line.split()[0] for line in before
        ]
        assert both.snapshots() == [first]
    name = mirror.assert_mirrored(both, both.sync())
    assert both.backups() == both.snapshots() == [first, name]


@contextlib.contextmanager
def not_there(both: TwoHosts) -> Iterator[None]:
    root = both.daisy.path(SERVER_ROOT)
    root.rename(root.with_name("aside"))
    yield
    assert not root.exists()
    root.with_name("aside").rename(root)


@contextlib.contextmanager
def mounted_read_only(both: TwoHosts) -> Iterator[None]:
    both.daisy.run(["mount", "-o", "remount,ro", "/MirrorRoot"])
    yield
    both.daisy.run(["mount", "-o", "remount,rw", "/MirrorRoot"])


@contextlib.contextmanager
def writable_by_others(both: TwoHosts) -> Iterator[None]:
    both.daisy.path(SERVER_ROOT).chmod(0o777)
    yield
    both.daisy.path(SERVER_ROOT).chmod(0o700)


@contextlib.contextmanager
def somebody_elses(both: TwoHosts) -> Iterator[None]:
    both.daisy.run(["chown", "nobody", SERVER_ROOT])
    yield
    both.daisy.run(["chown", "root", SERVER_ROOT])


@contextlib.contextmanager
def configured(both: TwoHosts, text: str) -> Iterator[None]:
    both.daisy.path("/srv/backups").mkdir(parents=True, exist_ok=True)
    before = both.daisy.read_text(SERVER_FILE)
    both.daisy.write_text(SERVER_FILE, text)
    yield
    assert os.listdir(both.daisy.path("/srv/backups")) == []
    both.daisy.write_text(SERVER_FILE, before)


@contextlib.contextmanager
def without_configuration(both: TwoHosts) -> Iterator[None]:
    before = both.daisy.read_text(SERVER_FILE)
    both.daisy.path(SERVER_FILE).unlink()
    yield
    both.daisy.write_text(SERVER_FILE, before)


def with_configuration(text: str) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: configured(both, text)


SERVERS: dict[str, tuple[Callable[[TwoHosts], AbstractContextManager[None]], int, str, str]] = {
    "a root that is not there": (
        not_there, 8, "/MirrorRoot/btrsync is not there", "is the array open and mounted?"
    ),
    "a root on another filesystem": (
        with_configuration('root = "/srv/backups"\n'),
        8, "/srv/backups is not on a btrfs filesystem", "is the array mounted?",
    ),
    "a root mounted read-only": (
        mounted_read_only, 8, "/MirrorRoot is mounted read-only", "remount,rw /MirrorRoot"
    ),
    "a root that others may write": (
        writable_by_others, 8, "/MirrorRoot/btrsync must be a directory that only root can write", "chmod go-w"
    ),
    "a root of somebody else": (
        somebody_elses, 8, "/MirrorRoot/btrsync must be a directory that only root can write", "chown root:root"
    ),
    "no configuration": (
        without_configuration, 3, "/etc/btrsync/server.toml: there is no such file", "sample server"
    ),
    "a configuration with an unknown key": (
        with_configuration(f'root = "{SERVER_ROOT}"\nrot = 13\n'), 3, "rot: unknown key; did you mean root?", ""
    ),
    "a configuration without this client": (
        with_configuration(f'root = "{SERVER_ROOT}"\n[clients.laptop]\n'),
        10, "the client 'workstation' may not connect", "[clients.workstation]",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusing() -> Iterator[TwoHosts]:
    """Two hosts for all tests that change nothing: they leave each other what they found."""
    with mirror.small() as made:
        yield made


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_is_not_set_up_says_what_is_wrong_and_takes_nothing(
    refusing: TwoHosts, name: str
) -> None:
    broken, status, message, hint = SERVERS[name]
    before = [line.split()[0] for line in refusing.server_listing()]
    with broken(refusing):
        synced = refusing.sync(ok=(status,))
        said = mirror.words(synced)
        assert message in said
        assert hint in said
        assert "\n" not in synced.outcome()["error"]["message"]
    assert refusing.snapshots() == [], "nothing was made on the client"
    assert [line.split()[0] for line in refusing.server_listing()] == before
