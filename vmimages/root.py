"""The root tree of a guest: packages unpacked over each other, and what maintainer scripts would have added.

Nothing of the guest is executed but its Python and its depmod, through the guest's own dynamic linker.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from harness import command
from vmimages import packages
from vmimages.bound import bound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmimages.cache import Cache
    from vmimages.packages import Package

MERGED = ("bin", "sbin", "lib", "lib64")
LEFT_OUT = tuple(
    f"./usr/share/{folder}/*"
    for folder in ("doc", "man", "info", "locale", "lintian", "bug", "doc-base", "menu", "bash-completion")
)
FOLDERS = (
    "dev",
    "proc",
    "sys",
    "run",
    "mnt",
    "root",
    "home",
    "work",
    "results",
    "var/lib",
    "var/log",
    "var/tmp",
)
GUEST = "usr/lib/vmimages"
"""Where a guest has the files of vmimages/guest."""
PAM = {
    "common-auth": "auth required pam_unix.so nullok\n",
    "common-account": "account required pam_unix.so\n",
    "common-password": "password required pam_unix.so\n",
    "common-session": "session required pam_unix.so\n",
    "common-session-noninteractive": "session required pam_unix.so\n",
}
COPIED = {
    "usr/share/base-files/nsswitch.conf": "etc/nsswitch.conf",
    "usr/share/base-files/profile": "etc/profile",
    "usr/share/base-passwd/group.master": "etc/group",
    "usr/share/openssh/sshd_config": "etc/ssh/sshd_config",
}
LINKS = {
    "usr/bin/awk": "mawk",
    "usr/bin/sh": "dash",
    "usr/bin/which": "which.debianutils",
    "usr/sbin/init": f"/{GUEST}/init",
    "etc/mtab": "../proc/self/mounts",
}
SSHD = "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"


def make(cache: Cache, wanted: Sequence[Package], root: Path) -> None:
    """Unpack packages into the new directory `root` and put right what their scripts would have."""
    root.mkdir()
    for folder in MERGED:
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    packages.unpack(cache, wanted, root, LEFT_OUT)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / GUEST).mkdir()
    (root / "root").chmod(0o700)
    for folder in ("tmp", "var/tmp"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o1777)
    for source, target in COPIED.items():
        if (root / source).exists() and not (root / target).exists():
            shutil.copyfile(root / source, root / target)
    for link, target in LINKS.items():
        if not (root / link).is_symlink() and not (root / link).exists():
            (root / link).symlink_to(target)
    passwd = (root / "usr/share/base-passwd/passwd.master").read_text().replace(":*:", ":x:") + SSHD
    _accounts(root / "etc", passwd)
    for name, text in PAM.items():
        (root / "etc/pam.d" / name).write_text(text)
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")
    (root / "etc/machine-id").touch()


def _accounts(etc: Path, passwd: str) -> None:
    """Write passwd and shadow; nobody has a password."""
    (etc / "passwd").write_text(passwd)
    names = [line.partition(":")[0] for line in passwd.splitlines()]
    (etc / "shadow").write_text("".join(f"{name}:*:19000:0:99999:7:::\n" for name in names))
    (etc / "shadow").chmod(0o600)


def guest_argv(root: Path, program: Path, *words: str) -> list[str]:
    """Return the command that runs a program of a guest on this host: its own linker and libraries."""
    folders = [root / "usr/lib/x86_64-linux-gnu", root / "usr/lib"]
    libraries = ":".join(os.fspath(folder) for folder in folders)
    linker = root / "usr/lib64/ld-linux-x86-64.so.2"
    if linker.is_symlink():  # absolute in old suites, so it would lead to this host's
        linker = root / "usr/lib/x86_64-linux-gnu" / linker.readlink().name
    return [os.fspath(linker), "--library-path", libraries, os.fspath(program), *words]


def depmod(root: Path, version: str) -> None:
    """Write modules.dep and its like for a kernel's modules in the root."""
    # kmod is many programs by the name it is called by, and its link leads to this host's.
    with_name = root.parent / "depmod"
    with_name.unlink(missing_ok=True)
    with_name.symlink_to(root / "usr/bin/kmod")
    command.run(bound(guest_argv(root, with_name, "-b", os.fspath(root), version)), timeout_s=120)
    with_name.unlink()
