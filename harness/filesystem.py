"""Btrfs arrays on loop devices, and mounting them inside the host that owns them.

Host commands used: `mkfs.btrfs`, `btrfs`, `mount`, `umount`, `nsenter`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import command, ledger, wait
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.command import Completed
    from harness.host import Host

LABEL = "MirrorBtr"
OPTIONS = "noatime,autodefrag,compress-force=lzo"
"""The mount options of the original's array, without `space_cache`, which today's kernels refuse."""
GIB = 1 << 30
UMOUNT_S = 10.0


class Array:
    """A btrfs of one or more members: `with Array(members=4) as array: array.devices, array.uuid`.

    members: 1 to 6 loop devices of `size_bytes` each; data and metadata: profiles as `mkfs.btrfs`
    takes them ("dup" for the metadata of a single member unless told). directory: where the
    backing files lie, unlinked; None keeps them in memory. devices: make it on these, mappings
    for example, instead of loop devices.
    """

    def __init__(
        self,
        members: int = 4,
        size_bytes: int = GIB,
        *,
        data: str = "single",
        metadata: str = "raid1",
        label: str = LABEL,
        directory: Path | None = None,
        devices: Sequence[Path] | None = None,
        mkfs_options: Sequence[str] = (),
    ) -> None:
        """Only remember what is wanted; entering makes it."""
        if not 1 <= members <= 6:
            raise ValueError(f"an array has 1 to 6 members, not {members}")
        self.size_bytes = size_bytes
        self.data = data
        self.metadata = "dup" if members == 1 and metadata == "raid1" and devices is None else metadata
        self.label = label
        self.uuid = uuid.uuid4()
        self.loops: tuple[LoopDevice, ...] = ()
        self.devices: tuple[Path, ...] = tuple(devices or ())
        self.has_subvolume: set[str] = set()
        self.mountpoints: list[Path] = []
        self._mkfs_options = tuple(mkfs_options)
        self._wanted = () if devices else tuple(
            LoopDevice(size_bytes, directory, f"{label}-{number}") for number in range(1, members + 1)
        )  # fmt: skip
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Make the file system."""
        with contextlib.ExitStack() as stack:
            self.loops = tuple(stack.enter_context(loop) for loop in self._wanted)
            if self.loops:
                self.devices = tuple(loop.device for loop in self.loops)
            stack.callback(self._forget)
            command.run(self._mkfs_argv())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Make the kernel forget it and let the devices go."""
        self._stack.close()

    def _mkfs_argv(self) -> list[str]:
        return [
            "mkfs.btrfs", "--quiet",
            "--label", self.label,
            "--uuid", str(self.uuid),
            "--data", self.data,
            "--metadata", self.metadata,
            *self._mkfs_options,
            *(str(device) for device in self.devices),
        ]  # fmt: skip

    def _forget(self) -> None:
        # Named, for without names it would be the user's devices too. Loop numbers are used again
        # soon, and the kernel's list is one for all hosts: what it remembers would be wrong.
        for device in self.devices:
            wait.until(
                lambda device=device: self._has_forgotten(device),  # type: ignore[misc]
                timeout_s=UMOUNT_S,
                what=f"the kernel forgets {device} (is it mounted in a namespace that lives on?)",
                interval_s=0.05,
            )

    @staticmethod
    def _has_forgotten(device: Path) -> bool:
        # Status 1 with ENOENT: it did not know it, which is as good.
        said = command.run(["btrfs", "device", "scan", "--forget", device], ok=None)
        return said.returncode == 0 or "No such file or directory" in said.stderr

    def scan(self) -> None:
        """Tell the kernel about the members, as udev does on a real machine."""
        command.run(["btrfs", "device", "scan", *self.devices])

    def check(self) -> Completed:
        """Run `btrfs check --readonly` on the unmounted array; raises CommandFailed at any finding."""
        return command.run(["btrfs", "check", "--readonly", self.devices[0]])

    def mount_options(self, options: str) -> str:
        """Return the options with every member named, so that no scan is needed."""
        others = [f"device={device}" for device in self.devices[1:]]
        return ",".join([word for word in (options,) if word] + others)


class _Namespace:
    """Where a mount is made: in a host's mount namespace, or in the present one."""

    def __init__(self, host: Host | None) -> None:
        self.host = host

    @property
    def is_alive(self) -> bool:
        return self.host is None or self.host.is_alive

    def run(self, argv: Sequence[str | Path], *, ok: Sequence[int] | None = (0,)) -> Completed:
        return command.run(argv, ok=ok) if self.host is None else self.host.run(argv, ok=ok)

    def path(self, path: Path) -> Path:
        return path if self.host is None else self.host.path(path)

    def mounts(self) -> str:
        process = Path("/proc/self") if self.host is None else self.host.proc
        return (process / "mountinfo").read_text()

    def is_mounted(self, point: Path) -> bool:
        escaped = str(point).replace("\\", "\\134").replace(" ", "\\040")
        return any(line.split()[4] == escaped for line in self.mounts().splitlines())


