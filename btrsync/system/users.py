"""Who uses a mounted filesystem: processes, other mount namespaces, loop devices and swap."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.system.mounting import btrfs_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROC: Final = Path("/proc")
LOOPS: Final = Path("/sys/block")
SWAPS: Final = Path("/proc/swaps")


class User(msgspec.Struct, frozen=True):
    """One that keeps a filesystem from being unmounted; pid 0 for what is no process."""

    pid: int
    what: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.what})" if self.pid else self.what


def users_of(numbers: Sequence[str]) -> list[User]:
    """Return who has something open on the btrfs that is mounted from these devices ("254:0").

    A file is known by the mount it was opened through (fdinfo in proc(5)), so that no subvolume and no
    namespace hides it. Not seen: what the kernel itself holds, such as exports of NFS.
    """
    ids, points = _mount_ids(numbers)
    found = [
        User(pid, _name(pid)) for pid in _pids() if pid != os.getpid() and not ids.isdisjoint(_opened(pid))
    ]
    return found + list(_kernel_users(points))


def namespaces_of(numbers: Sequence[str]) -> list[User]:
    """Return one process for each other mount namespace in which that btrfs is mounted."""
    ours = _namespace(os.getpid())
    seen = {ours}
    found = []
    for pid in _pids():
        namespace = _namespace(pid)
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):
            if btrfs_mounts(numbers, PROC / str(pid) / "mountinfo"):
                found.append(User(pid, _name(pid)))
    return found


def _mount_ids(numbers: Sequence[str]) -> tuple[set[int], set[Path]]:
    """Return the numbers of its mounts in all namespaces, and the mount points in ours."""
    ids: set[int] = set()
    seen = set()
    for pid in _pids():
        namespace = _namespace(pid)
        if namespace in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):
            ids |= {one.id for one in btrfs_mounts(numbers, PROC / str(pid) / "mountinfo")}
    return ids, {one.mount_point for one in btrfs_mounts(numbers)}


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "it has just ended"


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(PROC / str(pid) / "ns/mnt")
    except OSError:
        return None


def _opened(pid: int) -> Iterator[int]:
    """Yield the mount of each file, directory and mapping that a process holds; none once it has ended."""
    process = PROC / str(pid)
    with contextlib.suppress(OSError):
        for name in os.listdir(process / "fd"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = (process / "fdinfo" / name).read_text()
                yield int(text.partition("mnt_id:")[2].split()[0])
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links += [process / "map_files" / name for name in os.listdir(process / "map_files")]
    for link in links:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
            try:
                text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            finally:
                os.close(fd)
            yield int(text.partition("mnt_id:")[2].split()[0])


def _kernel_users(points: set[Path]) -> Iterator[User]:
    for loop in sorted(LOOPS.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            file = Path(loop.read_text().strip())
            if points & {file, *file.parents}:
                yield User(0, f"/dev/{loop.parents[1].name}, a loop device on {file}")
    with contextlib.suppress(OSError):
        for line in SWAPS.read_text().splitlines()[1:]:
            file = Path(line.split()[0])
            if points & {file, *file.parents}:
                yield User(0, f"swap on {file}; swapoff {file}")
