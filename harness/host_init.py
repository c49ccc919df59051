"""The inside of a host: builds its root, then stays as its log collector.

Runs as a script, the only child of the host's first process (tini), in fresh network, mount, pid,
uts and ipc namespaces; needs nothing but the standard library and `mounts`, and imports nothing
after the root has changed under it. argv[1] is the description as JSON (see `Description` in
host.py), argv[2] the descriptor that says "ready" or what failed.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from harness.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, bind_read_only, mount, own_root, pivot_root

# Source: include/uapi/linux/sockios.h and if.h.
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 1, 0x40
SCRATCH = "/tmp"
"""Where the overlay's upper layers are made: any directory that every root has. Ours alone to cover."""
NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
EMPTIED = ("root", "home", "srv", "mnt", "media", "etc/ssh", "etc/btrsync", "var/log", "var/lib/btrsync")
"""Directories of the lower root that a host does not see: another machine's people, keys and state."""


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the upper layer, with its directories."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def copy_directory_modes(lower: str, upper: str) -> None:
    """Give the directories of the upper layer the modes and owners that they have in the lower one."""
    for name in ("etc", "etc/ssh", "home", "srv", "mnt", "media", "var", "var/log", "var/lib"):
        source, target = f"{lower}/{name}", f"{upper}/{name}"
        if os.path.isdir(source) and os.path.isdir(target):
            status = os.stat(source)
            os.chmod(target, stat.S_IMODE(status.st_mode))
            os.chown(target, status.st_uid, status.st_gid)


def empty_directories(lower: str, upper: str) -> None:
    """Put an opaque directory into the upper layer for each one that the host must not see."""
    for name in EMPTIED:
        if os.path.isdir(f"{lower}/{name}") or name == "root":
            os.makedirs(f"{upper}/{name}", exist_ok=True)
            os.setxattr(f"{upper}/{name}", "trusted.overlay.opaque", b"y")
    os.chmod(f"{upper}/root", 0o700)
    os.makedirs(f"{upper}/root/.ssh", mode=0o700)
    for name in (".bashrc", ".profile"):
        pristine = f"{lower}/usr/share/base-files/dot{name}"
        if os.path.exists(pristine):
            shutil.copyfile(pristine, f"{upper}/root/{name}")


