"""User Mode Linux: a kernel as an ordinary process, without root, /dev/kvm or firmware."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vmimages.boot import Launch, device_words

if TYPE_CHECKING:
    from vmimages.boot import Boot

SHARED_MEMORY = Path("/dev/shm")
ROOM = 1.2
"""Free space wanted for a guest's memory, as a multiple of it."""


def launch(boot: Boot) -> Launch:
    """Return the command that boots a guest; its console is the first of its consoles.

    The kernel takes its memory as a sparse file, mapped executable, in TMPDIR.
    Source: arch/um/os-Linux/mem.c.
    """
    letters = [chr(ord("a") + number) for number in range(len(boot.drives))]
    disks = [
        f"ubd{letter}{'r' if drive.is_readonly else ''}={drive.path}"
        for letter, drive in zip(letters, boot.drives, strict=True)
    ]
    argv = [
        str(boot.kernel.path),
        f"mem={boot.memory_mib}M",
        f"uml_dir={boot.directory}",
        f"umid=boot-{secrets.token_hex(4)}",  # a crash leaves the last one behind
        "seccomp=auto",  # kernels before 6.16 know no such word and ignore it
        "root=/dev/ubda", "rootfstype=ext4", "ro", "init=/sbin/init",
        "con=null", "con0=fd:0,fd:1" if boot.has_terminal else "con0=null,fd:1",
        f"ssl0=fd:{boot.control_fd}",
        *disks,
        *([f"vec0:transport=fd,fd={boot.link_fd},mac={boot.mac}"] if boot.link_fd is not None else []),
        "quiet", "panic=-1",
        *device_words([f"/dev/ubd{letter}" for letter in letters], control="/dev/ttyS0", console="/dev/tty0"),
        *boot.words,
    ]  # fmt: skip
    environment = {**boot.kernel.environment, "TMPDIR": str(_memory_directory(boot))}
    return Launch(tuple(argv), environment, boot.kernel.cwd)


def _memory_directory(boot: Boot) -> Path:
    """Return where memory goes: to a tmpfs with room for it, else to the machine's own directory."""
    if os.access(SHARED_MEMORY, os.W_OK):
        is_noexec = os.statvfs(SHARED_MEMORY).f_flag & os.ST_NOEXEC
        if not is_noexec and shutil.disk_usage(SHARED_MEMORY).free > boot.memory_mib * ROOM * (1 << 20):
            return SHARED_MEMORY
    return boot.directory
