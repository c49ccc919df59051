"""A process's own view of the mounts, in which `btrfs receive` runs with as few rights as it needs.

Receive is confined to a directory by chroot (its -C). In a mount namespace of ours that directory lies on a
mount that is ours alone, besides, on which no symbolic link is followed, no device opened and nothing run:
what an earlier stream, or the send parent, has put there leads nowhere.

Host commands used: `prlimit`, `setpriv`.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from btrsync.errors import StorageError
from btrsync.system.mounts import mount_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# <linux/mount.h>, <linux/sched.h>
CLONE_NEWNS: Final = 0x20000
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOSYMFOLLOW: Final = 256
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
ST_NOSYMFOLLOW: Final = 0x2000
"""In statfs(2), since Linux 5.10; kernels before it pass over MS_NOSYMFOLLOW without a word."""
_WANTED: Final = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | ST_NOSYMFOLLOW

CAPABILITIES: Final = (
    "chown",
    "dac_override",  # a tree that its owner cannot read
    "dac_read_search",
    "fowner",  # modes, times and attributes of others' files
    "fsetid",  # set-group-ID on files of other groups
    "linux_immutable",  # what newer versions do with FILEATTR
    "mac_admin",  # security.selinux labels that this machine's policy does not know, security.SMACK64
    "mac_override",  # what has such a label is written to afterwards
    "mknod",
    "setfcap",  # security.capability
    "sys_admin",  # receive's ioctls, trusted.* and security.ima attributes
    "sys_chroot",
    "sys_resource",  # where the administrator lifts btrfs' quotas for root (quota_override)
)
"""What receive keeps of root's rights; a capability too few would lose what a rare inode holds."""
MAX_MEMORY_BYTES: Final = 1 << 30
"""Of address space: many times what decompression takes (measured: 30 MB)."""
MAX_FILES: Final = 256

VIEW: Final = Path("/proc/fs")
"""Where the private mount is. The directory is there on every Linux, so none is made anywhere, and nothing
that serve looks at is below it: our own paths go on leading to where the administrator has mounted it."""

_is_entered = False


@contextmanager
def private_view(directory: Path) -> Iterator[Path]:
    """The time in which `directory` can be reached by the path given, on a mount that is ours alone.

    Our process gets a mount namespace of its own the first time; what is unmounted outside is unmounted in
    it too. The mount has the same root as the one that holds `directory`: receive looks for parents from
    there (do_receive(), cmds/receive.c). One view at a time, and in the main thread. Raises OSError, or
    StorageError if it cannot be had: then nothing may be received. Source: unshare(2), mount(2),
    mount_namespaces(7).
    """
    _enter()
    directory = directory.resolve()
    origin = mount_of(directory).mount_point
    flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW
    # A read-only mount is not made writable by a second one.
    flags |= os.statvfs(directory).f_flag & os.ST_RDONLY
    point = os.fsencode(VIEW)
    _call("mount", os.fsencode(origin), point, None, MS_BIND, None, what=f"bind {origin}")
    try:
        _call("mount", None, point, None, flags, None, what=f"restrict {origin}")
        view = VIEW / directory.relative_to(origin)
        if os.statvfs(view).f_flag & _WANTED != _WANTED:
            raise StorageError(
                f"{origin} cannot be mounted so that no symbolic link is followed,"
                " and without that nothing is received",
                hint="this needs Linux 5.10 or later",
            )
        yield view
    finally:
        _call("umount2", point, MNT_DETACH, what=f"release {origin}")


def confined_argv() -> list[str]:
    """Return the words before the argv of a `btrfs receive`: its limits and its rights."""
    return [
        "prlimit", "--core=0", f"--nofile={MAX_FILES}", f"--as={MAX_MEMORY_BYTES}",
        "setpriv", "--no-new-privs",
        "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)]),
    ]  # fmt: skip


def _enter() -> None:
    global _is_entered  # noqa: PLW0603  our main thread has one mount namespace
    # unshare() is for the calling thread, and for those that it starts later.
    assert threading.current_thread() is threading.main_thread()
    if _is_entered:
        return
    _call("unshare", CLONE_NEWNS, what="make a mount namespace of its own")
    # Before this, what is mounted here would be mounted outside as well.
    _call("mount", None, b"/", None, MS_REC | MS_SLAVE, None, what="keep its mounts to itself")
    _is_entered = True


def _call(name: str, *arguments: object, what: str) -> None:
    import ctypes  # late: a run that finds nothing to do receives nothing

    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise StorageError(
            f"cannot {what}: {name}: {os.strerror(number)}; without it nothing is received",
            hint="who receives must be root, with CAP_SYS_ADMIN",
        )
