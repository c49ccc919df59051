"""What the builder of images gives and a machine takes: one root disk and the kernels that boot it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BackendName = Literal["uml", "qemu"]


class Kernel(NamedTuple):
    """A kernel ready to boot: for User Mode Linux a program to run, for QEMU a vmlinuz.

    environment, cwd: what the program of User Mode Linux needs to find a newer libc of its own.
    """

    path: Path
    initrd: Path | None
    version: str
    environment: Mapping[str, str]
    cwd: Path | None


class Image(NamedTuple):
    """A root disk (ext4, only ever read) with the kernels whose modules it holds.

    key: hash of all that went into it. python: version of the guest's own, "3.11"; progs: of btrfs-progs.
    """

    name: str
    key: str
    root_disk: Path
    kernels: Mapping[BackendName, Kernel]
    python: str
    progs: str