@contextlib.contextmanager
def mount(
    array: Array,
    mountpoint: Path | str,
    *,
    host: Host | None = None,
    options: str = OPTIONS,
    subvolume: str | None = "mirror",
) -> Iterator[Path]:
    """Mount an array in the host's own mount namespace; yield the mount point as seen from here.

    mountpoint: made if missing. subvolume: mounted by `subvol=`, made at the first time; None
    mounts the top level. host None: in the present mount namespace.
    An array is mounted only where it belongs: any namespace made while it is mounted here would
    hold it (harness-wide law), and the umount would seem to work without doing anything.
    Raises CommandFailed where mount or umount fails.
    """
    where = _Namespace(host)
    point = Path(mountpoint)
    device = str(array.devices[0])
    where.path(point).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if host is not None:
            for member in array.devices:
                inside = host.add_device(member)
                stack.callback(host.remove_device, inside)
        if subvolume is not None and subvolume not in array.has_subvolume:
            with _mounted(where, device, point, array.mount_options("")) as top:
                if not (top / subvolume).exists():
                    where.run(["btrfs", "subvolume", "create", point / subvolume])
            array.has_subvolume.add(subvolume)
        words = [options] if options else []
        words += [f"subvol={subvolume}"] if subvolume is not None else []
        with _mounted(where, device, point, array.mount_options(",".join(words))) as path:
            array.mountpoints.append(path)
            stack.callback(array.mountpoints.remove, path)
            yield path


@contextlib.contextmanager
def _mounted(where: _Namespace, device: str, point: Path, options: str) -> Iterator[Path]:
    words = ["-o", options] if options else []
    entry = None
    if where.host is None:
        # Before the mount: if we die between the two, the sweep looks, and finds nothing to undo.
        number = os.stat(device).st_rdev
        entry = ledger.acquire("mount", point=str(point), source=device, source_number=number)
    try:
        where.run(["mount", "-t", "btrfs", *words, device, point])
    except BaseException:
        ledger.release(entry)
        raise
    try:
        yield where.path(point)
    finally:
        _umount(where, point)
        ledger.release(entry)


def _umount(where: _Namespace, point: Path) -> None:
    """Unmount, with patience for a process that is just ending; say who holds it if that is not enough."""
    if not where.is_alive or not where.is_mounted(point):
        return

    def is_gone() -> bool:
        return where.run(["umount", point], ok=(0, 32)).returncode == 0

    try:
        wait.until(is_gone, timeout_s=UMOUNT_S, what=f"umount {point}", interval_s=0.05)
    except wait.NeverCame as error:
        who = ", ".join(holders(where.path(point))) or "nobody we see"
        raise wait.NeverCame(f"{error}; held by {who}") from None


def holders(path: Path) -> list[str]:
    """Return who has something open below a mount point, for an error message: "1234 sleep"."""
    device = os.stat(path).st_dev
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            for link in links:
                with contextlib.suppress(OSError):
                    if link.stat().st_dev == device:
                        found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
                        break
    return found
