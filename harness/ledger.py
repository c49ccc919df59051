"""What an uncontained process has acquired, on record, so that a sweep can undo it after a SIGKILL.

JSON lines, one per acquisition and release, fsync'ed, one file per owner. A contained process
keeps no ledger: what it has vanishes with its namespaces.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from harness import containment
from harness.identity import ProcessIdentity, run_prefix

DIRECTORY_VARIABLE = "BTRSYNC_LEDGER"
DEFAULT_DIRECTORY = Path("/run/btrsync-harness")

Value = str | int


@dataclass(frozen=True, slots=True)
class Entry:
    """One acquisition: a kind (loop, mount, mapping, process, directory) and what identifies it."""

    serial: int
    kind: str
    facts: dict[str, Value]


def directory() -> Path:
    """Return where the ledgers lie: on /run, which a reboot empties as it does the rest."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)


class _Ledger:
    """The ledger of this process; the file exists only while something is held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serial = 0
        self._fd = -1
        self._path: Path | None = None
        self._held: dict[int, Entry] = {}
        self._owner = 0

    def acquire(self, kind: str, facts: dict[str, Value]) -> Entry:
        with self._lock:
            if self._owner != os.getpid():
                # A fork has the parent's entries in memory, but they are not its own to release.
                self._held.clear()
                self._owner, self._fd = os.getpid(), -1
            if not self._held:
                self._open()
            self._serial += 1
            entry = Entry(self._serial, kind, facts)
            self._held[entry.serial] = entry
            self._write({"acquire": kind, "serial": entry.serial, **facts})
            return entry

    def release(self, entry: Entry) -> None:
        with self._lock:
            if self._held.pop(entry.serial, None) is None:
                return
            self._write({"release": entry.kind, "serial": entry.serial})
            if not self._held and self._path is not None:
                os.close(self._fd)
                self._fd = -1
                self._path.unlink(missing_ok=True)

    def held(self) -> tuple[Entry, ...]:
        with self._lock:
            return tuple(self._held.values()) if self._owner == os.getpid() else ()

    def _open(self) -> None:
        me = ProcessIdentity.of(os.getpid())
        where = directory()
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = where / f"{me.pid}-{me.start_ticks}.jsonl"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write({"owner_pid": me.pid, "owner_start_ticks": me.start_ticks, "prefix": run_prefix()})

    def _write(self, line: dict[str, Value]) -> None:
        os.write(self._fd, (json.dumps(line) + "\n").encode())
        os.fsync(self._fd)


_ledger = _Ledger()


def acquire(kind: str, **facts: Value) -> Entry | None:
    """Record an acquisition, before it is made where its facts are known before.

    kind and facts: as `harness.sweep` reads them. Returns what `release` takes; None when
    contained.
    """
    if containment.is_contained():
        return None
    return _ledger.acquire(kind, facts)


def release(entry: Entry | None) -> None:
    """Record that it was given back; None and a second release are nothing."""
    if entry is not None:
        _ledger.release(entry)


def held() -> tuple[Entry, ...]:
    """Return what is acquired and not released."""
    return _ledger.held()
