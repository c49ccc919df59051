"""Room on disk: where the loop devices' files lie, how large they are, and whether there is space."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from harness.filesystem import GIB
from harness.rehearsal.problems import UNFIT, CannotRehearse
from harness.rehearsal.show import format_bytes

TREE_BYTES = {"small": 4_000_000, "medium": 85_000_000, "large": 1_150_000_000}
"""What the generated trees hold, by `--size`."""
OVERHEAD_BYTES = 256_000_000
"""Metadata twice, logs, and what the changes of the steps add: measured at 170 MB for a medium tree."""


@dataclass(frozen=True, slots=True)
class Room:
    """directory: for the files; source_bytes, member_bytes: of the workstation's disk and daisy's four."""

    directory: Path
    source_bytes: int
    member_bytes: int


def directory() -> Path:
    """Return $TMPDIR, or /var/tmp, which is not in memory. Raises CannotRehearse if it will not do."""
    path = Path(os.environ.get("TMPDIR") or "/var/tmp")
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise CannotRehearse(
            f"{path}: the disks of the rehearsal cannot be put there: no directory that can be written",
            exit_status=UNFIT,
            hint="set TMPDIR to one",
        )
    return path


def make(tree_bytes: int, *, jobs: int, local_targets: int, step_bytes: int) -> Room:
    """Return how large the disks have to be; the files are sparse, and cost what is written to them.

    tree_bytes: of one job's tree; step_bytes: what the steps add to each. Raises CannotRehearse (3),
    with what is needed and what there is.
    """
    where = directory()
    data_bytes = jobs * (tree_bytes + step_bytes)
    copies = 2 + local_targets
    wanted_bytes = copies * data_bytes + OVERHEAD_BYTES
    status = os.statvfs(where)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < wanted_bytes:
        raise CannotRehearse(
            f"{where} has {format_bytes(free_bytes)} free, and this rehearsal needs about"
            f" {format_bytes(wanted_bytes)} there: {copies} copies of the data",
            exit_status=UNFIT,
            hint="set TMPDIR to a directory with more room, or rehearse with less: --size small",
        )
    # Generous, for btrfs gives out its space by the gigabyte; sparse, so that it costs nothing.
    return Room(where, _rounded(2 * data_bytes + GIB), _rounded(data_bytes + GIB))


def check(tree_bytes: int) -> None:
    """See that a guest's disk has room here: a tree, its backup, and as much again for what the steps add.

    Raises CannotRehearse (3).
    """
    make(tree_bytes, jobs=1, local_targets=0, step_bytes=tree_bytes)


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // GIB) * GIB


def measure(source: Path) -> int:
    """Return the bytes of the files below a directory, on its own file system only, as `cp -ax` takes them.

    Only looks. Raises CannotRehearse, which names what cannot be read.
    """
    total_bytes = 0
    seen: set[int] = set()
    waiting = [source]
    try:
        device = os.stat(source).st_dev
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        if status.st_dev == device:
                            waiting.append(Path(entry.path))
                    elif stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                        # A sparse file is copied as one; a hard link once.
                        total_bytes += min(status.st_size, status.st_blocks * 512)
                        if status.st_nlink > 1:
                            seen.add(status.st_ino)
    except OSError as error:
        raise CannotRehearse(
            f"--source: {error.filename or source} cannot be read: {error.strerror}"
        ) from error
    return total_bytes
