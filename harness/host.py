"""A host: a machine of its own by namespaces, with an overlay over a root that stays untouched.

Host commands used: `setpriv`, `unshare`, `nsenter`, `tini`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from harness import command, containment, ledger, wait
from harness.identity import ProcessIdentity, run_prefix

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from harness.command import Completed, Process, Word

INIT = Path(__file__).with_name("host_init.py")
REPOSITORY = Path(__file__).parent.parent
READY_S = 30.0
END_S = 10.0
SYMLINK_LIMIT = 40
DISK_FILESYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "erofs", "squashfs"}
)
OVERLAID = ("/usr", "/var", "/opt", "/etc", "/bin", "/sbin", "/lib", "/lib64")
"""Where a separate file system of the lower root is shown in a host too. Not /home, /srv, /mnt."""


up: list[Host] = []
"""The hosts of this process that are up, for whoever must say how to enter them."""


class HostFailed(AssertionError):
    """A host did not come up."""


@dataclass(frozen=True, slots=True)
class Description:
    """What `host_init` is told."""

    name: str
    lower: str
    binds: tuple[str, ...]
    submounts: tuple[str, ...]

    def as_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(
            {"name": self.name, "lower": self.lower, "binds": self.binds, "submounts": self.submounts}
        )


def automatic_binds() -> tuple[Path, ...]:
    """Return what a host needs to run the installed btrsync: venv, interpreter and repository.

    Nothing below /usr, /bin or /lib, which a host shows anyway.
    """
    shown_anyway = (("/",), ("/", "usr"), ("/", "bin"), ("/", "lib"))
    wanted = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    return tuple(path for path in wanted if path.parts[:2] not in shown_anyway)


def _without_nested(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the paths in an order fit for binding, without those that lie below another one."""
    kept: list[Path] = []
    for path in sorted(set(paths), key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(str(path) for path in kept)


def _separate_filesystems(lower: Path) -> tuple[str, ...]:
    """Return the mount points below the lower root that a host must show, from /proc/self/mountinfo."""
    found: dict[str, None] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].encode().decode("unicode_escape"))
        if rest.split()[0] not in DISK_FILESYSTEMS or point == lower or not point.is_relative_to(lower):
            continue
        inside = "/" + str(point.relative_to(lower))
        if point.is_dir() and any(inside == path or inside.startswith(path + "/") for path in OVERLAID):
            found[inside] = None
    return tuple(sorted(found))


