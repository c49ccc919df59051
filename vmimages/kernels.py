"""Kernels out of their Debian packages: ready to run, their modules in the root."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vmimages import packages, root
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmimages.cache import Cache
    from vmimages.packages import Package

LINKER = "/lib64/ld-linux-x86-64.so.2"
OWN_LINKER = "./ld.so"
LIBRARY = re.compile(rb"(?<=\0)(lib[a-z]+\.so)\.\d(?=\0)")
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

    It must be started with `target` as working directory, for there are the linker and the C library
    that it was built against: this host's may be older. It needs no environment for that.
    """
    target.mkdir()
    unpacked = target / "unpacked"
    packages.unpack(cache, [*kernel, *libc], _made(unpacked), LEFT_OUT + root.LEFT_OUT)
    program, needed = with_own_libraries((unpacked / "usr/bin/linux.uml").read_bytes())
    (target / "linux.uml").write_bytes(program)
    folder = unpacked / "lib/x86_64-linux-gnu"
    if not folder.exists():
        folder = unpacked / "usr" / folder.relative_to(unpacked)
    for name, own in {Path(LINKER).name: OWN_LINKER, **needed}.items():
        shutil.copyfile(folder / name, target / own)
    for file in target.iterdir():
        if file != unpacked:
            file.chmod(0o755)
    version = _take_modules(unpacked, tree)
    shutil.rmtree(unpacked)
    return version


def with_own_libraries(program: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a program that takes its linker and its libraries from its working directory.

    Also the libraries' names there, by their names elsewhere. All stay in place and as long as they
    were: `libc.so.6` becomes `./libc.so`. Raises VmError if the program is linked otherwise.
    """
    linker = LINKER.encode() + b"\0"
    if program.count(linker) != 1 or not LIBRARY.search(program):
        raise VmError("linux.uml names its interpreter or its libraries otherwise than expected")
    needed = {match[0].decode(): f"./{match[1].decode()}" for match in LIBRARY.finditer(program)}
    changed = LIBRARY.sub(rb"./\1", program)
    return changed.replace(linker, OWN_LINKER.encode().ljust(len(linker), b"\0")), needed


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
