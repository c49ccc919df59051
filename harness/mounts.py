"""The kernel calls about mounts and namespaces that Python's os module has not."""

from __future__ import annotations

import ctypes
import os
import struct

# Source: include/uapi/linux/mount.h, sched.h and unistd.h.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x00020000
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
SYS_MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Mount something at `target`; OSError names it. Source: mount, section 2 of the manual."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    result = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _check(result, f"mount {kind or 'bind'} on {target}")


def bind_read_only(source: str, target: str) -> None:
    """Bind a file, or a directory with all that is mounted in it, so that nothing of it can be written."""
    mount(source, target, None, MS_BIND | MS_REC)
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd. Linux 5.12.
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    words = (AT_FDCWD, os.fsencode(target), AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    if _libc.syscall(SYS_MOUNT_SETATTR, *words) != 0:
        # Without it, rather show nothing of what is mounted below than let it be written to.
        _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")
        mount(source, target, None, MS_BIND)
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def pivot_root(new_root: str) -> None:
    """Make `new_root` the root of this mount namespace and drop the old one, with all it holds."""
    os.chdir(new_root)
    number = SYS_PIVOT_ROOT.get(os.uname().machine, 41)
    # pivot_root(".", ".") stacks the old root on the new one: no directory is needed to hold it.
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def own_root() -> None:
    """Make the root of our new mount namespace our root, whatever chroot we were started in, and private.

    pivot_root takes nothing else for an old root, `nsenter` enters there, and `unshare` cannot
    make a chroot private. What is still needed of the chroot must be held open. Source: setns,
    section 2 of the manual: the root and the working directory are reset.
    """
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, CLONE_NEWNS), "setns")
    finally:
        os.close(fd)
    # Before any mount of ours, which would otherwise reach the machine.
    mount("none", "/", None, MS_REC | MS_PRIVATE)
