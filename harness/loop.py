"""Loop devices on files without a name, which vanish with the process that made them.

The backing file lives in memory (or, unlinked, in a directory), and the device is autoclear from
its first moment: the kernel detaches it when the last of our descriptor and the mount is gone. So
nothing is left by a SIGKILL but what is mounted in a namespace that lives on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import ledger, wait
from harness.identity import run_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

# Source: include/uapi/linux/loop.h. LOOP_CONFIGURE needs Linux 5.8.
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_AUTOCLEAR = 4
LOOP_MAJOR = 7
LOOP_CONTROL = Path("/dev/loop-control")
ATTEMPTS = 64
DETACH_S = 10.0
_serials = itertools.count(1)


class LoopInfo64(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class LoopConfig(ctypes.Structure):
    """struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True, slots=True)
class Backing:
    """What a loop device stands on, as the kernel names it: a file by device and inode."""

    device: int
    inode: int
    name: str


def backing(device: Path) -> Backing | None:
    """Return what a loop device stands on, or None if it is not attached.

    Source: loop(4), LOOP_GET_STATUS64. `name` is what we gave it, at most 63 bytes.
    """
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise
    try:
        info = LoopInfo64()
        try:
            fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        return Backing(info.lo_device, info.lo_inode, info.lo_file_name.decode(errors="replace"))
    finally:
        os.close(fd)


def attached() -> dict[Path, str]:
    """Return every attached loop device of the machine with the name of its backing file.

    Source: /sys/block/loopN/loop/backing_file, which is there only while a file is attached.
    """
    found = {}
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found[Path("/dev") / file.parts[3]] = file.read_text().rstrip("\n")
    return found


class _Uses:
    """The loop devices that this process has attached now, and how many there have been.

    A number belongs to another process as soon as we let go of it. So whoever wants to know whose
    a word of the kernel is (the check of its log) is called before each change.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.current: frozenset[Path] = frozenset()
        self.count = 0
        self.observers: list[Callable[[], None]] = []

    def add(self, device: Path) -> None:
        self._tell()
        with self._lock:
            self.current |= {device}
            self.count += 1

    def remove(self, device: Path) -> None:
        self._tell()
        with self._lock:
            self.current -= {device}

    def _tell(self) -> None:
        for observer in self.observers:
            observer()


uses = _Uses()


class LoopDevice:
    """A loop device of `size_bytes` on a sparse file: `with LoopDevice(size) as loop: loop.device`.

    The file has no name that outlives the process: in memory (directory None: what is written
    to it costs RAM), or unlinked in `directory` (for gigabytes). `backing_file` reaches it all the
    same, through our descriptor, to truncate it or to look at its size.
    `name` is only for people: losetup and /sys show it behind the prefix of the run and a number. The
    number is there because mkfs.btrfs takes two devices for one if their backing files have one name.
    """

    def __init__(self, size_bytes: int, directory: Path | None = None, name: str = "disk") -> None:
        """Only remember what is wanted; entering makes it."""
        self.size_bytes = size_bytes
        self.directory = directory
        self.name = name
        self._label = f"{run_prefix()}{next(_serials)}-{name}"
        self._file = -1
        self._fd = -1
        self._device: Path | None = None
        self._entry: ledger.Entry | None = None

    @property
    def device(self) -> Path:
        """The block device, such as /dev/loop3."""
        if self._device is None:
            raise RuntimeError(f"loop device {self.name} is not attached")
        return self._device

    @property
    def backing_file(self) -> Path:
        """A path to the backing file, good while the device is attached and in this process only."""
        if self._file < 0:
            raise RuntimeError(f"loop device {self.name} is not attached")
        return Path(f"/proc/{os.getpid()}/fd/{self._file}")

    @property
    def device_number(self) -> int:
        """The kernel's number of the block device, for mknod."""
        return os.stat(self.device).st_rdev

    def __enter__(self) -> Self:
        """Make the file and attach it."""
        try:
            self._file = self._open_file()
            os.ftruncate(self._file, self.size_bytes)
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it, and wait until the kernel has done so too."""
        self.close()

    def _open_file(self) -> int:
        if self.directory is None:
            return os.memfd_create(self._label, os.MFD_CLOEXEC)
        path = self.directory / self._label
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        path.unlink()
        return fd

    def _attach(self) -> None:
        control = os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(ATTEMPTS):
                number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
                if self._configure(number):
                    return
        finally:
            os.close(control)
        raise OSError(errno.EBUSY, f"no loop device was free in {ATTEMPTS} attempts")

    def _configure(self, number: int) -> bool:
        """Attach to one device; False if another process was faster."""
        device = Path(f"/dev/loop{number}")
        if not device.exists():
            # A /dev that is no devtmpfs, in a container or a chroot, does not follow the kernel.
            with contextlib.suppress(FileExistsError):
                os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        config = LoopConfig(fd=self._file)
        config.info.lo_flags = LO_FLAGS_AUTOCLEAR
        config.info.lo_file_name = self._label.encode()[:63]
        try:
            fcntl.ioctl(fd, LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EBUSY:
                return False
            raise
        self._fd = fd
        self._device = device
        uses.add(device)
        file = os.fstat(self._file)
        self._entry = ledger.acquire("loop", device=str(device), file_device=file.st_dev, inode=file.st_ino)
        return True

    def _is_attached(self) -> bool:
        # By identity: the number may belong to somebody else's file a moment after we let go.
        file = os.fstat(self._file)
        now = backing(self.device)
        return now is not None and (now.device, now.inode) == (file.st_dev, file.st_ino)

    def close(self) -> None:
        """Let go of device and file; may be called twice.

        Raises NeverCame if the device stays attached: then somebody still has it mounted or open.
        """
        try:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                try:
                    wait.until(
                        lambda: not self._is_attached(),
                        timeout_s=DETACH_S,
                        what=f"{self.device} detached (is it mounted in a namespace that lives on?)",
                    )
                finally:
                    uses.remove(self.device)
                ledger.release(self._entry)
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._device = None
