"""The console of a guest: a file that it is written to, watched for words no healthy kernel says."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ALARM = re.compile(
    r"Kernel panic - not syncing|\bBUG: |kernel BUG at |\bOops: |Oops\b.*\[#|general protection fault"
    r"|Segfault with no mm|Kernel tried to access user memory|Out of memory: Killed process"
    r"|^btrsync: guest: fails: "
)
"""After these nothing that a guest says counts. A WARNING is for the tests to judge."""
LONGEST_LINE = 4096


class Console:
    """The console's file: `alarm()` reads on where it read last, `text()` gives all of this boot."""

    def __init__(self, path: Path) -> None:
        """Begin at the file's present end."""
        self.path = path
        self.path.touch(mode=0o644)
        self._begin = self._at = path.stat().st_size
        self._rest = ""
        self._alarm: str | None = None

    def alarm(self) -> str | None:
        """Return the first line of this boot that says the kernel has failed, or None."""
        if self._alarm is None:
            for line in self._new_lines():
                if ALARM.search(line):
                    self._alarm = line.strip()
                    break
        return self._alarm

    def text(self) -> str:
        """Return what was said since this boot began."""
        return self._read(self._begin)

    def _read(self, offset: int) -> str:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace").replace("\r\n", "\n")

    def _new_lines(self) -> list[str]:
        size = os.stat(self.path).st_size  # noqa: PTH116 - many times a second
        if size == self._at:
            return []
        new = self._read(self._at)
        self._at = size
        *lines, self._rest = (self._rest + new).split("\n")
        self._rest = self._rest[-LONGEST_LINE:]
        # A last line without its end is looked at too: after a panic nothing may follow.
        return [*lines, self._rest]