def fill_etc(lower: str, upper: str, name: str) -> None:
    """Write the host's own /etc: names, a locked root password, Debian's own ssh configuration."""
    write(f"{upper}/etc/hostname", f"{name}\n")
    write(f"{upper}/etc/hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{name}\n")
    write(f"{upper}/etc/resolv.conf", "")
    pristine = f"{lower}/usr/share/openssh/sshd_config"
    if os.path.exists(pristine):
        shutil.copyfile(pristine, f"{upper}/etc/ssh/sshd_config")
        os.makedirs(f"{upper}/etc/ssh/sshd_config.d")
    if os.path.exists(f"{lower}/etc/ssh/moduli"):
        shutil.copyfile(f"{lower}/etc/ssh/moduli", f"{upper}/etc/ssh/moduli")
    if os.path.isdir(f"{lower}/etc/ssh"):
        write(
            f"{upper}/etc/ssh/ssh_config",
            "Include /etc/ssh/ssh_config.d/*.conf\nHost *\n    SendEnv LANG LC_*\n    HashKnownHosts yes\n",
        )
        os.makedirs(f"{upper}/etc/ssh/ssh_config.d", exist_ok=True)
    shadow = f"{lower}/etc/shadow"
    if os.path.exists(shadow):
        with open(shadow, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
        # What debootstrap and the installer (without a root password) leave: locked, never expired.
        kept = [line for line in lines if not line.startswith("root:")]
        write(f"{upper}/etc/shadow", "\n".join(["root:*:19700:0:99999:7:::", *kept]) + "\n")
        status = os.stat(shadow)
        os.chown(f"{upper}/etc/shadow", status.st_uid, status.st_gid)
        os.chmod(f"{upper}/etc/shadow", stat.S_IMODE(status.st_mode))


def overlay(lower: str, upper: str, work: str, target: str) -> None:
    """Mount an overlay; everything written to it lies in memory."""
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    mount("overlay", target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


def overlay_submounts(new_root: str, submounts: list[str]) -> None:
    """Mount an overlay over each separate file system of the lower root, our working directory.

    An overlay does not cross the mounts of its lower layer: a separate /usr would be empty.
    """
    for number, path in enumerate(submounts):
        target = new_root + path
        os.makedirs(target, exist_ok=True)
        overlay("." + path, f"{SCRATCH}/upper{number}", f"{SCRATCH}/work{number}", target)


def fill_dev(dev: str) -> None:
    """Make a /dev with nothing of the machine's in it: no block device, no kernel log."""
    mount("harness-dev", dev, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for name, (major, minor) in NODES.items():
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)
    for name, target in LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"{dev}/{name}")
    own = "newinstance,ptmxmode=0666,mode=620,gid=5"
    mount("harness-pts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, own)
    mount("harness-shm", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def mount_own(new_root: str) -> None:
    """Mount the file systems that belong to this host alone."""
    for name in ("proc", "sys", "dev", "run", "tmp"):
        os.makedirs(f"{new_root}/{name}", exist_ok=True)
    mount("harness-proc", f"{new_root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Its own sysfs, or /sys/class/net shows the links of the namespace outside.
    mount("harness-sys", f"{new_root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    fill_dev(f"{new_root}/dev")
    mount("harness-run", f"{new_root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("harness-tmp", f"{new_root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    os.mkdir(f"{new_root}/run/lock", 0o1777)
    os.chmod(f"{new_root}/run/lock", 0o1777)


def open_bind(path: str) -> tuple[int, str]:
    """Return a directory to change to and a name in it, from which `path` can be bound later."""
    if os.path.isdir(path):
        return os.open(path, os.O_PATH | os.O_CLOEXEC), "."
    os.stat(path)
    return os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC), os.path.basename(path)


def bind(directory_fd: int, name: str, target: str) -> None:
    """Bind a file, or a directory with all that is mounted in it, read-only."""
    os.fchdir(directory_fd)
    if name == ".":
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a", encoding="utf-8").close()
    bind_read_only(name, target)


def bring_lo_up() -> None:
    """Set the loopback link up. Source: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


def build(description: dict[str, object]) -> None:
    """Build the host's root and enter it."""
    lower, name = str(description["lower"]), str(description["name"])
    binds = [str(path) for path in description["binds"]]  # type: ignore[attr-defined]
    submounts = [str(path) for path in description["submounts"]]  # type: ignore[attr-defined]
    # Opened first: the scratch file system may cover what they name.
    opened = [(*open_bind(path), path) for path in binds]
    lower_fd = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    own_root()
    mount("harness-scratch", SCRATCH, "tmpfs", MS_NOSUID, "mode=755")
    new_root, upper = f"{SCRATCH}/root", f"{SCRATCH}/upper"
    os.mkdir(new_root)
    os.mkdir(upper)
    os.fchdir(lower_fd)
    empty_directories(".", upper)
    fill_etc(".", upper, name)
    copy_directory_modes(".", upper)
    overlay(".", upper, f"{SCRATCH}/work", new_root)
    overlay_submounts(new_root, submounts)
    mount_own(new_root)
    for directory_fd, word, path in opened:
        bind(directory_fd, word, new_root + path)
        os.close(directory_fd)
    os.close(lower_fd)
    socket.sethostname(name)
    bring_lo_up()
    pivot_root(new_root)


def collect_log(listener: socket.socket) -> None:
    """Append what programs of this host send to /dev/log to its /var/log/syslog, for ever."""
    with open("/var/log/syslog", "a", encoding="utf-8", errors="replace", buffering=1) as file:
        while True:
            message = listener.recv(65536).decode("utf-8", "replace").rstrip("\n\0")
            now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
            file.write(f"{now} {message}\n")


def main() -> None:
    """Build, say "ready", collect the log."""
    description, ready = json.loads(sys.argv[1]), int(sys.argv[2])
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        build(description)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        listener.bind("/dev/log")
        os.chmod("/dev/log", 0o666)
        os.makedirs("/var/log", exist_ok=True)
    except OSError as error:
        os.write(ready, f"{error}".encode())
        raise
    os.write(ready, b"ready")
    os.close(ready)
    collect_log(listener)


if __name__ == "__main__":
    main()
