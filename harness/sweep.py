"""Undoing what a dead, uncontained run left: what is on its ledger, if it still is what it was.

Host commands used: `umount`, `cryptsetup`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command, dmcrypt, ledger, loop, wait
from harness.identity import PREFIX, ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

END_S = 5.0


@dataclass(slots=True)
class Remains:
    """The ledger of a dead run: what it had and did not give back, the latest first."""

    path: Path
    prefix: str
    entries: list[dict[str, Any]] = field(default_factory=list)

    def owns_loop(self, device: str) -> bool:
        """Whether a loop device still stands on this run's own file."""
        now = loop.backing(Path(device))
        return now is not None and any(
            entry["acquire"] == "loop"
            and (entry["device"], entry["file_device"], entry["inode"]) == (device, now.device, now.inode)
            and now.name.startswith(self.prefix)
            for entry in self.entries
        )


def read_ledger(path: Path) -> Remains:
    """Return what a ledger says is still held. A last line cut by the SIGKILL is left out."""
    held: dict[int, dict[str, Any]] = {}
    prefix = ""
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "prefix" in line:
            prefix = str(line["prefix"])
        elif "acquire" in line:
            held[line["serial"]] = line
        elif "release" in line:
            held.pop(line["serial"], None)
    return Remains(path, prefix, list(reversed(held.values())))


def dead_ledgers() -> Iterator[Remains]:
    """Yield the ledgers of runs that are no more; one whose owner lives is not looked at."""
    where = ledger.directory()
    for path in sorted(where.glob("*-*.jsonl")) if where.is_dir() else ():
        pid, _, start_ticks = path.stem.partition("-")
        if pid.isdecimal() and start_ticks.isdecimal():
            remains = read_ledger(path) if not ProcessIdentity(int(pid), int(start_ticks)).is_alive else None
            if remains is not None and (remains.prefix.startswith(PREFIX) or not remains.entries):
                yield remains


def sweep(*, dry_run: bool = False) -> tuple[list[str], list[str]]:
    """Undo what dead runs left. Returns (what was or would be done, what could not be), as sentences.

    A ledger is deleted when all of it is undone; otherwise the next sweep tries again.
    """
    done: list[str] = []
    failed: list[str] = []
    for remains in dead_ledgers():
        problems = []
        for entry in remains.entries:
            try:
                words = _undo(remains, entry, dry_run=dry_run)
            except (command.CommandFailed, wait.NeverCame, OSError) as error:
                problems.append(f"{entry['acquire']} of {remains.path.name}: {error}")
                continue
            if words:
                done.append(words)
        if not problems and not dry_run:
            remains.path.unlink(missing_ok=True)
        failed += problems
    if not dry_run:
        with contextlib.suppress(OSError):
            ledger.directory().rmdir()
    return done, failed


def _undo(remains: Remains, entry: dict[str, Any], *, dry_run: bool) -> str | None:
    """Undo one acquisition if it is still there; return what that was, or None."""
    match entry["acquire"]:
        case "process":
            return _end_process(ProcessIdentity(entry["pid"], entry["start_ticks"]), dry_run=dry_run)
        case "mount":
            return _unmount(remains, entry["point"], entry["source"], dry_run=dry_run)
        case "loop":
            return _detach(remains, entry["device"], dry_run=dry_run)
        case "mapping":
            return _close_mapping(remains, entry["name"], entry["device"], dry_run=dry_run)
        case other:
            raise OSError(f"a ledger entry of an unknown kind: {other}")


def _end_process(identity: ProcessIdentity, *, dry_run: bool) -> str | None:
    if not identity.is_alive:
        return None
    if not dry_run:
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGKILL)
        wait.until(lambda: not identity.is_alive, timeout_s=END_S, what=f"the end of process {identity.pid}")
    return f"host, first process {identity.pid}"


def _unmount(remains: Remains, point: str, source: str, *, dry_run: bool) -> str | None:
    escaped = point.replace("\\", "\\134").replace(" ", "\\040")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] != escaped:
            continue
        # btrfs shows any of its members as the source: each must be a loop device of this run.
        shown = rest.split()[1]
        if shown == source or remains.owns_loop(shown):
            if not (remains.owns_loop(shown) or _mapping_is_ours(remains, shown)):
                continue
            if not dry_run:
                command.run(["umount", point])
            return f"mount {point} of {shown}"
    return None


def _mapping_is_ours(remains: Remains, device: str) -> bool:
    for directory in Path("/sys/block").glob("dm-*"):
        if (directory / "dm" / "name").read_text().strip() == Path(device).name:
            return any(remains.owns_loop(f"/dev/{slave.name}") for slave in (directory / "slaves").iterdir())
    return False


def _detach(remains: Remains, device: str, *, dry_run: bool) -> str | None:
    if not remains.owns_loop(device):
        return None
    if not dry_run:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                fcntl.ioctl(fd, loop.LOOP_CLR_FD)
        finally:
            os.close(fd)
        wait.until(lambda: not remains.owns_loop(device), timeout_s=END_S, what=f"{device} detached")
    return f"loop device {device}"


def _close_mapping(remains: Remains, name: str, device: str, *, dry_run: bool) -> str | None:
    # The name alone proves nothing: btrdm_01 may be the real array's by now.
    if not _mapping_is_ours(remains, name):
        return None
    if not dry_run:
        command.run(dmcrypt.close_argv(name), env=dmcrypt.ENVIRONMENT)
    return f"mapping {name} on {device}"
