"""Who we are to others: the prefix of this run's resources, and a process named so that no later one fits."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "btrsync-harness-"
"""Every resource with a name of its own carries it; a sweep touches nothing else."""


@functools.cache
def run_prefix() -> str:
    """Return the prefix of the resources of this very process, such as `btrsync-harness-3fa9c1-`."""
    return f"{PREFIX}{secrets.token_hex(3)}-"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process: its pid alone may belong to another one tomorrow, with the start time it cannot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of a running process; ProcessLookupError if there is none.

        Source: proc(5), /proc/pid/stat, field 22.
        """
        return cls(pid, int(_fields(pid)[19]))

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        try:
            fields = _fields(self.pid)
        except ProcessLookupError:
            return False
        return int(fields[19]) == self.start_ticks and fields[0] not in "ZX"


def _fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from field 3, the state, on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The name in field 2 may hold spaces and brackets; what follows the last one is not of it.
    return text.rpartition(")")[2].split()
