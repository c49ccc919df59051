"""Renames that never overwrite, and files that are whole before and after."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with files.directory_opened(tmp_path) as fd:
        yield fd


def test_a_name_that_is_taken_is_not_taken_over(directory: int, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError) as caught:
        files.rename_noreplace(directory, "one", "two")
    assert (caught.value.filename, caught.value.filename2) == ("one", "two")
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["one", "two"]


def test_a_free_name_is_taken(directory: int, tmp_path: Path) -> None:
    files.rename_noreplace(directory, "one", "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three", "two"]


def test_what_is_missing_cannot_be_renamed(directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        files.rename_noreplace(directory, "missing", "three")
    with pytest.raises(FileNotFoundError):
        files.rename_exchange(directory, "one", "missing")


def test_two_names_change_places(directory: int, tmp_path: Path) -> None:
    files.rename_exchange(directory, "one", "two")
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["two", "one"]


def test_names_that_are_not_utf8_are_renamed_too(directory: int, tmp_path: Path) -> None:
    files.rename_noreplace(directory, "one", os.fsdecode(b"caf\xe9"))
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"caf\xe9", b"two"]


def test_a_directory_is_made_durable_by_path_or_descriptor(directory: int, tmp_path: Path) -> None:
    files.fsync_directory(directory)
    files.fsync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.fsync_directory(tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_written_has_its_content_and_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "record"
    before = os.umask(0o077)
    try:
        files.write_atomically(path, b"content", mode)
        files.write_atomically(path, b"other", mode)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"other"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["record"]


def test_a_file_that_others_have_open_keeps_what_they_see(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        files.write_atomically(path, b"new and longer")
        assert reader.read() == b"old"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()  # a file cannot be renamed over it
    with pytest.raises(IsADirectoryError):
        files.write_atomically(tmp_path / "record", b"content")
    assert os.listdir(tmp_path) == ["record"]


def test_a_directory_that_is_a_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), files.directory_opened(tmp_path / "file"):
        pass


@pytest.mark.requires("root")
def test_a_directory_of_somebody_else_is_opened_without_noatime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the way there may be closed to others
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            os.open(".", os.O_RDONLY | os.O_NOATIME)
        with files.directory_opened(Path()) as fd:
            assert os.listdir(fd) == []
    finally:
        os.seteuid(0)
