"""`btrsync serve` below whatever mount the administrator has made: a transfer is cut there and goes on."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import StorageError
from btrsync.protocol import Abort, Committed, Failed, Hello
from btrsync.system import btrfs
from btrsync.system.mounts import mount_of
from harness import command
from tests.kernel.test_serve import Place, connected, cut, ended, equal
from tests.kernel.test_serve_partials import go_on, kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


@contextlib.contextmanager
def mounted_at(point: Path, *words: str | Path) -> Iterator[Path]:
    """A mount besides the one that is there; gives a directory on it."""
    point.mkdir()
    command.run(["mount", *words, point])
    try:
        root = point / "root"
        root.mkdir(mode=0o700)
        yield root
        delete_backups(root)
    finally:
        command.run(["umount", point])


def delete_backups(root: Path) -> None:
    for path in root.glob("*/*/s*"):
        btrfs.delete_subvolume(path)


def mirror(place: Place) -> None:
    """See that a full backup is cut and goes on, and that an incremental one follows."""
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(cut(stream))
        client.wire.send(Abort("enough"))
        client.expect(Failed)
    with connected(place) as client:
        client.hello()
        assert isinstance(go_on(client, place.begin("s1"), stream, kept(place)), Committed)
        begin = place.begin("s2", send_parent=place.begin("s1").uuid)
        assert isinstance(client.send(begin, place.stream("s2", "s1")), Committed)
    equal(place, "s1")
    equal(place, "s2")


def test_below_a_mount_of_one_subvolume(place: Place, tmp_path: Path) -> None:
    found = mount_of(place.root)
    subvolume = place.root.parent / "subvolume"
    command.run(["btrfs", "subvolume", "create", subvolume])
    name = found.root / subvolume.relative_to(found.mount_point)
    with mounted_at(tmp_path / "point", "-o", f"subvol={name}", found.source) as root:
        mirror(Place(place.source, root))
    btrfs.delete_subvolume(subvolume)


def test_in_a_directory_of_an_odd_name(place: Place) -> None:
    root = place.root.parent / os.fsdecode(b"a b\\c\nd#\t'\"\xff-\xc3\xa9")
    root.mkdir()
    odd = Place(place.source, root)
    mirror(odd)
    delete_backups(root)


def test_a_directory_that_is_mounted_by_itself_is_refused_before_anything_comes(
    place: Place, tmp_path: Path
) -> None:
    with mounted_at(tmp_path / "point", "--bind", place.root) as root:
        bound = Place(place.source, root)
        with connected(bound) as client:
            client.wire.send(Hello("run", "test", "0", 1))
            client.expect(Hello)
            assert "btrfs receive finds no send parent" in client.expect(Failed).message
            assert ended(client) == StorageError.exit_status
        assert bound.listing() == []
        with connected(bound) as client:
            assert client.hello(is_look_only=True).jobs == {}
