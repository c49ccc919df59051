"""QEMU: a distribution's own kernel on emulated hardware, by KVM or by emulation (vmimages.accel).

The root is on NVMe, whose driver is built into Debian's cloud kernels, as ext4 is: no initrd. All
other disks are on virtio, whose names follow the order of the command line; those of several NVMe
controllers do not, for they are found at the same time.
Host commands used: `qemu-system-x86_64`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command
from vmimages import keeper
from vmimages.boot import Launch, device_words
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmimages.boot import AccelName, Boot, Drive
    from vmimages.image import Kernel

PROGRAM = "qemu-system-x86_64"
KVM = Path("/dev/kvm")
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console")
CPU_MODELS = {"kvm": "host", "tcg": "max"}
CPUS = 2
READY = "btrsync: ready"
TRIAL_MIB = 256
READ_WRITE = 0o6


def program() -> str:
    """Return QEMU's path. Raises VmError, with the package to install, if there is none."""
    found = shutil.which(PROGRAM, path=command.environment()["PATH"])
    if found is None:
        raise VmError(f"there is no {PROGRAM} on this machine", hint="apt-get install qemu-system-x86")
    return found


def kvm_groups(device: Path = KVM) -> tuple[int, ...] | None:
    """Return the supplementary groups with which a guest's user may open /dev/kvm, or None if it may not.

    Never the group of root. That it may be opened does not mean that it works.
    """
    user = keeper.unprivileged()
    if user is None:
        return () if os.access(device, os.R_OK | os.W_OK) else None
    try:
        entry = device.stat()
    except OSError:
        return None
    if entry.st_mode & READ_WRITE == READ_WRITE:
        return ()
    if entry.st_mode >> 3 & READ_WRITE == READ_WRITE and entry.st_gid != 0:
        return (entry.st_gid,)
    return None


def launch(boot: Boot) -> Launch:
    """Return the command that boots a guest; its console is the first serial line, on standard output."""
    root, *others = boot.drives
    # The device is named after its place on the virtio bus: the first.
    argv = [
        *_machine(boot.kernel, root, boot.accel, boot.memory_mib),
        "-chardev", f"socket,id=control,fd={boot.control_fd}",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control",
    ]  # fmt: skip
    for number, drive in enumerate(others):
        name = f"disk{number}"
        argv += ["-drive", _drive(name, drive), "-device", f"virtio-blk-pci,drive={name}"]
    if boot.link_fd is not None:
        argv += [
            "-netdev", f"socket,id=link,fd={boot.link_fd}",
            "-device", f"virtio-net-pci,netdev=link,mac={boot.mac},romfile=",
        ]  # fmt: skip
    devices = ["/dev/nvme0n1", *(f"/dev/vd{chr(ord('a') + number)}" for number in range(len(others)))]
    words = [
        *("init=/sbin/init", f"btrsync.drivers={','.join(DRIVERS)}"),
        *device_words(devices, control="/dev/vport0p1", console="/dev/ttyS0"),
        *boot.words,
    ]
    return _launch([*argv, "-append", _kernel_words(words)], boot.accel)


def trial(kernel: Kernel, root: Drive, accel: AccelName, *, more: Sequence[str] = ()) -> Launch:
    """Return the command that boots a kernel, lets it run a program of the root that says READY, and ends.

    more: further words for QEMU.
    """
    argv = [*_machine(kernel, root, accel, TRIAL_MIB), *more]
    return _launch([*argv, "-append", f"{_kernel_words(['init=/bin/echo'])} -- {READY}"], accel)


def _launch(argv: list[str], accel: AccelName) -> Launch:
    return Launch(tuple(argv), groups=(kvm_groups() or ()) if accel == "kvm" else ())


def _machine(kernel: Kernel, root: Drive, accel: AccelName, memory_mib: int) -> list[str]:
    """Return what a guest and a trial have in common. A panic ends QEMU: the kernel reboots at once."""
    return [
        program(),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35", "-accel", accel, "-cpu", CPU_MODELS[accel],
        "-smp", str(min(CPUS, os.cpu_count() or 1)), "-m", str(memory_mib),
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-drive", _drive("root", root), "-device", "nvme,drive=root,serial=root",
        "-kernel", str(kernel.path),
    ]  # fmt: skip


def _drive(name: str, drive: Drive) -> str:
    """Return a disk for QEMU.

    Writes are this host's page cache's, which a power cut of the guest leaves alone: no need to wait for
    the host's disk when the guest flushes. The root is shared with guests of User Mode Linux, whose
    locks QEMU's own would collide with.
    """
    path = str(drive.path).replace(",", ",,")
    readonly = "on" if drive.is_readonly else "off"
    return f"id={name},if=none,format=raw,cache=unsafe,readonly={readonly},file.locking=off,file={path}"


def _kernel_words(words: Sequence[str]) -> str:
    return " ".join([
        "console=ttyS0", "root=/dev/nvme0n1", "rootfstype=ext4", "ro",
        "quiet", "panic=-1", "nokaslr", "mitigations=off", "cryptomgr.notests",
        *words,
    ])  # fmt: skip
