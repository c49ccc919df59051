"""What the kernel has said since a marker, and which of it must never be said."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

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
