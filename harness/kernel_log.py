"""What the kernel has said since a marker, and which of it must never be said."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import loop
from harness.identity import PREFIX, run_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

KMSG = Path("/dev/kmsg")
RECORD_BYTES = 8192
ALARMS = (
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops:",
    "general protection fault:",
    "possible recursive locking",
    "possible circular locking",
    "oom-kill",
    "invoked oom-killer",
    "UBSAN:",
)
"""Said by no healthy kernel. Source: _check_dmesg of xfstests, common/rc."""
KNOWN = (
    # btrfs_ioctl_send() ends well with entries left in a table of its own. Seen on 6.18 where a removed
    # directory held a nested subvolume (docs/behaviours.md, losses), and now and then with ordinary
    # trees that arrive whole: what arrives is compared in every test, so the warning decides nothing.
    re.compile(r"WARNING: .* at fs/btrfs/send\.c:\d+ btrfs_ioctl_send\+"),
)
"""Bugs of the kernel that strike without our doing: a rumour, whoever is at work."""
BTRFS_ALARM = re.compile(r"BTRFS (?:error|critical) \(device ([^ )]+)")


class Marker:
    """A place in the kernel log: `with Marker() as marker: …; marker.lines()`."""

    def __init__(self) -> None:
        """Only remember; entering opens the log at its end."""
        self._fd = -1

    def __enter__(self) -> Self:
        """Open the log. Raises OSError where it cannot be read."""
        self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lines(self) -> list[str]:
        """Return what was said since the marker or the last call.

        Source: Documentation/ABI/testing/dev-kmsg: one record a read; EPIPE if some were lost.
        """
        said: list[str] = []
        while True:
            try:
                record = os.read(self._fd, RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue
                if error.errno == errno.EAGAIN:
                    return said
                raise
            text = record.decode(errors="replace").partition(";")[2]
            said.append(text.splitlines()[0] if text else "")


class Watch:
    """Collects the alarms about the loop devices that this process has at the time they are said.

    What the kernel says about itself bears no device. While another session of this harness has
    loop devices, it may be that one's doing: then it is a rumour and no alarm.
    `is_alone`: there can be no other session, so that nothing is a rumour.
    """

    def __init__(self, *, is_alone: bool) -> None:
        """Only remember; entering opens the log."""
        self._is_alone = is_alone
        self._marker = Marker()
        self._lock = threading.Lock()
        self._alarms: list[str] = []
        self._has_neighbours = False
        self._count = 0

    def __enter__(self) -> Self:
        """Open the log, and look into it before each change of our devices."""
        self._marker.__enter__()
        loop.uses.observers.append(self._collect)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._collect in loop.uses.observers:
            loop.uses.observers.remove(self._collect)
        self._marker.__exit__()

    def _collect(self) -> None:
        files = () if self._is_alone else loop.attached().values()
        with self._lock:
            self._has_neighbours |= any(PREFIX in file and run_prefix() not in file for file in files)
            self._alarms += alarms(self._marker.lines(), loop.uses.current)

    def begin(self) -> None:
        """Forget what was said until now: it is nobody's or another's."""
        self._collect()
        with self._lock:
            self._alarms.clear()
            self._has_neighbours = False
            self._count = loop.uses.count
        self._collect()

    def end(self) -> tuple[list[str], list[str]]:
        """Return alarms and rumours since `begin`; none if no loop device was in use meanwhile."""
        self._collect()
        if loop.uses.count == self._count and not loop.uses.current:
            return [], []
        certain = [line for line in self._alarms if self._is_certain(line)]
        return certain, [line for line in self._alarms if line not in certain]

    def _is_certain(self, line: str) -> bool:
        if any(known.search(line) for known in KNOWN):
            return False
        return not self._has_neighbours or BTRFS_ALARM.search(line) is not None


def problem() -> str | None:
    """Return why the kernel log cannot be read here, or None."""
    try:
        with Marker() as marker:
            marker.lines()
    except OSError as error:
        return f"{KMSG}: {error.strerror}"
    return None


def alarms(lines: Iterable[str], devices: Iterable[Path]) -> list[str]:
    """Return the lines that no test should cause unless it says so.

    devices: ours. What btrfs says about a device counts only if it is one of them, for the log is
    one for the whole machine, neighbours included.
    """
    names = {device.name for device in devices}
    found = []
    for line in lines:
        about = BTRFS_ALARM.search(line)
        if any(alarm in line for alarm in ALARMS) or (about is not None and about.group(1) in names):
            found.append(line)
    return found
