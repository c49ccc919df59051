"""The processes of the machine as /proc shows them: parents, command lines, namespaces."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
STOPPED = frozenset("tT")
DEAD = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process: `state` as in proc(5), `argv` empty for a kernel thread or a zombie."""

    pid: int
    parent: int
    state: str
    name: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.argv)[:200] or self.name}"


def read(pid: int) -> ProcessInfo | None:
    """Return one process, or None if there is none."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    argv = tuple(words.rstrip("\0").split("\0")) if words else ()
    return ProcessInfo(pid, int(fields[1]), fields[0], name, argv)


def everything() -> dict[int, ProcessInfo]:
    """Return every process that this pid namespace shows."""
    pids = [int(entry) for entry in os.listdir(PROC) if entry.isdecimal()]
    return {pid: info for pid in pids if (info := read(pid)) is not None}


def descendants(root: int) -> dict[int, ProcessInfo]:
    """Return the children of a process, their children and so on; not itself."""
    seen = everything()
    found: dict[int, ProcessInfo] = {}
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        for info in seen.values():
            if info.parent == parent and info.pid not in found:
                found[info.pid] = info
                waiting.append(info.pid)
    return found


def pid_namespace(pid: int) -> str | None:
    """Return the pid namespace of a process as a text to compare, or None if it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(PROC / str(pid) / "ns" / "pid")
    return None
