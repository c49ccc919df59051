"""A thousand snapshots on either side: a run that finds nothing to do stays quick."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from harness import ioctls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

COUNT = 1000
SET_FLAGS = 0x4008941A
SET_RECEIVED = 0xC0C89425
"""BTRFS_IOC_SUBVOL_SETFLAGS and BTRFS_IOC_SET_RECEIVED_SUBVOL. Source: linux/btrfs.h, 64-bit."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def snapshot_uuids(both: TwoHosts) -> dict[str, uuid.UUID]:
    """Return the UUID of every subvolume of the workstation's disk by its last name."""
    lines = both.workstation.run(["btrfs", "subvolume", "list", "-u", "/home/foo"]).stdout.splitlines()
    found = {}
    for line in lines:
        fields = line.split()
        found[fields[-1].rpartition("/")[2]] = uuid.UUID(fields[fields.index("uuid") + 1])
    return found


def snap_a_thousand_times(both: TwoHosts) -> None:
    with opened(both.source()) as source, opened(both.source() / "snapshots") as directory:
        for number in range(COUNT):
            ioctls.create_snapshot(source, directory, b"snapshot-%014d" % number)


def receive_a_thousand_times(both: TwoHosts) -> None:
    """Make what a thousand receives would have left: read-only, with the received UUID."""
    uuids = snapshot_uuids(both)
    backups = both.backup_directory()
    with opened(backups) as directory:
        ioctls.create_subvolume(directory, b"empty")
        with opened(backups / "empty") as empty:
            for number in range(COUNT):
                name = f"snapshot-{number:014d}"
                ioctls.create_snapshot(empty, directory, name.encode(), readonly=False)
                with opened(backups / name) as backup:
                    received = struct.pack("16sQQQIQIQ128x", uuids[name].bytes, 1, 0, 0, 0, 0, 0, 0)
                    fcntl.ioctl(backup, SET_RECEIVED, bytearray(received.ljust(200, b"\0")[:200]))
                    fcntl.ioctl(backup, SET_FLAGS, struct.pack("Q", 2))
        ioctls.delete_subvolume(directory, b"empty")


def quicker(both: TwoHosts) -> float:
    """Return the seconds of the quicker of two runs that find nothing to do."""
    runs = [both.sync() for _ in range(2)]
    assert {run.outcome()["result"] for run in runs} == {"nothing_changed"}
    return min(float(run.report["seconds"]) for run in runs)


def test_a_thousand_snapshots_on_either_side_cost_less_than_a_second(both: TwoHosts) -> None:
    both.sync()
    few = quicker(both)
    began = time.monotonic()
    snap_a_thousand_times(both)
    receive_a_thousand_times(both)
    print(f"made in {time.monotonic() - began:.1f} s")
    both.sync()
    listed = both.btrsync("list").stdout.splitlines()
    assert sum(" both " in line for line in listed) == len(both.backups()) > COUNT
    many = quicker(both)
    print(f"with few {few:.3f} s, with a thousand {many:.3f} s")
    assert many - few < 1.0
