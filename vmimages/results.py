"""What a guest gives back: a tar on its results disk, whose last file says that it is whole."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

DISK_BYTES = 2 << 30
"""Sparse: costs what is written."""
TRAILER = "trailer"
COMPLETE = "complete\n"
STATUS = "exit-status"


class NoResults(Exception):
    """The guest ended before it had given its results; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a guest gave back: the exit status of its command, and the directory with the rest."""

    status: int
    directory: Path


def make_disk(path: Path, size_bytes: int = DISK_BYTES) -> None:
    """Make an empty results disk."""
    with path.open("wb") as disk:
        disk.truncate(size_bytes)


def read(disk: Path, directory: Path) -> Results:
    """Unpack a results disk into `directory`, which is made, and return what it says.

    Raises NoResults if there is no trailer or no exit status: then the guest crashed.
    """
    for name in (TRAILER, STATUS):
        (directory / name).unlink(missing_ok=True)  # an earlier guest's
    try:
        with disk.open("rb") as file:
            last = unpack(file, directory)
        if last != TRAILER or (directory / TRAILER).read_text() != COMPLETE:
            raise NoResults("the results disk holds no end: the guest did not get there")
        status = int((directory / STATUS).read_text())
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise NoResults(f"the results disk cannot be read: {error}") from None
    return Results(status, directory)


def unpack(file: BinaryIO, directory: Path) -> str:
    """Unpack a tar into `directory`, which is made; return the last name in it.

    Only plain files and directories are taken, and none outside `directory`. Raises tarfile.TarError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    last = ""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            last = entry.name
            _unpack(tar, entry, directory, PurePosixPath(entry.name).parts)
    return last


def _unpack(tar: tarfile.TarFile, entry: tarfile.TarInfo, directory: Path, parts: tuple[str, ...]) -> None:
    if not parts or parts[0] == "/" or ".." in parts:
        return
    place = directory.joinpath(*parts)
    if entry.isdir():
        place.mkdir(parents=True, exist_ok=True)
    elif entry.isreg() and (file := tar.extractfile(entry)) is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as out:
            shutil.copyfileobj(file, out)
