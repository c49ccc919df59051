"""Which mount holds a path, asked of the kernel, with mounts made for it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import StorageError
from btrsync.system.mounts import missing_mount, mount_of
from harness import command
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

MIB = 1 << 20


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    command.run(["mount", *words])
    try:
        yield
    finally:
        command.run(["umount", words[-1]])


def test_a_subvolume_is_held_by_the_mount_above_it(tmp_path: Path) -> None:
    with Array(1, 128 * MIB, label="mounts") as array:
        with mount(array, tmp_path / "m", options="noatime", subvolume="mirror") as point:
            device = str(array.devices[0])
            command.run(["btrfs", "subvolume", "create", point / "inner"])
            (point / "inner" / "directory").mkdir()
            found = mount_of(point / "inner" / "directory")
            assert found == mount_of(point)
            assert os.stat(point / "inner").st_dev != os.stat(point).st_dev  # so that would not tell
    assert found.mount_point == tmp_path / "m"
    assert str(found.root) == "/mirror"
    assert (found.fstype, found.source) == ("btrfs", device)
    assert "noatime" in found.options
    assert "subvol=/mirror" in found.super_options
    assert not found.is_readonly


def test_two_mounts_of_one_filesystem_are_told_apart(tmp_path: Path) -> None:
    with Array(1, 128 * MIB, label="mounts") as array:
        with mount(array, tmp_path / "m", options="", subvolume=None) as top:
            (tmp_path / "again").mkdir()
            with mounted("--bind", "-o", "ro", top, tmp_path / "again"):
                assert not mount_of(top).is_readonly
                again = mount_of(tmp_path / "again")
                assert again.is_readonly
                assert again.mount_point == tmp_path / "again"
                assert "ro" not in again.super_options


def test_a_mount_over_another_is_the_one_that_counts(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    with mounted("-t", "tmpfs", "first", inner):
        with mounted("-t", "tmpfs", "second", inner):
            assert mount_of(inner).source == "second"
        assert mount_of(inner).source == "first"
        with mounted("-t", "tmpfs", "above", tmp_path / "outer"):
            inner.mkdir()
            assert mount_of(inner).source == "above"
        assert mount_of(inner).source == "first"


def test_a_mount_that_was_moved_is_found_where_it_is(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with mounted("-t", "tmpfs", "there", tmp_path / "there"):
        (tmp_path / "there" / "deep").mkdir()
        command.run(["mount", "-t", "tmpfs", "moved", tmp_path / "here"])
        command.run(["mount", "--move", tmp_path / "here", tmp_path / "there" / "deep"])
        try:
            assert mount_of(tmp_path / "there" / "deep").source == "moved"
            assert mount_of(tmp_path / "here").source != "moved"
        finally:
            command.run(["umount", tmp_path / "there" / "deep"])


def test_odd_names_and_symbolic_links_lead_to_the_right_mount(tmp_path: Path) -> None:
    odd = tmp_path / "a b\tc\nd\\e \N{HIRAGANA LETTER A}"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    with mounted("-t", "tmpfs", "odd", odd):
        assert mount_of(odd).mount_point == odd
        assert mount_of(tmp_path / "link" / ".").mount_point == odd


def test_a_filesystem_turned_readonly_is_readonly_through_every_mount(tmp_path: Path) -> None:
    with (
        Array(1, 128 * MIB, label="mounts") as array,
        mount(array, tmp_path / "m", options="ro", subvolume=None) as top,
    ):
        found = mount_of(top)
        assert found.is_readonly
        assert "ro" in found.super_options


def test_what_is_not_there_is_held_by_no_mount(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        mount_of(tmp_path / "missing")


def test_a_mount_point_of_fstab_without_its_mount_is_found_from_below(tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    point, other = tmp_path / "mirror root", tmp_path / "other"
    line = str(point).replace(" ", "\\040")
    fstab.write_text(f"# LABEL=x {other} btrfs\n\nLABEL=x {line} btrfs noauto 0 0\nnone swap swap\nbroken\n")
    (point / "btrsync").mkdir(parents=True)
    other.mkdir()
    assert missing_mount(point / "btrsync", fstab=fstab) == point
    assert missing_mount(point, fstab=fstab) == point
    assert missing_mount(other, fstab=fstab) is None
    assert missing_mount(point, fstab=tmp_path / "none") is None
    with Array(1, 128 * MIB, label="mounts") as array, mount(array, point, subvolume=None):
        (point / "btrsync").mkdir()
        assert missing_mount(point / "btrsync", fstab=fstab) is None