def _first_process(parent: int) -> int:
    """Return the only child of `unshare --fork`."""
    with contextlib.suppress(FileNotFoundError):
        words = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if words:
            return int(words[0])
    for directory in Path("/proc").iterdir():
        # For a kernel without CONFIG_PROC_CHILDREN.
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                if int((directory / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    return int(directory.name)
    raise HostFailed(f"unshare (pid {parent}) has no child")


class Host:
    """A machine of its own: `with Host("workstation") as host: host.run(["hostname"])`.

    name: its hostname. binds: paths bound read-only at their own place, besides the venv, the
    interpreter and the repository. lower: the root it stands on, "/" or that of another release
    unpacked somewhere; it is never written to.

    Inside: own network (only `lo`), own processes, own /proc, /sys, /run, /tmp and a /dev without
    any block device; empty /root, /home, /srv, /mnt, /etc/ssh with Debian's own configuration.
    What programs send to /dev/log is in /var/log/syslog. The first process is tini.

    It dies with the thread that made it (PR_SET_PDEATHSIG): make hosts in the main thread.
    """

    def __init__(
        self, name: str = "workstation", *, binds: Collection[Path | str] = (), lower: Path | str = "/"
    ) -> None:
        """Only remember what is wanted; entering makes it."""
        self.name = name
        self.lower = Path(lower)
        self.binds = _without_nested([*(Path(path) for path in binds), *automatic_binds()])
        self._unshare: Process | None = None
        self._identity: ProcessIdentity | None = None
        self._collector = 0
        self._entry: ledger.Entry | None = None

    @property
    def pid(self) -> int:
        """The pid of its first process, as seen from here: the pid that `nsenter -t` takes."""
        if self._identity is None:
            raise RuntimeError(f"host {self.name} is not up")
        return self._identity.pid

    @property
    def root(self) -> Path:
        """Its root directory as seen from here; absolute symbolic links lead out of it: see `path`."""
        return self.proc / "root"

    @property
    def proc(self) -> Path:
        """The directory in /proc of a process whose view is the host's: its root, mounts, network."""
        if self._identity is None:
            raise RuntimeError(f"host {self.name} is not up")
        return Path(f"/proc/{self._collector}")

    @property
    def netns_path(self) -> Path:
        """Its network namespace, as pyroute2 takes it."""
        return Path(f"/proc/{self.pid}/ns/net")

    @property
    def is_alive(self) -> bool:
        """Whether its first process still runs."""
        return self._unshare is not None and self._unshare.poll() is None

    def __enter__(self) -> Self:
        """Start it and wait until its root is ready."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all that runs in it; with the last process its mounts and links go."""
        self.close()

    def _start(self) -> None:
        tini = shutil.which("tini-static") or shutil.which("tini")
        if tini is None:
            raise HostFailed("no tini here: install the package tini")
        description = Description(self.name, str(self.lower), self.binds, _separate_filesystems(self.lower))
        ready, ready_inside = os.pipe2(os.O_CLOEXEC)
        try:
            argv = containment.dying_with_us([
                "unshare", "--net", "--mount", "--propagation", "unchanged", "--pid", "--uts", "--ipc",
                "--fork", "--kill-child=KILL", "--",
                tini, "--",
                sys.executable, "-I", "-S", INIT, description.as_json(), str(ready_inside), run_prefix(),
            ])  # fmt: skip
            try:
                self._unshare = command.Process(argv, pass_fds=[ready_inside], cwd="/")
            finally:
                os.close(ready_inside)
            said = self._read_ready(ready)
        finally:
            os.close(ready)
        if said != "ready":
            words = f"{said or 'ended early'}\n{self._unshare.stderr}"
            raise HostFailed(f"host {self.name} did not come up: {words}")
        self._identity = ProcessIdentity.of(_first_process(self._unshare.pid))
        # Not tini's root, which is still the old one if we were started in a chroot.
        self._collector = _first_process(self.pid)
        self._entry = ledger.acquire("process", pid=self.pid, start_ticks=self._identity.start_ticks)
        up.append(self)

    @staticmethod
    def _read_ready(ready: int) -> str:
        deadline = time.monotonic() + READY_S
        if not select.select([ready], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"not within {READY_S:g} s"
        return os.read(ready, 4096).decode(errors="replace")

    def enter_argv(self, argv: Sequence[Word] = ()) -> list[str]:
        """Return the command that runs `argv` (or a shell) inside: for people and for other tools."""
        words = [os.fspath(word) for word in argv]
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "-i", "--", *words]

    def run(
        self,
        argv: Sequence[Word],
        *,
        ok: Collection[int] | None = (0,),
        timeout_s: float = 60,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command inside, as root with HOME=/root; as `command.run` in all else."""
        return command.run(
            self.enter_argv(argv),
            input=input,
            ok=ok,
            timeout_s=timeout_s,
            env={"HOME": "/root", **(env or {})},
            path=command.SYSTEM_PATH,
        )

    @contextlib.contextmanager
    def spawn(
        self,
        argv: Sequence[Word],
        *,
        stdin: int = command.DEVNULL,
        stdout: int | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Collection[int] = (),
    ) -> Iterator[Process]:
        """Start a command inside and yield it; as `command.spawn` in all else.

        `Process.pid` is nsenter's: use `faults.find` for the command's own.
        """
        with command.spawn(
            self.enter_argv(argv),
            stdin=stdin,
            stdout=stdout,
            env={"HOME": "/root", **(env or {})},
            path=command.SYSTEM_PATH,
            pass_fds=pass_fds,
        ) as process:
            yield process

    def path(self, path: Path | str) -> Path:
        """Return where a path of the host lies as seen from here, symbolic links followed inside it.

        Plain `host.root / "var/run/x"` would follow /var/run -> /run into the machine's own /run.
        The path need not exist. Raises OSError at a loop of links.
        """
        done: list[str] = []
        waiting = list(PurePosixPath("/", path).parts[1:])
        links = 0
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            here = self.root.joinpath(*done, part)
            if here.is_symlink():
                links += 1
                if links > SYMLINK_LIMIT:
                    raise OSError(f"{path} on {self.name}: too many symbolic links")
                target = PurePosixPath(os.readlink(here))
                if target.is_absolute():
                    done = []
                waiting = [word for word in target.parts if word != "/"] + waiting
            else:
                done.append(part)
        return self.root.joinpath(*done)

    def read_text(self, path: Path | str) -> str:
        """Return the text of a file of the host."""
        return self.path(path).read_text(encoding="utf-8", errors="surrogateescape")

    def write_text(self, path: Path | str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of the host, root's, with its directories (0755)."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)

    def append_text(self, path: Path | str, text: str, *, mode: int = 0o644) -> None:
        """Add to a file of the host, or make it."""
        old = self.read_text(path) if self.path(path).exists() else ""
        self.write_text(path, old + text, mode=mode)

    def add_device(self, device: Path) -> Path:
        """Show one block device of the machine in the host's /dev; return its path there.

        A mapping keeps its name below /dev/mapper.
        """
        inside = Path("/dev") / device.relative_to("/dev")
        node = self.root / inside.relative_to("/")
        node.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        return inside

    def remove_device(self, device: Path) -> None:
        """Take a block device out of the host's /dev again."""
        if self.is_alive:
            (self.root / device.relative_to("/")).unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill its first process, and so all others, and wait for the end.

        That is no power cut: peers see a clean end of each connection, and the kernel unmounts
        what was mounted inside, so even unsynced data reaches the disk.
        """
        if self._identity is not None and self._identity.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._unshare is not None:
            # unshare reaps the first process, which the kernel lets die only after all the others.
            self._unshare.wait(END_S)

    def close(self) -> None:
        """Kill it and forget it; may be called twice."""
        if self._unshare is None:
            return
        if self in up:
            up.remove(self)
        try:
            if self._identity is None:
                self._unshare.kill()
                self._unshare.wait(END_S)
            else:
                self.kill()
            ledger.release(self._entry)
        finally:
            self._unshare.close()


def wait_for_file(host: Host, path: Path | str, *, timeout_s: float = 10) -> Path:
    """Wait until a file exists in the host and is not empty; return it as seen from here."""
    file = host.path(path)
    wait.until(
        lambda: file.exists() and file.stat().st_size > 0, timeout_s=timeout_s, what=f"{path} on {host.name}"
    )
    return file
