"""What lies on a disk: its partitions, what maps it, every signature, where it is mounted. Looks only.

The kernel and the disk are asked, never udev's database, which may be old or missing.

Host commands used: `wipefs`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from btrsync.errors import StorageError
from btrsync.plan.disk_contents import Disk, Kind, Layer, LvmGroup, Signature
from btrsync.plan.lvm_label import HEAD_BYTES, parse_lvm_group
from btrsync.system import process
from btrsync.system.btrfs_devices import SYSFS, read_superblock
from btrsync.system.dmcrypt import device_number, environment
from btrsync.system.mounts import MOUNTINFO, mount_of, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

BLOCK: Final = Path("/sys/dev/block")
SWAPS: Final = Path("/proc/swaps")
SECTOR_BYTES: Final = 512
BLANK_HEAD_BYTES: Final = 4 << 20
"""Where most formats keep their first structures; all of it is looked at, then samples up to the end."""
SAMPLES: Final = 64
SAMPLE_BYTES: Final = 4096
WIPEFS_TIMEOUT_S: Final = 60.0


def read_disk(member: Path, *, ours: Container[str] = (), keeps: Sequence[Path] = ()) -> Disk:
    """Return a disk with all that lies on it.

    ours: numbers of mappings that are the array's own. keeps: files of which it is told if they lie on
    this disk. Raises StorageError if it is no block device, or cannot be read.
    """
    number = device_number(member)
    directory = (BLOCK / number).resolve()
    layer = _layer(directory, "disk", ours, _Users())
    whole = directory.parent if (directory / "partition").exists() else None
    points = {point for above in layer.walk() for point in above.mounts}
    return Disk(
        member=str(member),
        layer=layer,
        whole=str(_node(whole)) if whole else None,
        is_readonly=_text(directory / "ro") == "1",
        is_blank=not layer.signatures and not layer.above and _is_blank(Path(layer.device), layer.size_bytes),
        keeps=tuple(
            str(file) for file in keeps if file.exists() and str(mount_of(file).mount_point) in points
        ),
    )


def read_layer(device: Path) -> Layer:
    """Return what one block device holds, without what lies on it."""
    directory = (BLOCK / device_number(device)).resolve()
    return msgspec.structs.replace(_layer(directory, "mapping", (), _Users()), above=())


def size_bytes(device: Path) -> int:
    """Return the size of a block device. Raises StorageError."""
    return int(_text(BLOCK / device_number(device) / "size")) * SECTOR_BYTES


def wipe_argv(device: str, offset_bytes: int | None = None) -> list[str]:
    """Return the command that removes every signature of a device, or the one at an offset."""
    what = ["--all"] if offset_bytes is None else ["--offset", hex(offset_bytes)]
    return ["wipefs", "--quiet", *what, "--", device]


def run(argv: Sequence[str], *, timeout_s: float | None = None) -> None:
    """Run a command that ends a use of a disk, or writes to it. Raises CommandError."""
    process.run(argv, timeout_s=timeout_s, env=environment())


def write_zeros(device: Path, offset_bytes: int, size_bytes: int) -> None:
    """Write zeros to a part of a device, durably. Raises StorageError."""
    try:
        fd = os.open(device, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(size_bytes), offset_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"cannot write to {device}: {os.strerror(error.errno or 0).lower()}") from error


class _Users:
    """Mount points and swap of every device number, read once."""

    def __init__(self) -> None:
        self.mounts: dict[str, list[str]] = {}
        of_btrfs = dict(_btrfs_members())
        for mount in parse_mountinfo(MOUNTINFO.read_bytes()):
            # Every subvolume of btrfs has a number of its own; its source is one of its devices.
            number = _number(mount.source) if mount.fstype == "btrfs" else mount.number
            if number is not None:
                for one in of_btrfs.get(number, [number]):
                    self.mounts.setdefault(one, []).append(str(mount.mount_point))
        try:
            swaps = SWAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
        except OSError:
            swaps = []
        self.swaps = {_number(line.split()[0]) for line in swaps}


def _btrfs_members() -> Iterator[tuple[str, list[str]]]:
    """Yield each device of a mounted btrfs with all devices of it."""
    for filesystem in SYSFS.glob("*/devices"):
        numbers = [_text(device / "dev") for device in filesystem.iterdir()]
        yield from ((number, numbers) for number in numbers)


def _layer(directory: Path, kind: Kind, ours: Container[str], users: _Users) -> Layer:
    number = _text(directory / "dev")
    node = _node(directory)
    signatures = tuple(_signatures(node))
    above = [
        *(_layer(part, "partition", ours, users) for part in _partitions(directory)),
        *(_layer(held.resolve(), _kind(held), ours, users) for held in _entries(directory / "holders")),
    ]
    return Layer(
        device=str(node),
        number=number,
        kind=kind,
        size_bytes=int(_text(directory / "size")) * SECTOR_BYTES,
        name=_text(directory / "dm/name"),
        signatures=signatures,
        block=read_superblock(node),
        group=_group(node) if any(one.type == "LVM2_member" for one in signatures) else None,
        mounts=tuple(dict.fromkeys(users.mounts.get(number, ()))),
        is_swap=number in users.swaps,
        is_ours=number in ours,
        above=tuple(above),
    )


def _kind(directory: Path) -> Kind:
    uuid = _text(directory / "dm/uuid")
    if uuid.startswith("LVM-"):
        return "logical_volume"
    if uuid.startswith("CRYPT-"):
        return "mapping"
    return "raid" if (directory / "md").exists() else "other"


def _partitions(directory: Path) -> list[Path]:
    return [entry for entry in _entries(directory) if (entry / "partition").exists()]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _node(directory: Path) -> Path:
    """Return a node in /dev of a block device. Raises StorageError: unseen must not pass for empty."""
    number = _text(directory / "dev")
    name = _text(directory / "dm/name")
    paths = [Path("/dev/mapper") / name] if name else []
    paths.append(Path("/dev") / directory.name.replace("!", "/"))
    for path in paths:
        if _number(str(path)) == number:
            return path
    raise StorageError(
        f"cannot look at the device {number} ({name or directory.name}): it has no node in /dev",
        hint="dmsetup mknodes" if name else f"mknod /dev/{directory.name} b {number.replace(':', ' ')}",
    )


def _signatures(node: Path) -> Iterator[Signature]:
    columns = "OFFSET,TYPE,LABEL,UUID"
    argv = ["wipefs", "--no-act", "--json", "--output", columns, "--", os.fspath(node)]
    said = process.run(argv, timeout_s=WIPEFS_TIMEOUT_S).stdout
    found: list[dict[str, Any]] = msgspec.json.decode(said)["signatures"] if said.strip() else []
    for one in found:
        yield Signature(one["type"], int(one["offset"], 16), one.get("label"), one.get("uuid"))


def _group(node: Path) -> LvmGroup | None:
    return parse_lvm_group(_read(node, 0, HEAD_BYTES))


def _is_blank(node: Path, size_bytes: int) -> bool:
    if any(_read(node, 0, BLANK_HEAD_BYTES)):
        return False
    last = max(0, size_bytes - SAMPLE_BYTES)
    offsets = {index * last // (SAMPLES - 1) // SAMPLE_BYTES * SAMPLE_BYTES for index in range(SAMPLES)}
    return not any(any(_read(node, offset, SAMPLE_BYTES)) for offset in sorted(offsets))


def _read(node: Path, offset: int, size: int) -> bytes:
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # What the disk holds, and not what was read of it before: a mapping writes past this cache.
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot read {node}: {os.strerror(error.errno or 0).lower()}",
            hint="the kernel log tells whether the disk is failing: dmesg",
        ) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _number(path: str) -> str | None:
    try:
        return device_number(Path(path))
    except StorageError:
        return None
