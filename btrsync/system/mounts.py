"""What is mounted where, as /proc/self/mountinfo tells it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from btrsync.errors import StorageError

MOUNTINFO: Final = Path("/proc/self/mountinfo")
FSTAB: Final = Path("/etc/fstab")

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One line of mountinfo: `options` belong to this mount, `super_options` to its filesystem.

    `root` is what of the filesystem is mounted; on btrfs the path of the subvolume. `number` is that of
    the device, such as "8:1"; on btrfs that of the subvolume, which no device has.
    """

    id: int
    mount_point: Path
    root: Path
    fstype: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]
    number: str = ""

    @property
    def is_readonly(self) -> bool:
        """Whether nothing can be written through it.

        "ro" of the filesystem, not of the mount, is also what the kernel sets after an error.
        """
        return "ro" in self.options or "ro" in self.super_options


def mount_of(path: Path) -> Mount:
    """Return the mount that holds `path`, which must exist. Raises StorageError.

    The kernel is asked which one it is: a descriptor knows the number of its mount (fdinfo, in
    proc(5)). Device numbers do not tell, since every subvolume of btrfs has one of its own that
    mountinfo does not show; nor do path prefixes, since one mount may hide another.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
        finally:
            os.close(fd)
        mounts = parse_mountinfo(MOUNTINFO.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot tell what is mounted at {path}: {error.strerror}") from error
    number = int(fdinfo.partition(b"mnt_id:")[2].split()[0])
    for mount in mounts:
        if mount.id == number:
            return mount
    raise StorageError(f"cannot tell what is mounted at {path}: its mount is not in {MOUNTINFO}")


def missing_mount(path: Path, *, fstab: Path = FSTAB) -> Path | None:
    """Return the mount point at or above `path` that fstab names and that nothing is mounted at, if any.

    What is written below it lands on another disk than was meant. path: exists. A file without a line
    that can be read names none. Raises StorageError. Source: fstab(5).
    """
    try:
        lines = fstab.read_bytes().splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines if not line.lstrip().startswith(b"#")]
    points = {Path(_unescape(line[1])) for line in fields if len(line) > 1}
    for point in (path, *path.parents):
        if point in points and mount_of(point).mount_point != point:
            return point
    return None


def parse_mountinfo(text: bytes) -> list[Mount]:
    r"""Return the mounts of a mountinfo file, in its order; names are unescaped (`\040` is a space).

    Source: proc(5), /proc/PID/mountinfo: optional fields end at a lone hyphen.
    """
    mounts = []
    for line in text.split(b"\n")[:-1]:
        before, _, after = line.partition(b" - ")
        number, _, device, root, mount_point, options = before.split(b" ")[:6]
        fstype, source, super_options = [*after.split(b" "), b""][:3]
        mounts.append(
            Mount(
                id=int(number),
                mount_point=Path(_unescape(mount_point)),
                root=Path(_unescape(root)),
                fstype=_unescape(fstype),
                source=_unescape(source),
                options=_options(options),
                super_options=_options(super_options),
                number=device.decode("ascii"),
            )
        )
    return mounts


def _options(field: bytes) -> frozenset[str]:
    return frozenset(_unescape(option) for option in field.split(b","))


def _unescape(field: bytes) -> str:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field).decode(errors="surrogateescape")
