"""What a backend is asked to boot, and the command line it answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmimages.image import Kernel

AccelName = Literal["kvm", "tcg"]

FIXED_DRIVES = ("root", "work", "results")
"""The first drives of every guest; those after them are blank disks."""


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk of a guest: a raw file."""

    path: Path
    is_readonly: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot, whatever the backend.

    drives: in this order root, work tar, results, then the blank disks. words: for the guest's init,
    without the names of devices, which are the backend's. control_fd: a connected stream socket that
    the guest finds as a character device. link_fd: a datagram socket, one Ethernet frame each, or
    None; mac: of that interface. directory: private to this machine. has_terminal: the console is
    our own standard input and output; otherwise nothing is read, and standard output is its file. accel:
    for QEMU.
    """

    kernel: Kernel
    drives: tuple[Drive, ...]
    words: tuple[str, ...]
    control_fd: int
    directory: Path
    memory_mib: int
    link_fd: int | None = None
    mac: str = ""
    has_terminal: bool = False
    accel: AccelName = "tcg"


@dataclass(frozen=True, slots=True)
class Launch:
    """The command that boots a guest and writes the console to its standard output.

    groups: supplementary groups the command needs beside its unprivileged user, for /dev/kvm.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    groups: tuple[int, ...] = ()


def device_words(devices: Sequence[str], *, control: str, console: str) -> list[str]:
    """Return the words that tell the guest's init what its devices are called.

    devices: one for each drive of the Boot, in its order. control, console: character devices.
    """
    _root, work, results, *blank = devices
    return [
        f"btrsync.work={work}",
        f"btrsync.results={results}",
        f"btrsync.disks={','.join(blank)}",
        f"btrsync.control={control}",
        f"btrsync.console={console}",
    ]
