"""Kernels out of their Debian packages: ready to run, their modules in the root."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vmimages import packages, root
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmimages.cache import Cache
    from vmimages.packages import Package

LINKER = b"/lib64/ld-linux-x86-64.so.2\0"
OWN_LINKER = "ld.so"
LIBC = "libc.so.6"
LEFT_OUT = tuple(
    f"*/kernel/{folder}"
    for folder in (
        *("drivers/gpu", "drivers/infiniband", "drivers/iio", "drivers/media", "drivers/usb", "sound"),
        *("drivers/net/can", "drivers/net/ethernet", "drivers/net/hamradio", "drivers/net/wireless"),
        *("fs/afs", "fs/ceph", "fs/coda", "fs/gfs2", "fs/jfs", "fs/nfs", "fs/nfsd", "fs/nilfs2", "fs/ntfs3"),
        *("fs/ocfs2", "fs/orangefs", "fs/reiserfs", "fs/smb", "fs/ubifs", "fs/ufs"),
        *("net/atm", "net/ax25", "net/batman-adv", "net/bluetooth", "net/can", "net/ceph", "net/mac80211"),
        *("net/dccp", "net/ieee802154", "net/netrom", "net/rds", "net/rose", "net/rxrpc", "net/sctp"),
        *("net/sunrpc", "net/tipc", "net/wireless", "net/6lowpan", "net/openvswitch", "net/smc"),
    )
)
"""Modules of no use in a guest: half of what a kernel brings."""


def uml(cache: Cache, kernel: Sequence[Package], libc: Sequence[Package], target: Path, tree: Path) -> str:
    """Put User Mode Linux into the new directory `target` and its modules into `tree`; return its version.

    It is made to be started with `target` as working directory, where the linker and the C library it
    was built against are: this host's may be older, and an interpreter's path has 27 characters.
    """
    target.mkdir()
    unpacked = target / "unpacked"
    packages.unpack(cache, [*kernel, *libc], _made(unpacked), LEFT_OUT + root.LEFT_OUT)
    program = (unpacked / "usr/bin/linux.uml").read_bytes()
    if program.count(LINKER) != 1:
        raise VmError("linux.uml names its interpreter otherwise than expected")
    own = f"./{OWN_LINKER}".encode()
    (target / "linux.uml").write_bytes(program.replace(LINKER, own.ljust(len(LINKER), b"\0")))
    for name, kept in ((Path(LINKER.rstrip(b"\0").decode()).name, OWN_LINKER), (LIBC, LIBC)):
        files = [file for file in unpacked.rglob(name) if file.is_file() and not file.is_symlink()]
        # Debian 11 names the files by their version, and these are links within one directory.
        files += [file.parent / file.readlink().name for file in unpacked.rglob(name) if file.is_symlink()]
        shutil.copyfile(next(file for file in files if file.exists()), target / kept)
    for name in ("linux.uml", OWN_LINKER, LIBC):
        (target / name).chmod(0o755)
    version = _take_modules(unpacked, tree)
    shutil.rmtree(unpacked)
    return version


def qemu(cache: Cache, kernel: Sequence[Package], target: Path, tree: Path) -> str:
    """Put a Debian kernel into the new directory `target`, its modules into `tree`; return its version."""
    target.mkdir()
    unpacked = target / "unpacked"
    packages.unpack(cache, kernel, _made(unpacked), LEFT_OUT + root.LEFT_OUT)
    found = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
    if not found:
        raise VmError("the kernel's packages hold no vmlinuz")
    found[0].rename(target / "vmlinuz")
    version = _take_modules(unpacked, tree)
    shutil.rmtree(unpacked)
    return version


def _take_modules(unpacked: Path, tree: Path) -> str:
    """Move a kernel's modules to where modprobe looks for them, and return the kernel's version."""
    folders = [
        folder
        for parent in ("usr/lib/uml/modules", "usr/lib/modules", "lib/modules")
        for folder in (unpacked / parent).glob("*")
    ]
    if len(folders) != 1:
        raise VmError(f"the kernel's packages hold modules of {len(folders)} kernels")
    target = tree / "usr/lib/modules" / folders[0].name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise VmError(f"two kernels have the version {target.name}, and modules of one kind only can be kept")
    folders[0].rename(target)
    root.depmod(tree, target.name)
    return target.name


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
