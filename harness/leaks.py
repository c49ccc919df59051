"""What a session holds, read from the kernel, and what it left behind: the difference of two readings."""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from harness import containment, ledger, loop, processes, wait
from harness.identity import PREFIX, run_prefix

SETTLE_S = 2.0
KINDS = re.compile(r"^(socket|pipe|anon_inode|net|mnt|pid|uts|ipc|user):.*")


@dataclass(frozen=True, slots=True)
class Holdings:
    """One reading: every field maps what is held to words for a person."""

    loops: dict[str, str]
    mounts: dict[str, str]
    namespaces: dict[str, str]
    processes: dict[str, str]
    descriptors: Counter[str]
    acquisitions: dict[str, str]


def read() -> Holdings:
    """Read what is held now: by this process and its children, or in the whole containment."""
    running = _processes()
    return Holdings(
        loops={str(device): f"{device} on {file}" for device, file in loop.attached().items()},
        mounts=_mounts(),
        namespaces=_namespaces(running),
        processes={str(pid): str(info) for pid, info in running.items()},
        descriptors=_descriptors(),
        acquisitions={str(entry.serial): f"{entry.kind} {entry.facts}" for entry in ledger.held()},
    )


def _processes() -> dict[int, processes.ProcessInfo]:
    if not containment.is_contained():
        return processes.descendants(os.getpid())
    # Orphans too: here every process but the first one and ourselves is of this session.
    mine = {1, os.getpid()}
    parent = processes.read(os.getpid())
    while parent is not None and parent.parent > 0:
        mine.add(parent.parent)
        parent = processes.read(parent.parent)
    return {pid: info for pid, info in processes.everything().items() if pid not in mine}


def _mounts() -> dict[str, str]:
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        source = line.partition(" - ")[2].split()
        found[f"{fields[0]} {fields[4]}"] = f"{fields[4]} ({source[0]} from {source[1]})"
    return found


def _namespaces(running: dict[int, processes.ProcessInfo]) -> dict[str, str]:
    found = {}
    named = Path("/run/netns")
    if named.is_dir():
        found = {f"name {entry.name}": f"/run/netns/{entry.name}" for entry in named.iterdir()}
    own = os.readlink("/proc/self/ns/net")
    for pid, info in running.items():
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/net")
            if namespace != own:
                found[namespace] = f"{namespace} of process {info}"
    return found


def _descriptors() -> Counter[str]:
    """Count our open descriptors by what they are; the numbers of sockets and pipes say nothing."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[KINDS.sub(r"\1", os.readlink(entry))] += 1
    # The directory just read is open too, once, as /proc/PID/fd.
    found.pop(f"/proc/{os.getpid()}/fd", None)
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was left behind, and what appeared that is somebody else's, as sentences."""

    leaks: tuple[str, ...]
    foreign: tuple[str, ...]


def difference(before: Holdings, after: Holdings, *, is_alone: bool) -> Verdict:
    """Return what is in the second reading but not in the first.

    is_alone: nobody else works on this machine, so a new loop device or mount without our prefix
    is a leak too; otherwise it may be a neighbour's, and is only mentioned.
    """
    leaks: list[str] = []
    foreign: list[str] = []
    for key, words in after.loops.items():
        if before.loops.get(key) != words:
            if is_alone or run_prefix() in words:
                leaks.append(f"loop device {words}")
            elif PREFIX not in words:
                # Another session of ours looks after its own.
                foreign.append(f"loop device {words}")
    mounts_are_ours = is_alone or containment.is_contained()
    mounts = [f"mount {words}" for key, words in after.mounts.items() if key not in before.mounts]
    (leaks if mounts_are_ours else foreign).extend(mounts)
    for kind, old, new in (
        ("namespace", before.namespaces, after.namespaces),
        ("process", before.processes, after.processes),
        ("on the ledger still:", before.acquisitions, after.acquisitions),
    ):
        leaks += [f"{kind} {words}" for key, words in new.items() if key not in old]
    grown = after.descriptors - before.descriptors
    leaks += [f"open descriptor {name} ({count} more than before)" for name, count in grown.items()]
    return Verdict(tuple(leaks), tuple(foreign))


def is_alone() -> bool:
    """Whether nobody else can be at work on this machine: so in CI, and nowhere else for sure."""
    return bool(os.environ.get("CI"))


def since(before: Holdings, *, settle_s: float = SETTLE_S) -> Verdict:
    """Return what was left behind since a reading, after the kernel had `settle_s` seconds to let go."""
    latest = [Verdict((), ())]

    def is_clean() -> bool:
        gc.collect()
        latest[0] = difference(before, read(), is_alone=is_alone())
        return not latest[0].leaks

    with contextlib.suppress(wait.NeverCame):
        wait.until(is_clean, timeout_s=settle_s, what="nothing left behind", interval_s=0.05)
    return latest[0]
